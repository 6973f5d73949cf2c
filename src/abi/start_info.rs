//! The start info of the PVH boot protocol (`arch-x86/hvm/start_info.h`), as the [`pvh`] crate defines it.

pub use pvh::start_info::{MemmapTableEntry, ModlistEntry, START_MAGIC_VALUE, Sif, StartInfo};
