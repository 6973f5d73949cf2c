//! What `xl` does to a domain that runs, and the ends that a domain comes to by itself.
//!
//! Two of them run on each version by default: between them they have each node under `control`, and every kind of answer.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::case::{Case, Stage, Where, ended};
use super::verdict::all_ok;
use cargo_xen::lab::domain::{Outcome, Reason};

const GUEST: &str = "lifecycle";
const FAREWELL: &str = "said farewell";

/// All of them.
pub fn cases(cases: &mut Vec<Case>) {
    let everywhere = Where { xenstoreds: true, ..Where::VERSIONS };
    let case = |name: &str, cmdline: &str, steps: fn(&mut Stage) -> Result<()>| {
        Case::new(format!("lifecycle::{name}"), GUEST, |_| Ok(())).cmdline(cmdline).steps(steps)
    };
    cases.push(case("shutdown", "obey", shutdown).on(everywhere));
    cases.push(case("shutdown_destroys", "obey", shutdown_destroys).line("on_poweroff = \"destroy\""));
    cases.push(case("reboot", "obey", reboot));
    cases.push(case("restart", "obey", restart).line("on_reboot = \"restart\""));
    cases.push(case("crash", "obey", crash));
    cases.push(case("sysrq", "obey", sysrq));
    cases.push(case("stream", "stream", stream).on(everywhere));
    cases.push(case("destroy", "obey", destroy));
    cases.push(case("pause", "ticks", pause));
    for (name, reason) in
        [("finish_poweroff", Reason::Poweroff), ("finish_reboot", Reason::Reboot), ("return_reboot", Reason::Reboot)]
    {
        let judge = move |outcome: &Outcome| says(outcome, FAREWELL).and_then(|()| ended(outcome, reason));
        cases.push(Case::new(format!("lifecycle::{name}"), GUEST, judge).cmdline(name));
    }
    for name in ["starve", "spin"] {
        cases.push(Case::new(format!("lifecycle::watchdog_{name}"), GUEST, ended_by_watchdog).cmdline(name));
    }
    cases.push(
        Case::new("lifecycle::watchdog_feed", GUEST, |outcome| all_ok(outcome, &["watchdog.third", "watchdog.fed"]))
            .cmdline("feed"),
    );
    cases.push(case("watchdog_pause", "feed_on", watchdog_pause));
    cases.push(Case::new("lifecycle::stats", "stats", |_| Ok(())).steps(stats));
}

fn says(outcome: &Outcome, text: &str) -> Result<()> {
    ensure!(outcome.text().contains(text), "it does not say {text:?}");
    Ok(())
}

fn ended_by_watchdog(outcome: &Outcome) -> Result<()> {
    ended(outcome, Reason::Watchdog)?;
    ensure!(!outcome.text().contains(FAREWELL), "a watchdog leaves no time for anything");
    Ok(())
}

/// Starts the domain, has dom0 run a command line when it is ready, and follows it to its end. In the command line `$name` is
/// the domain, `$home` its home in xenstore.
fn when_ready(stage: &mut Stage, ready: &str, command: &str) -> Result<Outcome> {
    let outcome = stage.run_with(|stage| {
        let name = stage.domain.clone();
        stage.dom0(&format!(
            "name={name}; home=/local/domain/$(xl domid $name); log={}; until_said $name '{ready}' && {command}",
            stage.log()
        ))?;
        Ok(())
    })?;
    stage.destroy()?;
    Ok(outcome)
}

/// `xl` waits until the domain has done what it had left to do, and sees that it powered off.
fn shutdown(stage: &mut Stage) -> Result<()> {
    let outcome = when_ready(
        stage,
        "ready",
        "[ $(xenstore-read $home/control/feature-poweroff) = 1 ] && \
         [ $(xenstore-read $home/control/feature-reboot) = 1 ] && xl shutdown -w $name && \
         [ -z \"$(xenstore-read $home/control/shutdown)\" ]",
    )?;
    says(&outcome, FAREWELL)?;
    ended(&outcome, Reason::Poweroff)
}

/// As it is when nothing else is configured: the domain goes, and what it had left to say is in the log.
fn shutdown_destroys(stage: &mut Stage) -> Result<()> {
    let outcome = stage.run_with(|stage| {
        let name = stage.domain.clone();
        stage.dom0(&format!("until_said {name} ready && xl shutdown -w {name} && until_gone {name}"))?;
        Ok(())
    })?;
    ensure!(outcome.reason.is_none(), "it is still there");
    says(&outcome, FAREWELL)
}

