//! The tests: what runs where, in which order, and the summary.
//!
//! Cheapest first. Tests of guests are grouped by the machine that they need, since a boot of Xen
//! and dom0 takes as long as several of them. An emulated machine takes one processor: beside it runs
//! what needs none.

mod case;
#[cfg(test)]
mod conformance;
mod console;
mod crash;
mod domu;
mod events;
mod float;
mod heap;
mod host;
mod lifecycle;
mod protection;
mod protector;
mod release;
mod report;
mod share;
mod smoke;
mod suspend;
mod table;
mod target;
mod time;
mod tree;
mod verdict;
mod xenbus;
mod xenstore;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cli::{Selection, Tier};
use cargo_xen::build::{self, Flavour, Image};
use cargo_xen::paths;
use cargo_xen::say;
use report::Report;

/// What all tiers share.
pub struct Suite<'a> {
    /// What was asked for.
    pub selection: &'a Selection,
    /// The verdicts.
    pub report: Report,
    /// Where the logs go.
    pub logs: PathBuf,
    /// The unikernels that have been built.
    images: Images,
}

/// Unikernels by name and flavour; `None`: it could not be built, as has been reported.
type Images = BTreeMap<(&'static str, Flavour), Option<Image>>;

impl Suite<'_> {
    /// Whether a test with this name is asked for.
    pub fn wants(&self, name: &str) -> bool {
        name.contains(&self.selection.filter)
    }

    /// Runs a test that stands alone.
    pub fn test(&mut self, name: &str, test: impl FnOnce() -> Result<()>) {
        if !self.wants(name) {
            return;
        }
        let start = Instant::now();
        match test() {
            Ok(()) => self.report.passed(name, start.elapsed()),
            Err(error) => self.report.failed(name, start.elapsed(), &error, ""),
        }
    }

    /// Builds what has not been built yet, all of a flavour at once. A failure is a failed test.
    fn build(&mut self, wanted: impl IntoIterator<Item = (&'static str, Flavour)>) {
        let mut missing: Vec<_> = wanted.into_iter().filter(|key| !self.images.contains_key(key)).collect();
        missing.sort_by_key(|(guest, flavour)| (*flavour, *guest));
        missing.dedup();
        for flavour in Flavour::ALL {
            let guests: Vec<&'static str> = missing.iter().filter(|key| key.1 == flavour).map(|key| key.0).collect();
            if guests.is_empty() {
                continue;
            }
            match build::named(&paths::workspace(), &guests, flavour) {
                Ok(built) => {
                    let built = guests.iter().zip(built);
                    self.images.extend(built.map(|(guest, image)| ((*guest, flavour), Some(image))));
                }
                Err(error) => {
                    let name = format!("build::{}", flavour.name());
                    self.report.failed(&name, Duration::ZERO, &error, "");
                    self.images.extend(guests.iter().map(|guest| ((*guest, flavour), None)));
                }
            }
        }
    }

    /// A unikernel that has been asked for with [`Suite::build`].
    fn image(&self, guest: &'static str, flavour: Flavour) -> Option<&Image> {
        self.images.get(&(guest, flavour)).and_then(Option::as_ref)
    }

    /// Counts tests as failed for one reason, which is told once.
    fn all_failed(&mut self, names: &[String], error: &anyhow::Error) {
        let Some((first, others)) = names.split_first() else { return };
        self.report.failed(first, Duration::ZERO, error, "");
        let same = anyhow::anyhow!("as {first}");
        for name in others {
            self.report.failed(name, Duration::ZERO, &same, "");
        }
    }
}

/// `cargo xen test`, `smoke` and `domu`: gives the exit code.
pub fn run(selection: &Selection, only: Option<Tier>) -> Result<u8> {
    let start = Instant::now();
    let logs = paths::new_logs("test")?;
    let new = || Suite { selection, report: Report::default(), logs: logs.clone(), images: Images::new() };
    let wanted = |tier| only.is_none_or(|only| only == tier);
    let (mut suite, mut beside) = (new(), new());
    thread::scope(|scope| {
        if wanted(Tier::Host) {
            scope.spawn(|| {
                host::tests(&mut beside);
                host::sources(&mut beside);
                release::run(&mut beside);
                host::fuzz(&mut beside);
                host::miri(&mut beside);
                tree::run(&mut beside);
            });
            tree::domains(&mut suite);
        }
        let start = Instant::now();
        for (tier, run) in [(Tier::Smoke, smoke::run as fn(&mut Suite) -> Result<()>), (Tier::Domu, domu::run)] {
            // What ran until then is told all the same.
            if wanted(tier)
                && let Err(error) = run(&mut suite)
            {
                suite.report.failed("the machines", start.elapsed(), &error, "");
            }
        }
    });
    suite.report.join(beside.report);
    if suite.report.failures() > 0 {
        say!("the logs are in {}", suite.logs.display());
    }
    Ok(suite.report.finish(start.elapsed()))
}
