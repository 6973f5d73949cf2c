//! The xenstore client against C xenstored and oxenstored.

use anyhow::Result;

use super::case::{Case, Stage, Where};
use super::verdict::all_ok;

/// What the guest must have said.
const CASES: [&str; 10] = [
    "xenstore.read",
    "xenstore.nodes",
    "xenstore.errors",
    "xenstore.domains",
    "xenstore.directory",
    "xenstore.transactions",
    "xenstore.watches",
    "xenstore.dropped",
    "xenstore.mixed",
    "xenstore.reset",
];

/// All of them: alone, and with dom0 writing to a node that the guest's transactions read.
pub fn cases(cases: &mut Vec<Case>) {
    let everywhere = Where { xenstoreds: true, ..Where::VERSIONS };
    let case = |name: &str| Case::new(format!("xenstore::{name}"), "xenstore", |outcome| all_ok(outcome, &CASES));
    cases.push(case("client").cmdline("1000").seconds(180).on(everywhere));
    let busy = case("busy").cmdline("10000 dom0").seconds(600).on(Where::NOWHERE);
    cases.push(busy.steps(dom0_interferes));
}

/// Dom0 writes to a node of the guest's all the time.
fn dom0_interferes(stage: &mut Stage) -> Result<()> {
    let outcome = stage.run_after(|stage| {
        let domain = stage.domain.clone();
        stage.dom0(&format!(
            "(id=$(xl domid {domain}); while xl domid {domain} > /dev/null 2>&1; do \
                 xenstore-write /local/domain/$id/data/dom0 $RANDOM; sleep 0.05; \
             done > /dev/null 2>&1 &)"
        ))?;
        Ok(())
    })?;
    all_ok(&outcome, &CASES)
}
