//! Event channels, virtual interrupts and the timer of the simulated Xen.
//!
//! A peer is another domain of the same host (see `host`), or a function of the test's, called at a moment of the virtual
//! clock. How an event reaches the domain stands in [`evtchn_send`](super::evtchn_send).

use core::sync::atomic::Ordering;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

use crate::abi::errno::Errno;
use crate::abi::event_channel::fifo;
use crate::abi::event_channel::{
    AllocUnbound, BindInterdomain, BindIpi, BindVirq, Status, TWO_LEVEL_PORTS, status, virq,
};
use crate::abi::hvm::CALLBACK_VECTOR;
use crate::abi::xen::{DomainId, shared_info};
use crate::arch;
use crate::lifecycle::Reason;
use crate::sim::access::interleave;
use crate::sim::machine::config::EventsConfig;
use crate::sim::machine::fifo::Fifo;
use crate::sim::machine::{CONSOLE_PORT, Machine, STORE_PORT};

/// The deadline of a watchdog that has passed while the domain was suspended.
const PASSED: u64 = u64::MAX;

/// What a test does to the domain from outside, at a moment.
pub(crate) type Action = Box<dyn FnOnce(&mut Outside<'_>) + Send>;

/// The other end of what a port is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sim) enum End {
    /// Nothing yet: a domain may bind.
    Unbound(u16),
    /// A port of this domain's own.
    Own(u32),
    /// A port of another domain's: one on the same host, or one whose end the test plays.
    Peer(u16, u32),
    Virq(u32),
    Ipi,
}

/// What Xen knows of the domain's ports and timer.
pub(crate) struct Events {
    pub(in crate::sim) ports: BTreeMap<u32, End>,
    /// Those of the rings that the toolstack has made.
    pub(in crate::sim) store_port: u32,
    pub(in crate::sim) console_port: u32,
    /// All ports below are taken.
    lowest_free: u32,
    /// The FIFO interface is to be had.
    pub(in crate::sim) offers_fifo: bool,
    /// It, once the domain uses it.
    pub(in crate::sim) fifo: Option<Fifo>,
    /// Ports from here on are not to be had.
    pub(crate) limit: u32,
    /// Ports of others that this domain may bind to.
    pub(crate) offered: Vec<(u16, u32)>,
    /// When the timer's interrupt comes.
    pub(crate) timer_ns: Option<u64>,
    /// The vector by which events interrupt a halt.
    pub(crate) callback: Option<u64>,
    /// What happens when, in order.
    pub(crate) actions: Vec<(u64, Action)>,
    /// Ports of peers that were notified, in order.
    pub(crate) sent: Vec<(u16, u32)>,
    /// How often the domain has halted.
    pub(crate) halts: u64,
}

impl Events {
    pub(in crate::sim) fn new(config: EventsConfig) -> Self {
        Self {
            ports: BTreeMap::new(),
            store_port: STORE_PORT,
            console_port: CONSOLE_PORT,
            lowest_free: 0,
            offers_fifo: config.fifo,
            fifo: None,
            limit: config.port_limit,
            offered: config.offered,
            timer_ns: None,
            callback: None,
            actions: config.actions,
            sent: Vec::new(),
            halts: 0,
        }
    }

    /// Takes the lowest free port that is in no queue any more.
    fn take(&mut self, end: End) -> Result<u32, Errno> {
        let reserved = [0, STORE_PORT, CONSOLE_PORT];
        let most = if self.fifo.is_some() { fifo::PORTS } else { TWO_LEVEL_PORTS };
        let is_free = |port: &u32| !reserved.contains(port) && !self.ports.contains_key(port);
        let mut free = (self.lowest_free..self.limit.min(most)).filter(is_free).peekable();
        let lowest = free.peek().copied();
        let is_queued = |port: &u32| self.fifo.as_ref().is_some_and(|fifo| fifo.is_linked(*port));
        let port = free.find(|port| !is_queued(port)).ok_or(Errno::ENOSPC)?;
        self.ports.insert(port, end);
        // One that was passed over comes first when its queue has been read.
        self.lowest_free = lowest.filter(|&lowest| lowest < port).unwrap_or(port + 1);
        Ok(port)
    }

