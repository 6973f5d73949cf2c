//! Grant tables and rings on real Xen: between two domains, with one that dies, and as many references as there are.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::case::{Case, Stage, Where, ended};
use super::verdict::all_ok;
use cargo_xen::lab::domain::{COMMAND_LIMIT, Outcome, Reason};
use cargo_xen::lab::pair::Peer;
use cargo_xen::lab::smoke::Ended;

/// What one domain finds by itself.
const GRANTS: [&str; 6] =
    ["grants.first_frame", "grants.copy", "grants.many", "grants.all", "grants.wait", "grants.none_left"];

/// It says `@ok` for all of its cases, and powers off.
pub fn judge_grants(ended: &Ended) -> Result<()> {
    for case in GRANTS {
        ensure!(ended.serial.lines().any(|line| line.ends_with(&format!("@ok {case}"))), "it does not say @ok {case}");
    }
    ensure!(!ended.serial.contains("@fail"), "it says @fail");
    ensure!(ended.reason == Some(Reason::Poweroff), "it ended with {:?}", ended.reason);
    Ok(())
}

/// Those of guests made by `xl`. All references of 64 frames need 128 MiB of pages.
pub fn cases(cases: &mut Vec<Case>) {
    let case = |name: &str| Case::new(format!("share::{name}"), "share", |_| Ok(())).memory(48).seconds(180);
    cases.push(case("everything").on(Where::VERSIONS).steps(everything));
    for how in ["panic", "destroyed"] {
        // One that has crashed and is still there keeps its mappings.
        cases.push(case(how).line("on_crash = \"destroy\"").steps(move |stage| dies(stage, how)));
    }
    cases
        .push(Case::new("share::alone", "grants", |outcome| all_ok(outcome, &GRANTS)).cmdline("frames=64").memory(192));
}

/// The first domain says that all went well, and then neither has a grant in use but those of the toolstack.
fn everything(stage: &mut Stage) -> Result<()> {
    let mut cases: Vec<String> =
        ["pages_1", "pages_2", "pages_32", "pages_1000", "read_only", "batch", "kept", "counters"]
            .map(|case| format!("share.{case}"))
            .into();
    for pages in [1, 2, 4, 8, 16] {
        cases.extend(["0x0", "0xfffffffb", "0x7ffffffb"].map(|start| format!("share.ring_{pages}_{start}")));
    }
    let [first, second] = stage.run_pair("do=all", |stage, [first, second]| {
        stage.until_said(&first.name, "@idle")?;
        only_reserved(stage, [first, second])?;
        press_enter(stage, first)
    })?;
    let cases: Vec<&str> = cases.iter().map(String::as_str).collect();
    all_ok(&first, &cases)?;
    ended(&second, Reason::Poweroff)
}

/// The second domain dies with pages mapped, and the first gets them back.
fn dies(stage: &mut Stage, how: &str) -> Result<()> {
    let [first, second]: [Outcome; 2] = stage.run_pair(&format!("do={how}"), |stage, [first, second]| {
        if how == "destroyed" {
            stage.dom0(&format!("until_said {} @destroy", first.name))?;
            // A ring, a list and three pages: what is said below of a table without them is no accident.
            let used = used(stage, first)?;
            let own = used.iter().filter(|reference| !TOOLSTACKS.contains(reference)).count();
            ensure!(own == 5, "domain {} has these grants in use: {used:?}", first.number);
            stage.dom0(&format!("xl destroy {}", second.name))?;
        }
        stage.until_said(&first.name, "@idle")?;
        only_reserved(stage, [first])?;
        press_enter(stage, first)
    })?;
    all_ok(&first, &["share.dies", "share.counters"])?;
    ensure!(second.reason.is_none(), "the second domain is still there: it ended with {:?}", second.reason);
    Ok(())
}

/// Has a domain that waits for a line go on.
fn press_enter(stage: &mut Stage, domain: &Peer) -> Result<()> {
    stage.dom0(&format!("echo > $(console_of {})", domain.name)).map(drop)
}

/// The console's page, and xenstore's, which C xenstored maps by its grant, and oxenstored by the number of its frame.
const TOOLSTACKS: [u32; 2] = [0, 1];

