//! A disk that Linux serves in dom0: its connection, and one request at a time.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;

use domu::eventchn::{self, Port};
use domu::gnttab::{Granted, ReadWrite};
use domu::shared::FrontRing;
use domu::xenbus::{self, Frontend, State};
use domu::{Error, Result};

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// A connection to a disk's back end.
pub struct Disk {
    /// Requests, and responses.
    ring: FrontRing<[u8; 112], [u8; 16], Granted<ReadWrite>>,
    port: Port,
    data: Granted<ReadWrite>,
}

#[derive(Clone, Copy)]
enum Operation {
    Read = 0,
    Write = 1,
}

impl Disk {
    /// Begins a connection by a ring of two pages, if the back end takes as many.
    ///
    /// # Errors
    ///
    /// Those of what it takes.
    pub async fn connect(front: &mut Frontend) -> Result<Self> {
        front.prepare().await?;
        let peer = front.device().peer();
        let port = eventchn::alloc_unbound(peer)?;
        let order = front.feature("max-ring-page-order", 0u32, 1).await?;
        let ring = Granted::new(peer, 1 << order).await?;
        let names: Vec<String> = (0..ring.count()).map(|page| format!("ring-ref{page}")).collect();
        let references: Vec<_> = ring.references().collect();
        let number = port.number();
        let mut details: Vec<(&str, &dyn Display)> =
            [("ring-page-order", &order as &dyn Display), ("event-channel", &number), ("protocol", &"x86_64-abi")]
                .into();
        details.extend(names.iter().zip(&references).map(|(name, reference)| (&**name, reference as &dyn Display)));
        let disk = Self { ring: FrontRing::new(ring), port, data: Granted::new(peer, 1).await? };
        front.connect(State::INITIALISED, &details).await?;
        Ok(disk)
    }

    /// Writes a sector.
    ///
    /// # Errors
    ///
    /// Those of what it takes; [`xenbus::ErrorKind::Closed`] if the disk refuses.
    pub async fn write(&mut self, sector: u64, bytes: &[u8; SECTOR]) -> Result {
        self.data.memory().write(0, bytes);
        self.ask(Operation::Write, sector).await
    }

    /// Reads a sector.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub async fn read(&mut self, sector: u64) -> Result<[u8; SECTOR]> {
        let mut bytes = [0; SECTOR];
        self.data.memory().write(0, &bytes);
        self.ask(Operation::Read, sector).await?;
        self.data.memory().read(0, &mut bytes);
        Ok(bytes)
    }

    async fn ask(&mut self, operation: Operation, sector: u64) -> Result {
        let Self { ring, port, data } = self;
        let reference = data.references().next().map_or(0, |reference| reference.0);
        let mut request = [0; 112];
        request[..2].copy_from_slice(&[operation as u8, 1]);
        request[8..16].copy_from_slice(&sector.to_le_bytes());
        request[16..24].copy_from_slice(&sector.to_le_bytes());
        request[24..28].copy_from_slice(&reference.to_le_bytes());
        ring.push(&request)?;
        if ring.publish() {
            port.notify()?;
        }
        let response: [u8; 16] = port.until(|| ring.poll_response().transpose()).await??;
        let is_answer = response[..8] == sector.to_le_bytes() && response[10..12] == [0, 0];
        if is_answer { Ok(()) } else { Err(Error::Device(xenbus::ErrorKind::Closed.into())) }
    }

    /// Ends what the back end, which is closed, was given.
    ///
    /// # Errors
    ///
    /// Those of [`Granted::end`].
    pub fn end(self) -> Result {
        self.data.end()?;
        self.ring.into_memory().end()?;
        Ok(())
    }
}
