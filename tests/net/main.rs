//! Network interfaces, on the simulated Xen: our front end against a back end that bridges, and against hostile ones.

#![cfg_attr(miri, allow(dead_code, unused_imports, reason = "for the tests that Miri does not run"))]

#[cfg(not(miri))]
mod bridged;
#[cfg(not(miri))]
mod hostile;
#[cfg(not(miri))]
mod reconnect;

use std::time::Duration;

use domu::net::{self, Config, Handle, Link, Receiver, Transmitter};
use domu::sim::{Guest, Store};
use domu::xenstore::Path;
use domu::{Domain, executor};

const MS: Duration = Duration::from_millis(1);

/// The domains of the front ends, and that of the back end.
const ONE: u16 = 7;
const OTHER: u16 = 8;
const BACK: u16 = 3;

/// Opens the interface and waits until it is up.
async fn open(domain: Domain, config: Config) -> domu::Result<(Receiver, Transmitter, Handle)> {
    let path = Path::new("device/vif/0")?;
    let (interface, receiver, transmitter) = net::open(&domain.xenstore(), &path, config).await?;
    let handle = interface.handle();
    executor::spawn(async move {
        // Tests look at the halves for how it ends.
        let _ = interface.run().await;
    })
    .detach();
    assert_eq!(handle.link_changed(Link::Down).await?, Link::Up);
    Ok((receiver, transmitter, handle))
}

fn guest(store: &Store) -> Guest {
    Guest::new().xenstore(store).memory_mib(16, 16).backed_mib(16)
}
