//! A network back end for tests: it bridges front ends of several domains, as dom0 does with vifs, or worse.
//!
//! It is a program of a simulated domain that uses this crate's public interfaces only. A front end that breaks the
//! protocol, where Linux would switch the interface off, fails the test.

use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::task::{Poll, Waker};
use core::time::Duration;
use std::boxed::Box;
use std::collections::VecDeque;
use std::format;
use std::rc::Rc;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

use crate::Domain;
use crate::eventchn::{self, Port};
use crate::executor::spawn;
use crate::gnttab::{Mapping, ReadWrite, Reference, copy};
use crate::net::protocol::checksum;
use crate::net::protocol::{
    Extra, MAX_TX_SLOTS, RxFlags, RxRequest, RxResponse, Segmentation, SegmentationKind, TxFlags, TxRequest,
    TxResponse, TxStatus,
};
use crate::shared::BackRing;
use crate::sim::Store;
use crate::time;
use crate::xenbus::{Backend, ErrorKind};
use crate::xenstore::Path;

/// What a back end offers and how it treats frames.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct NetBackend {
    /// `feature-sg`.
    pub scatter: bool,
    /// `feature-gso-tcpv4` and `feature-gso-tcpv6`.
    pub segmentation: bool,
    /// `feature-ipv6-csum-offload`.
    pub ipv6_checksum: bool,
    /// `feature-split-event-channels`.
    pub split: bool,
    /// Whether blank checksums stay blank on the way to the other front end.
    pub blank: bool,
    /// Whether it says that checksums are good which it has not looked at.
    pub validated: bool,
    /// One frame in so many is lost; 0: none.
    pub loss: u32,
    /// Frames overtake each other in pairs.
    pub reorder: bool,
    /// So many transmit responses are kept back, and come in the opposite order.
    pub late: usize,
    /// The most bytes of a received piece, and where they begin in their page.
    pub pieces: (usize, usize),
    /// It does nothing for a while after each so many turns; 0: never.
    pub stall: (u32, Duration),
}

impl Default for NetBackend {
    fn default() -> Self {
        Self {
            scatter: true,
            segmentation: true,
            ipv6_checksum: true,
            split: true,
            blank: true,
            validated: true,
            loss: 0,
            reorder: false,
            late: 0,
            pieces: (4096, 0),
            stall: (0, Duration::ZERO),
        }
    }
}

/// A frame on the bridge.
#[derive(Clone, Debug)]
struct Bridged {
    bytes: Vec<u8>,
    blank: bool,
    segmentation: Option<Segmentation>,
}

/// Frames for one front end.
#[derive(Default)]
struct Queue {
    frames: RefCell<VecDeque<Bridged>>,
    waker: Cell<Option<Waker>>,
}

impl Queue {
    /// As many frames as Linux queues at most, about.
    const MOST: usize = 512;

