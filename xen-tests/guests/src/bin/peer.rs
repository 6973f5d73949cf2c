//! One of two domains that send each other events.
//!
//! `listen DOMAIN COUNT` makes a port for a domain, tells its number (`@port N`), and answers COUNT events; `connect
//! DOMAIN PORT COUNT` binds to it, sends COUNT events, each when the last is answered, and says that none was lost.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use domu::{Domain, DomainId, eventchn};
use domu_guests::verdict;

domu::main!(main);

async fn main(domain: Domain) -> Result<(), &'static str> {
    let words: Vec<&str> = domain.words().filter_map(|word| core::str::from_utf8(word.raw()).ok()).collect();
    let number = |index: usize| words.get(index).and_then(|word| word.parse::<u64>().ok());
    match (words.first(), number(1), number(2), number(3)) {
        (Some(&"listen"), Some(peer), Some(count), _) => {
            verdict(&domain, "peer.listen", listen(&domain, DomainId(peer as u16), count).await);
        }
        (Some(&"connect"), Some(peer), Some(port), Some(count)) => {
            verdict(&domain, "peer.connect", connect(DomainId(peer as u16), port as u32, count).await);
        }
        _ => return Err("the command line is not understood"),
    }
    Ok(())
}

async fn listen(domain: &Domain, peer: DomainId, count: u64) -> Result<(), String> {
    let said = |error: eventchn::Error| format!("{error}");
    let port = eventchn::alloc_unbound(peer).map_err(said)?;
    writeln!(domain.console(), "@port {}", port.number()).map_err(|error| format!("{error}"))?;
    let mut seen = 0;
    while seen < count {
        seen = port.after(seen).await;
        port.notify().map_err(said)?;
    }
    if seen == count { Ok(()) } else { Err(format!("{seen} events instead of {count}")) }
}

async fn connect(peer: DomainId, port: u32, count: u64) -> Result<(), String> {
    let said = |error: eventchn::Error| format!("{error}");
    let port = eventchn::bind_interdomain(peer, port).map_err(said)?;
    // The first comes with the binding.
    let mut seen = port.after(0).await;
    for _ in 0..count {
        port.notify().map_err(said)?;
        seen = port.after(seen).await;
    }
    if seen == count + 1 { Ok(()) } else { Err(format!("{seen} answers to {count} events")) }
}
