//! Either end of a device between two domains, whose toolstack dom0 plays. The command line has `times=N`, how often they are to
//! connect, and at last `victim=front` or `victim=back`, which one dies while they are connected: the other says what it finds.
//! When it is the front end's word, dom0 does what it says, each time with a line `@WORD`.
//!
//! * `device.connects`: the front end connects, sends messages that are answered, closes, and again; that takes no memory.
//! * `device.told_to_close`: the back end closes, and is connected to again.
//! * `device.made_anew`: after `@remake` dom0 has had the device closed, removed and made again, and both ends find the new one.
//! * `device.peer_died`: after `@destroy` the one end finds that the other is gone, closes, and has nothing left in use.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

use domu::eventchn::{self, Port};
use domu::gnttab::{self, Granted, Mapping, ReadWrite, Reference};
use domu::shared::{BackRing, FrontRing};
use domu::xenbus::{self, Backend, Error, ErrorKind, Frontend, State};
use domu::xenstore::Xenstore;
use domu::{Domain, memory, time};
use domu_guests::{ensure, no_more_memory, option, said, soon, verdict};

domu::main!(main);

/// What such devices are called in xenstore.
const CLASS: &str = "test";
/// The number that asks the back end to close.
const CLOSE: u64 = 0;

type Result<T = ()> = core::result::Result<T, String>;

async fn main(domain: Domain) -> Result {
    let store = domain.xenstore();
    let dies = |end: &str| domain.words().any(|word| word.raw() == format!("victim={end}").as_bytes());
    if xenbus::frontends(&store, CLASS).await.map_err(said)?.is_empty() {
        return serve(domain, &store, dies("front")).await;
    }
    let times = option(&domain, "times").unwrap_or(10);
    let mut front = soon("a device", open_front(&store)).await??;
    verdict(&domain, "device.connects", connects(&mut front, times).await);
    verdict(&domain, "device.told_to_close", told_to_close(&mut front).await);
    verdict(&domain, "device.made_anew", made_anew(domain, &store, &mut front).await);
    let connection = Connection::new(&mut front).await?;
    writeln!(domain.console(), "@destroy").map_err(said)?;
    if dies("back") {
        verdict(&domain, "device.peer_died", back_died(&mut front, connection).await);
        return Ok(());
    }
    time::sleep(Duration::from_secs(600)).await;
    drop(connection);
    Err("nobody destroys this domain".into())
}

/// Waits until there is a front end, and opens it.
async fn open_front(store: &Xenstore) -> Result<Frontend> {
    let mut watch = store.watch(format!("device/{CLASS}")).await.map_err(said)?;
    loop {
        if let [path] = &xenbus::frontends(store, CLASS).await.map_err(said)?[..] {
            return Frontend::open(store, path).await.map_err(said);
        }
        watch.next().await.map_err(said)?;
    }
}

/// The same for a back end.
async fn open_back(store: &Xenstore) -> Result<Backend> {
    let mut watch = store.watch(format!("backend/{CLASS}")).await.map_err(said)?;
    loop {
        if let [path] = &xenbus::backends(store, CLASS).await.map_err(said)?[..] {
            return Backend::open(store, path).await.map_err(said);
        }
        watch.next().await.map_err(said)?;
    }
}

/// What belongs to a connection, at the front end.
struct Connection {
    ring: FrontRing<u64, u64, Granted<ReadWrite>>,
    port: Port,
}

impl Connection {
    async fn new(front: &mut Frontend) -> Result<Self> {
        soon("a back end", front.prepare()).await?.map_err(said)?;
        ensure(front.feature("feature-test", 0u32, 1).await == Ok(1), || "no feature".into())?;
        let peer = front.device().peer();
        let ring = Granted::<ReadWrite>::new(peer, 1).await.map_err(said)?;
        let port = eventchn::alloc_unbound(peer).map_err(said)?;
        let reference = ring.references().next().ok_or("there is no reference")?;
        let details: &xenbus::Details<'_> = &[("ring-ref", &reference), ("event-channel", &port.number())];
        soon("a connection", front.connect(State::INITIALISED, details)).await?.map_err(said)?;
        Ok(Self { ring: FrontRing::new(ring), port })
    }

    fn tell(&mut self, number: u64) -> Result {
        self.ring.push(&number).map_err(said)?;
        if self.ring.publish() { self.port.notify().map_err(said) } else { Ok(()) }
    }

    /// Sends some numbers, and gets their squares.
    async fn talk(&mut self) -> Result {
        for number in 1..=5 {
            self.tell(number)?;
            let answer = self.port.until(|| self.ring.poll_response().transpose());
            let square = soon("an answer", answer).await?.map_err(said)?.map_err(said)?;
            ensure(square == number * number, || format!("{square}, of {number}"))?;
        }
        Ok(())
    }

    /// Ends the grant of a ring that the back end, which is closed, has unmapped.
    fn end(self) -> Result {
        self.ring.into_memory().end().map(drop).map_err(said)
    }
}

