//! Doing what the toolstack asks for, where the application does not care.
//!
//! Tasks beside main, one for each node, so that their first requests go together. Nobody waits for them: they run in the
//! background, so that a main that waits for nothing else is told so as if they were not there. Until the toolstack says
//! something they wait for an event of a watch, and cost nothing.

use core::time::Duration;

use super::requests::{self, ShutdownRequest};
use super::{Reason, fail, finish, sysrq};
use crate::executor::{in_background, spawn};
use crate::state::{self, State};
use crate::time;
use crate::xenstore::{Error, Xenstore};

/// What the toolstack may ask for, as it is told.
const FEATURES: [&str; 2] = ["control/feature-poweroff", "control/feature-reboot"];

/// How often a word is asked for after an answer that makes no sense, and the pause before each time.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);

/// Starts the tasks, which begin when main waits, in a domain that has xenstore.
pub(crate) fn obey() {
    let Some(state) = state::get().filter(|state| state.xenstore.is_there()) else { return };
    for feature in FEATURES {
        spawn(in_background(state, advertise(state, feature))).detach();
    }
    spawn(in_background(state, obey_requests(state))).detach();
    spawn(in_background(state, log_keys(state))).detach();
}

/// Says that the toolstack may ask for something. Whether it hears that, or wants to, is its own business.
async fn advertise(state: &'static State, feature: &str) {
    if let Err(error) = Xenstore::new(state).write(feature, "1").await {
        log::debug!("{feature} is not advertised: {error}");
    }
}

/// Ends the domain when the toolstack asks for it.
async fn obey_requests(state: &'static State) {
    let mut mailbox = requests::mailbox(state);
    let error = loop {
        if let Err(error) = mailbox.changed().await {
            break error;
        }
        state.lifecycle.requests.free().await;
        let received = persist(async || requests::receive(state, &mut mailbox).await).await;
        match received.as_ref().and_then(ShutdownRequest::reason) {
            Some(Reason::Crash) => fail(format_args!("domu: the toolstack asked for a crash")),
            Some(reason) => {
                log::info!("the toolstack asks for {reason}");
                finish(reason).await;
            }
            None => {}
        }
    };
    log::warn!("the toolstack's requests to shut down are not heard: {error}");
}

/// Logs the keys of `xl sysrq`.
async fn log_keys(state: &'static State) {
    let mut mailbox = sysrq::mailbox(state);
    let error = loop {
        if let Err(error) = mailbox.changed().await {
            break error;
        }
        state.lifecycle.sysrq.free().await;
        if let Some(key) = persist(async || sysrq::receive(state, &mut mailbox).await).await {
            log::warn!("sysrq: '{}'", key.escape_ascii());
        }
    };
    log::debug!("the toolstack's keys are not heard: {error}");
}

/// Asks for a word some times; an error that stays is logged, and there may be a word with the next event.
async fn persist<T>(mut receive: impl AsyncFnMut() -> Result<Option<T>, Error>) -> Option<T> {
    let mut attempt = 1;
    loop {
        match receive().await {
            Ok(received) => return received,
            Err(error) if attempt == ATTEMPTS => {
                log::warn!("what the toolstack asks for cannot be read: {error}");
                return None;
            }
            Err(_) => {
                attempt += 1;
                time::sleep(PAUSE).await;
            }
        }
    }
}
