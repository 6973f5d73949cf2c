//! A block back end, and a disk that loses what a power cut may lose.
//!
//! [`Disk`] is the disk, in the hands of the test, and [`serve()`] the program of a domain that serves it to a front end, as its
//! [`Options`] say: with persistent grants or without, with indirect requests or not, with a flush, with barriers only, or with
//! neither; at any pace, and with lies.

mod disk;
mod serve;

pub use disk::{Disk, PowerCut};
pub use serve::{Lie, Options, serve};
