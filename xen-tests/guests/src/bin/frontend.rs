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
use core::fmt::{Display, Write};
use core::time::Duration;

use domu::eventchn::{self, Port};
use domu::gnttab::{self, Granted, ReadWrite};
use domu::shared::FrontRing;
use domu::xenbus::{self, Error, Frontend, State};
use domu::xenstore::{Path, Xenstore};
use domu::{Domain, memory, time};
use domu_guests::{ensure, no_more_memory, option, said, soon, verdict};

domu::main!(main);

type Result<T = ()> = core::result::Result<T, String>;

/// A request to a disk, and its response.
type DiskRing = FrontRing<[u8; 112], [u8; 16], Granted<ReadWrite>>;
/// A frame to be sent, and what became of it.
type TransmitRing = FrontRing<[u8; 12], [u8; 4], Granted<ReadWrite>>;

const SECTOR: usize = 512;

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

/// What belongs to a connection.
struct Connection {
    rings: Rings,
    port: Port,
}

enum Rings {
    Disk(DiskRing),
    Network { transmit: TransmitRing, receive: Granted<ReadWrite> },
}

impl Connection {
    /// Connects, and uses the connection.
    async fn new(front: &mut Frontend, class: &str) -> Result<Self> {
        soon("a back end", front.prepare()).await?.map_err(said)?;
        let peer = front.device().peer();
        let port = eventchn::alloc_unbound(peer).map_err(said)?;
        let number = port.number();
        let granted = async |pages| Granted::<ReadWrite>::new(peer, pages).await.map_err(said);
        let rings = if class == "vbd" {
            // Two pages, if the back end takes as many.
            let order = front.feature("max-ring-page-order", 0u32, 1).await.map_err(said)?;
            let ring = granted(1 << order).await?;
            let names: Vec<String> = (0..ring.count()).map(|page| format!("ring-ref{page}")).collect();
            let references: Vec<_> = ring.references().collect();
            let mut details: Vec<(&str, &dyn Display)> =
                [("ring-page-order", &order as &dyn Display), ("event-channel", &number), ("protocol", &"x86_64-abi")]
                    .into();
            details.extend(names.iter().zip(&references).map(|(name, reference)| (&**name, reference as &dyn Display)));
            let rings = Rings::Disk(FrontRing::new(ring));
            soon("a connection", front.connect(State::INITIALISED, &details)).await?.map_err(said)?;
            rings
        } else {
            let [transmit, receive] = [granted(1).await?, granted(1).await?];
            let [out, into] =
                [&transmit, &receive].map(|ring| ring.references().next().map_or(0, |reference| reference.0));
            let rings = Rings::Network { transmit: FrontRing::new(transmit), receive };
            let details: &xenbus::Details<'_> = &[
                ("tx-ring-ref", &out),
                ("rx-ring-ref", &into),
                ("event-channel", &number),
                ("request-rx-copy", &1),
                ("feature-rx-notify", &1),
            ];
            soon("a connection", front.connect(State::CONNECTED, details)).await?.map_err(said)?;
            rings
        };
        ensure(front.state() == State::CONNECTED, || "it is not connected".into())?;
        let mut connection = Self { rings, port };
        connection.use_it(front).await?;
        Ok(connection)
    }

    async fn use_it(&mut self, front: &Frontend) -> Result {
        let Self { rings, port } = self;
        let data = Granted::<ReadWrite>::new(front.device().peer(), 1).await.map_err(said)?;
        match rings {
            Rings::Disk(ring) => {
                let sectors: u64 = front.read("sectors").await.map_err(said)?.number().map_err(said)?;
                ensure(sectors == 2048, || format!("{sectors} sectors"))?;
                let pattern: [u8; SECTOR] = core::array::from_fn(|index| (index * 7) as u8 ^ port.number() as u8);
                data.memory().write(0, &pattern);
                soon("a write", ask_disk(ring, port, 1, 3, &data)).await??;
                data.memory().write(0, &[0; SECTOR]);
                soon("a read", ask_disk(ring, port, 0, 3, &data)).await??;
                let mut found = [0; SECTOR];
                data.memory().read(0, &mut found);
                ensure(found == pattern, || "what was written is not what is read".into())?;
            }
            Rings::Network { transmit, .. } => {
                // To everyone, of a protocol for experiments.
                data.memory().write(0, &[0xff; 6]);
                data.memory().write(12, &[0x88, 0xb5]);
                soon("a frame's answer", send(transmit, port, &data)).await??;
            }
        }
        data.end().map(drop).map_err(said)
    }

    /// Ends what the back end, which is closed, was given.
    fn end(self) -> Result {
        match self.rings {
            Rings::Disk(ring) => ring.into_memory().end().map_err(said)?,
            Rings::Network { transmit, receive } => {
                receive.end().map_err(said)?;
                transmit.into_memory().end().map_err(said)?
            }
        };
        Ok(())
    }
}

/// Has a disk read (0) or write (1) a sector.
async fn ask_disk(ring: &mut DiskRing, port: &Port, operation: u8, sector: u64, data: &Granted<ReadWrite>) -> Result {
    let reference = data.references().next().map_or(0, |reference| reference.0);
    let mut request = [0; 112];
    request[..2].copy_from_slice(&[operation, 1]);
    request[8..16].copy_from_slice(&sector.to_le_bytes());
    request[16..24].copy_from_slice(&sector.to_le_bytes());
    request[24..28].copy_from_slice(&reference.to_le_bytes());
    ring.push(&request).map_err(said)?;
    if ring.publish() {
        port.notify().map_err(said)?;
    }
    let response = port.until(|| ring.poll_response().transpose()).await.map_err(said)?.map_err(said)?;
    ensure(response[..8] == sector.to_le_bytes() && response[10..12] == [0, 0], || format!("{response:?}"))
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
        Err(Error::Gone) => {
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
    ensure(prepared == Err(Error::Gone), || said(prepared))?;
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
    ensure(closing == Err(Error::Gone), || said(closing))?;
    let closed = soon("the end", front.close()).await?;
    ensure(closed == Err(Error::Gone), || said(closed))?;
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
