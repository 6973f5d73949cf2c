//! Two domains send each other messages, over a ring in memory that one grants to the other: `cargo xen run ping` starts both.
//!
//! They find each other in xenstore: the tool makes a device between them, as a toolstack does, whose front end belongs to the
//! first and whose back end to the second. The front end grants a page, makes a ring in it and a port to notify the other by, and
//! publishes the numbers of both. The back end maps the one, binds the other, and answers, until the front end closes.

#![no_std]
#![no_main]

extern crate alloc;

use core::time::Duration;

use alloc::format;
use domu::eventchn::{self, Port};
use domu::executor::spawn;
use domu::gnttab::{Granted, Mapping, ReadWrite, Reference};
use domu::shared::{BackRing, FrontRing};
use domu::time;
use domu::xenbus::{self, Backend, ErrorKind, Frontend, State};

domu::main!(main);

/// What devices of this kind are called in xenstore.
const CLASS: &str = "ping";

/// A message, as it lies in the ring: text, filled up with zeroes.
type Message = [u8; 32];

async fn main(domain: domu::Domain) -> domu::Result {
    let store = domain.xenstore();
    if let [device, ..] = &xenbus::frontends(&store, CLASS).await?[..] {
        return ask(Frontend::open(&store, device).await?).await;
    }
    if let [device, ..] = &xenbus::backends(&store, CLASS).await?[..] {
        return answer(Backend::open(&store, device).await?).await;
    }
    log::warn!("there is nobody to talk to: `cargo xen run ping` starts two domains, and makes a device between them");
    Ok(())
}

/// The front end: its memory, its questions.
async fn ask(mut front: Frontend) -> domu::Result {
    front.prepare().await?;
    let peer = front.device().peer();
    let memory = Granted::<ReadWrite>::new(peer, 1).await?;
    let port = eventchn::alloc_unbound(peer)?;
    for reference in memory.references() {
        let details: &xenbus::Details<'_> = &[("ring-ref", &reference), ("event-channel", &port.number())];
        front.connect(State::INITIALISED, details).await?;
    }
    let mut ring = FrontRing::<Message, Message, _>::new(memory);
    for count in 1..=5 {
        ring.push(&message(&format!("ping {count}")))?;
        // Nobody is notified who is looking anyway.
        if ring.publish() {
            port.notify()?;
        }
        let answer = port.until(|| ring.poll_response().transpose());
        match time::timeout(Duration::from_secs(10), answer).await {
            Ok(answer) => log::info!("domain {peer} answers: {}", text(&answer??)),
            Err(time::Elapsed) => log::warn!("domain {peer} does not answer"),
        }
        time::sleep(Duration::from_secs(1)).await;
    }
    // The ring goes, and the grant with it, when the back end has unmapped it. If it does not, the page is kept back.
    let _ = time::timeout(Duration::from_secs(5), front.close()).await;
    Ok(())
}

/// The back end: the other's memory, and answers.
async fn answer(mut back: Backend) -> domu::Result {
    back.prepare(&[]).await?;
    back.accept().await?;
    let peer = back.device().peer();
    let reference = Reference(back.read("ring-ref").await?.number()?);
    let memory = Mapping::<ReadWrite>::new(peer, &[reference]).await?;
    let port = eventchn::bind_interdomain(peer, back.read("event-channel").await?.number()?)?;
    back.connect(&[]).await?;
    let service = spawn(serve(BackRing::attach(memory)?, port));
    back.until_closing().await?;
    // The mapping ends with it, before the front end is told that it may have its memory back.
    if let Some(Err(error)) = service.abort().await {
        log::warn!("domain {peer} could not be answered: {error}");
    }
    match back.close().await {
        Err(error) if error == ErrorKind::Gone => Ok(()),
        result => Ok(result?),
    }
}

async fn serve(mut ring: BackRing<Message, Message, Mapping<ReadWrite>>, port: Port) -> domu::Result {
    for count in 1.. {
        let question = port.until(|| ring.poll_request().transpose()).await??;
        log::info!("the other says: {}", text(&question));
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
