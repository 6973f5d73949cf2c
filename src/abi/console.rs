//! The console ring page (`io/console.h`, `struct xencons_interface`).

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