    /// The domain is gone, and with it what Xen had of its events.
    pub(in crate::sim) fn leave_domain(&mut self) {
        assert!(self.ports.is_empty(), "they were closed");
        (self.lowest_free, self.fifo, self.timer_ns, self.callback) = (0, None, None, None);
    }

    pub(in crate::sim) fn is_bound(&self, port: u32) -> bool {
        self.ports.contains_key(&port)
    }
}

/// The surroundings of a domain, in the hands of a test.
pub struct Outside<'a>(pub(in crate::sim) &'a mut Machine);

impl core::fmt::Debug for Outside<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Outside").field("domain", &self.0.domain).finish_non_exhaustive()
    }
}

impl Outside<'_> {
    /// Raises an event on a port of the domain's, as a peer does.
    pub fn notify(&mut self, port: u32) {
        self.0.raise(port);
    }

    /// Raises a virtual interrupt, as Xen does: on the port that the domain has bound to it, if any.
    pub fn raise_virq(&mut self, number: u32) {
        self.0.raise_virq(number);
    }

    /// Binds a port of a peer's to one that the domain has made for it, as a toolstack does.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn bind(&mut self, peer: u16, port: u32) {
        let end = self.0.events.ports.get_mut(&port);
        let unbound = end.filter(|end| **end == End::Unbound(peer)).expect("a port for this peer that is not bound");
        *unbound = End::Peer(peer, port);
    }

    /// Takes the peer's end of such a port away again.
    ///
    /// # Panics
    ///
    /// If the domain has not that port.
    pub fn unbind(&mut self, peer: u16, port: u32) {
        *self.0.events.ports.get_mut(&port).expect("a port of the domain's") = End::Unbound(peer);
    }

    /// Xen's page of shared information.
    #[cfg(test)]
    pub(crate) fn info(&self) -> crate::shared::SharedPage {
        self.0.info.expect("the domain has placed it")
    }

    /// Sets dom0's clock: nanoseconds since 1970, now.
    pub fn set_wall_clock(&mut self, now_ns: u64) {
        self.0.set_wall_clock(now_ns);
    }

    /// Types, or sends, something into the console.
    pub fn type_in(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.type_in(bytes.as_ref());
    }

    /// Has the console's backend show a producer index of the input that is not the true one.
    pub fn lie_about_input(&mut self, index: u32) {
        if let Some(reader) = &self.0.reader {
            reader.lie_about_input(index);
        }
        self.0.raise(self.0.events.console_port);
    }

    /// What was sent to ports of peers so far: domain and port.
    #[must_use]
    pub fn sent(&self) -> &[(u16, u32)] {
        &self.0.events.sent
    }
}

impl Machine {
    pub(crate) fn alloc_unbound(&mut self, request: &mut AllocUnbound) -> Result<u64, Errno> {
        if request.dom != DomainId::SELF.0 {
            return Err(Errno::EPERM);
        }
        request.port = self.events.take(End::Unbound(self.number_of(request.remote_dom)))?;
        Ok(0)
    }

    pub(crate) fn bind_interdomain(&mut self, request: &mut BindInterdomain) -> Result<u64, Errno> {
        let (remote, own) = (request.remote_port, self.number_of(DomainId::SELF.0));
        if self.number_of(request.remote_dom) == own {
            if self.events.ports.get(&remote) != Some(&End::Unbound(own)) {
                return Err(Errno::EINVAL);
            }
            let local = self.events.take(End::Own(remote))?;
            self.events.ports.insert(remote, End::Own(local));
            request.local_port = local;
        } else {
            if !self.events.offered.contains(&(request.remote_dom, remote)) {
                self.at_peer(request.remote_dom, remote, End::Unbound(own), |_| ())?;
            }
            let local = self.events.take(End::Peer(request.remote_dom, remote))?;
            self.rebind_peer(request.remote_dom, remote, End::Unbound(own), End::Peer(own, local));
            request.local_port = local;
        }
        // The first event comes with the binding.
        self.raise(request.local_port);
        Ok(0)
    }

