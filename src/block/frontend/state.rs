//! The state of a disk, between its handles and its driver: transfers, the ring, and what is durable.
//!
//! A *transfer* is data, or a discard, that the driver owns from its submission to its answer, in one run of pages. The table of
//! transfers is the private copy from which all is issued again on the next connection. Entries of the ring are found by their
//! ids in a second table, which belongs to a connection: a transfer may take several entries, and another number of them on
//! another connection.
//!
//! *Who owns a buffer.* Pages of a pool's run, and lent pages, belong to the transfer. They are given back when it is free, which it
//! is only when each of its ring entries was answered, or the connection is over: a future that is dropped marks its transfer
//! as an orphan, and frees nothing that the back end may still use.
//!
//! *Orphans.* An orphaned write or discard may be carried out at any time before its answer. Later transfers that overlap it wait.
//! When a connection is lost, orphans are not issued again.
//!
//! Nothing here waits, and no waker is called: wakers are collected, and called when the state is not borrowed.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::task::Waker;

use super::super::ErrorKind;
use super::super::protocol::{
    DeviceNumber, Features, Geometry, INDIRECT_PAGES, INDIRECT_SEGMENTS, Operation, Payload, REQUEST_SIZE,
    RESPONSE_SIZE, Request, Response, SEGMENTS, Sectors, Segment, Status, segments, split,
};
use super::config::{Config, Durability, Info, Stat};
use super::durability::Ledger;
use super::pool::{Pool, Run};
use super::waiters::Waiters;
use crate::DomainId;
use crate::gnttab::{Granted, ReadOnly, ReadWrite};
use crate::memory::Pages;
use crate::shared::{FrontRing, Requests};

/// The ring of a disk.
pub(super) type Ring = FrontRing<[u8; REQUEST_SIZE], [u8; RESPONSE_SIZE], Granted<ReadWrite>>;

/// Transfers at most, and behind their numbers none.
pub(super) const NONE: u16 = u16::MAX;

/// Pages that a caller lends.
#[derive(Debug)]
pub(super) enum Lent {
    /// To be read into.
    Read(Granted<ReadWrite>),
    /// To be written from.
    Write(Granted<ReadOnly>),
}

impl Lent {
    /// Ends the grant. `None` if the peer keeps the pages.
    pub(super) fn end(self) -> Option<Pages> {
        match self {
            Self::Read(granted) => granted.end().ok(),
            Self::Write(granted) => granted.end().ok(),
        }
    }

    fn is_granted_to(&self, peer: DomainId) -> bool {
        match self {
            Self::Read(granted) => granted.check().is_ok() && granted.peer() == peer,
            Self::Write(granted) => granted.check().is_ok() && granted.peer() == peer,
        }
    }

    /// Grants the pages after a resume.
    fn resume(self, peer: DomainId) -> Result<Self, ErrorKind> {
        if self.is_granted_to(peer) {
            return Ok(self);
        }
        let reads = matches!(self, Self::Read(_));
        let pages = self.end().ok_or(ErrorKind::BufferKept)?;
        let granted = if reads {
            Granted::try_from_pages(peer, pages).map(Self::Read)
        } else {
            Granted::try_from_pages(peer, pages).map(Self::Write)
        };
        granted.map_err(|_| ErrorKind::NotGranted)
    }
}

/// Where the data of a transfer is.
#[derive(Debug)]
pub(super) enum Buffer {
    /// A discard has none.
    None,
    Pool(Run),
    Lent(Lent),
}

/// Data, or a discard, in the driver's hands.
#[derive(Debug)]
struct Transfer {
    operation: Operation,
    sectors: Sectors,
    buffer: Buffer,
    /// Pages that are in the ring, or were.
    issued: usize,
    /// Ring entries without an answer.
    outstanding: u32,
    error: Option<ErrorKind>,
    done: bool,
    /// Its future was dropped.
    orphaned: bool,
    waker: Option<Waker>,
    /// The number of a completed write.
    number: u64,
}