fn reboot(stage: &mut Stage) -> Result<()> {
    let outcome = when_ready(stage, "ready", "xl reboot -w $name")?;
    says(&outcome, FAREWELL)?;
    ended(&outcome, Reason::Reboot)
}

/// The toolstack starts it again, and it is another domain that is then shut down.
fn restart(stage: &mut Stage) -> Result<()> {
    let outcome = when_ready(
        stage,
        "ready",
        "xl reboot $name && tries=0 && \
         until [ $(grep -c ready $log) = 2 ]; do tries=$((tries + 1)); [ $tries -le 150 ] || exit 1; sleep 0.2; done && \
         [ /local/domain/$(xl domid $name) != $home ] && xl shutdown -w $name",
    )?;
    ended(&outcome, Reason::Poweroff)
}

fn crash(stage: &mut Stage) -> Result<()> {
    let outcome = when_ready(stage, "ready", "xenstore-write $home/control/shutdown crash")?;
    says(&outcome, "the toolstack asked for a crash")?;
    ended(&outcome, Reason::Crash)
}

fn sysrq(stage: &mut Stage) -> Result<()> {
    let outcome = when_ready(
        stage,
        "ready",
        "xl sysrq $name h && until_said $name \"sysrq: 'h'\" && xl sysrq $name b && until_said $name \"sysrq: 'b'\" && \
         xl shutdown -w $name",
    )?;
    ended(&outcome, Reason::Poweroff)
}

/// The application gets what the toolstack asks for, and the domain ends when that does.
fn stream(stage: &mut Stage) -> Result<()> {
    let outcome = when_ready(
        stage,
        "ready",
        "xl sysrq $name h && until_said $name '@key h' && xenstore-write $home/control/shutdown halt && \
         until_said $name 'not now' && xl reboot -w $name",
    )?;
    for line in ["@request Halt", "@request Reboot", FAREWELL] {
        says(&outcome, line)?;
    }
    ended(&outcome, Reason::Reboot)
}

/// It is gone at once, without a word.
fn destroy(stage: &mut Stage) -> Result<()> {
    let outcome = stage.run_with(|stage| {
        let name = stage.domain.clone();
        stage.dom0(&format!("until_said {name} ready && xl destroy {name} && ! xl domid {name}"))?;
        Ok(())
    })?;
    ensure!(outcome.reason.is_none(), "it is still there");
    ensure!(outcome.took < stage.limit / 2, "it took {:?}", outcome.took);
    ensure!(!outcome.text().contains(FAREWELL), "it had time for more");
    Ok(())
}

/// A domain that is paused does nothing, and goes on when it may.
fn pause(stage: &mut Stage) -> Result<()> {
    let outcome = when_ready(
        stage,
        "@tick",
        "xl pause $name && sleep 1 && before=$(stat -c %s $log) && sleep 2 && [ $before = $(stat -c %s $log) ] && \
         xl list $name | grep -q -- '--p---' && xl unpause $name && sleep 2 && [ $before -lt $(stat -c %s $log) ] && \
         xl shutdown -w $name",
    )?;
    ensure!(outcome.took > Duration::from_secs(5), "it was not watched for long enough");
    ended(&outcome, Reason::Poweroff)
}

/// Xen's watchdog does not know that a domain is not to blame.
fn watchdog_pause(stage: &mut Stage) -> Result<()> {
    let outcome = when_ready(stage, "ready", "xl pause $name && sleep 4 && xl unpause $name")?;
    ended_by_watchdog(&outcome)
}

/// The example: dom0 reads what it writes, and it takes it away when it is shut down.
fn stats(stage: &mut Stage) -> Result<()> {
    let outcome = when_ready(
        stage,
        "data/stats",
        "[ $(xenstore-read $home/data/stats/memory/live) -gt 0 ] && \
         before=$(xenstore-read $home/data/stats/events/halts) && sleep 3 && \
         [ $(xenstore-read $home/data/stats/events/halts) -gt $before ] && xl shutdown -w $name && \
         ! xenstore-exists $home/data/stats",
    )?;
    ended(&outcome, Reason::Poweroff)
}
