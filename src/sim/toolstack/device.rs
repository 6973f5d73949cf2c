//! Devices in xenstore, as a toolstack makes them.

use std::format;
use std::string::ToString;

use crate::sim::xenstored::Dom0;

impl Dom0<'_> {
    /// Makes one end of a device: its directory, which `owner` owns and the domain of the other end may read, with its state and
    /// the link to the other end. `other` is the name of the link (`backend` or `frontend`), the other end's directory and its domain.
    ///
    /// # Panics
    ///
    /// If a path is none.
    pub fn make_device_end(&mut self, path: &str, owner: u16, other: (&str, &str, u16)) {
        let (link, peer_path, peer) = other;
        self.write(path, "");
        // Directories above belong to the toolstack; the domain may read them.
        let (mut above, home) = (path, format!("/local/domain/{owner}"));
        while let Some((parent, _)) = above.rsplit_once('/').filter(|(parent, _)| *parent != home) {
            self.set_permissions(parent, &["n0", &format!("r{owner}")]);
            above = parent;
        }
        self.set_permissions(path, &[&format!("n{owner}"), &format!("r{peer}")]);
        self.write(&format!("{path}/{link}"), peer_path);
        self.write(&format!("{path}/{link}-id"), peer.to_string());
        self.write(&format!("{path}/state"), "1");
    }
}