/// A transfer that is over.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) result: Result<(), ErrorKind>,
    pub(super) number: u64,
    pub(super) buffer: Buffer,
}

/// What an entry of the ring is for.
#[derive(Debug)]
struct Entry {
    /// A transfer, or none for a flush.
    transfer: Option<u16>,
    operation: Operation,
    /// Pages of indirect segments.
    indirect: Run,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) ring: Ring,
    entries: Requests<Entry>,
    pub(super) geometry: Geometry,
    pub(super) features: Features,
    pub(super) writable: bool,
    pub(super) lends: bool,
}

impl Link {
    pub(super) fn new(
        ring: Ring,
        geometry: Geometry,
        features: Features,
        writable: bool,
        lends: bool,
    ) -> Result<Self, ErrorKind> {
        let entries = Requests::new(ring.size()).map_err(|_| ErrorKind::OutOfMemory)?;
        Ok(Self { ring, entries, geometry, features, writable, lends })
    }
}

/// The peer broke the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Violation;

/// Why a transfer is not submitted now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    Error(ErrorKind),
    /// There is no connection, room or page, or an orphan is in the way.
    Wait,
}

impl From<ErrorKind> for Refusal {
    fn from(kind: ErrorKind) -> Self {
        Self::Error(kind)
    }
}

/// See the top of the file.
#[derive(Debug)]
pub(super) struct State {
    pub(super) number: DeviceNumber,
    pub(super) config: Config,
    /// The back end's domain.
    pub(super) peer: DomainId,
    link: Option<Link>,
    pub(super) pool: Option<Pool>,
    transfers: Vec<Option<Transfer>>,
    free: Vec<u16>,
    /// Transfers that are not wholly in the ring.
    queue: VecDeque<u16>,
    orphans: usize,
    /// Futures that wait for a connection, a transfer or pages.
    room: Waiters,
    /// Futures that wait for an orphan, or for a change of the connection.
    changes: Waiters,
    pub(super) ledger: Ledger,
    /// Why no request is taken any more.
    finished: Option<ErrorKind>,
    /// Suspends that wait, or are under way: nothing is submitted.
    pauses: u32,
    driver: Option<Waker>,
    idle: Vec<Waker>,
    wake: Vec<Waker>,
    pub(super) handles: usize,
    pub(super) stat: Stat,
}

impl State {
    pub(super) fn new(number: DeviceNumber, peer: DomainId, config: Config) -> Result<Self, ErrorKind> {
        let count = config.depth.clamp(1, 512).next_power_of_two().max(32) as u16;
        let (mut transfers, mut free) = (Vec::new(), Vec::new());
        let reserved = transfers.try_reserve_exact(usize::from(count)).and(free.try_reserve_exact(usize::from(count)));
        reserved.map_err(|_| ErrorKind::OutOfMemory)?;
        transfers.resize_with(usize::from(count), || None);
        free.extend((0..count).rev());
        Ok(Self {
            number,
            config,
            peer,
            link: None,
            pool: None,
            transfers,
            free,
            queue: VecDeque::new(),
            orphans: 0,
            room: Waiters::default(),
            changes: Waiters::default(),
            ledger: Ledger::new(number),
            finished: None,
            pauses: 0,
            driver: None,
            idle: Vec::new(),
            wake: Vec::new(),
            handles: 1,
            stat: Stat::default(),
        })
    }

    // What handles do.

    /// What is known of the disk, while it is connected.
    pub(super) fn info(&self) -> Option<Info> {
        self.link.as_ref().map(|link| Info {
            geometry: link.geometry,
            features: link.features,
            writable: link.writable,
            lends: link.lends,
            durability: self.ledger.means(),
            ring_entries: link.ring.size(),
        })
    }

    pub(super) fn stat(&self) -> Stat {
        Stat {
            in_flight: self.active(),
            orphaned: self.orphans,
            pool_free: self.pool.as_ref().map_or(0, Pool::free),
            ..self.stat
        }
    }

