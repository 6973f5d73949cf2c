//! Ends in the way that its command line names: `ok`, `err`, `panic`, `nested` or `reboot`.

#![no_std]
#![no_main]

use core::fmt;

use domu::Domain;
use domu::lifecycle::{self, Reason};

domu::main!(main);

/// Panics when it is formatted, as the message of a panic.
struct Bomb;

impl fmt::Display for Bomb {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("this one must not hang the domain")
    }
}

async fn main(domain: Domain) -> Result<(), &'static str> {
    match domain.command_line() {
        b"ok" => Ok(()),
        b"err" => Err("the reason is printed"),
        b"panic" => panic!("the reason is printed"),
        b"nested" => panic!("{Bomb}"),
        b"reboot" => lifecycle::end(Reason::Reboot),
        _ => Err("the command line names no end"),
    }
}
