//! The driver of a disk: its connections, one after the other.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt::{self, Display};
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

use super::super::protocol::{DeviceNumber, Features, Geometry, RawFeatures, RawGeometry};
use super::super::{DriverError, Error, ErrorKind};
use super::config::{Buffers, OnDetach};
use super::first_of;
use super::pool::{self, Pool};
use super::requests::{Flushing, wake};
use super::state::{Link, Ring, State};
use crate::eventchn::{self, Port};
use crate::gnttab::{self, Granted, ReadWrite};
use crate::xenbus::{self, Frontend, State as BusState};
use crate::xenstore::{self, Path, Watch};
use crate::{Domain, executor, time};

/// How long a back end may take before the log says that it is waited for.
const SLOW: Duration = Duration::from_secs(30);
/// How long an orderly end waits for a back end: first for answers, then for its state.
const END: Duration = Duration::from_secs(10);
/// The pause before a connection after one that came to nothing, which doubles up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// The pause after each change of the size, so that a back end which writes it without end keeps nobody busy.
const RESIZES: Duration = Duration::from_millis(50);

/// How a connection ended.
#[derive(Debug)]
enum End {
    /// The back end, or the toolstack, closes it.
    Closing,
    /// The back end broke the protocol.
    Violation,
    /// The domain was resumed elsewhere.
    Resumed,
    /// Nobody has a handle.
    Unused,
}

/// The driver of a disk: [`run`](Self::run) connects it, serves its handles, and ends when the last of them was dropped or the
/// toolstack has removed the disk.
///
/// Dropping it ends the connection without closing it; requests then fail with [`ErrorKind::Gone`].
#[must_use = "a disk is served by its driver: spawn `run`"]
pub struct Driver {
    domain: Domain,
    state: Rc<RefCell<State>>,
    path: Path,
    front: Frontend,
    /// The memory of a ring for each order, which connections use again.
    rings: [Option<Granted<ReadWrite>>; 5],
    /// Connections in a row that have answered nothing.
    failures: u32,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        let kind = state.finished().unwrap_or(ErrorKind::Gone);
        drop(state.disconnect(None));
        state.finish(kind);
        drop(state);
        wake(&self.state);
    }
}

impl Driver {
    pub(super) fn new(domain: Domain, state: Rc<RefCell<State>>, path: Path, front: Frontend) -> Self {
        Self { domain, state, path, front, rings: Default::default(), failures: 0 }
    }

    fn device_error(&self, kind: ErrorKind) -> Error {
        kind.of(self.state.borrow().number)
    }

    /// Serves the disk until its last handle was dropped, or the toolstack has removed it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Geometry`] if the back end publishes a size that no disk has; what grants, ports and xenstore fail with. Requests
    /// fail then.
    ///
    /// # Cancel safety
    ///
    /// The connection ends without being closed.
    pub async fn run(mut self) -> Result<(), DriverError> {
        quiesce_before_suspends(&self.state);
        let result = self.serve().await;
        if let Err(DriverError::Disk(error)) = &result {
            self.state.borrow_mut().refuse(error.kind());
        }
        // Whatever is left fails when this is dropped.
        match result {
            Err(DriverError::Device(error)) if error == xenbus::ErrorKind::Gone => Ok(()),
            result => result,
        }
    }

    async fn serve(&mut self) -> Result<(), DriverError> {
        loop {
            let generation = self.domain.generation();
            let before = self.state.borrow().stat().responses;
            let end = match self.connection().await {
                // What failed because of a resume is begun again.
                Err(_) if self.domain.generation() != generation => End::Resumed,
                Err(DriverError::Device(error)) if error == xenbus::ErrorKind::Closed => End::Closing,
                Err(DriverError::Grant(error)) if error == gnttab::ErrorKind::TooManyDeferred => End::Closing,
                end => end?,
            };
            self.failures = if self.state.borrow().stat().responses == before { self.failures + 1 } else { 0 };
            log::info!("block: {}: connection ended: {end:?}", self.state.borrow().number);
            let detached = match end {
                End::Closing => self.is_detached().await,
                End::Violation | End::Resumed => false,
                End::Unused => true,
            };
            if matches!(end, End::Resumed) {
                self.disconnect(None);
                self.front = Frontend::open(&self.domain.xenstore(), &self.path).await?;
                self.failures = 0;
                continue;
            }
            // The back end is done with what is in flight when it is closed, and only then are buffers used again.
            let _ = time::timeout(END, self.front.close()).await;
            let violation = matches!(end, End::Violation);
            self.state.borrow_mut().stat.protocol_errors += u64::from(violation);
            self.disconnect(violation.then_some(ErrorKind::Protocol));
            if detached {
                return Ok(());
            }
            if violation || self.failures > 0 {
                let pause = PAUSE.0 * 2u32.pow(self.failures.min(16));
                time::sleep(pause.min(PAUSE.1)).await;
            }
        }
    }