    pub(super) const fn finished(&self) -> Option<ErrorKind> {
        self.finished
    }

    /// Transfers in the driver's hands.
    pub(super) fn active(&self) -> usize {
        self.transfers.len() - self.free.len()
    }

    /// Whether nothing is without an answer, and no flush is to be sent.
    pub(super) fn is_idle(&self) -> bool {
        self.ledger.is_idle() && self.transfers.iter().flatten().all(|transfer| transfer.done)
    }

    /// The range that a request names, and whether it may be made of the disk as it is now.
    pub(super) fn check(&self, operation: Operation, position: u64, length: u64) -> Result<Sectors, Refusal> {
        if let Some(kind) = self.finished {
            return Err(kind.into());
        }
        let link = self.link.as_ref().filter(|_| self.pauses == 0).ok_or(Refusal::Wait)?;
        let sectors = Sectors::of_bytes(position, length, link.geometry).map_err(ErrorKind::from)?;
        self.permits(link, operation, sectors)?;
        if operation.writes() && self.ledger.has_failed() {
            return Err(ErrorKind::FlushFailed.into());
        }
        Ok(sectors)
    }

    /// The sectors of a part of a request.
    pub(super) fn check_part(&self, position: u64, length: u64) -> Result<Sectors, Refusal> {
        let link = self.link.as_ref().ok_or(Refusal::Wait)?;
        Ok(Sectors::of_bytes(position, length, link.geometry).map_err(ErrorKind::from)?)
    }

    fn permits(&self, link: &Link, operation: Operation, sectors: Sectors) -> Result<(), ErrorKind> {
        if operation.writes() && !link.writable {
            return Err(ErrorKind::ReadOnly);
        }
        if operation == Operation::Discard {
            let limits = link.features.discard.ok_or(ErrorKind::Unsupported)?;
            if !limits.accepts(sectors) {
                return Err(ErrorKind::Misaligned(limits.granularity));
            }
        }
        Ok(())
    }

    /// Pages of a transfer in the pool at most: two fit, each with its indirect pages.
    pub(super) fn most_pages(&self) -> usize {
        let pool = self.pool.as_ref().map_or(0, Pool::count);
        let limit = self.link.as_ref().map_or(SEGMENTS, |link| link.features.segments());
        limit.min((pool / 2).saturating_sub(INDIRECT_PAGES.min(pool / 8))).max(1)
    }

    /// Whether a future's turn has come: others were there before.
    pub(super) fn is_next(&self, ticket: Option<u64>) -> bool {
        self.room.is_next(ticket)
    }

    /// Whether an orphan that changes the disk overlaps a range.
    pub(super) fn is_behind_orphan(&self, sectors: Sectors) -> bool {
        self.orphans > 0
            && self
                .transfers
                .iter()
                .flatten()
                .any(|transfer| transfer.orphaned && transfer.operation.writes() && transfer.sectors.overlaps(sectors))
    }

    pub(super) fn wait_for_room(&mut self, ticket: &mut Option<u64>, waker: &Waker) {
        self.room.wait(ticket, waker);
    }

    pub(super) fn wait_for_change(&mut self, ticket: &mut Option<u64>, waker: &Waker) {
        self.changes.wait(ticket, waker);
    }

    /// Ends a future's waits, and lets the next go on.
    pub(super) fn stop_waiting(&mut self, room: &mut Option<u64>, change: &mut Option<u64>) {
        self.changes.leave(change);
        if room.is_some() {
            self.room.leave(room);
            self.wake.extend(self.room.first());
        }
    }

    /// A transfer in the pool, with the data of a write. `None` without a free transfer or free pages.
    pub(super) fn submit_pool(&mut self, operation: Operation, sectors: Sectors, data: Option<&[u8]>) -> Option<u16> {
        let pool = self.pool.as_mut()?;
        if self.free.is_empty() {
            return None;
        }
        let run = pool.take(sectors.count().div_ceil(super::super::protocol::SECTORS_PER_PAGE) as usize)?;
        if let Some(data) = data {
            pool.write(&run, data);
        }
        self.submit(operation, sectors, Buffer::Pool(run)).ok()
    }

