//! Event channels, time and the executor on real Xen: within a domain, between two, and with dom0's clock.

use anyhow::{Context, Result, ensure};

use super::case::{Case, Stage, Where, ended};
use super::verdict::all_ok;
use crate::lab::domain::{Outcome, Reason};

const CASES: [&str; 8] =
    ["events.self", "events.bind", "events.many", "time.sleep", "time.order", "time.busy", "time.wall", "idle.halts"];

/// Events that go to and fro: within a domain, and between two.
const TO_ITSELF: u32 = 1_000_000;
const BETWEEN_TWO: u32 = 100_000;
/// The same where a test is one of many.
const REDUCED: u32 = 20_000;

/// All of them.
pub fn cases(cases: &mut Vec<Case>) {
    let place = Where { processors: true, ..Where::VERSIONS };
    let one = |name: &str, count: u32| {
        Case::new(name, "events", |outcome| all_ok(outcome, &CASES)).cmdline(count.to_string()).seconds(240)
    };
    cases.push(one("events::one_domain", REDUCED).on(place));
    cases.push(one("events::million", TO_ITSELF));
    let two = |name: &str, count: u32| {
        Case::new(name, "peer", |_| Ok(())).seconds(240).steps(move |stage| two_domains(stage, count))
    };
    cases.push(two("events::two_domains", REDUCED).on(place));
    cases.push(two("events::two_domains_long", BETWEEN_TWO));
}

/// One domain listens for the next to be created, which is told the first one's number and port.
fn two_domains(stage: &mut Stage, count: u32) -> Result<()> {
    let name = stage.domain.clone();
    let (listener, config) = (format!("{name}-listener"), crate::lab::domain::config_of(&name));
    let numbers = stage.dom0("xl list | awk 'NR > 1 { print $2 }'")?;
    // Xen counts domains up; none is created meanwhile.
    let created = stage.dom0(&format!(
        "sed -e 's/^name *=.*/name = \"{listener}\"/' {config} > /run/listener.xl && \
         xl create -p /run/listener.xl > /dev/null 2>&1 && xl domid {listener} && \
         xl destroy {listener}"
    ))?;
    let last: u32 = created.trim().lines().last().unwrap_or_default().parse().context("a domain's number")?;
    let (first, second) = (last + 1, last + 2);
    ensure!(!numbers.lines().any(|number| number.trim() == first.to_string()), "domain {first} is there already");
    let log = crate::lab::domain::log_of(&listener);
    let port = stage.dom0(&format!(
        "rm -f {log}; echo 'cmdline = \"listen {second} {count}\"' >> /run/listener.xl; \
         xl create /run/listener.xl > /dev/null 2>&1; tries=0; \
         until grep -q @port {log} || [ $tries -gt 100 ]; do sleep 0.2; tries=$((tries + 1)); done; \
         grep @port {log} | tr -cd '0-9'"
    ))?;
    stage.dom0(&format!("echo 'cmdline = \"connect {first} {} {count}\"' >> {config}", port.trim()))?;
    let outcome = stage.run();
    let listened = stage.dom0(&format!("cat {log}; xl destroy {listener}"))?;
    let outcome: Outcome = outcome?;
    ensure!(outcome.domain == second, "the second domain is {} instead of {second}", outcome.domain);
    all_ok(&outcome, &["peer.connect"]).with_context(|| format!("the listener says:\n{listened}"))?;
    ended(&outcome, Reason::Poweroff)?;
    ensure!(listened.contains("@ok peer.listen"), "the listener says:\n{listened}");
    Ok(())
}
