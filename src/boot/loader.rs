//! What the loader left beside the image: the start info, the command line and the modules.
//!
//! All of it lies in RAM that counts as free. Each piece is held against the memory map before it is looked at, stays
//! where it is, and is taken out of free RAM, so that nothing overwrites it. A piece that is not in RAM is left out,
//! with a warning: the toolstack made a mistake, and a fault would not say so.

use core::alloc::Layout;

use pvh::start_info::reader::MemMap;

use crate::abi::start_info::{ModlistEntry, StartInfo};
use crate::arch;
use crate::domain::MAX_MODULES;
use crate::domain::{MAX_COMMAND_LINE, Module};
use crate::memory::{FrameRange, Frames};

/// What the boot tables map: everything that is read before the final ones are in force lies below.
const FOUR_GIB: u64 = 1 << 32;

/// Guest-physical memory as the start info's reader sees it: only what the boot tables map.
pub(super) struct Physical;

impl MemMap for Physical {
    fn ptr(&self, paddr: usize, layout: Layout) -> *const u8 {
        if (paddr as u64).saturating_add(layout.size() as u64) > FOUR_GIB {
            return core::ptr::null();
        }
        let pointer = arch::phys(paddr as u64);
        if pointer.addr().is_multiple_of(layout.align()) { pointer } else { core::ptr::null() }
    }
}

/// Bytes that are kept for the life of the domain, and whether there were more.
#[derive(Clone, Copy, Default)]
pub(super) struct Text {
    pub(super) bytes: &'static [u8],
    pub(super) cut: bool,
}

/// What the application is given of it.
#[derive(Default)]
pub(super) struct Loaded {
    pub(super) command_line: Text,
    pub(super) modules: heapless::Vec<Module, MAX_MODULES>,
    /// What was wrong, to be said when there is a log.
    pub(super) warnings: heapless::Vec<&'static str, 8>,
}

impl Loaded {
    /// Finds the pieces that the start info names, and takes them out of `free`.
    ///
    /// # Safety
    ///
    /// The loader wrote what the start info names, wherever that lies in `ram`; nothing has overwritten it, and nothing
    /// will write to it but through `free`. The boot tables map `ram` up to 4 GiB.
    pub(super) unsafe fn read(start_info: &StartInfo, ram: &Frames, free: &mut Frames) -> Self {
        let mut pieces = Pieces { ram, free };
        let mut loaded = Self::default();
        if start_info.cmdline_paddr != 0 {
            // SAFETY: the caller vouches for the memory, and `text` for looking at RAM only.
            match unsafe { pieces.text(start_info.cmdline_paddr) } {
                Some(text) => loaded.command_line = text,
                None => loaded.warn("the command line does not lie in RAM, and is not used"),
            }
        }
        let count = (start_info.nr_modules as usize).min(MAX_MODULES);
        if start_info.nr_modules as usize > MAX_MODULES {
            loaded.warn("more modules were passed than are kept");
        }
        let size = size_of::<ModlistEntry>() as u64;
        let Some(list) = pieces.keep(start_info.modlist_paddr, size * count as u64) else {
            if count > 0 {
                loaded.warn("the list of modules does not lie in RAM, and no module is used");
            }
            return loaded;
        };
        for index in 0..count {
            // SAFETY: `keep` found `count` entries in RAM below 4 GiB, where the caller vouches for what the loader
            // wrote; they need not be aligned.
            let entry = unsafe { list.cast::<ModlistEntry>().add(index).read_unaligned() };
            // SAFETY: as for the command line.
            match unsafe { pieces.module(&entry) } {
                // Cannot fail: at most as many are taken as fit.
                Some(module) => drop(loaded.modules.push(module)),
                None => loaded.warn("a module does not lie in RAM, and is left out"),
            }
        }
        loaded
    }

    fn warn(&mut self, warning: &'static str) {
        // The same few texts, each once for what it concerns; one that no longer fits says nothing new.
        let _ = self.warnings.push(warning);
    }
}

/// The memory that pieces may lie in.
struct Pieces<'a> {
    ram: &'a Frames,
    free: &'a mut Frames,
}

impl Pieces<'_> {
    /// Takes a piece out of free RAM, if it is RAM that the boot tables map.
    fn keep(&mut self, address: u64, size: u64) -> Option<*mut u8> {
        if address.checked_add(size).is_none_or(|end| end > FOUR_GIB) {
            return None;
        }
        self.reserve(address, size).then(|| arch::phys(address))
    }

    /// Takes a piece out of free RAM, if it is RAM.
    fn reserve(&mut self, address: u64, size: u64) -> bool {
        let frames = FrameRange::touching(address, size);
        // A set that cannot hold the two halves drops the smaller one: RAM is lost, and the piece is out all the same.
        address != 0 && size != 0 && self.ram.contains(frames) && self.free.remove(frames).is_ok()
    }

    /// The text at an address, up to its NUL byte or the limit.
    ///
    /// # Safety
    ///
    /// As for [`Loaded::read`].
    unsafe fn text(&mut self, address: u64) -> Option<Text> {
        let mut length = 0;
        let ended = loop {
            let at = address.checked_add(length as u64)?;
            if (length == 0 || at % 4096 == 0) && (at >= FOUR_GIB || !self.ram.contains(FrameRange::touching(at, 1))) {
                return None;
            }
            // SAFETY: the byte lies in RAM that the boot tables map, as just checked for its page, and the caller
            // vouches that nothing writes there.
            if unsafe { arch::phys(at).read() } == 0 {
                break true;
            }
            if length == MAX_COMMAND_LINE {
                break false;
            }
            length += 1;
        };
        let start = self.keep(address, length as u64 + 1)?;
        // SAFETY: all of these bytes were read above; their frames are out of free RAM for good.
        Some(Text { bytes: unsafe { core::slice::from_raw_parts(start, length) }, cut: !ended })
    }

    /// A module, with its own command line.
    ///
    /// # Safety
    ///
    /// As for [`Loaded::read`].
    unsafe fn module(&mut self, entry: &ModlistEntry) -> Option<Module> {
        let command_line = match entry.cmdline_paddr {
            0 => Text::default(),
            // SAFETY: passed on from the caller.
            address => unsafe { self.text(address) }?,
        };
        let data: &'static [u8] = match entry.size {
            0 => &[],
            size if self.reserve(entry.paddr, size) => {
                // SAFETY: all of it is RAM, which the final tables map; the caller vouches for its content, and its
                // frames are out of free RAM for good. RAM ends far below what a slice can span.
                unsafe { core::slice::from_raw_parts(arch::phys(entry.paddr), size as usize) }
            }
            _ => return None,
        };
        Some(Module { data, command_line: command_line.bytes })
    }
}
