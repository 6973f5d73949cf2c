//! The FIFO interface of the simulated Xen: what it keeps of a domain that uses it.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use crate::abi::errno::Errno;
use crate::abi::event_channel::fifo::{
    CONTROL_SIZE, HEAD, LINKED, MASKED, PENDING, PORTS, PRIORITIES, PRIORITY_DEFAULT, READY, WORDS,
};
use crate::abi::event_channel::{ExpandArray, InitControl, SetPriority};
use crate::abi::memory::PAGE_SIZE;
use crate::shared::{SharedPage, SharedWord};
use crate::sim::machine::Machine;

/// Queues and words of a domain.
pub(in crate::sim) struct Fifo {
    control: SharedPage,
    /// Where in its page the control block begins.
    offset: usize,
    words: Vec<SharedPage>,
    /// The last port that was put into each queue.
    pub(in crate::sim) tails: [u32; PRIORITIES],
    /// The queue that a port was put into last.
    pub(in crate::sim) queues: BTreeMap<u32, usize>,
    /// Priorities that were set.
    priorities: BTreeMap<u32, usize>,
    /// Ports with an event that have no word yet.
    pub(in crate::sim) without_word: BTreeSet<u32>,
}

impl Fifo {
    /// A port's word, if its page was given.
    pub(in crate::sim) fn word(&self, port: u32) -> Option<SharedWord<'_, u32>> {
        self.words.get(port as usize / WORDS).map(|page| page.u32(4 * (port as usize % WORDS)))
    }

    #[cfg(fuzzing)]
    pub(in crate::sim) const fn control(&self) -> SharedPage {
        self.control
    }

    #[cfg(fuzzing)]
    pub(in crate::sim) fn words(&self) -> &[SharedPage] {
        &self.words
    }

    pub(in crate::sim) fn ready(&self) -> SharedWord<'_, u32> {
        self.control.u32(self.offset + READY)
    }

    pub(in crate::sim) fn head(&self, queue: usize) -> SharedWord<'_, u32> {
        self.control.u32(self.offset + HEAD + 4 * queue)
    }

    /// The queue that a port is to be put into.
    pub(in crate::sim) fn priority(&self, port: u32) -> usize {
        self.priorities.get(&port).copied().unwrap_or(PRIORITY_DEFAULT.into())
    }

    pub(in crate::sim) fn is_pending(&self, port: u32) -> bool {
        self.word(port).is_some_and(|word| word.load(Ordering::SeqCst) & PENDING != 0)
    }

    /// Whether a port is in a queue.
    pub(in crate::sim) fn is_linked(&self, port: u32) -> bool {
        self.word(port).is_some_and(|word| word.load(Ordering::SeqCst) & LINKED != 0)
    }

    /// A port is closed: it has no event. In its queue it stays, if it is in one, and is nobody else's as long.
    pub(in crate::sim) fn close(&mut self, port: u32) {
        self.without_word.remove(&port);
        self.priorities.remove(&port);
        if let Some(word) = self.word(port) {
            word.fetch_and(!PENDING, Ordering::SeqCst);
        }
    }
}

impl Machine {
    /// A page that the domain lets Xen write to.
    fn given_page(&self, frame: u64) -> Result<SharedPage, Errno> {
        let page = self.memory.at(frame << 12).and_then(NonNull::new).ok_or(Errno::EINVAL)?;
        // SAFETY: it is page-aligned and lives as long as the process; the domain promises to use atomics only.
        Ok(unsafe { SharedPage::new(page, 1) })
    }

    pub(in crate::sim) fn init_control(&mut self, request: &mut InitControl) -> Result<u64, Errno> {
        if !self.events.offers_fifo {
            return Err(Errno::EOPNOTSUPP);
        }
        if request.vcpu != 0 {
            return Err(Errno::ENOENT);
        }
        let end = request.offset.checked_add(CONTROL_SIZE).filter(|&end| u64::from(end) <= PAGE_SIZE);
        if !request.offset.is_multiple_of(8) || end.is_none() || self.events.fifo.is_some() {
            return Err(Errno::EINVAL);
        }
        let control = self.given_page(request.control_gfn)?;
        request.link_bits = PORTS.trailing_zeros() as u8;
        let without_word = self.pending_ports().collect();
        self.events.fifo = Some(Fifo {
            control,
            offset: request.offset as usize,
            words: Vec::new(),
            tails: [0; PRIORITIES],
            queues: BTreeMap::new(),
            priorities: BTreeMap::new(),
            without_word,
        });
        Ok(0)
    }

    pub(in crate::sim) fn expand_array(&mut self, request: &ExpandArray) -> Result<u64, Errno> {
        let page = self.given_page(request.array_gfn)?;
        let fifo = self.events.fifo.as_mut().ok_or(Errno::EOPNOTSUPP)?;
        if fifo.words.len() == PORTS as usize / WORDS {
            return Err(Errno::ENOSPC);
        }
        let masked = (0..WORDS).all(|index| page.u32(4 * index).load(Ordering::SeqCst) == MASKED);
        assert!(masked, "a page of event words must have all of them masked");
        fifo.words.push(page);
        let ports = fifo.words.len() * WORDS;
        let late: Vec<u32> = fifo.without_word.iter().copied().filter(|&port| (port as usize) < ports).collect();
        for port in late {
            self.events.fifo.as_mut().expect("just used").without_word.remove(&port);
            self.raise(port);
        }
        Ok(0)
    }

    pub(in crate::sim) fn set_priority(&mut self, request: &SetPriority) -> Result<u64, Errno> {
        if !self.events.is_bound(request.port) {
            return Err(Errno::EINVAL);
        }
        let fifo = self.events.fifo.as_mut().ok_or(Errno::ENOSYS)?;
        if request.priority as usize >= PRIORITIES {
            return Err(Errno::EINVAL);
        }
        fifo.priorities.insert(request.port, request.priority as usize);
        Ok(0)
    }
}
