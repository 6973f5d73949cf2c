//! `xl mem-set` below what a domain holds, and a save after it.

use anyhow::{Result, ensure};

use super::case::{Case, Stage};
use super::verdict::all_ok;
use cargo_xen::lab::domain;

const GUEST: &str = "target";
/// Lowers the target from 16 MiB to 10, and says what the toolstack has written.
const LOWER: &str = "xl mem-set $name 10m && home=/local/domain/$(xl domid $name) && \
                     [ $(xenstore-read $home/memory/target) = 10240 ]";

/// All of them.
pub fn cases(cases: &mut Vec<Case>) {
    let case = |name: &str, cmdline: &str, steps: fn(&mut Stage) -> Result<()>| {
        Case::new(format!("target::{name}"), GUEST, |_| Ok(())).cmdline(cmdline).memory(16).seconds(300).steps(
            move |stage| {
                let result = steps(stage);
                if result.is_err() {
                    // It has it still, unless it is gone.
                    let _ = stage.destroy();
                }
                result
            },
        )
    };
    cases.push(case("followed", "follow", followed));
    cases.push(case("refused", "domu.suspend-over-limit=off", refused));
    cases.push(case("ignored", "", ignored));
}

/// A domain that follows its target is saved, restored and grows again. Its own node is there in the new domain.
fn followed(stage: &mut Stage) -> Result<()> {
    let outcome = stage.run_with(|stage| {
        let name = stage.domain.clone();
        stage.until_said(&name, "'@memory 16[0-9]* '")?;
        stage.dom0(&format!("name={name}; {LOWER}"))?;
        stage.until_said(&name, "'@memory 10[0-9]* '")?;
        stage.dom0(&format!("xl save {name} /run/saved && xl restore /run/saved && rm /run/saved"))?;
        stage.until_said(&name, "'@resumed 1'")?;
        let home = format!("/local/domain/$(xl domid {name})");
        stage.dom0(&format!("sleep 1; [ $(xenstore-read {home}/data/advertised) = 1 ]"))?;
        stage.dom0(&format!("xl mem-set {name} 12m"))?;
        stage.until_said(&name, "'@memory 12[0-9]* '")?;
        stage.dom0(&format!("xenstore-write {home}/data/end 1")).map(drop)
    })?;
    stage.destroy()?;
    let text = outcome.text();
    ensure!(!text.contains("a restore will fail"), "warned of nothing: {text}");
    all_ok(&outcome, &["target.runs"])
}

/// A save that could not be restored is refused, and the domain runs on.
fn refused(stage: &mut Stage) -> Result<()> {
    let outcome = stage.run_with(|stage| {
        let name = stage.domain.clone();
        stage.until_said(&name, "'@memory 16[0-9]* '")?;
        stage.dom0(&format!("name={name}; {LOWER}"))?;
        // It would wait for a minute.
        stage.dom0(&format!("! timeout 20 xl save {name} /run/saved"))?;
        stage.until_said(&name, "'suspend refused: a restore would fail'")?;
        stage.dom0(&format!("xenstore-write /local/domain/$(xl domid {name})/data/end 1")).map(drop)
    })?;
    stage.destroy()?;
    let text = outcome.text();
    ensure!(!text.contains("@resumed"), "it was resumed: {text}");
    all_ok(&outcome, &["target.runs"])
}

/// One that does neither is warned, saved, and cannot be restored.
fn ignored(stage: &mut Stage) -> Result<()> {
    let name = stage.domain.clone();
    stage.dom0(&format!("xl create {}", domain::config_of(&name)))?;
    stage.until_said(&name, "'@memory 16[0-9]* '")?;
    stage.dom0(&format!("name={name}; {LOWER}"))?;
    stage.dom0(&format!("xl save {name} /run/saved"))?;
    let said = stage.dom0("! xl restore /run/saved 2>&1; rm /run/saved")?;
    ensure!(said.contains("cannot (re-)build domain"), "xl says something else: {said}");
    let log = stage.dom0(&format!("tail -n 5 {}", domain::log_of(&name)))?;
    ensure!(log.contains("a restore will fail"), "not warned of: {log}");
    Ok(())
}