/// Xen's own view: no grant of these domains is in use, but the toolstack's.
fn only_reserved<const COUNT: usize>(stage: &mut Stage, domains: [&Peer; COUNT]) -> Result<()> {
    for domain in domains {
        let used = used(stage, domain)?;
        ensure!(
            used == TOOLSTACKS || used == TOOLSTACKS[..1],
            "domain {} has these grants in use: {used:?}",
            domain.number
        );
    }
    Ok(())
}

/// The references of a domain that others have mapped, as Xen knows them.
fn used(stage: &mut Stage, domain: &Peer) -> Result<Vec<u32>> {
    const END: &str = "gnttab_usage_print_all ] done";
    let mark = stage.session.serial().length();
    stage.dom0("xl debug-keys g")?;
    // Xen prints it when the command has returned.
    let start = Instant::now();
    while !stage.session.serial().since(mark).contains(END) {
        ensure!(start.elapsed() < COMMAND_LIMIT, "Xen does not print its table of grants");
        std::thread::sleep(Duration::from_millis(20));
    }
    let text = stage.dom0("xl dmesg | tail -n 200")?;
    in_use(&text, domain.number).with_context(|| format!("reading Xen's table of grants:\n{text}"))
}

/// The references of a domain that Xen's last table of grants shows.
fn in_use(text: &str, domain: u32) -> Result<Vec<u32>> {
    let (_, table) = text.rsplit_once("key 'g' pressed").context("there is no such table")?;
    let lines = table
        .lines()
        .skip_while(|line| !is_head(line, domain))
        .skip(1)
        .take_while(|line| !line.contains("gnttab") && !line.contains("grant-table"));
    let mut references = Vec::new();
    for line in lines {
        let number = line.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(number, _)| number.trim());
        let number = number.map(|number| match number.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => number.parse(),
        });
        references.extend(number.and_then(Result::ok));
    }
    Ok(references)
}

/// Whether a line begins a domain's part of the table.
fn is_head(line: &str, domain: u32) -> bool {
    let words = line.split_once("grant-table for remote ").map(|(_, words)| words);
    let number = words
        .and_then(|words| words.split(' ').next())
        .map(|word| word.trim_start_matches(|c: char| !c.is_ascii_digit()));
    number == Some(&*domain.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_is_read_from_xens_table() {
        let text = "\
(XEN) gnttab_usage_print_all [ key 'g' pressed
(XEN) grant-table for remote d3 (v1)
(XEN) [0x009]      0 0x7debb 0x00000002          0 0x0fefff 0x19
(XEN) gnttab_usage_print_all ] done
(XEN) gnttab_usage_print_all [ key 'g' pressed
(XEN)       -------- active --------       -------- shared --------
(XEN) [ref] localdom mfn      pin          localdom gmfn     flags
(XEN) grant-table for remote d0 (v1)
(XEN)   1 frames (64 max), 1 maptrack frames (1024 max)
(XEN) no active grant table entries
(XEN)       -------- active --------       -------- shared --------
(XEN) [ref] localdom mfn      pin          localdom gmfn     flags
(XEN) grant-table for remote d3 (v1)
(XEN)   2 frames (64 max), 0 maptrack frames (1024 max)
(XEN) [0x000]      0 0x7debb 0x00000002          0 0x0fefff 0x19
(XEN) [0x01f]      4 0x7debe 0x00000002          4 0x0feffc 0x19
(XEN)       -------- active --------       -------- shared --------
(XEN) [ref] localdom mfn      pin          localdom gmfn     flags
(XEN) grant-table for remote d31 (v1)
(XEN) [0x001]      0 0x7debe 0x00000002          0 0x0feffc 0x19
(XEN) gnttab_usage_print_all ] done
(XEN) [0x005] something else
";
        assert_eq!(in_use(text, 3).unwrap(), [0, 31]);
        assert_eq!(in_use(text, 31).unwrap(), [1]);
        assert!(in_use(text, 0).unwrap().is_empty());
        assert!(in_use(text, 1).unwrap().is_empty());
        assert!(in_use("", 3).is_err());
    }
}
