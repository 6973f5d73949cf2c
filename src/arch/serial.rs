//! The first serial port, for the one message that must be seen where there is no Xen to print it.

use super::{input, out};

/// The base of the first port of a PC.
const BASE: u16 = 0x3f8;
const LINE_STATUS: u16 = BASE + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

/// Looks at the status register this often for room before it takes the port for absent or dead.
const PATIENCE: u32 = 100_000;

/// Sets 115200 baud, 8N1, and writes the text; gives up where the port does not answer.
pub(crate) fn write(text: &[u8]) {
    // An absent port reads as ones.
    if input(LINE_STATUS) == 0xff {
        return;
    }
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 0xc7), (4, 3)] {
        out(BASE + register, value);
    }
    for &byte in text {
        if (0..PATIENCE).all(|_| input(LINE_STATUS) & TRANSMITTER_EMPTY == 0) {
            return;
        }
        out(BASE, byte);
    }
}
