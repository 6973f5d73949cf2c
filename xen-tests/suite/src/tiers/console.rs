//! The console's input, and output while nobody reads it: tests in which dom0 takes part.

use std::io::Cursor;

use anyhow::{Context, Result, ensure};

use super::case::{Case, Stage, Where, ended};
use crate::pattern::input_byte;
use cargo_xen::lab::domain::{self, COMMAND_LIMIT, Outcome, Reason, Watch};

/// Bytes that are echoed, where the test is one of many and where it is one for itself.
const ECHOED: [usize; 2] = [65_536, 1_048_576];
/// Bytes that go the way of the tool's own input: several pieces.
const TYPED: usize = 20_000;
/// Lines that a guest writes while its console is not read: several times what the ring takes.
const LINES: usize = 500;
/// The lines of the log before them.
const LOGGED: usize = 200;
/// For how long, in milliseconds.
const STOPPED: u64 = 3000;

/// All of them.
pub fn cases(cases: &mut Vec<Case>) {
    for (size, place) in ECHOED.into_iter().zip([Where::MAIN, Where::NOWHERE]) {
        let name = format!("console::echo_{size}");
        cases.push(
            Case::new(name.clone(), "echo", |_| Ok(()))
                .cmdline(format!("domu.log=off echo={size}"))
                .file(&format!("{}.sent", name.replace("::", "-")), sent(size))
                .seconds(120)
                .on(place)
                .steps(echo),
        );
    }
    let typed = Case::new("console::typed", "echo", |_| Ok(())).cmdline(format!("domu.log=off echo={TYPED}"));
    cases.push(typed.file("console-typed.sent", sent(TYPED)).seconds(120).steps(typed_into));
    let stalled = Case::new("console::stopped", "stalled", |_| Ok(())).cmdline(LINES.to_string());
    cases.push(stalled.steps(|stage| stopped(&stopped_for_a_while(stage)?)));
}

fn sent(size: usize) -> Vec<u8> {
    (0..size).map(input_byte).collect()
}

/// What goes into `cargo xen run` comes back.
fn typed_into(stage: &mut Stage) -> Result<()> {
    let (domain, log) = (stage.domain.clone(), stage.log());
    let watch = Watch { limit: stage.limit, most: 0, on_console: &mut |_| {} };
    let outcome = domain::run_attached(stage.session, &domain, watch, Cursor::new(sent(TYPED)), || Ok(()))?;
    echoed(stage, &format!("/guests/{domain}.sent"), &log)?;
    ended(&outcome, Reason::Poweroff)?;
    stage.destroy()
}

/// What dom0 writes to the console's terminal comes back. It is compared there: the way out is slow.
fn echo(stage: &mut Stage) -> Result<()> {
    let (log, sent) = (stage.log(), format!("/guests/{}.sent", stage.domain));
    let outcome = stage.run_with(|stage| {
        let terminal = stage.dom0(&format!("console_of {}", stage.domain))?;
        stage.dom0(&format!("cat {sent} > {} 2> /dev/null &", terminal.trim())).map(drop)
    })?;
    echoed(stage, &sent, &log)?;
    ended(&outcome, Reason::Poweroff)?;
    stage.destroy()
}

fn echoed(stage: &mut Stage, sent: &str, log: &str) -> Result<()> {
    let compared = stage.session.run(&format!("cmp {sent} {log}"), COMMAND_LIMIT)?;
    ensure!(compared.status == 0, "what came back differs from what was sent: {}", compared.text().trim_end());
    Ok(())
}

fn stopped_for_a_while(stage: &mut Stage) -> Result<Outcome> {
    // Held until the console is set up, which is xenconsoled's part of the domain's creation.
    let outcome = stage.run_after(|stage| {
        let seconds = STOPPED / 1000;
        stage.dom0(&format!(
            "console_of {} && kill -STOP $(cat /run/xenconsoled.pid) || exit; \
             {{ sleep {seconds}; kill -CONT $(cat /run/xenconsoled.pid); }} > /dev/null 2>&1 &",
            stage.domain
        ))?;
        Ok(())
    })?;
    stage.destroy()?;
    Ok(outcome)
}

/// All lines are there, in their order; the writer had to wait, and nobody else.
fn stopped(outcome: &Outcome) -> Result<()> {
    ended(outcome, Reason::Poweroff)?;
    let text = outcome.text();
    for (tag, count) in [("@log ", LOGGED), ("@line ", LINES)] {
        let mut numbers = text.lines().filter_map(|line| line.split_once(tag)).map(|(_, number)| number);
        for expected in 0..count {
            let number = numbers.next().with_context(|| format!("{tag}{expected} and what follows is missing"))?;
            ensure!(number == expected.to_string(), "there is {tag}{number} instead of {expected}");
        }
        ensure!(numbers.next().is_none(), "there are more than {count} of {tag}");
    }
    let figure = |tag: &str| -> Result<u64> {
        let figure = text.lines().find_map(|line| line.strip_prefix(tag));
        figure.unwrap_or_default().parse().with_context(|| format!("reading the guest's {tag}"))
    };
    let (waited, gap) = (figure("@waited ")?, figure("@gap ")?);
    ensure!(waited > STOPPED / 2, "the writer waited for {waited} ms only: the console was not stopped");
    ensure!(gap < waited / 2, "the other task was kept for {gap} ms, the writer for {waited} ms");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn judged(change: impl Fn(String) -> String, waited: u64, gap: u64) -> Result<()> {
        let mut text: String = (0..LOGGED).map(|number| format!("INFO  stalled: @log {number}\r\n")).collect();
        text.extend((0..LINES).map(|number| format!("@line {number}\n")));
        text.push_str(&format!("@waited {waited}\n@gap {gap}\n"));
        stopped(&Outcome {
            domain: 1,
            console: change(text).into_bytes(),
            reason: Some(Reason::Poweroff),
            hypervisor: String::new(),
            took: Duration::ZERO,
        })
    }

    #[test]
    fn each_line_and_both_figures_count() {
        judged(|text| text, 2900, 40).unwrap();
        assert!(judged(|text| text.replace("@line 77\n", ""), 2900, 40).is_err());
        assert!(judged(|text| text.replace("@log 199\r\n", ""), 2900, 40).is_err());
        assert!(judged(|text| text.replace("@line 3\n", "@line 3\n@line 3\n"), 2900, 40).is_err());
        assert!(judged(|text| text.replace("@gap", "@g"), 2900, 40).is_err());
        assert!(judged(|text| text, 20, 5).is_err());
        assert!(judged(|text| text, 2900, 2900).is_err());
    }
}
