//! Rings and buffers: made at setup, granted to the back end, and used again by each connection.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

use super::config::{Config, HALF_PAGE, RUN_PAGES};
use super::connection::Live;
use crate::abi::xen::DomainId;
use crate::gnttab::{self, Granted, ReadOnly, ReadWrite, Reference, Revocable};
use crate::memory::Pages;
use crate::net::Error;
use crate::net::protocol::{Assembler, PAGE, RxRequest, Segmentation};
use crate::shared::FrontRing;

/// What is known of the TCP or UDP checksum of a received frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    /// Nothing: neither TCP nor UDP, a fragment, or without a checksum, or verification is [off](super::Config::verify_checksums).
    Unverified,
    /// It is right.
    Verified,
    /// The data are good, and the field holds the sum of the pseudo-header. It is to be
    /// [completed](crate::net::protocol::checksum::complete) before the frame leaves the host.
    Blank,
}

/// What the consumer has, or has had and forgotten.
#[derive(Clone, Debug)]
pub(super) struct Lent {
    /// The first slot, and how many.
    pub(super) first: usize,
    pub(super) slots: usize,
    /// The bytes of the frame.
    pub(super) range: Range<usize>,
    pub(super) checksum: Checksum,
    pub(super) segmentation: Option<Segmentation>,
    /// They were lent to be written to.
    pub(super) written: bool,
}

/// The receive ring and its area.
#[derive(Debug)]
pub(super) struct Rx {
    pub(super) ring: FrontRing<[u8; 8], [u8; 8], Granted<ReadWrite>>,
    pub(super) area: Revocable,
    pub(super) assembler: Assembler,
    /// The packet that the consumer has, or whose guard it has forgotten.
    pub(super) lent: Option<Lent>,
    /// The connection, while there is one.
    pub(super) live: Option<Live>,
}

/// The transmit ring and its buffers.
#[derive(Debug)]
pub(super) struct Tx {
    pub(super) ring: FrontRing<[u8; 12], [u8; 4], Granted<ReadWrite>>,
    pub(super) pool: Granted<ReadOnly>,
    /// The references of the pool's pages.
    pub(super) references: Vec<Reference>,
    /// Half pages that are free: their ids.
    pub(super) halves: Vec<u16>,
    /// Runs that are free: their numbers.
    pub(super) runs: Vec<u16>,
    /// By id, whether a slot is in flight.
    pub(super) in_flight: Vec<bool>,
    /// By run, how many of its slots are in flight.
    pub(super) run_slots: Vec<u8>,
    /// Extra-info slots in flight.
    pub(super) extras: u32,
    /// The connection, while there is one.
    pub(super) live: Option<Live>,
}

/// Memory without a peer.
#[derive(Debug)]
struct Memory {
    rings: [Pages; 2],
    area: Pages,
    pool: Pages,
}

impl Memory {
    fn new(config: &Config) -> Result<Self, Error> {
        Ok(Self {
            rings: [Pages::new(1)?, Pages::new(1)?],
            area: Pages::new(config.receive_slots + config.spare_pages())?,
            pool: Pages::new(config.pool_pages())?,
        })
    }

    fn zero(&mut self) {
        let [one, other] = &mut self.rings;
        [one, other, &mut self.area, &mut self.pool].into_iter().for_each(|pages| pages.bytes_mut().fill(0));
    }

    fn grant(self, config: &Config, peer: DomainId) -> Result<(Box<Rx>, Box<Tx>), Error> {
        let [receive, transmit] = self.rings;
        let area = Revocable::try_from_pages(peer, self.area, config.receive_slots)?;
        let pool = Granted::<ReadOnly>::try_from_pages(peer, self.pool)?;
        let receive = Granted::try_from_pages(peer, receive)?;
        let transmit = Granted::try_from_pages(peer, transmit)?;
        assemble(config, area, pool, receive, transmit)
    }
}

/// Puts rings and buffers together, all of which are granted.
fn assemble(
    config: &Config,
    mut area: Revocable,
    pool: Granted<ReadOnly>,
    receive: Granted<ReadWrite>,
    transmit: Granted<ReadWrite>,
) -> Result<(Box<Rx>, Box<Tx>), Error> {
    let slots = config.receive_slots;
    let mut ring = FrontRing::new(receive);
    for slot in 0..slots {
        area.restore(slot)?;
        ring.push(&RxRequest { id: slot as u16, reference: area.reference(slot).0 }.encode())?;
    }
    // Nobody waits for it yet.
    let _ = ring.publish();
    let assembler = Assembler::new(slots, config.most_received());
    let rx = Rx { ring, area, assembler, lent: None, live: None };
    let mut references = alloc::vec![Reference(0); pool.count()];
    let _ = pool.copy_references(&mut references);
    let tx = Tx {
        ring: FrontRing::new(transmit),
        pool,
        references,
        halves: (0..config.half_pages as u16).rev().collect(),
        runs: (0..config.runs as u16).rev().collect(),
        in_flight: alloc::vec![false; config.half_pages + config.runs * RUN_PAGES],
        run_slots: alloc::vec![0; config.runs],
        extras: 0,
        live: None,
    };
    Ok((Box::new(rx), Box::new(tx)))
}

/// What an interface has between connections.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// Without a peer.
    free: Option<Memory>,
    /// Still granted to the peer of the last connection.
    granted: Option<(Box<Rx>, Box<Tx>)>,
}

impl Store {
    /// Takes all memory of an interface.
    pub(super) fn new(config: &Config) -> Result<Self, Error> {
        Ok(Self { free: Some(Memory::new(config)?), granted: None })
    }

    /// Takes back what a connection had.
    pub(super) fn give_back(&mut self, rx: Option<Box<Rx>>, tx: Option<Box<Tx>>) {
        if let (Some(mut rx), Some(mut tx)) = (rx, tx) {
            // With them go the ports of the connection.
            (rx.live, tx.live) = (None, None);
            self.granted = Some((rx, tx));
        }
    }

    /// Rings and buffers for a connection to a peer: those of the last one, if it was to the same peer, or else its pages,
    /// zeroed, or new ones, where a peer keeps the pages.
    ///
    /// # Errors
    ///
    /// [`Error::PagesWithPeer`] if a peer keeps those of an earlier connection already.
    pub(super) fn take(&mut self, config: &Config, peer: DomainId) -> Result<(Box<Rx>, Box<Tx>), Error> {
        if let Some((rx, tx)) = self.granted.take() {
            let Rx { ring: receive, area, .. } = *rx;
            let Tx { ring: transmit, pool, .. } = *tx;
            let (receive, transmit) = (receive.into_memory(), transmit.into_memory());
            if area.check().is_ok() && area.peer() == peer {
                return assemble(config, area, pool, receive, transmit);
            }
            let parts = (receive.end(), transmit.end(), area.end(), pool.end());
            if let (Ok(receive), Ok(transmit), Ok(area), Ok(pool)) = parts {
                self.free = Some(Memory { rings: [receive, transmit], area, pool });
            }
        }
        let memory = match self.free.take() {
            Some(mut memory) => {
                memory.zero();
                memory
            }
            // The pages are with a peer. Another set is taken once.
            None if gnttab::stat().deferred_pages as usize > config.pages() => return Err(Error::PagesWithPeer),
            None => Memory::new(config)?,
        };
        memory.grant(config, peer)
    }
}

/// Where a half page lies in the pool: its page, the offset there, and the offset in the pool.
pub(super) const fn half_page(id: u16) -> (usize, usize, usize) {
    let start = id as usize * HALF_PAGE;
    (start / PAGE, start % PAGE, start)
}