    fn push(&self, frame: Bridged) {
        let mut frames = self.frames.borrow_mut();
        if frames.len() < Self::MOST {
            frames.push_back(frame);
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Makes a network interface in the store, as a toolstack does: both ends' directories.
pub fn make_vif(store: &Store, front: u16, back: u16, id: u32) {
    store.dom0(|dom0| {
        let front_path = format!("/local/domain/{front}/device/vif/{id}");
        let back_path = format!("/local/domain/{back}/backend/vif/{front}/{id}");
        for (path, owner, link, other, peer) in
            [(&front_path, front, "backend", &back_path, back), (&back_path, back, "frontend", &front_path, front)]
        {
            dom0.make_device_end(path, owner, (link, other, peer));
            dom0.write(&format!("{path}/handle"), id.to_string());
            dom0.write(&format!("{path}/mac"), format!("00:16:3e:00:{id:02x}:{:02x}", front as u8));
        }
        dom0.write(&format!("{front_path}/mtu"), "1500");
        dom0.write(&format!("{back_path}/online"), "1");
    });
}

impl NetBackend {
    /// Serves the interfaces of some domains, by domain and number, and bridges them, until their directories are gone.
    ///
    /// # Errors
    ///
    /// Those of the devices.
    ///
    /// # Panics
    ///
    /// If a front end breaks the protocol.
    pub async fn serve(self, domain: Domain, front_ends: &[(u16, u32)]) -> crate::Result {
        let queues: Rc<Vec<Queue>> = Rc::new(front_ends.iter().map(|_| Queue::default()).collect());
        let tasks: Vec<_> = front_ends
            .iter()
            .enumerate()
            .map(|(index, &(front, id))| {
                let path = format!("backend/vif/{front}/{id}");
                spawn(self.serve_one(domain, path, index, Rc::clone(&queues)))
            })
            .collect();
        for task in tasks {
            task.await?;
        }
        Ok(())
    }

    async fn serve_one(
        self,
        domain: Domain,
        path: std::string::String,
        index: usize,
        queues: Rc<Vec<Queue>>,
    ) -> crate::Result {
        let mut back = Backend::open(&domain.xenstore(), &Path::new(path)?).await?;
        loop {
            let flag = u32::from;
            let offers: &crate::xenbus::Details<'_> = &[
                ("feature-rx-copy", &1),
                ("feature-sg", &flag(self.scatter)),
                ("feature-gso-tcpv4", &flag(self.segmentation)),
                ("feature-gso-tcpv6", &flag(self.segmentation)),
                ("feature-ipv6-csum-offload", &flag(self.ipv6_checksum)),
                ("feature-split-event-channels", &flag(self.split)),
            ];
            match back.prepare(offers).await {
                Err(error) if *error.kind() == ErrorKind::Gone => return Ok(()),
                result => result?,
            }
            let served = self.connection(&mut back, index, &queues).await;
            match served {
                Err(crate::Error::Device(error)) if *error.kind() == ErrorKind::Gone => return Ok(()),
                Err(crate::Error::Device(error)) if *error.kind() == ErrorKind::Closed => {}
                result => result?,
            }
            match back.close().await {
                Err(error) if *error.kind() == ErrorKind::Gone => return Ok(()),
                result => result?,
            }
        }
    }

    async fn connection(self, back: &mut Backend, index: usize, queues: &Rc<Vec<Queue>>) -> crate::Result {
        back.accept().await?;
        let peer = back.device().peer();
        assert_eq!(back.feature("request-rx-copy", 0_u32, 1).await?, 1, "Linux would look at no other key");
        assert_eq!(back.feature("feature-rx-notify", 0_u32, 1).await?, 1, "Linux would poll");
        let mut rings = Vec::new();
        for name in ["tx-ring-ref", "rx-ring-ref"] {
            let reference = Reference(back.read(name).await?.number()?);
            rings.push(Mapping::<ReadWrite>::new(peer, &[reference]).await?);
        }
        let mut ports = Vec::new();
        let names: &[&str] = if self.split { &["event-channel-rx", "event-channel-tx"] } else { &["event-channel"] };
        for name in names {
            ports.push(eventchn::bind_interdomain(peer, back.read(name).await?.number()?)?);
        }
        let takes_scatter = back.feature("feature-sg", 0_u32, 1).await? == 1;
        let takes_segments = [
            back.feature("feature-gso-tcpv4", 0_u32, 1).await? == 1,
            back.feature("feature-gso-tcpv6", 0_u32, 1).await? == 1,
        ];
        let receive = rings.pop().map(BackRing::attach).transpose()?.expect("two rings");
        let transmit = rings.pop().map(BackRing::attach).transpose()?.expect("two rings");
        let mut vif = Vif {
            config: self,
            peer,
            transmit,
            receive,
            ports,
            requests: VecDeque::new(),
            late: Vec::new(),
            takes_scatter,
            takes_segments,
            random: 0x2545_f491,
            held: None,
        };
        back.connect(&[]).await?;
        let work = vif.work(index, queues);
        let (mut closing, mut work) = (Box::pin(back.until_closing()), Box::pin(work));
        poll_fn(|context| {
            if let Poll::Ready(result) = closing.as_mut().poll(context) {
                return Poll::Ready(result.map_err(crate::Error::from));
            }
            work.as_mut().poll(context)
        })
        .await
    }
}

/// One connected interface.
struct Vif {
    config: NetBackend,
    peer: crate::DomainId,
    transmit: BackRing<[u8; 12], [u8; 4], Mapping<ReadWrite>>,
    receive: BackRing<[u8; 8], [u8; 8], Mapping<ReadWrite>>,
    ports: Vec<Port>,
    requests: VecDeque<RxRequest>,
    late: Vec<TxResponse>,
    takes_scatter: bool,
    takes_segments: [bool; 2],
    random: u32,
    /// A frame that the next overtakes.
    held: Option<Bridged>,
}

impl Vif {
    async fn work(&mut self, index: usize, queues: &[Queue]) -> crate::Result {
        let mut seen = vec![0; self.ports.len()];
        let mut turns = 0;
        loop {
            for (seen, port) in seen.iter_mut().zip(&self.ports) {
                *seen = port.count();
            }
            turns += 1;
            let (each, pause) = self.config.stall;
            if each > 0 && turns % each == 0 {
                time::sleep(pause).await;
            }
            let mut any = false;
            while let Some(frame) = self.take_frame().await? {
                any = true;
                if self.is_lost() {
                    continue;
                }
                let frames = if !self.config.reorder {
                    vec![frame]
                } else if let Some(before) = self.held.take() {
                    vec![frame, before]
                } else {
                    self.held = Some(frame);
                    vec![]
                };
                for frame in frames {
                    let others = queues.iter().enumerate().filter(|(other, _)| *other != index);
                    others.for_each(|(_, queue)| queue.push(frame.clone()));
                }
            }
            let starved = self.deliver(&queues[index]).await?;
            // Responses are published first, so that no more of them wait than are to be late.
            let notify = [self.receive.publish(), self.transmit.publish()];
            match &self.ports[..] {
                [port] if notify[0] || notify[1] => port.notify()?,
                [receive, transmit] => {
                    if notify[0] {
                        receive.notify()?;
                    }
                    if notify[1] {
                        transmit.notify()?;
                    }
                }
                _ => {}
            }
            if !any {
                self.wait(&mut seen, &queues[index], starved).await?;
            }
        }
    }

    /// Waits for an event, or a frame to be delivered.
    async fn wait(&self, seen: &mut [u64], queue: &Queue, starved: bool) -> crate::Result {
        let mut events: Vec<_> =
            self.ports.iter().zip(seen.iter()).map(|(port, seen)| Box::pin(port.after(*seen))).collect();
        // What is kept back is not kept for ever.
        let mut pause = Box::pin(time::sleep(Duration::from_millis(2)));
        let waits = !self.late.is_empty() || self.held.is_some();
        let mut first = true;
        poll_fn(|context| {
            for event in &mut events {
                if let Poll::Ready(result) = event.as_mut().poll(context) {
                    return Poll::Ready(result.map(drop).map_err(crate::Error::from));
                }
            }
            if waits && pause.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            if !starved && !queue.frames.borrow().is_empty() || !first {
                return Poll::Ready(Ok(()));
            }
            first = false;
            queue.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    fn is_lost(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.config.loss > 0 && self.random.is_multiple_of(self.config.loss)
    }

    fn answer(&mut self, id: u16, status: TxStatus) -> crate::Result {
        self.late.push(TxResponse { id, status });
        if self.late.len() > self.config.late {
            for response in self.late.drain(..).rev() {
                self.transmit.push(&response.encode())?;
            }
        }
        Ok(())
    }

    /// Takes a frame that the front end sends.
    async fn take_frame(&mut self) -> crate::Result<Option<Bridged>> {
        let Some(first) = self.transmit.poll_request()? else {
            for response in core::mem::take(&mut self.late).into_iter().rev() {
                self.transmit.push(&response.encode())?;
            }
            return Ok(None);
        };
        let first = TxRequest::decode(&first);
        assert!(first.size >= 14, "a frame of {} bytes", first.size);
        let mut segmentation = None;
        let mut extra = first.flags.contains(TxFlags::EXTRA_INFO);
        while extra {
            let slot = self.transmit.poll_request()?.expect("a whole packet is published");
            let slot = slot.first_chunk::<8>().expect("12 bytes");
            let (found, more) = Extra::decode(slot).expect("an extra info that was negotiated");
            let Extra::Segmentation(found) = found else { panic!("not negotiated: {found:?}") };
            assert!(self.config.segmentation, "not offered");
            segmentation = Some(found);
            extra = more;
            self.answer(0xffff, TxStatus::Null)?;
        }
        let (mut slots, mut more) = (vec![first], first.flags.contains(TxFlags::MORE_DATA));
        while more {
            let slot = self.transmit.poll_request()?.expect("a whole packet is published");
            let slot = TxRequest::decode(&slot);
            more = slot.flags.contains(TxFlags::MORE_DATA);
            slots.push(slot);
        }
        assert!(slots.len() == 1 || self.config.scatter, "several slots without feature-sg");
        assert!(slots.len() <= MAX_TX_SLOTS, "{} slots", slots.len());
        let rest: usize = slots[1..].iter().map(|slot| usize::from(slot.size)).sum();
        let total = usize::from(first.size);
        assert!(total > rest, "later slots exceed the total");
        slots[0].size = (total - rest) as u16;
        let mut bytes = vec![0; total];
        let mut at = 0;
        for slot in &slots {
            let (offset, size) = (usize::from(slot.offset), usize::from(slot.size));
            assert!(size > 0 && offset + size <= 4096, "a slot crosses its page: {slot:?}");
            copy::read(self.peer, &[Reference(slot.reference)], offset, &mut bytes[at..at + size]).await?;
            at += size;
        }
        for slot in &slots {
            self.answer(slot.id, TxStatus::Okay)?;
        }
        let blank = first.flags.contains(TxFlags::CHECKSUM_BLANK);
        if blank {
            let segment = checksum::find(&bytes).expect("blank is TCP or UDP");
            assert!(!segment.is_ipv6 || self.config.ipv6_checksum, "blank over IPv6 was not offered");
            let field = u16::from_be_bytes([bytes[segment.field()], bytes[segment.field() + 1]]);
            assert_eq!(field, segment.pseudo, "a blank checksum is the sum of the pseudo-header");
        }
        Ok(Some(Bridged { bytes, blank, segmentation }))
    }

    /// Delivers frames; says whether one has to wait for requests.
    async fn deliver(&mut self, queue: &Queue) -> crate::Result<bool> {
        loop {
            let Some(mut frame) = queue.frames.borrow_mut().pop_front() else { return Ok(false) };
            let (most, offset) = self.config.pieces;
            let kinds = [SegmentationKind::TcpV4, SegmentationKind::TcpV6];
            let refused = frame.segmentation.is_some_and(|segmentation| {
                kinds.iter().position(|kind| *kind == segmentation.kind).is_some_and(|kind| !self.takes_segments[kind])
            });
            let slots = frame.bytes.len().div_ceil(most) + usize::from(frame.segmentation.is_some());
            if refused || slots > 1 && !self.takes_scatter {
                continue;
            }
            while self.requests.len() < slots {
                match self.receive.poll_request()? {
                    Some(request) => self.requests.push_back(RxRequest::decode(&request)),
                    None => {
                        queue.frames.borrow_mut().push_front(frame);
                        return Ok(true);
                    }
                }
            }
            let mut flags = RxFlags::empty();
            if frame.blank && self.config.blank {
                flags = RxFlags::CHECKSUM_BLANK | RxFlags::DATA_VALIDATED;
            } else {
                if frame.blank {
                    checksum::complete(&mut frame.bytes);
                }
                flags.set(RxFlags::DATA_VALIDATED, self.config.validated);
            }
            let count = frame.bytes.len().div_ceil(most);
            for (number, piece) in frame.bytes.chunks(most).enumerate() {
                let Some(request) = self.requests.pop_front() else { break };
                copy::write(self.peer, &[Reference(request.reference)], offset, piece).await?;
                let mut piece_flags = if number == 0 { flags } else { RxFlags::empty() };
                piece_flags.set(RxFlags::MORE_DATA, number + 1 < count);
                piece_flags.set(RxFlags::EXTRA_INFO, number == 0 && frame.segmentation.is_some());
                let response = RxResponse {
                    id: request.id,
                    offset: offset as u16,
                    flags: piece_flags,
                    status: piece.len() as i16,
                };
                self.receive.push(&response.encode())?;
                if let Some(segmentation) = frame.segmentation.filter(|_| number == 0) {
                    self.requests.pop_front();
                    self.receive.push(&Extra::encode(segmentation))?;
                }
            }
        }
    }
}

/// The back end's side of one connection, for a test that writes into the rings whatever it wants.
#[derive(Debug)]
pub struct NetPeer {
    peer: crate::DomainId,
    transmit: Mapping<ReadWrite>,
    receive: Mapping<ReadWrite>,
    ports: Vec<Port>,
    /// Responses that were written: of the transmit ring, and of the receive ring.
    responses: [u32; 2],
}

/// Offsets of the indices in a ring's page, and of its first slot.
const REQUESTS: usize = 0;
const RESPONSES: usize = 8;
const SLOTS: usize = 64;

impl NetPeer {
    /// Goes through the handshake of a device, offering everything.
    ///
    /// # Errors
    ///
    /// Those of the device.
    pub async fn connect(back: &mut Backend) -> crate::Result<Self> {
        let offers: &crate::xenbus::Details<'_> = &[
            ("feature-rx-copy", &1),
            ("feature-sg", &1),
            ("feature-gso-tcpv4", &1),
            ("feature-gso-tcpv6", &1),
            ("feature-split-event-channels", &1),
        ];
        back.prepare(offers).await?;
        back.accept().await?;
        let peer = back.device().peer();
        let mut rings = Vec::new();
        for name in ["tx-ring-ref", "rx-ring-ref"] {
            rings.push(Mapping::<ReadWrite>::new(peer, &[Reference(back.read(name).await?.number()?)]).await?);
        }
        let mut ports = Vec::new();
        for name in ["event-channel-tx", "event-channel-rx"] {
            ports.push(eventchn::bind_interdomain(peer, back.read(name).await?.number()?)?);
        }
        let receive = rings.pop().expect("two rings");
        let transmit = rings.pop().expect("two rings");
        back.connect(&[]).await?;
        Ok(Self { peer, transmit, receive, ports, responses: [0, 0] })
    }

    /// How many requests are published on the transmit ring, and on the receive ring.
    #[must_use]
    pub fn requests(&self) -> [u32; 2] {
        [&self.transmit, &self.receive].map(|ring| ring.memory().read_value::<u32>(REQUESTS))
    }

    /// A request of the transmit ring.
    #[must_use]
    pub fn tx_request(&self, number: u32) -> TxRequest {
        TxRequest::decode(&self.transmit.memory().read_value(SLOTS + 12 * (number as usize % 256)))
    }

    /// A request of the receive ring, unless a response stands there by now.
    #[must_use]
    pub fn rx_request(&self, number: u32) -> RxRequest {
        RxRequest::decode(&self.receive.memory().read_value(SLOTS + 8 * (number as usize % 256)))
    }

    /// Writes the next response of the transmit ring.
    pub fn respond_tx(&mut self, response: [u8; 4]) {
        self.transmit.memory().write(SLOTS + 12 * (self.responses[0] as usize % 256), &response);
        self.responses[0] = self.responses[0].wrapping_add(1);
    }

    /// Writes the next response of the receive ring.
    pub fn respond_rx(&mut self, response: [u8; 8]) {
        self.receive.memory().write(SLOTS + 8 * (self.responses[1] as usize % 256), &response);
        self.responses[1] = self.responses[1].wrapping_add(1);
    }

    /// Shows how many responses there are on both rings, `beyond` more than there are, and notifies.
    ///
    /// # Errors
    ///
    /// Those of the ports.
    pub fn publish(&self, beyond: [u32; 2]) -> crate::Result {
        for (number, ring) in [&self.transmit, &self.receive].into_iter().enumerate() {
            let index = self.responses[number].wrapping_add(beyond[number]);
            ring.memory().u32(RESPONSES).store(index, core::sync::atomic::Ordering::SeqCst);
        }
        self.notify()
    }

    /// Notifies the front end on both ports.
    ///
    /// # Errors
    ///
    /// Those of the ports.
    pub fn notify(&self) -> crate::Result {
        self.ports.iter().try_for_each(|port| Ok(port.notify()?))
    }

    /// Copies bytes to the page of a request of the receive ring.
    ///
    /// # Errors
    ///
    /// Those of the copy.
    pub async fn fill(&self, reference: u32, offset: usize, bytes: &[u8]) -> crate::Result {
        Ok(copy::write(self.peer, &[Reference(reference)], offset, bytes).await?)
    }

    /// Maps the page of a request, which a back end of today does not do.
    ///
    /// # Errors
    ///
    /// Those of the mapping.
    pub async fn map(&self, reference: u32) -> crate::Result<Mapping<ReadWrite>> {
        Ok(Mapping::new(self.peer, &[Reference(reference)]).await?)
    }
}
