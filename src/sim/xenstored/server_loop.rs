//! When the server acts for a domain, and who is told of what has changed.

use std::string::ToString;
use std::vec::Vec;

use crate::abi::xs_wire::{FEATURE_RECONNECTION, RECONNECT};
use crate::shared::SharedPage;
use crate::sim::toolstack::home::Memory;
use crate::sim::xenstored::connection::Read;
use crate::sim::xenstored::nodes::is_below;
use crate::sim::xenstored::tree::{Change, Want, may};
use crate::sim::xenstored::{Dom0, Message, Server, Store};

/// How long a slow server rests between two turns.
const REST_NS: u64 = 10_000;

/// So many reactions of dom0's in a row are a circle.
const REACTIONS: usize = 10_000;

impl Store {
    /// Begins to serve a domain.
    pub(crate) fn introduce(&self, domain: u16, page: SharedPage, index: u32, memory: Memory, now_ns: u64) {
        self.bare().introduce(domain, page, index, memory, now_ns);
    }

    /// The domain has ended.
    pub(crate) fn release(&self, domain: u16) {
        self.bare().release(domain);
    }

    /// The domain has notified the server.
    pub(crate) fn notified(&self, domain: u16, now_ns: u64) {
        let mut server = self.bare();
        let when = now_ns + server.delay_ns;
        if let Some(connection) = server.connections.get_mut(&domain) {
            connection.due_ns = Some(connection.due_ns.map_or(when, |due| due.min(when)));
        }
    }

    /// When the server has its next turn for a domain.
    pub(crate) fn next(&self, domain: u16) -> Option<u64> {
        self.bare().connections.get(&domain)?.due_ns
    }

    /// Has a turn for a domain; true if it raises an event.
    pub(crate) fn act(&self, domain: u16, now_ns: u64) -> bool {
        self.lock().act(domain, now_ns)
    }
}

impl Server {
    fn act(&mut self, domain: u16, now_ns: u64) -> bool {
        let (pace, features, stopped) = (self.pace, self.features, self.stopped);
        let Some(connection) = self.connections.get_mut(&domain) else { return false };
        connection.due_ns = connection.waits_ns.filter(|&until| now_ns < until);
        if stopped || connection.due_ns.is_some() {
            return false;
        }
        if connection.state() == RECONNECT && (features & FEATURE_RECONNECTION != 0 || connection.waits_ns.is_some()) {
            connection.reconnect();
        }
        connection.waits_ns = None;
        let (mut to_read, mut to_write) = (pace.unwrap_or(u32::MAX), pace.unwrap_or(u32::MAX));
        while self.serve(domain, &mut to_read, &mut to_write) {}
        let Some(connection) = self.connections.get_mut(&domain) else { return false };
        connection.overwrite();
        let goes_on = pace.is_some() && connection.has_work(self.flavour.outstanding());
        connection.due_ns = goes_on.then_some(now_ns + REST_NS);
        core::mem::take(&mut connection.raise)
    }

    /// Reads up to a request, answers it, and writes what there is room for; says if that was anything.
    fn serve(&mut self, domain: u16, to_read: &mut u32, to_write: &mut u32) -> bool {
        let most = self.flavour.outstanding();
        let Some(connection) = self.connections.get_mut(&domain) else { return false };
        if connection.error.is_some() {
            return false;
        }
        let read = if connection.outstanding() < most { connection.read(to_read) } else { Read::Empty };
        let has_read = !matches!(read, Read::Empty);
        if let Read::Request(request) = read {
            self.request(domain, request);
            self.settle();
        }
        let connection = self.connections.get_mut(&domain);
        let has_written = connection.is_some_and(|connection| connection.error.is_none() && connection.write(to_write));
        has_read || has_written
    }

    /// Sends a message, or what a test makes of it.
    pub(super) fn send(&mut self, domain: u16, message: Message, is_reply: bool) {
        let messages = match &mut self.tamper {
            Some(tamper) => tamper(domain, message),
            None => Vec::from([message]),
        };
        if let Some(connection) = self.connections.get_mut(&domain) {
            messages.iter().for_each(|message| connection.send(message, is_reply));
            connection.due_ns.get_or_insert(0);
        }
    }

    /// Sends the events that are due.
    pub(super) fn flush(&mut self) {
        for (domain, event) in core::mem::take(&mut self.events) {
            self.send(domain, event, false);
        }
    }

    /// Sends the events that are due, and lets dom0 react to what has changed.
    ///
    /// # Panics
    ///
    /// If dom0 reacts to itself, over and over.
    pub(in crate::sim) fn settle(&mut self) {
        self.flush();
        let mut count = 0;
        while let Some(path) = self.changed.pop_front() {
            count += 1;
            assert!(count < REACTIONS, "dom0 reacts to itself at {path}");
            let mut reactions = core::mem::take(&mut self.reactions);
            for (_, reaction) in reactions.iter_mut().filter(|(above, _)| is_below(&path, above)) {
                reaction(&mut Dom0(self), &path);
            }
            self.reactions = reactions;
            self.flush();
        }
    }

    /// Tells watches of changes.
    pub(super) fn fire(&mut self, changes: Vec<Change>) {
        for Change { path, permissions, exact } in changes {
            for (&domain, connection) in &self.connections {
                let told = connection.watches.iter().filter(|watch| {
                    let levels = |path: &str| path.bytes().filter(|&byte| byte == b'/').count();
                    let above = is_below(&path, &watch.absolute);
                    let near = |depth| levels(&path).saturating_sub(levels(&watch.absolute)) <= depth;
                    let hit = if exact { path == watch.absolute } else { above && watch.depth.is_none_or(near) };
                    hit && may(domain, &permissions, Want::Read)
                });
                let events = told.map(|watch| {
                    // A path below the domain's home is told as it was asked for.
                    let home = watch.absolute.len() - watch.path.len();
                    (domain, Message::event(&path[home..], &watch.token))
                });
                self.events.extend(events);
            }
            self.changed.push_back(path);
        }
    }

    /// Tells watches of a special path.
    pub(in crate::sim) fn fire_special(&mut self, special: &str) {
        let permissions = self.actor(0, |actor| actor.permissions(special)).unwrap_or_default();
        self.fire(Vec::from([Change { path: special.to_string(), permissions, exact: true }]));
    }
}