    /// Ends the connection, and keeps its ring.
    fn disconnect(&mut self, error: Option<ErrorKind>) {
        let ring = self.state.borrow_mut().disconnect(error);
        self.keep(ring);
        wake(&self.state);
    }

    fn keep(&mut self, ring: Option<Granted<ReadWrite>>) {
        if let Some(ring) = ring.filter(|ring| ring.check().is_ok()) {
            let order = ring.count().trailing_zeros() as usize;
            self.rings[order] = Some(ring);
        }
    }

    /// Whether the toolstack wants the disk to go.
    async fn is_detached(&self) -> bool {
        match self.front.read("online").await {
            Ok(online) => online == *"0",
            // Its directory is gone.
            Err(_) => true,
        }
    }

    /// A connection, from its beginning to its end.
    async fn connection(&mut self) -> Result<End, DriverError> {
        let number = self.state.borrow().number;
        loop {
            match time::timeout(SLOW, self.front.prepare()).await {
                Ok(result) => break result?,
                Err(time::Elapsed) => log::warn!("block: {number}: the back end is not ready: waiting"),
            }
        }
        let config = self.state.borrow().config;
        let peer = self.front.device().peer();
        let trusted = self.is_trusted().await?;
        let indirect = self.front.feature("feature-max-indirect-segments", 0u32, 4096).await?;
        let most = self.front.feature("max-ring-page-order", 0u32, 4).await?;
        let order = (config.depth.clamp(1, 512).next_power_of_two().trailing_zeros().saturating_sub(5)).min(most);
        if self.state.borrow().pool.is_none() {
            let pool = Pool::new(peer, config.pool_pages.clamp(16, pool::MOST)).await?;
            self.state.borrow_mut().pool = Some(pool);
        }
        let lends = trusted && config.buffers != Buffers::Pool;
        let lends_only = lends && config.buffers == Buffers::Lend;
        let persistent = !(lends_only || self.state.borrow().has_lent());
        let kept = self.rings[order as usize].take().filter(|ring| ring.check().is_ok() && ring.peer() == peer);
        let memory = match kept {
            Some(ring) => ring,
            None => Granted::new(peer, 1 << order).await?,
        };
        self.state.borrow_mut().resume_pool(peer).map_err(|kind| self.device_error(kind))?;
        let port = eventchn::alloc_unbound(peer)?;
        let names: Vec<String> = (0..memory.count()).map(|page| format!("ring-ref{page}")).collect();
        let references: Vec<_> = memory.references().collect();
        let (port_number, persistent_number) = (port.number(), u8::from(persistent));
        let mut details: Vec<(&str, &dyn Display)> = Vec::new();
        details.push(("event-channel", &port_number));
        details.push(("protocol", &"x86_64-abi"));
        details.push(("feature-persistent", &persistent_number));
        if order == 0 {
            details.push(("ring-ref", &references[0]));
        } else {
            details.push(("ring-page-order", &order));
            details.extend(names.iter().zip(&references).map(|(name, reference)| (&**name, reference as &dyn Display)));
        }
        let ring = Ring::new(memory);
        // A peer that maps the ring and does not connect has it all the same: the next connection uses it again.
        if let Err(error) = handshake(&mut self.front, number, &details).await {
            drop(details);
            self.keep(Some(ring.into_memory()));
            return Err(error.into());
        }
        let mut sizes = self.domain.xenstore().watch(self.front.device().peer_path().join("sectors")?).await?;
        sizes.next().await?;
        let (geometry, features) = self.read_disk(indirect).await?;
        // Back ends agree on the units of a disk of 512-byte sectors only; those that keep pages mapped are Linux's, which counts
        // as the header says.
        let known = geometry.sector_size() == 512 || features.1 || config.trust_large_sectors;
        let writable = known && !geometry.is_read_only();
        let lends = lends && !(persistent && features.0.persistent);
        let link = Link::new(ring, geometry, features.0, writable, lends).map_err(|kind| self.device_error(kind))?;
        log::info!("block: {number}: {} sectors of {} bytes", geometry.sectors(), geometry.sector_size());
        self.state.borrow_mut().connect(link, peer);
        wake(&self.state);
        self.in_use(&port, &mut sizes).await
    }

