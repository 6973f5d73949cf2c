//! Event channels, time and the executor on real Xen: straight under it, as a domain with many ports, and between two.

use anyhow::{Context, Result, ensure};

use super::case::{Case, Stage, Where};
use super::verdict::all_ok;
use crate::lab::domain::{self, Reason};
use crate::lab::smoke::Ended;

/// What the guest must have said, by either interface for events.
const CASES: [&str; 9] = [
    "events.self",
    "events.bind",
    "events.many",
    "events.priority",
    "time.sleep",
    "time.order",
    "time.busy",
    "time.wall",
    "idle.halts",
];

/// Events that it sends itself, by the interface that Xen offers.
pub const FIFO: &str = "1000";
/// The same by the interface that all have.
pub const TWO_LEVEL: &str = "1000 domu.fifo=off";
/// The same where the test is one for itself.
pub const MILLION: &str = "1000000";

/// Events between two domains, where the test is one of many and where it is one for itself.
const BETWEEN_TWO: [u32; 2] = [5_000, 100_000];

/// It says `@ok` for all of its cases, and powers off.
fn judge(ended: &Ended, interface: &str) -> Result<()> {
    for case in CASES.into_iter().chain([interface]) {
        ensure!(ended.serial.lines().any(|line| line.ends_with(&format!("@ok {case}"))), "it does not say @ok {case}");
    }
    ensure!(!ended.serial.contains("@fail"), "it says @fail");
    ensure!(ended.reason == Some(Reason::Poweroff), "it ended with {:?}", ended.reason);
    Ok(())
}

/// Judges a run by the interface that Xen offers.
pub fn judge_fifo(ended: &Ended) -> Result<()> {
    judge(ended, "events.fifo")
}

/// Judges a run by the interface that all have.
pub fn judge_two_level(ended: &Ended) -> Result<()> {
    judge(ended, "events.two_level")
}

/// Those of guests made by `xl`. Domains that may have more ports than the two-level interface has: all of them work by FIFO,
/// and those that there are by two-level. And two domains that send each other events.
pub fn cases(cases: &mut Vec<Case>) {
    for (name, cmdline, interface) in
        [("fifo", "100 5000", "events.fifo"), ("two_level", "100 4090 domu.fifo=off", "events.two_level")]
    {
        cases.push(
            Case::new(format!("events::many_{name}"), "events", move |outcome| {
                all_ok(outcome, &["events.self", "events.bind", "events.many", "events.priority", interface])
            })
            .cmdline(cmdline)
            .line("max_event_channels = 6000"),
        );
    }
    for (count, place) in BETWEEN_TWO.into_iter().zip([Where::MAIN, Where::NOWHERE]) {
        let case = Case::new(format!("events::two_domains_{count}"), "peer", |_| Ok(())).seconds(300).on(place);
        cases.push(case.steps(move |stage| two_domains(stage, count)));
    }
}

/// One domain listens for the next one to be created, which is told the first one's number and port.
fn two_domains(stage: &mut Stage, count: u32) -> Result<()> {
    let connector = domain::config_of(&stage.domain);
    let listener = format!("{}-listener", stage.domain);
    let config = domain::config_of(&listener);
    // What Xen numbers next is a domain that is never let run: its number tells the other two.
    let number = stage.dom0(&format!(
        "sed 's/^name *=.*/name = \"{listener}\"/' {connector} > {config}; \
         xl create -p {config} && xl domid {listener} && xl destroy {listener}"
    ))?;
    let number: u32 = number.lines().last().unwrap_or_default().parse().context("reading a domain's number")?;
    let (first, second) = (number + 1, number + 2);
    stage.dom0(&format!(
        "rm -f {}; echo 'cmdline = \"listen {second} {count}\"' >> {config}; xl create {config}",
        domain::log_of(&listener)
    ))?;
    let result = between(stage, &listener, [first, second], count);
    let said = stage.dom0(&format!("cat {}; xl destroy {listener}", domain::log_of(&listener)))?;
    result
        .and_then(|()| {
            ensure!(said.contains("@ok peer.listen"), "the listener does not say that it got all events");
            Ok(())
        })
        .with_context(|| format!("the listener says:\n{said}"))
}

fn between(stage: &mut Stage, listener: &str, [first, second]: [u32; 2], count: u32) -> Result<()> {
    let log = domain::log_of(listener);
    let port = stage.dom0(&format!("until_said {listener} @port && grep @port {log}"))?;
    let port: u32 = port.trim().trim_start_matches("@port ").parse().context("reading the listener's port")?;
    let config = domain::config_of(&stage.domain);
    stage.dom0(&format!("echo 'cmdline = \"connect {first} {port} {count}\"' >> {config}"))?;
    let outcome = stage.run()?;
    ensure!(outcome.domain == second, "the second domain is {} instead of {second}", outcome.domain);
    all_ok(&outcome, &["peer.connect"])
}
