//! The front end of a disk or a network interface that Linux serves in dom0. The command line has the class, `vbd` or `vif`,
//! and `times=N`: how often it is to connect by itself. For the rest dom0 does what it says, each time with a line `@WORD`.
//!
//! Each connection is used, in both directions: a sector is written and read again, or a frame is sent and its answer taken.
//!
//! * `frontend.found`: the device is listed, and what the back end offers can be read.
//! * `frontend.again`: it connects, closes and connects again, many times, and that takes no memory.
//! * `frontend.detached`: after `@detach` the connection closes, and the device is gone.
//! * `frontend.attached`: after `@attach` there is a device again.
//! * `frontend.rebound`: after `@rebind` the back end's driver has left it and begun again, and there is another connection.
//! * `frontend.removed`: after `@remove` the device is gone without a word.
//! * `frontend.nothing_left`: no grant is in use.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use domu::eventchn::{self, Port};
use domu::gnttab::{self, Granted, ReadWrite};
use domu::shared::FrontRing;
use domu::xenbus::{self, ErrorKind, Frontend, State};
use domu::xenstore::{Path, Xenstore};
use domu::{Domain, memory, time};
use domu_guests::disk::{Disk, SECTOR};
use domu_guests::{ensure, no_more_memory, option, said, soon, verdict};

domu::main!(main);

/// Connections that nobody looked at the ring of, and how many of some thirty there may be.
static UNSERVED: AtomicU32 = AtomicU32::new(0);
const MOST_UNSERVED: u32 = 2;

type Result<T = ()> = core::result::Result<T, String>;

/// A frame to be sent, and what became of it.
type TransmitRing = FrontRing<[u8; 12], [u8; 4], Granted<ReadWrite>>;

async fn main(domain: Domain) -> Result {
    let class = if domain.words().any(|word| word.raw() == b"vbd") { "vbd" } else { "vif" };
    let times = option(&domain, "times").unwrap_or(10);
    let store = domain.xenstore();
    // A step that fails leaves the device as the next does not expect it.
    let judge = |step: &str, result: Result| {
        verdict(&domain, &format!("frontend.{step}"), result.clone());
        result
    };
    let found = found(&store, class).await;
    judge("found", found.as_ref().map(|_| ()).map_err(Clone::clone))?;
    let mut front = found?;
    judge("again", again(&mut front, class, times).await)?;
    judge("detached", detached(domain, &store, class, &mut front).await)?;
    judge("attached", attached(domain, &store, class, &mut front).await)?;
    judge("rebound", rebound(domain, &mut front, class).await)?;
    judge("removed", removed(domain, &mut front, class).await)?;
    judge("nothing_left", nothing_left().await)
}

/// Tells dom0 what to do.
fn tell(domain: Domain, word: &str) -> Result {
    writeln!(domain.console(), "@{word}").map_err(said)
}

/// Waits until there is a device of a class, and opens it.
async fn open(store: &Xenstore, class: &str) -> Result<Frontend> {
    let directory = Path::new("device").and_then(|path| path.join(class)).map_err(said)?;
    let mut watch = store.watch(directory).await.map_err(said)?;
    loop {
        if let [path] = &xenbus::frontends(store, class).await.map_err(said)?[..] {
            return Frontend::open(store, path).await.map_err(said);
        }
        watch.next().await.map_err(said)?;
    }
}

async fn found(store: &Xenstore, class: &str) -> Result<Frontend> {
    let mut front = soon("a device", open(store, class)).await??;
    let device = front.device();
    let (id, word) = if class == "vbd" { ("51712", "params") } else { ("0", "script") };
    ensure(device.id() == id && device.peer().0 == 0, || format!("{device:?}"))?;
    front.read(word).await.map_err(said)?;
    soon("a back end", front.prepare()).await?.map_err(said)?;
    let feature = if class == "vbd" { "max-ring-page-order" } else { "feature-rx-copy" };
    // The first is larger, and cut.
    ensure(front.feature(feature, 0u32, 1).await == Ok(1), || format!("no {feature}"))?;
    ensure(front.feature("feature-of-nobody", 7u32, 9).await == Ok(7), || "a feature that there is not".into())?;
    ensure(front.peer_state().await == Ok(Some(State::INIT_WAIT)), || "the back end does not wait".into())?;
    Ok(front)
}