    /// Whether the toolstack trusts the back end (`trusted`, of Xen 4.17 and later).
    async fn is_trusted(&self) -> Result<bool, DriverError> {
        match self.domain.xenstore().read(self.path.join("trusted")?).await {
            Ok(value) => Ok(value != *"0"),
            Err(error) if error == xenstore::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// What the back end has published when it connected; and whether it is one that keeps pages mapped, whatever it was asked.
    async fn read_disk(&self, indirect: u32) -> Result<(Geometry, (Features, bool)), DriverError> {
        let front = &self.front;
        let number = async |name| front.feature(name, 0u64, u64::MAX).await;
        let flag = async |name| front.feature(name, 0u64, u64::MAX).await.map(|value| value == 1);
        let physical = number("physical-sector-size").await?;
        let raw = RawGeometry {
            sectors: front.read("sectors").await?.number()?,
            sector_size: front.feature("sector-size", 512u64, u64::MAX).await?,
            physical_sector_size: (physical != 0).then_some(physical),
            info: number("info").await?,
        };
        let geometry = Geometry::new(raw).map_err(|error| self.device_error(ErrorKind::Geometry(error)))?;
        let persistent = front.feature("feature-persistent", 2u64, u64::MAX).await?;
        let raw = RawFeatures {
            persistent: persistent == 1,
            flush: flag("feature-flush-cache").await?,
            barrier: flag("feature-barrier").await?,
            discard: flag("feature-discard").await?,
            discard_granularity: number("discard-granularity").await?,
            discard_alignment: number("discard-alignment").await?,
            discard_secure: flag("discard-secure").await?,
            max_indirect_segments: u64::from(indirect),
        };
        Ok((geometry, (Features::new(raw, geometry), persistent != 2)))
    }

    /// Serves the handles until the connection ends.
    async fn in_use(&mut self, port: &Port, sizes: &mut Watch) -> Result<End, DriverError> {
        let (state, front) = (&self.state, &mut self.front);
        let mut serving = pin!(serve_ring(state, port));
        let mut resizing = pin!(follow_size(state, &self.domain, sizes));
        let ended = {
            let mut closing = pin!(front.until_closing());
            poll_fn(|context| {
                if let Poll::Ready(end) = serving.as_mut().poll(context) {
                    return Poll::Ready(Some(end));
                }
                if let Poll::Ready(error) = resizing.as_mut().poll(context) {
                    return Poll::Ready(Some(Err(error)));
                }
                closing.as_mut().poll(context).map(|result| result.err().map(|error| Err(error.into())))
            })
            .await
        };
        if let Some(end) = ended {
            return end;
        }
        // The connection is to end. What is in flight is still answered by a back end that is asked to detach.
        let online = front.read("online").await;
        if online.is_ok_and(|online| online == *"0") {
            let refuses = state.borrow().config.on_detach == OnDetach::Refuse;
            if refuses {
                log::warn!("block: {}: in use: not detached", state.borrow().number);
                let removed = async {
                    front.wait_for(|peer| peer.is_none().then_some(())).await?;
                    Ok(End::Closing)
                };
                return first_of(serving, removed).await;
            }
            state.borrow_mut().refuse(ErrorKind::Detached);
            wake(state);
            let drained = async {
                answered(state).await;
                Ok(End::Closing)
            };
            match time::timeout(END, first_of(serving, drained)).await {
                Ok(end) => return end,
                Err(time::Elapsed) => log::warn!("block: {}: requests unanswered at the detach", state.borrow().number),
            }
        }
        Ok(End::Closing)
    }
}

/// Has the disk quiesced before each suspend, as long as it is there: requests are answered, completed writes are flushed, and nothing
/// is submitted until the suspend is over.
fn quiesce_before_suspends(state: &Rc<RefCell<State>>) {
    let state = Rc::downgrade(state);
    executor::before_suspend(move || {
        let state = state.clone();
        async move {
            let paused = Paused::new(state.upgrade()?);
            answered(&paused.0).await;
            // A flush that fails is reported to the next that waits for one, and so is a loss.
            let flush = paused.0.borrow().ledger.is_flushable();
            if flush && Flushing::new(&paused.0).await == Err(ErrorKind::MayBeLost) {
                paused.0.borrow_mut().ledger.report_loss();
            }
            Some(paused)
        }
    });
}

/// A disk to which nothing is submitted.
struct Paused(Rc<RefCell<State>>);

impl Paused {
    fn new(state: Rc<RefCell<State>>) -> Self {
        state.borrow_mut().pause();
        Self(state)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.0.borrow_mut().unpause();
        wake(&self.0);
    }
}

/// Waits until nothing is without an answer.
async fn answered(state: &RefCell<State>) {
    poll_fn(|context| {
        let mut state = state.borrow_mut();
        if state.is_idle() {
            return Poll::Ready(());
        }
        state.watch_idle(context.waker());
        Poll::Pending
    })
    .await;
}

/// Tells the back end the details, and waits until it has connected.
async fn handshake(
    front: &mut Frontend,
    number: DeviceNumber,
    details: &xenbus::Details<'_>,
) -> Result<(), xenbus::Error> {
    let mut connecting = pin!(front.connect(BusState::INITIALISED, details));
    loop {
        match time::timeout(SLOW, connecting.as_mut()).await {
            Ok(result) => return result,
            Err(time::Elapsed) => log::warn!("block: {number}: the back end does not connect: waiting"),
        }
    }
}

/// Puts requests into the ring and takes responses, until the connection ends.
async fn serve_ring(state: &RefCell<State>, port: &Port) -> Result<End, DriverError> {
    let responses = async {
        loop {
            let drained = port.until(|| state.borrow_mut().drain()).await;
            wake(state);
            match drained {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ok(End::Violation),
                Err(error) if error == eventchn::ErrorKind::BeforeResume => return Ok(End::Resumed),
                Err(error) => return Err(error.into()),
            }
        }
    };
    let mut responses = pin!(responses);
    poll_fn(|context| {
        if let Poll::Ready(end) = responses.as_mut().poll(context) {
            return Poll::Ready(end);
        }
        let mut borrowed = state.borrow_mut();
        borrowed.keep_driver(context.waker());
        let issued = borrowed.issue();
        let unused = borrowed.handles == 0 && borrowed.is_idle();
        drop(borrowed);
        match issued {
            Ok(true) => match port.notify() {
                Ok(()) => {}
                Err(error) if error == eventchn::ErrorKind::BeforeResume => return Poll::Ready(Ok(End::Resumed)),
                Err(error) => return Poll::Ready(Err(error.into())),
            },
            Ok(false) => {}
            Err(_) => return Poll::Ready(Ok(End::Violation)),
        }
        if unused { Poll::Ready(Ok(End::Unused)) } else { Poll::Pending }
    })
    .await
}

/// Reads the size whenever the back end writes it, until that fails.
async fn follow_size(state: &RefCell<State>, domain: &Domain, sizes: &mut Watch) -> DriverError {
    loop {
        if let Err(error) = sizes.next().await {
            return error.into();
        }
        let sectors = match domain.xenstore().read(sizes.path()).await {
            Ok(sectors) => sectors.number::<u64>(),
            // It goes with the back end.
            Err(_) => continue,
        };
        let number = state.borrow().number;
        let result = sectors.map_err(|_| ErrorKind::Failed).and_then(|sectors| state.borrow_mut().resize(sectors));
        wake(state);
        match result {
            Ok(true) => log::info!("block: {number}: size changed"),
            Ok(false) => {}
            Err(kind @ ErrorKind::Geometry(_)) => return kind.of(number).into(),
            Err(_) => log::warn!("block: {number}: the size is not a number"),
        }
        time::sleep(RESIZES).await;
    }
}
