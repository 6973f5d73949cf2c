//! Doing what the toolstack asks for, where the application does not care.
//!
//! Tasks beside main, one for each node, so that their first requests go together. Nobody waits for them: they run in the
//! background, so that a main that waits for nothing else is told so as if they were not there. Until the toolstack says
//! something they wait for an event, and cost nothing.

use alloc::boxed::Box;
use core::pin::Pin;
use core::time::Duration;

use super::node::Mailbox;
use super::requests::ShutdownRequest;
use super::{requests, sysrq};
use crate::console::rate_limit::log_limited;
use crate::executor::spawn;
use crate::lifecycle::suspend::suspend_evtchn;
use crate::lifecycle::{Reason, Resumes, fail, finish, suspend};
use crate::local::{self, Instance};
use crate::sync::wait_list::in_background;
use crate::time::{self, TokenBucket};
use crate::xenstore::CONNECTION;
use crate::xenstore::{Error, Xenstore};

/// How often a word is asked for after an answer that makes no sense, and the pause before each time.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);

/// Reads of a node at once, and the interval of further ones: a request takes two. A toolstack that writes without end keeps
/// the domain no busier than that.
const READS: u32 = 32;
const READ_INTERVAL: Duration = Duration::from_millis(50);

/// Starts the tasks, which begin when main waits, in a domain that has xenstore.
pub(crate) fn obey() {
    let Some(state) = local::current().filter(|&state| CONNECTION.of(state).is_there()) else { return };
    // Of one type, as each type of task has code of its own, which is in every image.
    let tasks: [Pin<Box<dyn Future<Output = ()>>>; 6] = [
        Box::pin(advertise(state, "control/feature-poweroff")),
        Box::pin(advertise(state, "control/feature-reboot")),
        Box::pin(advertise(state, "control/feature-suspend")),
        Box::pin(suspend_evtchn::offer(state)),
        Box::pin(listen(state, Node::Requests)),
        Box::pin(listen(state, Node::Keys)),
    ];
    for task in tasks {
        spawn(in_background(state, task)).detach();
    }
}

/// Says that the toolstack may ask for something, in each domain that this one comes to be. Whether it hears that, or wants
/// to, is its own business.
async fn advertise(state: Instance, feature: &str) {
    let mut resumes = Resumes::new(state);
    loop {
        let generation = state.generation();
        if let Err(error) = Xenstore::new(state).write(feature, "1").await {
            log::debug!("{feature} is not advertised: {error}");
        }
        resumes.another(generation).await;
    }
}

/// Where the toolstack leaves words.
#[derive(Clone, Copy)]
enum Node {
    Requests,
    Keys,
}

/// Does what the words in a node are for, when the application does not.
async fn listen(state: Instance, node: Node) {
    let mut resumes = Resumes::new(state);
    let throttle = TokenBucket::new(READS, READ_INTERVAL);
    loop {
        let (generation, error) = serve(state, node, &throttle).await;
        match node {
            Node::Requests => log_limited!(control of state, Warn, "cannot receive shutdown requests: {error}"),
            Node::Keys => log::debug!("cannot receive sysrq keys: {error}"),
        }
        // The next domain has another connection to xenstored.
        resumes.another(generation).await;
    }
}

/// Serves a node until its watch fails; returns the error, and the generation in which the last wait began.
async fn serve(state: Instance, node: Node, throttle: &TokenBucket) -> (u64, Error) {
    let mut mailbox = match node {
        Node::Requests => requests::mailbox(state),
        Node::Keys => sysrq::mailbox(state),
    };
    loop {
        let generation = state.generation();
        if let Err(error) = mailbox.changed().await {
            return (generation, error);
        }
        let mut attempt = 1;
        // One event may stand for several requests. A stream that the application makes in between gets the rest.
        loop {
            throttle.wait(state).await;
            mailbox.desk.free().await;
            match node.act(state, &mut mailbox).await {
                Ok(true) => {}
                Ok(false) => break,
                // There may be a word with the next event.
                Err(error) if attempt == ATTEMPTS => {
                    log_limited!(control of state, Warn, "cannot read {}: {error}", node.path());
                    break;
                }
                Err(_) => {
                    attempt += 1;
                    time::sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Node {
    const fn path(self) -> &'static str {
        match self {
            Self::Requests => "control/shutdown",
            Self::Keys => "control/sysrq",
        }
    }

    /// Receives the word that is there, and does what it is for; says whether there was one.
    async fn act(self, state: Instance, mailbox: &mut Mailbox) -> Result<bool, Error> {
        match self {
            Self::Requests => {
                let Some(request) = requests::receive(state, mailbox).await? else { return Ok(false) };
                if request == ShutdownRequest::Suspend
                    && let Err(error) = suspend().await
                {
                    log_limited!(requests of state, Warn, "{error:#}");
                }
                match request.reason() {
                    Some(Reason::Crash) => fail(format_args!("domu: the toolstack asked for a crash")),
                    Some(reason) => {
                        log::info!("the toolstack asks for {reason}");
                        finish(reason).await;
                    }
                    None => {}
                }
            }
            Self::Keys => {
                let Some(key) = sysrq::receive(state, mailbox).await? else { return Ok(false) };
                log_limited!(sysrq of state, Warn, "sysrq: '{}'", key.escape_ascii());
            }
        }
        Ok(true)
    }
}
