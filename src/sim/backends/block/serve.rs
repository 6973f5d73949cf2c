//! The program of a domain that serves a disk.

use core::fmt;
use core::fmt::Display;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use super::Disk;
use crate::block::protocol::{
    DeviceNumber, Geometry, INDIRECT_SEGMENTS, Operation, Payload, REQUEST_SIZE, RESPONSE_SIZE, RawGeometry, Request,
    Response, SECTOR, Sectors, Segment, Status,
};
use crate::eventchn::{self, Port};
use crate::gnttab::{Mapping, ReadOnly, ReadWrite, Reference};
use crate::shared::BackRing;
use crate::xenbus::{self, Backend, State};
use crate::xenstore::Path;
use crate::{Domain, DomainId, time};

/// Changes a response, or leaves it out.
pub type Lie = Box<dyn FnMut(&Request, Response) -> Vec<Response>>;

/// How a disk is served.
pub struct Options {
    /// `feature-persistent`: pages that were granted once stay mapped.
    pub persistent: bool,
    /// `feature-flush-cache`.
    pub flush: bool,
    /// `feature-barrier`.
    pub barrier: bool,
    /// `feature-discard`, with the granularity and the alignment in bytes.
    pub discard: Option<(u64, u64)>,
    /// `feature-max-indirect-segments`.
    pub indirect: u16,
    /// `max-ring-page-order`.
    pub order: u32,
    /// `sector-size`.
    pub sector_size: u64,
    /// `info`.
    pub info: u64,
    /// `sectors`, if it is not the disk's size.
    pub sectors: Option<String>,
    /// Time for each request.
    pub delay: Duration,
    /// Requests that are taken together, and answered last come, first served.
    pub batch: usize,
    /// Changes responses, or leaves them out.
    pub lie: Option<Lie>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("persistent", &self.persistent)
            .field("flush", &self.flush)
            .finish_non_exhaustive()
    }
}

impl Default for Options {
    /// As Linux serves a loop device.
    fn default() -> Self {
        Self {
            persistent: true,
            flush: true,
            barrier: true,
            discard: Some((4096, 0)),
            indirect: 256,
            order: 4,
            sector_size: SECTOR,
            info: 0,
            sectors: None,
            delay: Duration::ZERO,
            batch: 4,
            lie: None,
        }
    }
}

/// Serves a disk to the front end of a domain, until the toolstack removes it or the power is cut.
///
/// # Errors
///
/// Those of what it takes: a front end that breaks the protocol of the ring among them.
pub async fn serve(
    domain: Domain,
    front: DomainId,
    number: DeviceNumber,
    disk: &Disk,
    options: &mut Options,
) -> crate::Result {
    let path = Path::new(format!("backend/vbd/{front}/{}", number.0))?;
    let mut back = Backend::open(&domain.xenstore(), &path).await?;
    loop {
        let offers: &xenbus::Details<'_> =
            &[("max-ring-page-order", &options.order), ("feature-max-indirect-segments", &options.indirect)];
        match back.prepare(offers).await {
            Err(error) if error == xenbus::ErrorKind::Gone => return Ok(()),
            result => result?,
        }
        match serve_connection(&domain, &path, &mut back, disk, options).await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(crate::Error::Device(error)) if error == xenbus::ErrorKind::Gone => return Ok(()),
            Err(crate::Error::Device(error)) if error == xenbus::ErrorKind::Closed => {}
            Err(error) => return Err(error),
        }
        match back.close().await {
            Err(error) if error == xenbus::ErrorKind::Gone => return Ok(()),
            result => result?,
        }
    }
}