    pub(crate) fn bind_virq(&mut self, request: &mut BindVirq) -> Result<u64, Errno> {
        if request.vcpu != 0 || request.virq > 23 {
            return Err(Errno::EINVAL);
        }
        if self.events.ports.values().any(|end| *end == End::Virq(request.virq)) {
            return Err(Errno::EEXIST);
        }
        request.port = self.events.take(End::Virq(request.virq))?;
        Ok(0)
    }

    pub(crate) fn bind_ipi(&mut self, request: &mut BindIpi) -> Result<u64, Errno> {
        request.port = self.events.take(End::Ipi)?;
        Ok(0)
    }

    pub(crate) fn close_port(&mut self, port: u32) -> Result<u64, Errno> {
        interleave::close(self, port);
        let end = self.events.ports.remove(&port).ok_or(Errno::EINVAL)?;
        self.events.lowest_free = self.events.lowest_free.min(port);
        self.clear_pending(port);
        let own = self.number_of(DomainId::SELF.0);
        match end {
            End::Own(other) => drop(self.events.ports.insert(other, End::Unbound(own))),
            End::Peer(domain, remote) => self.rebind_peer(domain, remote, End::Peer(own, port), End::Unbound(own)),
            End::Unbound(_) | End::Virq(_) | End::Ipi => {}
        }
        Ok(0)
    }

    pub(crate) fn send_event(&mut self, port: u32) -> Result<u64, Errno> {
        match self.events.ports.get(&port) {
            _ if port == self.events.console_port => self.backend_turn(),
            _ if port == self.events.store_port => self.store_notified(),
            Some(End::Unbound(_)) => {}
            Some(&End::Own(other)) => self.raise(other),
            Some(End::Ipi) => self.raise(port),
            Some(&End::Peer(domain, remote)) => {
                self.events.sent.push((domain, remote));
                let bound = End::Peer(self.number_of(DomainId::SELF.0), port);
                // Where the test plays the peer, it looks at what was sent.
                let _ = self.at_peer(domain, remote, bound, |peer| peer.raise(remote));
            }
            Some(End::Virq(_)) | None => return Err(Errno::EINVAL),
        }
        Ok(0)
    }

    pub(crate) fn port_status(&self, request: &mut Status) -> Result<u64, Errno> {
        let Events { ports, store_port, console_port, .. } = &self.events;
        (request.status, request.bound) = match ports.get(&request.port) {
            // Their servers have bound them.
            None if [*store_port, *console_port].contains(&request.port) => (status::INTERDOMAIN, [0, request.port]),
            None => (status::CLOSED, [0; 2]),
            Some(&End::Unbound(domain)) => (status::UNBOUND, [u32::from(domain), 0]),
            Some(&End::Own(other)) => (status::INTERDOMAIN, [u32::from(self.number_of(DomainId::SELF.0)), other]),
            Some(&End::Peer(domain, port)) => (status::INTERDOMAIN, [u32::from(domain), port]),
            Some(&End::Virq(number)) => (status::VIRQ, [number, 0]),
            Some(End::Ipi) => (status::IPI, [0; 2]),
        };
        Ok(0)
    }

    /// The number of a domain that may be named as the calling one.
    pub(in crate::sim) fn number_of(&self, domain: u16) -> u16 {
        if domain == DomainId::SELF.0 { self.domain } else { domain }
    }