async fn connects(front: &mut Frontend, times: u64) -> Result {
    let mut live = Vec::with_capacity(2);
    let start = time::now();
    for count in [2, times] {
        for _ in 0..count {
            let mut connection = Connection::new(front).await?;
            connection.talk().await?;
            soon("a close", front.close()).await?.map_err(said)?;
            connection.end()?;
        }
        live.push(memory::quick_stat().live);
    }
    log::info!("{} connections took {} ms", times + 2, start.elapsed().as_millis());
    no_more_memory(live[0], live[1])
}

async fn told_to_close(front: &mut Frontend) -> Result {
    for _ in 0..3 {
        let mut connection = Connection::new(front).await?;
        connection.talk().await?;
        connection.tell(CLOSE)?;
        soon("the other's close", front.until_closing()).await?.map_err(said)?;
        soon("a close", front.close()).await?.map_err(said)?;
        connection.end()?;
    }
    Ok(())
}

async fn made_anew(domain: Domain, store: &Xenstore, front: &mut Frontend) -> Result {
    let mut connection = Connection::new(front).await?;
    connection.talk().await?;
    writeln!(domain.console(), "@remake").map_err(said)?;
    soon("the other's close", front.until_closing()).await?.map_err(said)?;
    match soon("a close", front.close()).await? {
        Ok(()) => connection.end()?,
        Err(error) if error == ErrorKind::Gone => drop(connection),
        Err(error) => return Err(said(error)),
    }
    let prepared = soon("the end", front.prepare()).await?;
    ensure(prepared.as_ref().is_err_and(|error| *error == ErrorKind::Gone), || said(prepared))?;
    *front = soon("a device", open_front(store)).await??;
    let mut connection = Connection::new(front).await?;
    connection.talk().await?;
    soon("a close", front.close()).await?.map_err(said)?;
    connection.end()
}

async fn back_died(front: &mut Frontend, connection: Connection) -> Result {
    soon("the other's death", front.until_closing()).await?.map_err(said)?;
    soon("a close", front.close()).await?.map_err(said)?;
    ensure(front.peer_state().await == Ok(None), || "the other is still there".into())?;
    drop(connection);
    // What a domain has mapped it gives back while it dies, which takes a while.
    let returned = async {
        while gnttab::stat().in_use > 0 {
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("the end of the grant", returned).await?;
    let prepared = time::timeout(Duration::from_secs(2), front.prepare()).await;
    ensure(prepared == Err(time::Elapsed), || said(prepared))
}

/// Serves front ends, until this domain is destroyed, or the other is.
async fn serve(domain: Domain, store: &Xenstore, front_dies: bool) -> Result {
    loop {
        let mut back = open_back(store).await?;
        loop {
            match serve_one(&mut back).await {
                Err(error) if error == ErrorKind::Gone => break,
                result => result.map_err(said)?,
            }
            ensure(gnttab::stat().mapped == 0, || said(gnttab::stat()))?;
            if front_dies && back.peer_state().await == Ok(None) {
                ensure(back.state() == State::CLOSED, || said(back.state()))?;
                verdict(&domain, "device.peer_died", Ok(()));
                return Ok(());
            }
        }
        ensure(gnttab::stat().mapped == 0, || said(gnttab::stat()))?;
    }
}

/// Serves one connection.
async fn serve_one(back: &mut Backend) -> core::result::Result<(), Error> {
    back.prepare(&[("feature-test", &1)]).await?;
    match connect(back).await {
        Ok((ring, port)) => {
            // The mapping ends with this, before the front end is told that it may have its memory back.
            let (mut answering, mut closing) = (pin!(answer(ring, port)), pin!(back.until_closing()));
            poll_fn(|context| {
                let ended = closing.as_mut().poll(context).is_ready() || answering.as_mut().poll(context).is_ready();
                if ended { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
        Err(domu::Error::Device(error)) if error == ErrorKind::Gone => return Err(error),
        Err(error) => log::warn!("no connection: {error}"),
    }
    back.close().await
}

async fn connect(back: &mut Backend) -> domu::Result<(BackRing<u64, u64, Mapping<ReadWrite>>, Port)> {
    back.accept().await?;
    let peer = back.device().peer();
    let reference = Reference(back.read("ring-ref").await?.number()?);
    let memory = Mapping::<ReadWrite>::new(peer, &[reference]).await?;
    let port = eventchn::bind_interdomain(peer, back.read("event-channel").await?.number()?)?;
    let ring = BackRing::attach(memory)?;
    back.connect(&[]).await?;
    Ok((ring, port))
}

/// Answers until it is asked to close.
async fn answer(mut ring: BackRing<u64, u64, Mapping<ReadWrite>>, port: Port) -> domu::Result {
    loop {
        let number = port.until(|| ring.poll_request().transpose()).await??;
        if number == CLOSE {
            return Ok(());
        }
        ring.push(&(number * number))?;
        if ring.publish() {
            port.notify()?;
        }
    }
}
