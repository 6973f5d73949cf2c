//! Ports that are to be looked at again, as they have an event that Xen will not put into a queue any more.

use alloc::vec::Vec;

use super::{ErrorKind, Priority};
use crate::abi::event_channel::fifo::PRIORITIES;

/// Lists of ports, one for each priority, first in, first out. A port is in them once, and the links lie beside what is
/// known of each port: they grow when a port is bound, and not with events.
#[derive(Debug, Default)]
pub(super) struct Again {
    ports: Vec<Local>,
    lists: [List; PRIORITIES],
    /// Priorities whose list is not empty, as bits.
    ready: u32,
}

/// What this side knows of a port.
#[derive(Clone, Copy, Debug, Default)]
struct Local {
    priority: Priority,
    listed: bool,
    /// The next one in the list; port 0, which there is not, ends it.
    next: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct List {
    first: u32,
    last: u32,
}

impl Again {
    /// Makes room for a port, which has the default priority. Its number may still be in a list from the port before, and
    /// stays there: a look at it does no harm.
    pub(super) fn reserve(&mut self, port: u32) -> Result<(), ErrorKind> {
        let needed = port as usize + 1;
        let missing = needed.saturating_sub(self.ports.len());
        self.ports.try_reserve(missing).map_err(|_| ErrorKind::OutOfMemory)?;
        self.ports.resize(needed.max(self.ports.len()), Local::default());
        self.set_priority(port, Priority::DEFAULT);
        Ok(())
    }

    /// Ports up to the highest that there was room made for.
    pub(super) const fn ports(&self) -> usize {
        self.ports.len()
    }

    /// Sets the list that a port is put into from now on.
    pub(super) fn set_priority(&mut self, port: u32, priority: Priority) {
        if let Some(local) = self.ports.get_mut(port as usize) {
            local.priority = priority;
        }
    }

    /// Priorities of which there are ports, as bits.
    pub(super) const fn ready(&self) -> u32 {
        self.ready
    }

    /// Puts a port at the end of its list, unless it is in one.
    pub(super) fn push(&mut self, port: u32) {
        let Some(local) = self.ports.get_mut(port as usize).filter(|local| !local.listed) else { return };
        (local.listed, local.next) = (true, 0);
        let priority = usize::from(local.priority.number());
        let Some(list) = self.lists.get_mut(priority) else { return };
        let before = core::mem::replace(&mut list.last, port);
        match self.ports.get_mut(before as usize).filter(|_| before != 0) {
            Some(last) => last.next = port,
            None => list.first = port,
        }
        self.ready |= 1 << priority;
    }

    /// Takes the first port of a list.
    pub(super) fn pop(&mut self, priority: usize) -> Option<u32> {
        let list = self.lists.get_mut(priority)?;
        let port = list.first;
        let local = self.ports.get_mut(port as usize).filter(|_| port != 0)?;
        (local.listed, list.first) = (false, local.next);
        if list.first == 0 {
            list.last = 0;
            self.ready &= !(1 << priority);
        }
        Some(port)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn a_port_is_listed_once_and_in_the_list_of_its_priority() {
        let mut again = Again::default();
        for port in [5, 9, 3] {
            again.reserve(port).unwrap();
        }
        again.push(17);
        assert_eq!(again.ready(), 0, "there is no such port");
        again.set_priority(3, Priority::HIGHEST);
        for port in [5, 9, 5, 3, 9] {
            again.push(port);
        }
        assert_eq!(again.ready(), 1 << 7 | 1);
        // A port whose priority changes stays where it is.
        again.set_priority(9, Priority::LOWEST);
        let drained: Vec<_> = core::iter::from_fn(|| again.pop(7)).collect();
        assert_eq!((drained, again.ready()), (std::vec![5, 9], 1));
        again.push(9);
        again.push(5);
        assert_eq!((again.pop(15), again.pop(7), again.pop(0)), (Some(9), Some(5), Some(3)));
        assert_eq!((again.ready(), again.pop(0), again.pop(16)), (0, None, None));
    }
}
