//! Emergency output: what must be said when the console is not there, not yet there, or not to be trusted.
//!
//! It goes through the console hypercall where that is allowed, to a privileged domain or on a debug build of Xen, and
//! else to Xen's debug port, which any domain may write and which costs an exit or two for a whole line; a boot that
//! goes well says nothing here. What is said is
//! also kept at the symbol `domu_last_words`, where `xl dump-core` and a debugger find it.

use core::fmt::{self, Write};

use crate::arch;
use crate::hypercall;

/// Bytes that are collected before they are written out, so that a message is one burst.
const BURST: usize = 512;

/// Says something in one burst.
pub(crate) fn say(message: fmt::Arguments<'_>) {
    let mut voice = Voice::default();
    // Formatting fails only if an argument's own code does; what came before is still said.
    let _ = voice.write_fmt(message);
    voice.burst();
}

/// Collects text and hands it out.
#[derive(Default)]
struct Voice {
    text: heapless::Vec<u8, BURST>,
}

impl Voice {
    fn burst(&mut self) {
        last_words::add(&self.text);
        // Refused on a release build of Xen for all but the initial domain. Both would show the text twice.
        if !hypercall::present() || hypercall::console_io_write(&self.text).is_err() {
            arch::out_bytes(arch::DEBUG_PORT, &self.text);
        }
        self.text.clear();
    }
}

impl fmt::Write for Voice {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for chunk in text.as_bytes().chunks(64) {
            if self.text.extend_from_slice(chunk).is_err() {
                self.burst();
                // Cannot fail: the buffer is empty and larger than a chunk.
                let _ = self.text.extend_from_slice(chunk);
            }
        }
        Ok(())
    }
}

/// The last words of a unikernel, at a fixed symbol.
#[cfg(target_os = "none")]
mod last_words {
    use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

    /// Bytes that are kept, a whole report; what comes later is cut.
    const SIZE: usize = 4096 - 16;

    /// By which tools find the structure; it stands there as soon as there are words.
    const MAGIC: [u8; 12] = *b"domu's last:";

    /// Layout for tools that read a memory image: a magic, the length, then the text.
    #[repr(C)]
    struct LastWords {
        magic: [AtomicU8; 12],
        length: AtomicU32,
        text: [AtomicU8; SIZE],
    }

    #[unsafe(export_name = "domu_last_words")]
    static LAST_WORDS: LastWords = LastWords {
        magic: [const { AtomicU8::new(0) }; 12],
        length: AtomicU32::new(0),
        text: [const { AtomicU8::new(0) }; SIZE],
    };

    /// Appends what fits.
    pub(super) fn add(bytes: &[u8]) {
        LAST_WORDS.magic.iter().zip(MAGIC).for_each(|(place, byte)| place.store(byte, Ordering::Relaxed));
        let start = LAST_WORDS.length.load(Ordering::Relaxed) as usize;
        for (place, &byte) in LAST_WORDS.text.iter().skip(start).zip(bytes) {
            place.store(byte, Ordering::Relaxed);
        }
        let end = SIZE.min(start + bytes.len());
        LAST_WORDS.length.store(end as u32, Ordering::Relaxed);
    }
}

/// On the host nobody reads a memory image: the simulated debug port keeps what was said.
#[cfg(not(target_os = "none"))]
mod last_words {
    pub(super) const fn add(_: &[u8]) {}
}