/// Serves one connection; whether the power was cut.
async fn serve_connection(
    domain: &Domain,
    path: &Path,
    back: &mut Backend,
    disk: &Disk,
    options: &mut Options,
) -> crate::Result<bool> {
    back.accept().await?;
    let order: u32 = back.feature("ring-page-order", 0, 4).await?;
    let mut references = Vec::new();
    if order == 0 {
        references.push(Reference(back.read("ring-ref").await?.number()?));
    }
    for page in 0..if order == 0 { 0 } else { 1 << order } {
        references.push(Reference(back.read(&format!("ring-ref{page}")).await?.number()?));
    }
    assert_eq!(back.read("protocol").await?, *"x86_64-abi");
    let persistent = options.persistent && back.feature("feature-persistent", 0u32, 1).await? == 1;
    let peer = back.device().peer();
    let ring = BackRing::attach(Mapping::<ReadWrite>::new(peer, &references).await?)?;
    let port = eventchn::bind_interdomain(peer, back.read("event-channel").await?.number()?)?;
    let sectors = options.sectors.clone().unwrap_or_else(|| disk.sectors().to_string());
    let (granularity, alignment) = options.discard.unwrap_or_default();
    let flags = [options.flush, options.barrier, options.discard.is_some(), options.persistent].map(u8::from);
    let details: Vec<(&str, &dyn Display)> = vec![
        ("sectors", &sectors),
        ("sector-size", &options.sector_size),
        ("info", &options.info),
        ("feature-flush-cache", &flags[0]),
        ("feature-barrier", &flags[1]),
        ("feature-discard", &flags[2]),
        ("discard-granularity", &granularity),
        ("discard-alignment", &alignment),
        ("feature-persistent", &flags[3]),
    ];
    back.connect(&details).await?;
    let mut server =
        Server { peer, disk, options, ring, port, kept: BTreeMap::new(), persistent, published: disk.sectors() };
    let mut serving = pin!(server.serve(domain, path));
    let closing = async {
        back.until_closing().await?;
        // As Linux does it serves a front end that is asked to go until that closes; one that begins again does not.
        if domain.xenstore().read(path.join("online")?).await? == *"0" {
            back.wait_for(|front| (front != Some(State::CONNECTED)).then_some(())).await?;
        }
        Ok(false)
    };
    let mut closing = pin!(closing);
    poll_fn(|context| match serving.as_mut().poll(context) {
        Poll::Ready(cut) => Poll::Ready(cut),
        Poll::Pending => closing.as_mut().poll(context),
    })
    .await
}

struct Server<'a> {
    peer: DomainId,
    disk: &'a Disk,
    options: &'a mut Options,
    ring: BackRing<[u8; REQUEST_SIZE], [u8; RESPONSE_SIZE], Mapping<ReadWrite>>,
    port: Port,
    /// Pages that stay mapped.
    kept: BTreeMap<u32, Mapping<ReadWrite>>,
    persistent: bool,
    /// The size that the front end was told.
    published: usize,
}

