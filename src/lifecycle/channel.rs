//! The event channel by which a toolstack may ask for a suspend.
//!
//! Where a domain names one in `device/suspend/event-channel`, `libxl` sends an event on it in place of the word in
//! `control/shutdown`, and has Xen send one back when the domain is suspended, so that it need not wait for xenstore. The domain
//! then puts the word there itself: whoever receives the toolstack's words, the application or this crate, has this one too.

use super::Resumes;
use crate::abi::xen::DomainId;
use crate::state::State;
use crate::xenstore::Xenstore;
use crate::{Error, eventchn};

/// The domain of the toolstack.
const TOOLSTACK: DomainId = DomainId(0);

const PATH: &str = "device/suspend/event-channel";

/// Offers a channel in each domain that this one comes to be, for as long as that lasts.
pub(super) async fn offer(state: &'static State) {
    let mut resumes = Resumes::new(state);
    loop {
        let generation = state.generation();
        match listen(state).await {
            // As is to be expected of the channel of a domain that was left.
            Err(Error::EventChannel(eventchn::Error::BeforeResume)) => {}
            Err(error) => log::debug!("{PATH}: {error}"),
            Ok(never) => match never {},
        }
        resumes.another(generation).await;
    }
}

/// Makes a channel, and passes on what is asked for by it.
async fn listen(state: &'static State) -> Result<core::convert::Infallible, Error> {
    let store = Xenstore::new(state);
    let port = eventchn::alloc_unbound(TOOLSTACK)?;
    let mut seen = port.count();
    store.write(PATH, alloc::format!("{}", port.number())).await?;
    loop {
        seen = port.after(seen).await?;
        store.write(super::requests::PATH, super::requests::SUSPEND).await?;
    }
}
