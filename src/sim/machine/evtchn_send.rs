//! The steps in which the simulated Xen raises an event: one after another, or each at a moment that a race chooses.

use core::sync::atomic::Ordering;

use crate::abi::event_channel::TWO_LEVEL_PORTS;
use crate::abi::event_channel::fifo::{BUSY, LINK, LINKED, MASKED, PENDING, PORTS};
use crate::abi::xen::shared_info;
use crate::shared::SharedPage;
use crate::sim::machine::Machine;
use crate::sim::machine::fifo::Fifo;

/// Steps by the two-level interface: Xen sets the pending bit; looks at the mask; sets the word's bit in the selector;
/// sets upcall_pending. An earlier step may find that there is nothing more to do.
pub const TWO_LEVEL_STEPS: usize = 4;

/// Steps by the FIFO interface: Xen sets PENDING; looks at MASKED and LINKED; sets LINKED, and BUSY for the last port of
/// the queue; links the port behind that or sets the head; sets the bit in `ready`; sets upcall_pending.
pub const FIFO_STEPS: usize = 6;

/// An event on its way.
pub(in crate::sim) struct Raise {
    port: u32,
    /// The queue that it goes into, from when Xen has looked at the port's priority.
    queue: usize,
    next: usize,
    pub(in crate::sim) done: bool,
    /// The port was pending already when the event came.
    pub(in crate::sim) coalesced: bool,
    /// The port that is BUSY for this one, and whether it has been masked since.
    busy: Option<(u32, bool)>,
}

impl Raise {
    /// # Panics
    ///
    /// For a number that is no port's.
    pub(in crate::sim) fn new(port: u32) -> Self {
        assert!(port < PORTS, "no such port: {port}");
        Self { port, queue: 0, next: 0, done: false, coalesced: false, busy: None }
    }

    /// Does the next step, and says whether there are more.
    pub(in crate::sim) fn step(&mut self, machine: &mut Machine) -> bool {
        if let (Some(info), false) = (&machine.info, self.done) {
            let go_on = match &mut machine.events.fifo {
                Some(fifo) => self.step_fifo(info, fifo),
                None => self.step_two_level(info),
            };
            self.done = !go_on;
            self.next += 1;
        }
        !self.done && machine.info.is_some()
    }

    /// Whether it is an event of a port's.
    pub(in crate::sim) const fn is_for(&self, port: u32) -> bool {
        self.port == port
    }

    /// Whether a port is BUSY for this event.
    pub(in crate::sim) const fn has_busy(&self) -> bool {
        self.busy.is_some()
    }

    /// Looks at what the domain does while Xen has a port BUSY.
    ///
    /// # Panics
    ///
    /// If it unmasks the port.
    pub(in crate::sim) fn watch(&mut self, machine: &Machine) {
        if let (Some((port, was_masked)), Some(fifo)) = (&mut self.busy, &machine.events.fifo) {
            let masked = fifo.word(*port).is_some_and(|word| word.load(Ordering::SeqCst) & MASKED != 0);
            assert!(masked || !*was_masked, "port {port} is unmasked while Xen has it BUSY");
            *was_masked |= masked;
        }
    }

    fn step_two_level(&mut self, info: &SharedPage) -> bool {
        assert!(self.port < TWO_LEVEL_PORTS, "no such port: {}", self.port);
        let (word, bit) = (self.port as usize / 64, 1_u64 << (self.port % 64));
        match self.next {
            0 => {
                let before = info.u64(shared_info::PENDING + 8 * word).fetch_or(bit, Ordering::SeqCst);
                self.coalesced = before & bit != 0;
                !self.coalesced
            }
            1 => info.u64(shared_info::MASK + 8 * word).load(Ordering::SeqCst) & bit == 0,
            2 => info.u64(shared_info::PENDING_SELECTOR).fetch_or(1 << word, Ordering::SeqCst) & 1 << word == 0,
            _ => {
                info.u8(shared_info::UPCALL_PENDING).store(1, Ordering::SeqCst);
                false
            }
        }
    }

    fn step_fifo(&mut self, info: &SharedPage, fifo: &mut Fifo) -> bool {
        let port = self.port;
        if self.next == 2 {
            self.queue = fifo.priority(port);
        }
        let queue = self.queue;
        let Some(word) = fifo.word(port) else {
            self.coalesced = !fifo.without_word.insert(port);
            return false;
        };
        match self.next {
            0 => {
                self.coalesced = word.fetch_or(PENDING, Ordering::SeqCst) & PENDING != 0;
                true
            }
            1 => word.load(Ordering::SeqCst) & (MASKED | LINKED) == 0,
            2 => {
                word.fetch_or(LINKED, Ordering::SeqCst);
                // Another queue must not be continued at this port.
                if let Some(&before) = fifo.queues.get(&port)
                    && fifo.tails[before] == port
                {
                    fifo.tails[before] = 0;
                }
                let last = fifo.tails[queue];
                if let Some(last) =
                    fifo.word(last).filter(|word| last != 0 && word.load(Ordering::SeqCst) & LINKED != 0)
                {
                    last.fetch_or(BUSY, Ordering::SeqCst);
                    self.busy = Some((fifo.tails[queue], false));
                }
                true
            }
            3 => {
                let last = core::mem::replace(&mut fifo.tails[queue], port);
                fifo.queues.insert(port, queue);
                self.busy = None;
                let linked = fifo.word(last).filter(|_| last != 0).is_some_and(|last| {
                    let link = |word: u32| {
                        let free = word & !BUSY;
                        Some(if word & LINKED == 0 { free } else { free & !LINK | port })
                    };
                    last.fetch_update(Ordering::SeqCst, Ordering::SeqCst, link).is_ok_and(|word| word & LINKED != 0)
                });
                if !linked {
                    fifo.head(queue).store(port, Ordering::SeqCst);
                }
                !linked
            }
            4 => fifo.ready().fetch_or(1 << queue, Ordering::SeqCst) & 1 << queue == 0,
            _ => {
                info.u8(shared_info::UPCALL_PENDING).store(1, Ordering::SeqCst);
                false
            }
        }
    }
}

impl Machine {
    /// Raises an event on a port, as Xen does.
    pub(crate) fn raise(&mut self, port: u32) {
        let mut raise = Raise::new(port);
        while raise.step(self) {}
    }
}
