//! One of two domains that send each other events.
//!
//! The first makes a port for the second, offers its number, and answers as many events as `count=` says. The second binds to
//! it, sends them, each when the last is answered, and says that none was lost.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use core::fmt::Write;

use domu::{Domain, DomainId, eventchn};
use domu_guests::{option, verdict};

domu::main!(main);

async fn main(domain: Domain) -> Result<(), &'static str> {
    let (Some(peer), Some(count)) = (option(&domain, "peer"), option(&domain, "count")) else {
        return Err("the command line names no peer or no count");
    };
    match option(&domain, "port") {
        None => verdict(&domain, "peer.listen", listen(&domain, DomainId(peer as u16), count).await),
        Some(port) => verdict(&domain, "peer.connect", connect(DomainId(peer as u16), port as u32, count).await),
    }
    Ok(())
}

async fn listen(domain: &Domain, peer: DomainId, count: u64) -> Result<(), String> {
    let said = |error: eventchn::Error| format!("{error}");
    let port = eventchn::alloc_unbound(peer).map_err(said)?;
    writeln!(domain.console(), "@offer port={}", port.number()).map_err(|error| format!("{error}"))?;
    let mut seen = 0;
    while seen < count {
        seen = port.after(seen).await.map_err(said)?;
        port.notify().map_err(said)?;
    }
    if seen == count { Ok(()) } else { Err(format!("{seen} events instead of {count}")) }
}

async fn connect(peer: DomainId, port: u32, count: u64) -> Result<(), String> {
    let said = |error: eventchn::Error| format!("{error}");
    let port = eventchn::bind_interdomain(peer, port).map_err(said)?;
    // The first comes with the binding.
    let mut seen = port.after(0).await.map_err(said)?;
    for _ in 0..count {
        port.notify().map_err(said)?;
        seen = port.after(seen).await.map_err(said)?;
    }
    if seen == count + 1 { Ok(()) } else { Err(format!("{seen} answers to {count} events")) }
}
