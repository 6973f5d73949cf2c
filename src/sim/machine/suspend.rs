//! What Xen and a toolstack do with a simulated domain that suspends itself: it goes on where it was, or, after some time, in
//! another domain, where all that it finds is its memory and its virtual CPU.
//!
//! The new domain is made to be told from the old one by whoever looks: it has another number, the ports of its rings are
//! exchanged, the rings are empty, and where Xen had placed something there are ones.

use core::time::Duration;

use crate::abi::errno::Errno;
use crate::sim::machine::memory;
use crate::sim::machine::{Machine, with};
use crate::sim::scheduler::{self, Wait};
use crate::sim::toolstack::saved::Saved;

/// Answers the hypercall by which a domain suspends itself.
pub(in crate::sim) fn suspend() -> Result<u64, Errno> {
    let saved = with(|machine| machine.save.as_mut().map_or(Saved::Restored(Duration::from_secs(3)), |save| save()));
    let (Saved::Cancelled(pause) | Saved::Restored(pause) | Saved::Moved(pause, _)) = saved;
    let cancelled = matches!(saved, Saved::Cancelled(_));
    let until = with(|machine| {
        if !cancelled {
            machine.leave_domain();
        }
        machine.suspended = true;
        machine.clock_ns + pause.as_nanos() as u64
    });
    scheduler::wait(&Wait::Poll { ports: std::vec![], deadline_ns: Some(until) });
    with(|machine| {
        machine.suspended = false;
        if cancelled {
            // The toolstack says so to a domain that has a callback only, and that of Xen 4.14 to none.
            return Ok(u64::from(machine.events.callback.is_some() && !machine.is_older_than(4, 15)));
        }
        if let Saved::Moved(_, uptime) = saved {
            machine.ahead_ns = uptime.as_nanos() as i64 - machine.clock_ns as i64;
        }
        machine.enter_domain();
        Ok(0)
    })
}

impl Machine {
    /// The domain is gone, and its memory saved.
    fn leave_domain(&mut self) {
        self.close_ports();
        self.end_mappings();
        self.grants.peers.values_mut().for_each(crate::sim::backends::peer::Peer::forget_maps);
        for frame in self.grants.placed_frames() {
            self.memory.leave_ones(frame);
        }
        self.grants = self.grants.next();
        self.events.leave_domain();
        self.watchdogs = [None; 2];
        if let Some(info) = self.info.take() {
            memory::refill(info, 0xff);
        }
        if let Some((store, domain)) = &self.store {
            store.release(*domain);
        }
    }

    /// A domain is made of what was saved.
    fn enter_domain(&mut self) {
        self.resumes += 1;
        self.domain += 1;
        if let Some(slot) = &self.slot {
            slot.renumber(self.domain);
        }
        core::mem::swap(&mut self.events.store_port, &mut self.events.console_port);
        if let Some((store, number)) = &mut self.store {
            *number += 1;
            if let Some(page) = self.store_page {
                store.introduce(*number, page, 0, self.store_memory, self.clock_ns);
            }
        }
        if let Some(reader) = &mut self.reader {
            reader.restart();
        }
    }
}