    /// A transfer of a buffer, which comes back if there is no free one.
    pub(super) fn submit(&mut self, operation: Operation, sectors: Sectors, buffer: Buffer) -> Result<u16, Buffer> {
        let Some(index) = self.free.pop() else { return Err(buffer) };
        self.transfers[usize::from(index)] = Some(Transfer {
            operation,
            sectors,
            buffer,
            issued: 0,
            outstanding: 0,
            error: None,
            done: false,
            orphaned: false,
            waker: None,
            number: 0,
        });
        self.queue.push_back(index);
        self.wake_driver();
        Ok(index)
    }

    /// The result of a transfer that is done, which is free then.
    pub(super) fn take_finished(&mut self, index: u16) -> Option<Finished> {
        let transfer = self.transfers[usize::from(index)].take_if(|transfer| transfer.done)?;
        self.free.push(index);
        Some(Finished { result: transfer.error.map_or(Ok(()), Err), number: transfer.number, buffer: transfer.buffer })
    }

    /// Keeps the waker of a future for a transfer's end.
    pub(super) fn keep_waker(&mut self, index: u16, waker: &Waker) {
        let transfer = self.transfers.get_mut(usize::from(index)).and_then(Option::as_mut);
        match transfer.map(|transfer| &mut transfer.waker) {
            Some(Some(kept)) => kept.clone_from(waker),
            Some(none) => *none = Some(waker.clone()),
            None => {}
        }
    }

    /// Takes a buffer back, when its data was copied.
    pub(super) fn give(&mut self, buffer: Buffer) -> Option<Pages> {
        let pages = match buffer {
            Buffer::None => None,
            Buffer::Pool(run) => {
                if let Some(pool) = &mut self.pool {
                    pool.give(run);
                }
                None
            }
            Buffer::Lent(lent) => {
                let pages = lent.end();
                self.stat.buffers_kept += u64::from(pages.is_none());
                pages
            }
        };
        self.wake.extend(self.room.first());
        pages
    }

    /// A future was dropped: its transfer goes on without it.
    pub(super) fn abandon(&mut self, index: u16) {
        let Some(transfer) = self.transfers[usize::from(index)].as_mut() else { return };
        if transfer.done || transfer.issued == 0 && transfer.outstanding == 0 {
            self.queue.retain(|queued| *queued != index);
            self.release(index);
        } else {
            transfer.orphaned = true;
            transfer.waker = None;
            self.orphans += 1;
        }
    }

    /// Frees a transfer and its buffer.
    fn release(&mut self, index: u16) {
        if let Some(transfer) = self.transfers[usize::from(index)].take() {
            self.free.push(index);
            drop(self.give(transfer.buffer));
        }
    }

    pub(super) fn wake_driver(&mut self) {
        self.wake.extend(self.driver.take());
    }

    /// A waker to be called, when the state is not borrowed.
    pub(super) fn next_wake(&mut self) -> Option<Waker> {
        self.wake.pop()
    }

    pub(super) fn begin_flush(&mut self, waker: &Waker) -> Result<usize, Result<super::Flushed, ErrorKind>> {
        if let Some(kind) = self.finished {
            return Err(Err(kind));
        }
        let place = self.ledger.begin(self.link.is_some(), waker)?;
        self.wake_driver();
        Ok(place)
    }

    // What the driver does.

    pub(super) fn keep_driver(&mut self, waker: &Waker) {
        self.driver = Some(waker.clone());
    }

    /// Whether pages of a caller's are lent.
    pub(super) fn has_lent(&self) -> bool {
        let mut active = self.transfers.iter().flatten().filter(|transfer| !transfer.done && !transfer.orphaned);
        active.any(|transfer| matches!(transfer.buffer, Buffer::Lent(_)))
    }