/// A connection.
enum Connection {
    Disk(Disk),
    Network { transmit: TransmitRing, receive: Granted<ReadWrite>, port: Port },
}

impl Connection {
    /// Connects, and uses the connection.
    async fn new(front: &mut Frontend, class: &str) -> Result<Self> {
        if class == "vbd" {
            let mut disk = soon("a connection", Disk::connect(front)).await?.map_err(said)?;
            let sectors: u64 = front.read("sectors").await.map_err(said)?.number().map_err(said)?;
            ensure(sectors == 2048, || format!("{sectors} sectors"))?;
            let pattern: [u8; SECTOR] = core::array::from_fn(|index| (index * 7) as u8 ^ time::now().as_nanos() as u8);
            soon("a write", disk.write(3, &pattern)).await?.map_err(said)?;
            let found = soon("a read", disk.read(3)).await?.map_err(said)?;
            ensure(found == pattern, || "what was written is not what is read".into())?;
            return Ok(Self::Disk(disk));
        }
        // Linux 6.12 leaves the port of one connection in some hundred masked after its first event, which it has pending then,
        // and never looks at the ring. Another connection is what a driver has against that.
        loop {
            if let Some(network) = Self::network(front).await? {
                return Ok(network);
            }
            let unserved = UNSERVED.fetch_add(1, Ordering::Relaxed) + 1;
            ensure(unserved <= MOST_UNSERVED, || format!("{unserved} connections were not served"))?;
            soon("a close", front.close()).await?.map_err(said)?;
        }
    }

    /// Connects to a network, and has a frame sent; nothing if nobody takes it.
    async fn network(front: &mut Frontend) -> Result<Option<Self>> {
        soon("a back end", front.prepare()).await?.map_err(said)?;
        let peer = front.device().peer();
        let port = eventchn::alloc_unbound(peer).map_err(said)?;
        let granted = async || Granted::<ReadWrite>::new(peer, 1).await.map_err(said);
        let [transmit, receive] = [granted().await?, granted().await?];
        let [out, into] = [&transmit, &receive].map(|ring| ring.references().next().map_or(0, |reference| reference.0));
        let mut transmit = FrontRing::new(transmit);
        let details: &xenbus::Details<'_> = &[
            ("tx-ring-ref", &out),
            ("rx-ring-ref", &into),
            ("event-channel", &port.number()),
            ("request-rx-copy", &1),
            ("feature-rx-notify", &1),
        ];
        soon("a connection", front.connect(State::CONNECTED, details)).await?.map_err(said)?;
        ensure(front.state() == State::CONNECTED, || "it is not connected".into())?;
        // To everyone, of a protocol for experiments.
        let frame = granted().await?;
        frame.memory().write(0, &[0xff; 6]);
        frame.memory().write(12, &[0x88, 0xb5]);
        match time::timeout(Duration::from_secs(5), send(&mut transmit, &port, &frame)).await {
            Ok(sent) => sent?,
            Err(time::Elapsed) => {
                let [count, binding] = [said(port.count()), said(port.binding())];
                log::warn!("nobody looks at the ring of {binding}, which has sent {count} events: {transmit:?}");
                return Ok(None);
            }
        }
        frame.end().map_err(said)?;
        Ok(Some(Self::Network { transmit, receive, port }))
    }

    /// Ends what the back end, which is closed, was given.
    fn end(self) -> Result {
        match self {
            Self::Disk(disk) => disk.end().map_err(said),
            Self::Network { transmit, receive, port } => {
                drop(port);
                receive.end().map_err(said)?;
                transmit.into_memory().end().map(drop).map_err(said)
            }
        }
    }
}

