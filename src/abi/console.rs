//! The console ring page (`io/console.h`, `struct xencons_interface`).

/// Byte offset of the input buffer.
#[doc(alias = "in")]
pub const IN: usize = 0;
/// Bytes in the input buffer; a power of two, indices run freely.
pub const IN_SIZE: u32 = 1024;
/// Byte offset of the input consumer index, which the guest writes.
#[doc(alias = "in_cons")]
pub const IN_CONS: usize = 3072;
/// Byte offset of the input producer index, which the backend writes.
#[doc(alias = "in_prod")]
pub const IN_PROD: usize = 3076;
/// Byte offset of the output buffer.
#[doc(alias = "out")]
pub const OUT: usize = 1024;
/// Bytes in the output buffer; a power of two, indices run freely.
pub const OUT_SIZE: u32 = 2048;
/// Byte offset of the output consumer index, which the backend writes.
#[doc(alias = "out_cons")]
pub const OUT_CONS: usize = 3080;
/// Byte offset of the output producer index, which the guest writes.
#[doc(alias = "out_prod")]
pub const OUT_PROD: usize = 3084;
/// Byte offset of the flag that says whether a backend serves the ring; before Xen 4.21 it is always zero.
#[doc(alias = "connection")]
pub const CONNECTION: usize = 3088;
/// The flag's value while a backend serves the ring.
#[doc(alias = "XENCONSOLE_CONNECTED")]
pub const CONNECTED: u8 = 0;
