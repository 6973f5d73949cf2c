//! Two domains send each other messages, over a ring in memory that one grants to the other: `cargo xen run ping` starts both.
//!
//! The toolstack tells each the other's number, `peer=N`. The first grants a page, makes a ring in it and a port to notify the
//! other by, and offers both by their numbers. The second finds these on its command line, and answers.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use core::time::Duration;

use domu::gnttab::{Granted, Mapping, ReadWrite, Reference};
use domu::shared::{BackRing, FrontRing};
use domu::{Domain, DomainId, eventchn, time};

domu::main!(main);

/// A message, as it lies in the ring: text, filled up with zeroes.
type Message = [u8; 32];

/// How many messages are answered.
const COUNT: u32 = 5;

async fn main(domain: Domain) -> domu::Result {
    let number = |key| {
        let value: String = domain.words().find_map(|word| word.value_of(key))?.map(char::from).collect();
        value.parse().ok()
    };
    let Some(peer) = number("peer").and_then(|number| u16::try_from(number).ok()).map(DomainId) else {
        log::warn!("there is nobody to talk to: `cargo xen run ping` starts two domains, and gives each the other");
        return Ok(());
    };
    match (number("reference"), number("port")) {
        (Some(reference), Some(port)) => answer(peer, Reference(reference), port).await,
        _ => ask(peer).await,
    }
}

/// The first domain: its memory, its questions.
async fn ask(peer: DomainId) -> domu::Result {
    let memory = Granted::<ReadWrite>::new(peer, 1).await?;
    let port = eventchn::alloc_unbound(peer)?;
    for reference in memory.references() {
        log::info!("@offer reference={reference} port={}", port.number());
    }
    let mut ring = FrontRing::<Message, Message, _>::new(memory);
    for count in 1..=COUNT {
        ring.push(&message(&format!("ping {count}")))?;
        // Nobody is notified who is looking anyway.
        if ring.publish() {
            port.notify()?;
        }
        let answer = port.until(|| ring.poll_response().transpose()).await?;
        log::info!("domain {peer} answers: {}", text(&answer));
        time::sleep(Duration::from_secs(1)).await;
    }
    // The ring goes, and the grant with it. A page that the peer still had mapped would be kept back until it has not.
    Ok(())
}

/// The second domain: the other's memory, and answers.
async fn answer(peer: DomainId, reference: Reference, port: u32) -> domu::Result {
    let memory = Mapping::<ReadWrite>::new(peer, &[reference]).await?;
    let port = eventchn::bind_interdomain(peer, port)?;
    let mut ring = BackRing::<Message, Message, _>::attach(memory)?;
    for count in 1..=COUNT {
        let question = port.until(|| ring.poll_request().transpose()).await?;
        log::info!("domain {peer} says: {}", text(&question));
        ring.push(&message(&format!("pong {count}")))?;
        if ring.publish() {
            port.notify()?;
        }
    }
    Ok(())
}

fn message(text: &str) -> Message {
    let mut message = Message::default();
    let length = text.len().min(message.len());
    message[..length].copy_from_slice(&text.as_bytes()[..length]);
    message
}

/// The text of a message, whatever bytes the peer has sent.
fn text(message: &Message) -> impl core::fmt::Display + use<'_> {
    message.split(|byte| *byte == 0).next().unwrap_or_default().escape_ascii()
}