    /// Grants the pool after a resume.
    pub(super) fn resume_pool(&mut self, peer: DomainId) -> Result<(), ErrorKind> {
        self.pool.as_mut().map_or(Ok(()), |pool| pool.resume(peer))
    }

    /// Submits nothing until as many times resumed.
    pub(super) const fn pause(&mut self) {
        self.pauses += 1;
    }

    /// Ends a pause.
    pub(super) fn unpause(&mut self) {
        self.pauses -= 1;
        self.wake_all();
    }

    /// Keeps a waker for when a transfer or a flush is over.
    pub(super) fn watch_idle(&mut self, waker: &Waker) {
        self.idle.push(waker.clone());
    }

    /// Puts what waits into the ring, shows it to the peer, and says whether to notify.
    pub(super) fn issue(&mut self) -> Result<bool, Violation> {
        let Some(link) = &mut self.link else { return Ok(false) };
        let handle = self.number.0 as u16;
        if self.ledger.is_due() && link.ring.room() > 0 {
            let operation = match self.ledger.means() {
                Durability::Barrier => Operation::Barrier,
                Durability::Flush | Durability::Unknown => Operation::Flush,
            };
            let entry = Entry { transfer: None, operation, indirect: Run::EMPTY };
            if let Ok(id) = link.entries.insert(entry) {
                let request = Request { operation, handle, id: id.into(), sector: 0, payload: Payload::NONE };
                link.ring.push(&request.encode()).map_err(|_| Violation)?;
                self.ledger.sent();
                self.stat.flushes += 1;
                self.stat.requests += 1;
            }
        }
        while let Some(&index) = self.queue.front()
            && link.ring.room() > 0
        {
            let Some(transfer) = &mut self.transfers[usize::from(index)] else {
                self.queue.pop_front();
                continue;
            };
            let (mut indirect, mut sectors, mut pages) = (Run::EMPTY, transfer.sectors, 1);
            let payload = if transfer.operation == Operation::Discard {
                Payload::Discard { sectors: transfer.sectors.count(), secure: false }
            } else {
                let limit = link.features.segments();
                let Some(mut part) = split(transfer.sectors, transfer.issued, limit) else {
                    self.queue.pop_front();
                    continue;
                };
                if part.pages > SEGMENTS {
                    let run = self.pool.as_mut().and_then(|pool| pool.take(part.pages.div_ceil(INDIRECT_SEGMENTS)));
                    match run {
                        Some(run) => indirect = run,
                        // Without a free page the segments go into the request.
                        None => part = split(transfer.sectors, transfer.issued, SEGMENTS).unwrap_or(part),
                    }
                }
                (sectors, pages) = (part.sectors, part.pages);
                let pool = self.pool.as_ref();
                let fill = |references: &mut dyn Iterator<Item = u32>| {
                    let mut segments = segments(part, references);
                    if indirect == Run::EMPTY {
                        return Payload::direct(segments);
                    }
                    let mut named = [0; INDIRECT_PAGES];
                    if let Some(pool) = pool {
                        pool.write_segments(&indirect, segments.by_ref().map(Segment::encode));
                        named.iter_mut().zip(pool.references(&indirect, 0)).for_each(|(place, of)| *place = of);
                    }
                    // No more than 4096.
                    Payload::Indirect { references: named, count: part.pages as u16 }
                };
                match (&transfer.buffer, pool) {
                    (Buffer::Pool(run), Some(pool)) => fill(&mut pool.references(run, part.page)),
                    (Buffer::Lent(Lent::Read(granted)), _) => {
                        fill(&mut granted.references().skip(part.page).map(|reference| reference.0))
                    }
                    (Buffer::Lent(Lent::Write(granted)), _) => {
                        fill(&mut granted.references().skip(part.page).map(|reference| reference.0))
                    }
                    // A transfer of data has pages.
                    (Buffer::None | Buffer::Pool(_), _) => Payload::NONE,
                }
            };
            let operation = transfer.operation;
            // The table has as many places as the ring.
            let Ok(id) = link.entries.insert(Entry { transfer: Some(index), operation, indirect }) else { break };
            let request = Request { operation, handle, id: id.into(), sector: sectors.first(), payload };
            link.ring.push(&request.encode()).map_err(|_| Violation)?;
            transfer.issued += pages;
            transfer.outstanding += 1;
            self.stat.requests += 1;
            let is_last = operation == Operation::Discard || split(transfer.sectors, transfer.issued, 1).is_none();
            if is_last {
                self.queue.pop_front();
            }
        }
        let notify = link.ring.publish();
        self.stat.notifications += u64::from(notify);
        Ok(notify)
    }

