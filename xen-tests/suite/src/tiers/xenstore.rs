//! The xenstore client against C xenstored and oxenstored, and in a domain that has neither.

use anyhow::{Result, ensure};

use super::case::{Case, Stage, Where, ended};
use super::verdict::all_ok;
use cargo_xen::lab::domain::Reason;
use cargo_xen::lab::smoke::Ended;

/// What the guest must have said.
const CASES: [&str; 11] = [
    "xenstore.read",
    "xenstore.nodes",
    "xenstore.errors",
    "xenstore.domains",
    "xenstore.directory",
    "xenstore.transactions",
    "xenstore.watches",
    "xenstore.dropped",
    "xenstore.mixed",
    "xenstore.cycles",
    "xenstore.reset",
];

/// Judges a run straight under Xen, where there is none.
pub fn judge_absent(ended: &Ended) -> Result<()> {
    let said = ended.serial.lines().any(|line| line.ends_with("@ok xenstore.absent"));
    ensure!(said, "it does not say @ok xenstore.absent");
    ensure!(ended.reason == Some(Reason::Poweroff), "it ended with {:?}", ended.reason);
    Ok(())
}

/// All of them, with a directory of dom0's; and at length, with dom0 writing to a node that the guest's transactions read.
pub fn cases(cases: &mut Vec<Case>) {
    let everywhere = Where { xenstoreds: true, ..Where::VERSIONS };
    let at_length = Where { xenstoreds: true, ..Where::NOWHERE };
    for (name, cmdline, dom0_writes, seconds, place) in
        [("client", "400", false, 300, everywhere), ("busy", "10000 dom0 cycles=1000", true, 1800, at_length)]
    {
        let case =
            Case::new(format!("xenstore::{name}"), "xenstore_client", |_| Ok(())).cmdline(cmdline).seconds(seconds);
        cases.push(case.on(place).steps(move |stage| dom0_takes_part(stage, dom0_writes)));
    }
    cases.push(Case::new("xenstore::example", "xenstore", |_| Ok(())).steps(example_is_told));
}

/// The example, which dom0 greets and then stops.
fn example_is_told(stage: &mut Stage) -> Result<()> {
    let outcome = stage.run_after(|stage| {
        let (domain, log) = (stage.domain.clone(), stage.log());
        stage.dom0(&format!(
            "data=/local/domain/$(xl domid {domain})/data; \
             (until grep -q 'started 1 times' {log}; do sleep 0.2; done; xenstore-write $data/greeting hello; \
              until grep -q 'greeting is hello' {log}; do sleep 0.2; done; xenstore-write $data/stop 1) \
                 > /dev/null 2>&1 &"
        ))?;
        Ok(())
    })?;
    let text = outcome.text();
    for line in [format!("the toolstack calls me {}", stage.domain), "data/greeting is hello".into()] {
        ensure!(text.contains(&line), "it does not say {line:?}");
    }
    ended(&outcome, Reason::Poweroff)
}

/// Dom0 makes a directory whose listing is longer than a message, says whether its server gives such a one in parts, and
/// then, if asked to, writes to a node of the guest's all the time.
fn dom0_takes_part(stage: &mut Stage, writes: bool) -> Result<()> {
    let outcome = stage.run_after(|stage| {
        let domain = stage.domain.clone();
        let writing = if writes {
            "(while xenstore-exists ${data%/data}/vm; do xenstore-write $data/dom0 $RANDOM; sleep 0.1; done \
                 > /dev/null 2>&1 &)"
        } else {
            "true"
        };
        stage.dom0(&format!(
            "data=/local/domain/$(xl domid {domain})/data; \
             xenstore-write $(for i in $(seq 0 199); do printf '%s/big/%060d x ' $data $i; done) && \
             xenstore-write $data/dom0 0 $data/ready $(pidof oxenstored > /dev/null && echo whole || echo parts) && \
             {writing}"
        ))?;
        Ok(())
    })?;
    all_ok(&outcome, &CASES)
}