/// Has a frame of 60 bytes sent.
async fn send(ring: &mut TransmitRing, port: &Port, data: &Granted<ReadWrite>) -> Result {
    let reference = data.references().next().map_or(0, |reference| reference.0);
    let mut request = [0; 12];
    request[..4].copy_from_slice(&reference.to_le_bytes());
    request[8] = 5;
    request[10] = 60;
    ring.push(&request).map_err(said)?;
    if ring.publish() {
        port.notify().map_err(said)?;
    }
    let response = port.until(|| ring.poll_response().transpose()).await.map_err(said)?.map_err(said)?;
    ensure(response == [5, 0, 0, 0], || format!("{response:?}"))
}

async fn again(front: &mut Frontend, class: &str, times: u64) -> Result {
    let mut live = Vec::with_capacity(2);
    let start = time::now();
    for count in [2, times] {
        for _ in 0..count {
            let connection = Connection::new(front, class).await?;
            soon("a close", front.close()).await?.map_err(said)?;
            connection.end()?;
        }
        nothing_left().await?;
        live.push(memory::quick_stat().live);
    }
    log::info!("{} connections took {} ms", times + 2, start.elapsed().as_millis());
    no_more_memory(live[0], live[1])
}

/// Closes a connection whose device may be removed meanwhile.
async fn close(front: &mut Frontend, connection: Connection) -> Result {
    match soon("a close", front.close()).await? {
        Ok(()) => connection.end(),
        // What the back end has still in use is kept back.
        Err(error) if error == ErrorKind::Gone => {
            drop(connection);
            Ok(())
        }
        Err(error) => Err(said(error)),
    }
}

async fn detached(domain: Domain, store: &Xenstore, class: &str, front: &mut Frontend) -> Result {
    let connection = Connection::new(front, class).await?;
    tell(domain, "detach")?;
    let closing = soon("a detach", front.until_closing()).await?;
    log::info!("detached: {closing:?}, {} and {:?}", front.state(), front.peer_state().await);
    ensure(closing == Ok(()), || "it is gone at once".into())?;
    close(front, connection).await?;
    let prepared = soon("the end", front.prepare()).await?;
    ensure(prepared.as_ref().is_err_and(|error| *error == ErrorKind::Gone), || said(prepared))?;
    let left = xenbus::frontends(store, class).await.map_err(said)?;
    ensure(left.is_empty(), || said(left))
}

async fn attached(domain: Domain, store: &Xenstore, class: &str, front: &mut Frontend) -> Result {
    tell(domain, "attach")?;
    *front = soon("a device", open(store, class)).await??;
    let connection = Connection::new(front, class).await?;
    soon("a close", front.close()).await?.map_err(said)?;
    connection.end()
}

async fn rebound(domain: Domain, front: &mut Frontend, class: &str) -> Result {
    let connection = Connection::new(front, class).await?;
    tell(domain, "rebind")?;
    // Linux says nothing when a driver leaves a back end, which may then be bound again.
    soon("a new beginning", front.until_closing()).await?.map_err(said)?;
    log::info!("rebound: {} and {:?}", front.state(), front.peer_state().await);
    soon("a close", front.close()).await?.map_err(said)?;
    connection.end()?;
    let connection = Connection::new(front, class).await?;
    soon("a close", front.close()).await?.map_err(said)?;
    connection.end()
}

async fn removed(domain: Domain, front: &mut Frontend, class: &str) -> Result {
    let connection = Connection::new(front, class).await?;
    tell(domain, "remove")?;
    let closing = soon("the end", front.until_closing()).await?;
    ensure(closing.as_ref().is_err_and(|error| *error == ErrorKind::Gone), || said(closing))?;
    let closed = soon("the end", front.close()).await?;
    ensure(closed.as_ref().is_err_and(|error| *error == ErrorKind::Gone), || said(closed))?;
    drop(connection);
    nothing_left().await
}

/// Waits until no grant is in use.
async fn nothing_left() -> Result {
    let none = async {
        while gnttab::stat().in_use > 0 {
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("the end of grants", none).await.map_err(|_| said(gnttab::stat()))
}