    /// Takes the responses that are there, at most as many as the ring has room for. `None` if there are none.
    pub(super) fn drain(&mut self) -> Option<Result<(), Violation>> {
        let most = self.link.as_ref()?.ring.size();
        let mut found = None;
        for _ in 0..most {
            let Some(link) = &mut self.link else { break };
            let entry = match link.ring.poll_response() {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(_) => return Some(Err(Violation)),
            };
            found = Some(Ok(()));
            let response = Response::decode(&entry);
            let Ok(Entry { transfer, operation, indirect }) = link.entries.remove(response.id) else {
                return Some(Err(Violation));
            };
            if let Some(pool) = &mut self.pool {
                pool.give(indirect);
            }
            self.stat.responses += 1;
            self.stat.errors += u64::from(response.status != Status::Okay);
            match transfer {
                Some(index) => self.answered(index, response.status),
                None => {
                    self.wake.append(&mut self.idle);
                    let barrier = link.features.barrier;
                    if self.ledger.answered(response.status, barrier, &mut self.wake) {
                        log::warn!(
                            "block: {}: {operation:?} not supported although offered: switched off",
                            self.number
                        );
                    }
                }
            }
            if response.operation != operation as u8 {
                return Some(Err(Violation));
            }
        }
        found
    }

    /// One of a transfer's entries was answered.
    fn answered(&mut self, index: u16, status: Status) {
        let Some(transfer) = &mut self.transfers[usize::from(index)] else { return };
        transfer.outstanding -= 1;
        let error = match status {
            Status::Okay => None,
            Status::Error => Some(ErrorKind::Failed),
            Status::Unsupported => {
                if let Some(link) = self.link.as_mut().filter(|_| transfer.operation == Operation::Discard) {
                    link.features.discard = None;
                }
                Some(ErrorKind::Unsupported)
            }
        };
        transfer.error = transfer.error.or(error);
        if transfer.error.is_some() {
            // Nothing more of it is issued.
            self.queue.retain(|queued| *queued != index);
        }
        let is_queued = transfer.error.is_none()
            && transfer.operation != Operation::Discard
            && split(transfer.sectors, transfer.issued, 1).is_some();
        if transfer.outstanding == 0 && !is_queued {
            self.complete(index);
        }
    }

    /// A transfer is over.
    fn complete(&mut self, index: u16) {
        let Some(transfer) = &mut self.transfers[usize::from(index)] else { return };
        transfer.done = true;
        self.wake.append(&mut self.idle);
        if transfer.operation.writes() {
            // Of one that failed a part may have been done, which is to be flushed as well.
            transfer.number = self.ledger.complete();
        }
        if transfer.orphaned {
            self.orphans -= 1;
            self.release(index);
            self.wake.extend(self.changes.all());
        } else {
            self.wake.extend(transfer.waker.take());
        }
    }

