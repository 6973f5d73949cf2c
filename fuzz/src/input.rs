//! The input of a case, read by all that it drives: the domain's program, the peer and Xen.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The input, and how far it was read. A clone reads on where the others are. Behind its end there are zeroes.
#[derive(Clone)]
pub struct Input(Arc<(Vec<u8>, AtomicUsize)>);

impl Input {
    pub fn new(bytes: &[u8]) -> Self {
        Self(Arc::new((bytes.to_vec(), AtomicUsize::new(0))))
    }

    /// Whether all of it was read.
    pub fn is_over(&self) -> bool {
        self.0.1.load(Ordering::Relaxed) >= self.0.0.len()
    }

    pub fn u8(&self) -> u8 {
        self.0.0.get(self.0.1.fetch_add(1, Ordering::Relaxed)).copied().unwrap_or(0)
    }

    pub fn u16(&self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    pub fn u32(&self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    pub fn u64(&self) -> u64 {
        u64::from(self.u32()) | u64::from(self.u32()) << 32
    }

    pub fn flag(&self) -> bool {
        self.u8() & 1 != 0
    }

    /// A number below another.
    pub fn below(&self, end: usize) -> usize {
        usize::from(self.u16()) % end.max(1)
    }

    /// Some bytes, up to a number of them.
    pub fn bytes(&self, most: usize) -> Vec<u8> {
        let count = self.below(most + 1);
        (0..count).map_while(|_| (!self.is_over()).then(|| self.u8())).collect()
    }

    /// A number of any size, those around powers of two more often than others.
    pub fn number(&self) -> u64 {
        let near = 1_u64 << (self.u8() % 64);
        match self.u8() % 4 {
            0 => near.wrapping_add(u64::from(self.u8())),
            1 => near.wrapping_sub(u64::from(self.u8())),
            2 => self.u64() & (near - 1),
            _ => u64::from(self.u8()) * 4096,
        }
    }
}
