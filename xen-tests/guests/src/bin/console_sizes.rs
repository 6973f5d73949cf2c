//! Writes a pattern to the console in one piece, and nothing else; gives up when nobody reads for ten seconds.
//!
//! The first words of its command line are `SIZE`, or `lf SIZE` for a pattern with line feeds around every boundary of the
//! ring; `domu.log=off` keeps the log out of it. The tool
//! computes the same pattern and compares byte for byte.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;
use core::time::Duration;

use domu::time;

#[path = "../../../suite/src/pattern.rs"]
#[expect(dead_code, reason = "each guest uses a part of it")]
mod pattern;

domu::main!(main);

async fn main(domain: domu::Domain) -> Result<(), &'static str> {
    let line = core::str::from_utf8(domain.command_line()).map_err(|_| "the command line is not text")?;
    let mut words = line.split(' ');
    let (line_feeds, size) = match words.next() {
        Some("lf") => (true, words.next().unwrap_or_default()),
        size => (false, size.unwrap_or_default()),
    };
    let size: usize = size.parse().map_err(|_| "the command line is not a size")?;
    let byte = if line_feeds { pattern::console_byte_lf } else { pattern::console_byte };
    let bytes: Vec<u8> = (0..size).map(byte).collect();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        match time::timeout(Duration::from_secs(10), domain.console().write(rest)).await {
            Ok(Ok(count)) => rest = &rest[count..],
            Ok(Err(_)) | Err(time::Elapsed) => return Err("the console did not take all bytes"),
        }
    }
    Ok(())
}
