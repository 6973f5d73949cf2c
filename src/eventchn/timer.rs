//! The timer of the virtual CPU: its port, and what it is set to.

use super::{DELIVERY, ErrorKind};
use crate::abi::event_channel::virq;
use crate::hypercall;
use crate::local::{Instance, vcpu_local};
use crate::shared::INFO;
use crate::sync::Mutex;
use crate::time::{CLOCK, Instant};

vcpu_local! {
    /// The timer of the virtual CPU.
    pub(crate) static TIMER: Timer = Timer::new();
}

/// No deadline further ahead is given to Xen, which fires those beyond 2^50 ns after 100 ms: half of that.
const FARTHEST_NS: u64 = 1 << 49;

#[derive(Debug)]
pub(crate) struct Timer(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    /// The deadline that Xen has.
    programmed: Option<Instant>,
    /// The port of its interrupt, once it was needed.
    port: Option<u32>,
}

impl Inner {
    fn bind(&mut self, domain: Instance) -> Result<(), ErrorKind> {
        if self.port.is_none() {
            DELIVERY.of(domain).choose();
            let port = hypercall::event_bind_virq(virq::TIMER).map_err(|errno| ErrorKind::from_xen(errno, None))?;
            if let Err(error) = DELIVERY.of(domain).reserve(port) {
                // Closing what was just bound fails for no reason that could be acted on.
                let _ = hypercall::event_close(port);
                return Err(error);
            }
            DELIVERY.of(domain).unmask(INFO.of(domain), port);
            self.port = Some(port);
        }
        Ok(())
    }
}

impl Timer {
    const fn new() -> Self {
        Self(Mutex::new(Inner { programmed: None, port: None }))
    }

    /// Sets the timer to a deadline, if that has changed. Says whether the domain may halt: not if the deadline has come already, or
    /// if Xen refuses.
    pub(super) fn program(&self, domain: Instance, now: Instant, deadline: Option<Instant>) -> bool {
        let mut inner = self.0.lock();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return false;
        }
        let farthest = Instant::from_nanos(now.as_nanos().saturating_add(FARTHEST_NS));
        let wanted = deadline.map(|deadline| deadline.min(farthest));
        // A far deadline is approached in steps: the one that is set stays until it has come.
        let is_step = wanted != deadline && inner.programmed.is_some();
        if wanted == inner.programmed || is_step {
            return true;
        }
        if inner.bind(domain).is_err() {
            return false;
        }
        // Should Xen refuse, for whatever reason, the deadline is waited for awake.
        let set = hypercall::set_timer(wanted.map_or(0, |wanted| CLOCK.of(domain).system_time_of(wanted).max(1)));
        inner.programmed = wanted.filter(|_| set.is_ok());
        set.is_ok()
    }

    /// Forgets the timer, which is to be bound and set again after a resume.
    pub(crate) fn resume(&self) {
        let mut inner = self.0.lock();
        (inner.programmed, inner.port) = (None, None);
    }

    /// Binds the timer's port, the first that the domain binds, if that has not been done.
    pub(super) fn bind(&self, domain: Instance) -> Result<(), ErrorKind> {
        self.0.lock().bind(domain)
    }

    /// Whether a port is that of the timer, which then has fired.
    pub(super) fn owns(&self, port: u32) -> bool {
        let mut inner = self.0.lock();
        let fired = inner.port == Some(port);
        if fired {
            inner.programmed = None;
        }
        fired
    }
}