    /// Whether a port is pending, as a poll of Xen's sees it.
    pub(crate) fn is_pending(&self, port: u32) -> bool {
        if let Some(fifo) = &self.events.fifo {
            return fifo.is_pending(port);
        }
        let (word, bit) = (port as usize / 64, 1_u64 << (port % 64));
        let pending = self.info.as_ref().filter(|_| word < shared_info::WORDS);
        pending.is_some_and(|info| info.u64(shared_info::PENDING + 8 * word).load(Ordering::SeqCst) & bit != 0)
    }

    /// Raises a virtual interrupt on the port that is bound to it, if any.
    fn raise_virq(&mut self, number: u32) {
        let bound = self.events.ports.iter().find(|(_, end)| **end == End::Virq(number));
        if let Some((&port, _)) = bound {
            self.raise(port);
        }
    }

    /// The ports that are pending by the two-level interface.
    pub(in crate::sim) fn pending_ports(&self) -> impl Iterator<Item = u32> {
        let words = self.info.into_iter().flat_map(|info| {
            (0..shared_info::WORDS).map(move |word| info.u64(shared_info::PENDING + 8 * word).load(Ordering::SeqCst))
        });
        words
            .zip((0..).step_by(64))
            .flat_map(|(word, first)| (0..64).filter(move |bit| word & 1 << bit != 0).map(move |bit| first + bit))
    }

    fn clear_pending(&mut self, port: u32) {
        match (&mut self.events.fifo, &self.info) {
            (Some(fifo), _) => fifo.close(port),
            (None, Some(info)) => {
                let word = info.u64(shared_info::PENDING + 8 * (port as usize / 64));
                word.fetch_and(!(1 << (port % 64)), Ordering::SeqCst);
            }
            (None, None) => {}
        }
    }

    pub(in crate::sim) fn upcall_pending(&self) -> bool {
        self.info.as_ref().is_some_and(|info| info.u8(shared_info::UPCALL_PENDING).load(Ordering::SeqCst) != 0)
    }

    /// When the next thing happens: an action of the test's, the timer, the console's backend, xenstored, or a watchdog.
    pub(in crate::sim) fn next(&self) -> Option<u64> {
        let backend = self.reader.as_ref().and_then(|reader| reader.next_ns);
        let watchdogs = self.watchdogs.into_iter().flatten().filter(|when| *when != PASSED);
        let others = self.events.timer_ns.into_iter().chain(backend).chain(self.store_next()).chain(watchdogs);
        self.events.actions.iter().map(|(when, _)| *when).chain(others).min()
    }

    /// Lets everything happen that is due by now, in order.
    pub(crate) fn catch_up(&mut self) {
        while let Some(when) = self.next().filter(|when| *when <= self.clock_ns) {
            if let Some(watchdog) = self.watchdogs.iter_mut().find(|watchdog| **watchdog == Some(when)) {
                *watchdog = Some(PASSED);
                // A domain that is suspended is ended by nothing.
                if self.suspended {
                    continue;
                }
                self.watchdogs = [None; 2];
                // Not while it is being left.
                if !std::thread::panicking() {
                    crate::sim::end(crate::sim::End::Shutdown(Reason::Watchdog));
                }
            } else if self.events.timer_ns == Some(when) {
                self.events.timer_ns = None;
                self.raise_virq(virq::TIMER);
            } else if let Some(index) = self.events.actions.iter().position(|(other, _)| *other == when) {
                let (_, action) = self.events.actions.remove(index);
                action(&mut Outside(self));
            } else if self.store_next() == Some(when) {
                self.store_turn();
            } else {
                self.backend_turn();
            }
        }
    }

    /// Begins to halt.
    ///
    /// # Panics
    ///
    /// If no interrupt would end the halt: the domain would sleep for ever.
    pub(crate) fn halt(&mut self) {
        self.events.halts += 1;
        interleave::halt(self);
        let callback = CALLBACK_VECTOR | u64::from(arch::CALLBACK_VECTOR);
        assert_eq!(self.events.callback, Some(callback), "no interrupt ends this halt");
    }
}
