//! The tests of guests made by `xl`.

use anyhow::{Context, Result, bail, ensure};

use super::case::{Case, Stage, Where, ended};
use super::verdict::all_ok;
use super::{
    console, crash, events, float, heap, lifecycle, protection, share, suspend, target, time, xenbus, xenstore,
};
use crate::pattern::{CONSOLE_SIZES, RAMDISK_SIZE, console_byte, console_byte_lf, ramdisk_byte};
use cargo_xen::build::Flavour;
use cargo_xen::lab::domain::{Outcome, Reason};

/// What the crate says it takes of a command line; longer ones are cut with a warning.
const CMDLINE_LIMIT: usize = 8191;

/// All of them.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    hello(&mut cases);
    ends(&mut cases);
    console(&mut cases);
    cmdline(&mut cases);
    memory(&mut cases);
    float::cases(&mut cases);
    crash::cases(&mut cases);
    protection::cases(&mut cases);
    console::cases(&mut cases);
    events::cases(&mut cases);
    heap::cases(&mut cases);
    share::cases(&mut cases);
    time::cases(&mut cases);
    xenstore::cases(&mut cases);
    xenbus::cases(&mut cases);
    lifecycle::cases(&mut cases);
    suspend::cases(&mut cases);
    target::cases(&mut cases);
    cases.push(
        Case::new("modules::ramdisk", "modules", |outcome| all_ok(outcome, &["modules.ramdisk"]))
            .ramdisk("modules.ramdisk", (0..RAMDISK_SIZE).map(ramdisk_byte).collect())
            .on(Where::VERSIONS),
    );
    cases
}

fn hello(cases: &mut Vec<Case>) {
    let everywhere = Where { xenstoreds: true, ..Where::VERSIONS };
    for memory in [2, 4, 16, 512, 6144] {
        let place = Where { processors: memory == 16, ..everywhere };
        cases.push(Case::new(format!("hello::memory_{memory}"), "hello", says_hello).memory(memory).on(place));
    }
    cases.push(Case::new("hello::maxmem", "hello", says_hello).memory(64).maxmem(256).on(everywhere));
    for (memory, maxmem) in [(2, 4), (16, 32), (6144, 8192)] {
        cases.push(
            Case::new(format!("hello::all_of_{memory}_kept"), "hello", move |outcome| {
                let text = outcome.text();
                let kept = format!(", {} KiB of RAM, ", memory * 1024);
                ensure!(text.contains(&kept), "it does not keep {memory} MiB");
                says_hello(outcome)
            })
            .memory(memory)
            .maxmem(maxmem)
            .cmdline("domu.log=debug")
            .on(Where::VERSIONS),
        );
    }
    cases.push(Case::new("hello::plain", "hello", says_hello).flavour(Flavour::Plain).on(Where::PROCESSORS));
}

/// One line with the domain's own number, and a poweroff.
pub fn says_hello(outcome: &Outcome) -> Result<()> {
    let expected = format!("hello from domain {}", outcome.domain);
    let text = outcome.text();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("hello from")).collect();
    match lines.as_slice() {
        [line] if line.trim_end().ends_with(&expected) => {}
        [line] => bail!("it says {line:?}, but is to say {expected:?}"),
        [] => bail!("the console has no line with {expected:?}"),
        several => bail!("the console has {} lines with a hello instead of one", several.len()),
    }
    ended(outcome, Reason::Poweroff)
}

fn ends(cases: &mut Vec<Case>) {
    const PANIC: &str = "panicked";
    const ERROR: &str = "the reason is printed";
    let place = Where { processors: true, ..Where::VERSIONS };
    let case = |name: &str, judge: fn(&Outcome) -> Result<()>| {
        Case::new(format!("ends::{name}"), "ends", judge).cmdline(name).on(place)
    };
    cases.push(case("ok", |outcome| ended(outcome, Reason::Poweroff)));
    cases.push(case("err", |outcome| last_words(outcome, ERROR)));
    cases.push(case("panic", |outcome| last_words(outcome, PANIC)));
    cases.push(case("nested", |outcome| ended(outcome, Reason::Crash)));
    cases.push(case("reboot", |outcome| ended(outcome, Reason::Reboot)));
    cases.push(
        Case::new("ends::dump_core", "ends", |_| Ok(()))
            .cmdline("err")
            .memory(64)
            .steps(|stage| core_holds(stage, ERROR)),
    );
}

