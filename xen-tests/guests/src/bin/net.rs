//! A network interface that Linux serves in dom0, used frame by frame: the guest answers ARP and pings as 10.7.0.2, fragments of
//! pings among them, until dom0 detaches the interface. For each step dom0 does something, it says a line `@WORD`.
//!
//! * `net.opened`: the interface has the address that the toolstack gave it, and connects after `@attach`.
//! * `net.answered`: after `@ping` it has answered pings of all sizes, and no frame was refused or damaged.
//! * `net.detached`: after `@detach` the task of the interface ends.
//! * `net.nothing_left`: no grant is in use, and no port.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use core::fmt::Write;
use core::time::Duration;

use domu::net::{self, Config, Error, Handle, Link, Metadata, Receiver, Statistics, Transmitter};
use domu::xenbus;
use domu::xenstore::{Path, Xenstore};
use domu::{Domain, eventchn, executor, gnttab, time};
use domu_guests::{ensure, said, soon, verdict};

domu::main!(main);

type Result<T = ()> = core::result::Result<T, String>;

const ADDRESS: [u8; 4] = [10, 7, 0, 2];

async fn main(domain: Domain) -> Result {
    let store = domain.xenstore();
    tell(domain, "attach")?;
    let path = soon("an interface", find(&store)).await??;
    let small = domain.words().any(|word| word.raw() == b"small");
    let config = if small { Config::small() } else { Config::new() };
    let (interface, receiver, transmitter) = net::open(&store, &path, config).await.map_err(said)?;
    let handle = interface.handle();
    let task = executor::spawn(interface.run());
    let link = soon("a connection", handle.link_changed(Link::Down)).await?.map_err(said);
    let opened = link.and_then(|link| ensure(link == Link::Up, || "the link is down".into()));
    verdict(&domain, "net.opened", opened.and_then(|()| is_address(&handle)));
    tell(domain, "ping")?;
    let answering = executor::spawn(answer(receiver, transmitter));
    // Dom0 says so by a node when it has done with pings.
    let done = soon("the end of pings", pinged(&store)).await?;
    verdict(&domain, "net.answered", done.and_then(|()| answered(&handle.statistics())));
    tell(domain, "detach")?;
    let ended = soon("the end of the interface", task).await?.map_err(said);
    let halves = soon("the end of its halves", answering).await?;
    verdict(&domain, "net.detached", ended.and_then(|()| ensure(halves == Error::Closed, || format!("{halves}"))));
    drop(handle);
    time::sleep(Duration::from_secs(1)).await;
    let left = gnttab::stat();
    let port = eventchn::alloc_unbound(domu::DomainId(0)).map_err(said)?.number();
    let clean = left.in_use == 0 && left.deferred == 0 && port < 8;
    verdict(&domain, "net.nothing_left", ensure(clean, || format!("{left:?}, port {port}")));
    Ok(())
}

fn tell(domain: Domain, word: &str) -> Result {
    writeln!(domain.console(), "@{word}").map_err(said)
}

async fn find(store: &Xenstore) -> Result<Path> {
    let mut watch = store.watch("device/vif").await.map_err(said)?;
    loop {
        if let Some(path) = xenbus::frontends(store, "vif").await.map_err(said)?.pop() {
            return Ok(path);
        }
        watch.next().await.map_err(said)?;
    }
}

async fn pinged(store: &Xenstore) -> Result {
    let mut watch = store.watch("data/pinged").await.map_err(said)?;
    while store.read("data/pinged").await.is_err() {
        watch.next().await.map_err(said)?;
    }
    Ok(())
}

fn is_address(handle: &Handle) -> Result {
    let mac = format!("{}", handle.mac());
    ensure(mac == "00:16:3e:00:00:01", || mac)
}

fn answered(count: &Statistics) -> Result {
    log::info!("{count:?}");
    let bad = count.rx_failed + count.rx_bad_checksum + count.tx_failed;
    ensure(bad == 0 && count.tx_frames > 200, || format!("{count:?}"))
}

/// Answers until the interface ends; says how that was.
async fn answer(mut receiver: Receiver, mut transmitter: Transmitter) -> Error {
    let mac = receiver.handle().mac().0;
    loop {
        let frame = match receiver.receive().await {
            Ok(frame) => frame,
            Err(error) => return error,
        };
        let request = frame.bytes();
        if !is_for_us(request) {
            continue;
        }
        let sent = transmitter.send(request.len(), Metadata::default(), |reply| {
            reply.copy_from_slice(request);
            reply[..6].copy_from_slice(&request[6..12]);
            reply[6..12].copy_from_slice(&mac);
            if request[12..14] == [8, 6] {
                reply[21] = 2;
                reply[22..28].copy_from_slice(&mac);
                reply[28..32].copy_from_slice(&ADDRESS);
                reply[32..42].copy_from_slice(&request[22..32]);
                return;
            }
            reply[26..30].copy_from_slice(&request[30..34]);
            reply[30..34].copy_from_slice(&request[26..30]);
            if u16::from_be_bytes([request[20], request[21]]) & 0x1fff == 0 {
                // From 8 to 0: the sum gets what the type loses.
                reply[34] = 0;
                let (sum, carry) = u16::from_be_bytes([request[36], request[37]]).overflowing_add(0x0800);
                reply[36..38].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
            }
        });
        if let Err(error) = sent.await {
            return error;
        }
    }
}

/// A request of ARP, or a ping or a later fragment of one.
fn is_for_us(frame: &[u8]) -> bool {
    if frame.len() < 42 {
        return false;
    }
    let is_arp = frame[12..14] == [8, 6] && frame[20..22] == [0, 1] && frame[38..42] == ADDRESS;
    let is_fragment = u16::from_be_bytes([frame[20], frame[21]]) & 0x1fff != 0;
    let is_icmp = frame[12..15] == [8, 0, 0x45] && frame[30..34] == ADDRESS && frame[23] == 1;
    is_arp || is_icmp && (is_fragment || frame[34] == 8)
}