impl Server<'_> {
    /// Serves until the power is cut.
    async fn serve(&mut self, domain: &Domain, path: &Path) -> crate::Result<bool> {
        loop {
            let mut batch = Vec::new();
            let first = self.port.until(|| self.ring.poll_request().transpose()).await??;
            batch.push(first);
            while batch.len() < self.options.batch
                && let Some(entry) = self.ring.poll_request()?
            {
                batch.push(entry);
            }
            if self.disk.sectors() != self.published {
                self.published = self.disk.sectors();
                domain.xenstore().write(path.join("sectors")?, self.published.to_string()).await?;
            }
            while let Some(entry) = batch.pop() {
                if !self.options.delay.is_zero() {
                    time::sleep(self.options.delay).await;
                }
                let (has_power, answers) = self.disk.begin();
                if !has_power {
                    break;
                }
                let decoded = Request::decode(&entry, self.options.indirect);
                let status = match &decoded {
                    Ok(request) => self.carry_out(request).await,
                    Err(_) => Status::Error,
                };
                self.disk.end();
                if !answers {
                    break;
                }
                let (id, operation) = (Request::id_of(&entry), Request::operation_of(&entry));
                let response = Response { id, operation, status };
                let responses = match (&mut self.options.lie, &decoded) {
                    (Some(lie), Ok(request)) => lie(request, response),
                    _ => vec![response],
                };
                for response in responses {
                    // There is no room for what nobody asked for.
                    let _ = self.ring.push(&response.encode());
                }
            }
            if self.ring.publish() {
                self.port.notify()?;
            }
            if self.disk.is_cut() {
                return Ok(true);
            }
        }
    }

    async fn carry_out(&mut self, request: &Request) -> Status {
        let raw = RawGeometry {
            sectors: self.disk.sectors() as u64,
            sector_size: self.options.sector_size,
            physical_sector_size: None,
            info: self.options.info,
        };
        let Ok(disk) = Geometry::new(raw) else { return Status::Error };
        if request.operation.writes() && disk.is_read_only() {
            return Status::Error;
        }
        let segments: Vec<Segment> = match request.payload {
            Payload::Direct { segments, count } => segments[..usize::from(count)].to_vec(),
            Payload::Indirect { references, count } => {
                let mut segments = Vec::new();
                for reference in &references[..usize::from(count).div_ceil(INDIRECT_SEGMENTS)] {
                    let mut page = vec![0; 4096];
                    if self.transfer(*reference, 0, &mut page, true).await.is_err() {
                        return Status::Error;
                    }
                    segments.extend(page.as_chunks::<8>().0.iter().map(|bytes| Segment::decode(*bytes)));
                }
                segments.truncate(usize::from(count));
                let Ok(segments) = segments.into_iter().collect() else { return Status::Error };
                segments
            }
            Payload::Discard { sectors, .. } => {
                let whole = Sectors::new(request.sector, sectors, disk).filter(|_| self.options.discard.is_some());
                let Some(range) = whole else { return Status::Unsupported };
                self.disk.write(range.first(), &vec![0xdd; (range.count() * SECTOR) as usize]);
                return Status::Okay;
            }
        };
        match request.operation {
            Operation::Flush if !self.options.flush => return Status::Unsupported,
            Operation::Barrier if !self.options.barrier => return Status::Unsupported,
            Operation::Flush | Operation::Barrier => self.disk.flush(),
            _ => {}
        }
        let mut sector = request.sector;
        let total = segments.iter().map(|segment| segment.sectors()).sum();
        if total > 0 && Sectors::new(sector, total, disk).is_none() {
            return Status::Error;
        }
        // A write is one write of the disk's, however many segments it has.
        let mut data = vec![0; (total * SECTOR) as usize];
        let (writes, mut at) = (request.operation.writes(), 0);
        if !writes {
            self.disk.read(sector, &mut data);
        }
        for segment in segments {
            let length = (segment.sectors() * SECTOR) as usize;
            let aligned = self.options.sector_size / SECTOR;
            if !(sector | segment.sectors()).is_multiple_of(aligned) {
                return Status::Error;
            }
            let offset = usize::from(segment.first) * SECTOR as usize;
            if self.transfer(segment.reference, offset, &mut data[at..at + length], writes).await.is_err() {
                return Status::Error;
            }
            at += length;
            sector += segment.sectors();
        }
        if writes && total > 0 {
            self.disk.write(request.sector, &data);
        }
        Status::Okay
    }

    /// Copies from or to a page of the front end's.
    async fn transfer(&mut self, reference: u32, offset: usize, data: &mut [u8], from: bool) -> crate::Result {
        if self.persistent {
            if !self.kept.contains_key(&reference) {
                let mapping = Mapping::new(self.peer, &[Reference(reference)]).await?;
                self.kept.insert(reference, mapping);
            }
            let page = &self.kept[&reference];
            if from { page.memory().read(offset, data) } else { page.memory().write(offset, data) }
        } else if from {
            Mapping::<ReadOnly>::new(self.peer, &[Reference(reference)]).await?.read(offset, data);
        } else {
            Mapping::<ReadWrite>::new(self.peer, &[Reference(reference)]).await?.memory().write(offset, data);
        }
        Ok(())
    }
}