    /// Begins a connection: what is in the driver's hands is issued again, unless the disk is too small or read-only by now.
    pub(super) fn connect(&mut self, link: Link, peer: DomainId) {
        self.peer = peer;
        self.stat.connections += 1;
        for index in 0..self.transfers.len() as u16 {
            let Some(transfer) = self.transfers[usize::from(index)].as_mut().filter(|transfer| !transfer.done) else {
                continue;
            };
            let buffer = core::mem::replace(&mut transfer.buffer, Buffer::None);
            let buffer = match buffer {
                Buffer::Lent(lent) => lent.resume(peer).map(Buffer::Lent),
                Buffer::Pool(run) if !self.pool.as_ref().is_some_and(Pool::is_usable) => {
                    transfer.buffer = Buffer::Pool(run);
                    Err(ErrorKind::NotGranted)
                }
                other => Ok(other),
            };
            let (operation, sectors) = (transfer.operation, transfer.sectors);
            let result = buffer.map(|buffer| transfer.buffer = buffer).and_then(|()| {
                let fits = Sectors::new(sectors.first(), sectors.count(), link.geometry).is_some();
                if fits { Ok(()) } else { Err(ErrorKind::OutOfRange) }
            });
            if let Err(kind) = result.and_then(|()| self.permits(&link, operation, sectors)) {
                self.fail(index, kind);
            }
        }
        let features = link.features;
        let means = match (features.flush, features.barrier) {
            (true, _) => Durability::Flush,
            (false, true) => Durability::Barrier,
            (false, false) => Durability::Unknown,
        };
        self.ledger.connected(means, &mut self.wake);
        self.link = Some(link);
        self.wake_all();
    }

    /// Ends a transfer with an error.
    fn fail(&mut self, index: u16, kind: ErrorKind) {
        if let Some(transfer) = &mut self.transfers[usize::from(index)] {
            transfer.error = Some(kind);
            self.queue.retain(|queued| *queued != index);
            self.complete(index);
        }
    }

    /// The back end has published another size.
    pub(super) fn resize(&mut self, sectors: u64) -> Result<bool, ErrorKind> {
        let Some(link) = &mut self.link else { return Ok(false) };
        let geometry = link.geometry.resized(sectors).map_err(ErrorKind::Geometry)?;
        let changed = geometry != link.geometry;
        link.geometry = geometry;
        if changed {
            self.wake_all();
        }
        Ok(changed)
    }

    /// Wakes every future that waits for something other than an answer.
    fn wake_all(&mut self) {
        self.wake.extend(self.room.all());
        self.wake.extend(self.changes.all());
    }

    /// Ends a connection, and returns its ring's memory. Transfers without an answer are queued for the next one, or fail with
    /// an error; those whose future was dropped are over.
    pub(super) fn disconnect(&mut self, error: Option<ErrorKind>) -> Option<Granted<ReadWrite>> {
        let mut link = self.link.take()?;
        for id in 0..link.ring.size() {
            if let (Ok(entry), Some(pool)) = (link.entries.remove(id), &mut self.pool) {
                pool.give(entry.indirect);
            }
        }
        self.queue.clear();
        for index in 0..self.transfers.len() as u16 {
            let Some(transfer) = self.transfers[usize::from(index)].as_mut().filter(|transfer| !transfer.done) else {
                continue;
            };
            let was_issued = transfer.outstanding > 0 || transfer.issued > 0;
            (transfer.issued, transfer.outstanding, transfer.error) = (0, 0, None);
            if transfer.orphaned {
                self.orphans -= 1;
                self.release(index);
            } else if let Some(kind) = error.filter(|_| was_issued) {
                self.fail(index, kind);
            } else {
                self.stat.reissued += u64::from(was_issued);
                self.queue.push_back(index);
            }
        }
        self.ledger.disconnected(&mut self.wake);
        self.wake_all();
        Some(link.ring.into_memory())
    }

    /// No more requests are taken.
    pub(super) fn refuse(&mut self, kind: ErrorKind) {
        self.finished = self.finished.or(Some(kind));
        self.wake_all();
    }

    /// The disk is gone: whatever is without an answer fails.
    pub(super) fn finish(&mut self, kind: ErrorKind) {
        self.finished = Some(kind);
        for index in 0..self.transfers.len() as u16 {
            if self.transfers[usize::from(index)].as_ref().is_some_and(|transfer| !transfer.done) {
                self.fail(index, kind);
            }
        }
        self.ledger.finish(kind, &mut self.wake);
        self.wake_all();
    }
}
