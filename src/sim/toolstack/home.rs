//! What is in the store before anybody asks: its roots, and what `xl create` writes for a domain.

use std::format;
use std::string::String;
use std::vec::Vec;

use crate::abi::xs_wire::{CONNECTED, RECONNECT};
use crate::shared::SharedPage;
use crate::sim::xenstored::Server;
use crate::sim::xenstored::connection::Connection;
use crate::sim::xenstored::tree::{Node, Permission, View};

/// What the toolstack says of a domain's memory.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) most_kib: u64,
    pub(crate) target_kib: u64,
}

/// What a guest may only read, with its value.
const READABLE: [(&str, &str); 7] = [
    ("cpu/0/availability", "online"),
    ("console/type", "xenconsoled"),
    ("control/platform-feature-multiprocessor-suspend", "1"),
    ("control/platform-feature-xs_reset_watches", "1"),
    ("device", ""),
    ("platform/acpi", "1"),
    ("store/port", "1"),
];

/// What a guest owns. It is empty.
const OWNED: [&str; 13] = [
    "attr",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-s3",
    "control/feature-s4",
    "control/feature-suspend",
    "control/shutdown",
    "control/sysrq",
    "data",
    "device/suspend/event-channel",
    "drivers",
    "error",
    "feature",
];

impl Server {
    /// Makes the roots, which no guest may list, and the homes of domains, unless they are there.
    pub(in crate::sim) fn plant(&mut self) {
        if !self.planted {
            self.planted = true;
            let mut view = View { tree: &mut self.tree, transaction: None };
            for path in ["/", "@introduceDomain", "@releaseDomain"] {
                view.set(path, Some(Node { permissions: Vec::from([Permission::owner(0)]), ..Node::default() }));
            }
            for path in ["/local/domain/0/name", "/vm", "/libxl", "/tool/xenstored"] {
                self.put(path, "");
            }
        }
        for (domain, memory) in core::mem::take(&mut self.homes) {
            self.make_home(domain, memory);
            self.fire_special("@introduceDomain");
            self.settle();
        }
    }

    /// Writes as dom0.
    fn put(&mut self, path: &str, value: &str) {
        self.actor(0, |actor| actor.write(path, value.as_bytes())).expect("dom0 may write");
    }

    /// Gives a node to a guest, to read or to own; what is made below later has the same permissions.
    fn grant(&mut self, path: &str, permissions: Vec<Permission>) {
        self.actor(0, |actor| actor.set_permissions(path, permissions)).expect("there is the node");
    }

    /// Makes a domain's home, as the toolstack does before the domain runs.
    fn make_home(&mut self, domain: u16, memory: Memory) {
        let (home, vm) = (format!("/local/domain/{domain}"), format!("/vm/00000000-0000-4000-8000-{domain:012x}"));
        let name = format!("guest{domain}");
        let readable = || Vec::from([Permission::owner(0), Permission::reader(domain)]);
        for path in [&home, &vm] {
            self.put(path, "");
            self.grant(path, readable());
        }
        self.put(&format!("{vm}/name"), &name);
        self.put(&format!("{home}/name"), &name);
        self.put(&format!("{home}/domid"), &format!("{domain}"));
        self.put(&format!("{home}/vm"), &vm);
        for (path, kib) in [("memory/static-max", memory.most_kib), ("memory/target", memory.target_kib)] {
            self.put(&format!("{home}/{path}"), &format!("{kib}"));
        }
        for (path, value) in READABLE {
            self.put(&format!("{home}/{path}"), value);
        }
        for path in OWNED {
            let path: String = format!("{home}/{path}");
            self.put(&path, "");
            self.grant(&path, Vec::from([Permission::owner(domain)]));
        }
    }

    /// Begins to serve a domain's ring.
    pub(in crate::sim) fn introduce(&mut self, domain: u16, page: SharedPage, index: u32, memory: Memory, now_ns: u64) {
        let state = if self.connects_after_ns.is_some() { RECONNECT } else { CONNECTED };
        let mut connection = Connection::new(page, self.features, state, index);
        connection.due_ns = self.connects_after_ns.map(|delay| now_ns + delay);
        connection.waits_ns = connection.due_ns;
        self.connections.insert(domain, connection);
        self.homes.push((domain, memory));
    }

    /// The domain has ended: nobody is left to be served. Its nodes are the toolstack's matter.
    pub(in crate::sim) fn release(&mut self, domain: u16) {
        self.connections.remove(&domain);
        // Without roots there is nobody who watches.
        if self.planted {
            self.plant();
            self.fire_special("@releaseDomain");
            self.settle();
        }
    }
}
