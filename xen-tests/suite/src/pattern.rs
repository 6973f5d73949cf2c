//! The bytes that guests write and the tool expects: one file, compiled into both.
//!
//! A guest includes it by path, so there is nothing in it but arithmetic on `core`'s types.

/// The sizes that are written to the console: around the ring's 2048 bytes, and far beyond.
pub const CONSOLE_SIZES: [usize; 7] = [1, 2047, 2048, 2049, 4096, 65536, 1_048_576];

/// The size of the console ring's output half.
pub const RING: usize = 2048;

/// The size of the module that a guest is given.
pub const RAMDISK_SIZE: usize = 100_000;

/// Byte `index` of what is written to the console: a line feed now and then, at no fixed distance
/// from the ring's boundaries (61 does not divide 2048), and otherwise visible characters of which
/// a lost or repeated one shows.
pub const fn console_byte(index: usize) -> u8 {
    if index % 61 == 60 { b'\n' } else { b'!' + (index % 89) as u8 }
}

/// The same with a line feed on either side of each boundary of the ring, and two beyond.
pub const fn console_byte_lf(index: usize) -> u8 {
    match index % RING {
        0 | 1 | 2046 | 2047 => b'\n',
        _ => b'!' + (index % 89) as u8,
    }
}

/// Byte `index` of the module: all values, and no two pages alike.
pub const fn ramdisk_byte(index: usize) -> u8 {
    (index * 7 + index / 256) as u8
}

/// Byte `index` of what is typed on the console: all values in no order, each place of them with its own.
pub const fn input_byte(index: usize) -> u8 {
    let mut mixed = (index as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^= mixed >> 32;
    mixed = mixed.wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed >> 56) as u8
}