/// A crash, with a text both on the console and on the hypervisor's log.
pub fn last_words(outcome: &Outcome, text: &str) -> Result<()> {
    ended(outcome, Reason::Crash)?;
    ensure!(outcome.text().contains(text), "the console lacks {text:?}");
    let tag = format!("(d{})", outcome.domain);
    let said: String =
        outcome.hypervisor.lines().filter(|line| line.contains(&tag)).map(|line| format!("{line}\n")).collect();
    ensure!(said.contains(text), "the hypervisor's log lacks {text:?}; it has:\n{said}");
    Ok(())
}

/// `xl` shows the crash, and the domain's memory, as `xl dump-core` writes it, holds the last words.
fn core_holds(stage: &mut Stage, text: &str) -> Result<()> {
    let outcome = stage.run_and_keep()?;
    ended(&outcome, Reason::Crash)?;
    let domain = stage.domain.clone();
    let list = stage.dom0(&format!("xl list {domain}"))?;
    let state = list.lines().nth(1).and_then(|line| line.split_whitespace().nth(4));
    ensure!(state.is_some_and(|state| state.contains('c')), "`xl list` does not show a crash:\n{list}");
    // The dump writes what the domain has and then spends minutes on looking for more between there
    // and 4 GiB; it writes 16 MiB at a time, hence the domain's 64.
    let found = stage.dom0(&format!(
        "xl dump-core {domain} /run/core > /run/dump 2>&1 & tries=0; \
         until grep -a -q '{text}' /run/core; do \
             tries=$((tries + 1)); [ $tries -gt 60 ] && break; sleep 1; \
         done; kill $!; [ $tries -le 60 ]"
    ));
    stage.dom0("rm -f /run/core")?;
    found.with_context(|| format!("what `xl dump-core` writes holds no {text:?}"))?;
    stage.destroy()
}

fn console(cases: &mut Vec<Case>) {
    for size in CONSOLE_SIZES {
        for (mode, byte) in [("", console_byte as fn(usize) -> u8), ("lf ", console_byte_lf)] {
            let name = format!("console::{}{size}", mode.replace(' ', "_"));
            let place = if size == 65536 { Where::VERSIONS } else { Where::MAIN };
            let expected: Vec<u8> = (0..size).map(byte).collect();
            cases.push(
                Case::new(name.clone(), "console_sizes", |_| Ok(()))
                    .cmdline(format!("{mode}{size} domu.log=off"))
                    .file(&format!("{}.expected", name.replace("::", "-")), expected)
                    .seconds(120)
                    .on(place)
                    .steps(same_bytes),
            );
        }
    }
    cases.push(Case::new("console::dead", "hello", |_| Ok(())).seconds(30).steps(dead_console));
    cases.push(
        Case::new("console::dead_and_full", "console_sizes", |_| Ok(()))
            .cmdline("65536 domu.log=off")
            .seconds(60)
            .steps(dead_and_full_console),
    );
}

/// The log holds exactly the expected bytes. They are compared in dom0: the way out of it is slow.
fn same_bytes(stage: &mut Stage) -> Result<()> {
    let outcome = stage.run_and_keep()?;
    let log = stage.log();
    let expected = format!("/guests/{}.expected", stage.domain);
    let sizes = stage.dom0(&format!("stat -c %s {expected} {log}"))?;
    let sizes: Vec<&str> = sizes.lines().collect();
    let compared = stage.session.run(&format!("cmp {expected} {log}"), cargo_xen::lab::domain::COMMAND_LIMIT)?;
    ensure!(
        compared.status == 0,
        "the console differs ({} bytes expected and logged): {}",
        sizes.join(" and "),
        compared.text().trim_end()
    );
    ended(&outcome, Reason::Poweroff)?;
    stage.destroy()
}

