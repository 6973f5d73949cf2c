//! The event channel by which a toolstack may ask for a suspend.
//!
//! Where a domain names one in `device/suspend/event-channel`, `libxl` binds to it for as long as it saves the domain, and sends an
//! event in place of the word in `control/shutdown`. Xen sends one back when the domain is suspended, so that the toolstack need
//! not watch for that. A word is taken back by who wrote it; an event is when the other end of the channel is unbound again.

use alloc::format;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use crate::sync::Mutex;

use crate::abi::xen::DomainId;
use crate::eventchn::{self, Binding, Port};
use crate::lifecycle::Resumes;
use crate::local::Instance;
use crate::local::domain_local;
use crate::time;
use crate::xenstore::Xenstore;

domain_local! {
    /// The suspend event channel.
    pub(in crate::lifecycle) static CHANNEL: Channel = Channel::new();
}

/// The domain of the toolstack.
const TOOLSTACK: DomainId = DomainId(0);

const PATH: &str = "device/suspend/event-channel";

/// How often it is tried to name the channel, and the pause before each time.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);

/// The channel of the domain, kept for as long as that lasts: a toolstack that finds a number which is another port's by now, or
/// none's, cannot save the domain.
#[derive(Debug)]
pub(in crate::lifecycle) struct Channel {
    port: Mutex<Option<Arc<Port>>>,
    /// Events that were seen to.
    answered: AtomicU64,
}

impl Channel {
    /// No channel yet.
    pub(in crate::lifecycle) const fn new() -> Self {
        Self { port: Mutex::new(None), answered: AtomicU64::new(0) }
    }

    /// The port that the domain has for it.
    fn current(&self) -> Option<Arc<Port>> {
        self.port.lock().as_ref().filter(|port| port.is_current()).cloned()
    }

    /// That port, made if there is none yet.
    fn port(&self) -> Result<Arc<Port>, eventchn::Error> {
        if let Some(port) = self.current() {
            return Ok(port);
        }
        let port = Arc::new(eventchn::alloc_unbound(TOOLSTACK)?);
        self.answered.store(port.count(), Ordering::Relaxed);
        let before = self.port.lock().replace(Arc::clone(&port));
        drop(before);
        Ok(port)
    }

    /// Waits until somebody may ask for a suspend.
    ///
    /// Cancel safety: nothing is lost by dropping the future.
    pub(in crate::lifecycle) async fn rung(&self, state: Instance) {
        loop {
            let generation = state.generation();
            if let Ok(port) = self.port()
                && port.after(self.answered.load(Ordering::Relaxed)).await.is_ok()
            {
                return;
            }
            // There is no channel in this domain, or no domain that it is of.
            Resumes::new(state).another(generation).await;
        }
    }

    /// Whether somebody asks, which is said once.
    pub(in crate::lifecycle) fn take(&self) -> bool {
        let Some(port) = self.current() else { return false };
        let count = port.count();
        // Who has unbound its end has given up.
        self.answered.swap(count, Ordering::Relaxed) < count && !matches!(port.binding(), Ok(Binding::Unbound(_)))
    }

    /// Whoever has asked so far has what was asked for.
    pub(in crate::lifecycle) fn answer(&self) {
        if let Some(port) = self.current() {
            self.answered.store(port.count(), Ordering::Relaxed);
        }
    }
}

/// Names a channel in each domain that this one comes to be.
pub(in crate::lifecycle) async fn offer(state: Instance) {
    let mut resumes = Resumes::new(state);
    loop {
        let generation = state.generation();
        match CHANNEL.of(state).port() {
            Ok(port) => name(state, &port).await,
            Err(error) => log::debug!("there is no {PATH}: {error}"),
        }
        resumes.another(generation).await;
    }
}

async fn name(state: Instance, port: &Port) {
    for attempt in 1..=ATTEMPTS {
        match Xenstore::new(state).write(PATH, format!("{}", port.number())).await {
            Err(error) if attempt == ATTEMPTS => log::debug!("{PATH} is not named: {error}"),
            Err(_) if port.is_current() => time::sleep(PAUSE).await,
            _ => return,
        }
    }
}
