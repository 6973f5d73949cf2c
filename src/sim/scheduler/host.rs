//! A simulated host with several domains: our code on both sides of what joins them.
//!
//! Event channels between domains are here. Whatever else one domain does to another hooks in at the same place:
//! [`Machine::at_peer`] has the way to the other machine, whose thread stands still meanwhile (see [`scheduler`](super)).

use core::future::Future;
use std::boxed::Box;
use std::format;
use std::sync::Arc;
use std::thread;
use std::vec::Vec;

use crate::abi::errno::Errno;
use crate::abi::xen::DomainId;
use crate::lifecycle::{self, Outcome};
use crate::sim::machine::events::End;
use crate::sim::machine::{self, Machine};
use crate::sim::scheduler::Scheduler;
use crate::sim::{Guest, Never, Report, execute};
use crate::{Domain, boot};

/// Boots a domain's main, and ends it.
type Program<'a> = Box<dyn FnOnce(Domain) -> Never + Send + 'a>;

/// A simulated host whose domains talk to each other.
///
/// Each domain runs on a thread of its own, but one at a time, and all have one virtual clock: runs repeat exactly. Domains
/// take turns when they wait, or have done much; with a [`seed`](Self::seed), anywhere.
///
/// ```
/// use domu::sim::{Guest, Host};
/// use domu::{DomainId, eventchn};
///
/// let reports = Host::new()
///     .domain(1, Guest::new(), async |_| -> domu::Result {
///         // The first port that a domain makes is number 4.
///         let port = eventchn::alloc_unbound(DomainId(2))?;
///         port.after(0).await?;
///         Ok(())
///     })
///     .domain(2, Guest::new(), async |_| -> domu::Result {
///         eventchn::bind_interdomain(DomainId(1), 4)?.notify()?;
///         Ok(())
///     })
///     .run();
/// assert_eq!(reports[1].sent, [(1, 4)]);
/// ```
///
/// A lock of the test's must not be held while a domain waits or calls the crate: the thread of another domain that wants it
/// would keep the turn for ever.
#[derive(Default)]
pub struct Host<'a> {
    domains: Vec<(u16, Guest, Program<'a>)>,
    seed: Option<u64>,
}

impl core::fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Host").field("domains", &self.domains.len()).field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl<'a> Host<'a> {
    /// A host without domains.
    #[must_use]
    pub const fn new() -> Self {
        Self { domains: Vec::new(), seed: None }
    }

    /// Adds a domain by its number, with its main function. They start in this order.
    ///
    /// # Panics
    ///
    /// If the number is another domain's, or none that a domain may have.
    #[must_use]
    pub fn domain<O, F>(mut self, number: u16, guest: Guest, main: impl FnOnce(Domain) -> F + Send + 'a) -> Self
    where
        O: Outcome,
        F: Future<Output = O>,
    {
        assert!(number < DomainId::SELF.0, "no number of a domain: {number}");
        assert!(self.domains.iter().all(|(other, ..)| *other != number), "two domains of number {number}");
        let guest = guest.domain(Some(number));
        let obedient = guest.toolstack.obedient;
        let program = move |domain| {
            if obedient {
                lifecycle::obey();
            }
            boot::run(main(domain))
        };
        self.domains.push((number, guest, Box::new(program)));
        self
    }

    /// Chooses by a number who runs when, and lets domains lose the CPU at any hypercall and any access to a shared page. Each
    /// seed is another schedule.
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Runs the domains until all have ended, and reports what came of each, in their order.
    ///
    /// # Panics
    ///
    /// With the first panic of a domain's, which ends the others, too; and if those that have not ended wait for what will
    /// never happen. A main that returns an error is the end of its domain alone.
    #[must_use]
    pub fn run(self) -> Vec<Report> {
        let (mut machines, mut programs) = (Vec::new(), Vec::new());
        for (number, guest, program) in self.domains {
            machines.push((number, Machine::new(guest)));
            programs.push((number, program));
        }
        let scheduler = Scheduler::new(machines, self.seed);
        let reports: Vec<Option<Report>> = thread::scope(|scope| {
            let mut threads = Vec::new();
            for (index, (number, program)) in programs.into_iter().enumerate() {
                let its_scheduler = Arc::clone(&scheduler);
                let thread = thread::Builder::new().name(format!("domain {number}"));
                match thread.spawn_scoped(scope, move || drive(&its_scheduler, index, number, program)) {
                    Ok(thread) => threads.push(thread),
                    // Those that have a thread wait for their turn: they must not do so for ever.
                    Err(error) => scheduler.fail(format!("no thread for domain {number}: {error}")),
                }
            }
            scheduler.next();
            threads.into_iter().map(|thread| thread.join().expect("panics of domains are caught")).collect()
        });
        if let Some(failure) = scheduler.failure() {
            panic!("{failure}");
        }
        reports.into_iter().flatten().collect()
    }
}

/// Runs a domain on its thread, unless the test has failed.
fn drive(scheduler: &Scheduler, index: usize, number: u16, program: Program<'_>) -> Option<Report> {
    let machine = scheduler.take(index);
    if scheduler.failure().is_some() {
        return None;
    }
    match execute(machine, program) {
        Ok(end) => {
            machine::with(Machine::close_ports);
            machine::with(Machine::end_mappings);
            let report = Machine::leave(end);
            scheduler.end(report.elapsed_ns);
            Some(report)
        }
        Err(panic) => {
            scheduler.fail(format!("domain {number}: {panic}"));
            drop(Machine::leave(crate::sim::End::Stopped));
            None
        }
    }
}

impl Machine {
    /// Does something to another domain of this host, provided that a port of its has this other end.
    pub(in crate::sim) fn at_peer<T>(
        &self,
        domain: u16,
        port: u32,
        end: End,
        act: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, Errno> {
        let act = |peer: &mut Self| match peer.events.ports.get(&port) {
            Some(found) if *found == end => Ok(act(peer)),
            _ => Err(Errno::EINVAL),
        };
        self.slot.as_ref().and_then(|slot| slot.peer(domain, act)).unwrap_or(Err(Errno::ESRCH))
    }

    /// Gives a port of a peer's another end. Where the test plays the peer, there is nothing to do.
    pub(in crate::sim) fn rebind_peer(&self, domain: u16, port: u32, from: End, to: End) {
        let _ = self.at_peer(domain, port, from, |peer| peer.events.ports.insert(port, to));
    }

    /// What becomes of a domain's ports when it has ended, or goes on elsewhere.
    pub(in crate::sim) fn close_ports(&mut self) {
        let ports: Vec<u32> = self.events.ports.keys().copied().collect();
        for port in ports {
            // It is there.
            let _ = self.close_port(port);
        }
    }
}