/// Nobody empties the ring: the domain must end all the same, and its line must be there to be read.
fn dead_console(stage: &mut Stage) -> Result<()> {
    let outcome = with_stopped_console(stage)?;
    ended(&outcome, Reason::Poweroff)?;
    let text = String::from_utf8_lossy(&stage.console()?).into_owned();
    ensure!(text.contains("hello from domain"), "the ring did not hold the line: {text:?}");
    stage.destroy()
}

/// The same with more output than the ring takes: the guest is told so, and gives up.
fn dead_and_full_console(stage: &mut Stage) -> Result<()> {
    let outcome = with_stopped_console(stage)?;
    ended(&outcome, Reason::Crash)?;
    let told = outcome.hypervisor.contains("the console did not take all bytes");
    ensure!(told, "the guest was not told that its output did not arrive");
    let console = stage.console()?;
    let wrong = console.iter().enumerate().find(|(index, byte)| console_byte(*index) != **byte);
    if let Some((index, byte)) = wrong {
        bail!("byte {index} of what the ring held is {byte:#x}");
    }
    ensure!(console.len() >= 2048, "the ring held only {} bytes", console.len());
    stage.destroy()
}

fn with_stopped_console(stage: &mut Stage) -> Result<Outcome> {
    // Held until the console is set up, which is xenconsoled's part of the domain's creation.
    let outcome = stage.run_after(|stage| {
        stage.dom0("kill -STOP $(cat /run/xenconsoled.pid)")?;
        Ok(())
    });
    stage.dom0("kill -CONT $(cat /run/xenconsoled.pid)")?;
    outcome
}

