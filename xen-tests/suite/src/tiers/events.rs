//! Event channels, time and the executor on real Xen: straight under it, as a domain with many ports, and between two.

use anyhow::{Result, ensure};

use super::case::{Case, Stage, Where};
use super::verdict::all_ok;
use cargo_xen::lab::domain::Reason;
use cargo_xen::lab::smoke::Ended;

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
    cases.push(
        Case::new("events::virq", "events", |_| Ok(())).cmdline("virq").on(Where::VERSIONS).steps(debug_key_is_pressed),
    );
    cases.push(
        Case::new("events::own_id", "events", |_| Ok(()))
            .cmdline("own_id")
            .line("cpuid = \"host,maxhvleaf=3\"")
            .on(Where::VERSIONS)
            .steps(own_id_is_told),
    );
    let [few, many] = BETWEEN_TWO;
    for (name, words, place) in [
        (format!("{few}"), format!("count={few}"), Where::MAIN),
        (format!("{many}"), format!("count={many}"), Where::NOWHERE),
        ("two_level".into(), format!("count={few} domu.fifo=off"), Where::MAIN),
    ] {
        let case = Case::new(format!("events::two_domains_{name}"), "peer", |_| Ok(())).seconds(300).on(place);
        cases.push(case.steps(move |stage| two_domains(stage, &words)));
    }
}

/// Without the CPUID leaf for it, the domain knows its id.
fn own_id_is_told(stage: &mut Stage) -> Result<()> {
    let outcome = stage.run_and_keep()?;
    let id = stage.dom0(&format!("xl domid {}", stage.domain))?;
    stage.destroy()?;
    let expected = format!("domain id {}", id.trim());
    ensure!(outcome.text().lines().any(|line| line.trim_end().ends_with(&expected)), "it does not say {expected:?}");
    all_ok(&outcome, &["events.own_id"])
}

/// Xen's key `q` lists all domains, and raises the interrupt for debugging in each.
fn debug_key_is_pressed(stage: &mut Stage) -> Result<()> {
    let outcome = stage.run_with(|stage| {
        let domain = stage.domain.clone();
        stage.until_said(&domain, "waiting")?;
        stage.dom0("xl debug-keys q").map(drop)
    })?;
    all_ok(&outcome, &["events.virq"])
}

/// One domain makes a port for another, which binds to it and sends events, each when the last is answered.
fn two_domains(stage: &mut Stage, words: &str) -> Result<()> {
    let [listener, connector] = stage.run_pair(words, |_, _| Ok(()))?;
    all_ok(&listener, &["peer.listen"])?;
    all_ok(&connector, &["peer.connect"])
}