fn cmdline(cases: &mut Vec<Case>) {
    let long: String = (0..CMDLINE_LIMIT).map(|index| (b'a' + (index % 23) as u8) as char).collect();
    let lines = [
        ("empty", String::new()),
        ("words", "one two  three".into()),
        ("spaces", " begins and ends with one ".into()),
        ("quotes", r#"a="b c" 'd "e' \f \\ "#.into()),
        ("utf8", "grüße 界 🦀".into()),
        ("options_stay", "domu.log=debug name=value -- domu.log=info".into()),
        ("limit", long.clone()),
    ];
    for (name, line) in lines {
        let expected = format!("[{line}]");
        cases.push(
            Case::new(format!("cmdline::{name}"), "cmdline", move |outcome| {
                let text = outcome.text();
                ensure!(text.contains(&expected), "the guest did not get the line as it was given");
                ensure!(!text.contains("truncated"), "it warns without need");
                ended(outcome, Reason::Poweroff)
            })
            .cmdline(line),
        );
    }
    let cut = format!("[{long}]");
    cases.push(
        Case::new("cmdline::too_long", "cmdline", move |outcome| {
            let text = outcome.text();
            let warns = |line: &str| line.contains("command line") && line.contains("truncated");
            ensure!(text.lines().any(warns), "no warning says that the command line was truncated");
            ensure!(text.contains(&cut), "it did not get the first {CMDLINE_LIMIT} bytes");
            ended(outcome, Reason::Poweroff)
        })
        .cmdline(format!("{long}!")),
    );
}

fn memory(cases: &mut Vec<Case>) {
    const CASES: [&str; 5] =
        ["memory.every_page", "memory.amount", "memory.protection", "memory.null_page", "memory.stack_guard"];
    for memory in [4, 16, 512, 6144] {
        let place = match memory {
            16 => Where { processors: true, ..Where::VERSIONS },
            512 => Where::PROCESSORS,
            _ => Where::MAIN,
        };
        cases.push(
            Case::new(format!("memory::{memory}"), "memory", |outcome| all_ok(outcome, &CASES))
                .memory(memory)
                .cmdline(memory.to_string())
                .seconds(if memory > 1024 { 240 } else { 60 })
                .on(place),
        );
    }
    for (name, memory, maxmem) in
        [("maxmem", 64, 256), ("maxmem_4_8", 4, 8), ("maxmem_16_32", 16, 32), ("maxmem_6144_8192", 6144, 8192)]
    {
        cases.push(
            Case::new(format!("memory::{name}"), "memory", |outcome| all_ok(outcome, &CASES))
                .memory(memory)
                .maxmem(maxmem)
                .cmdline(memory.to_string())
                .seconds(if memory > 1024 { 240 } else { 60 })
                .on(if memory > 1024 { Where::MAIN } else { Where::VERSIONS }),
        );
    }
    cases.push(
        Case::new("memory::balloon", "balloon", |_| Ok(()))
            .memory(64)
            .maxmem(256)
            .seconds(120)
            .steps(balloon_is_followed),
    );
}

/// The guest gives memory, takes it back and grows when `xl mem-set` allows it; `xl list` shows each.
fn balloon_is_followed(stage: &mut Stage) -> Result<()> {
    const CASES: [&str; 7] = [
        "balloon.all",
        "balloon.pages",
        "balloon.refused",
        "balloon.gives",
        "balloon.takes_back",
        "balloon.cycles",
        "balloon.grows",
    ];
    let outcome = stage.run_after(|stage| {
        let (domain, log) = (stage.domain.clone(), stage.log());
        // What `xl list` shows is noted from before it runs until the domain has ended, and more is allowed when the guest asks for it.
        stage.dom0(&format!(
            "note() {{ awk 'NR == 2 {{ print $3 }}' /run/list >> /run/list.{domain}; }}; \
             xl list {domain} > /run/list && note && \
             (asked=; while xl list {domain} > /run/list 2> /dev/null; do note; \
                 [ -z \"$asked\" ] && grep -q 'more, please' {log} && asked=1 && xl mem-set {domain} 128; \
                 sleep 0.3; \
             done > /dev/null 2>&1 &)"
        ))?;
        Ok(())
    })?;
    let listed = stage.dom0(&format!("uniq /run/list.{}", stage.domain))?;
    all_ok(&outcome, &CASES)?;
    let sizes: Vec<u32> = listed.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let mut seen = sizes.iter();
    // With what the toolstack leaves beyond the domain's own; in between it changes step by step.
    for expected in [64..=65, 48..=49, 64..=65, 128..=129] {
        ensure!(seen.any(|size| expected.contains(size)), "`xl list` did not show {expected:?} in turn: {sizes:?}");
    }
    stage.destroy()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    fn outcome(console: &str, reason: Option<Reason>, hypervisor: &str) -> Outcome {
        Outcome {
            domain: 3,
            console: console.as_bytes().to_vec(),
            reason,
            hypervisor: hypervisor.into(),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn names_are_unique_and_fit_for_a_domain() {
        let mut seen = BTreeSet::new();
        for case in cases() {
            let domain = case.domain();
            assert!(domain.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'));
            assert!(seen.insert(domain), "{} stands twice", case.name);
        }
    }

    #[test]
    fn hello_is_judged() {
        let judged = |console, reason| says_hello(&outcome(console, reason, "")).is_ok();
        assert!(judged("[info] hello from domain 3\r\n", Some(Reason::Poweroff)));
        assert!(!judged("[info] hello from domain 3\r\n", Some(Reason::Crash)));
        assert!(!judged("[info] hello from domain 3\r\n", None));
        assert!(!judged("[info] hello from domain 4\n", Some(Reason::Poweroff)));
        assert!(!judged("hello from domain 3\nhello from domain 3\n", Some(Reason::Poweroff)));
        assert!(!judged("", Some(Reason::Poweroff)));
    }

    #[test]
    fn last_words_must_stand_in_both_places() {
        let crash = Some(Reason::Crash);
        let judged = |console, hypervisor| last_words(&outcome(console, crash, hypervisor), "why").is_ok();
        assert!(judged("why\n", "(XEN) x\n(d3) why\n"));
        assert!(!judged("why\n", "(d2) why\n"));
        assert!(!judged("why\n", ""));
        assert!(!judged("", "(d3) why\n"));
        assert!(last_words(&outcome("why", Some(Reason::Poweroff), "(d3) why"), "why").is_err());
    }
}
