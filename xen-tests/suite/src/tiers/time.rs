//! Time as dom0 has a part in it: its clock is set while a guest runs; a guest that is idle takes no processor time, and its far timer
//! does not come early; intervals of a guest that is paused.

use anyhow::{Context, Result, ensure};

use super::case::{Case, Stage, Where, ended};
use cargo_xen::lab::domain::{Outcome, Reason};

/// By how many seconds dom0's clock is set forth and back; in the end it is right again.
const STEPS: [i64; 3] = [3600, -7200, 3600];
/// Looks at the clocks that the guest has at least, within the seconds that the steps take.
const LOOKS: usize = 20;

/// Seconds that a guest is watched while it is idle, where the test is one of many and where it is one for itself.
const IDLE: [u32; 2] = [2, 10];

/// All of them.
pub fn cases(cases: &mut Vec<Case>) {
    cases.push(Case::new("time::set_clock", "clock", |_| Ok(())).steps(set_clock));
    for (seconds, place) in IDLE.into_iter().zip([Where::VERSIONS, Where::NOWHERE]) {
        let case = Case::new(format!("time::idle_{seconds}"), "idle", |_| Ok(())).on(place);
        cases.push(case.steps(move |stage| idle(stage, seconds)));
    }
    cases.push(Case::new("time::paused_interval", "interval", |_| Ok(())).steps(paused_interval));
}

/// The clocks as the guest saw them, in nanoseconds.
#[derive(Clone, Copy)]
struct Look {
    monotonic: i64,
    wall: i64,
    slept: i64,
}

impl Look {
    fn parse(line: &str) -> Option<Look> {
        let mut fields = line.trim_end().strip_prefix("@clock ")?.split(' ').map(str::parse);
        let mut next = || fields.next()?.ok();
        Some(Look { monotonic: next()?, wall: next()?, slept: next()? })
    }

    /// What the wall clock shows more than the monotonic one.
    fn offset(self) -> i64 {
        self.wall - self.monotonic
    }
}

/// A second after each step, the guest's wall clock shows it, while it sleeps as it does otherwise.
fn set_clock(stage: &mut Stage) -> Result<()> {
    let log = stage.log();
    let mut seen = Vec::new();
    let outcome = stage.run_with(|stage| {
        let domain = stage.domain.clone();
        // The last but one is whole.
        let last = format!("until_said {domain} @clock && grep @clock {log} | tail -n 2 | head -n 1");
        seen.push(stage.dom0(&last)?);
        for step in STEPS {
            stage.dom0(&format!("date -s @$(($(date +%s) + {step}))"))?;
            seen.push(stage.dom0(&format!("sleep 1; {last}"))?);
        }
        stage.dom0(&format!("echo > $(console_of {domain})"))?;
        Ok(())
    })?;
    stage.destroy()?;
    ended(&outcome, Reason::Poweroff)?;
    let looks = seen.iter().map(|line| Look::parse(line).with_context(|| format!("reading {line:?}")));
    let looks: Vec<Look> = looks.collect::<Result<_>>()?;
    for (step, pair) in STEPS.into_iter().zip(looks.windows(2)) {
        let moved = pair[1].offset() - pair[0].offset();
        // dom0 sets whole seconds.
        let close = (moved - step * 1_000_000_000).abs() < 2_000_000_000;
        ensure!(close, "dom0's clock was set by {step} s, and the guest's moved by {moved} ns");
    }
    monotonic(&outcome)
}

/// No sleep was too short, or much too long, and the monotonic clock went with them.
fn monotonic(outcome: &Outcome) -> Result<()> {
    let text = outcome.text();
    let looks: Vec<Look> = text.lines().filter_map(Look::parse).collect();
    ensure!(looks.len() >= LOOKS, "there are only {} looks", looks.len());
    for look in &looks {
        ensure!((100_000_000..3_000_000_000).contains(&look.slept), "a sleep of 100 ms took {} ns", look.slept);
    }
    for pair in looks.windows(2) {
        let passed = pair[1].monotonic - pair[0].monotonic;
        ensure!((100_000_000..5_000_000_000).contains(&passed), "{passed} ns between two looks");
    }
    Ok(())
}

/// The hypervisor accounts no time to it, and its main loop turns when it falls asleep and when it is woken.
fn idle(stage: &mut Stage, seconds: u32) -> Result<()> {
    let domain = stage.domain.clone();
    let mut times = String::new();
    let outcome = stage.run_with(|stage| {
        times = stage.dom0(&format!(
            "until_said {domain} @idle; \
             sleep 2; xl list {domain} | tail -n 1; sleep {seconds}; xl list {domain} | tail -n 1; \
             echo > $(console_of {domain})"
        ))?;
        Ok(())
    })?;
    stage.destroy()?;
    ended(&outcome, Reason::Poweroff)?;
    let lists: Vec<Vec<&str>> = times.lines().map(|line| line.split_whitespace().collect()).collect();
    let [before, after] = lists.as_slice() else { anyhow::bail!("dom0 says {times:?}") };
    // Name, number, memory, processors, state, seconds.
    ensure!(before.len() == 6 && before[4].contains('b') && before == after, "an idle domain's time moved:\n{times}");
    let text = outcome.text();
    let turns = text.lines().find_map(|line| line.strip_prefix("@turns ")).context("it does not tell its turns")?;
    let turns: u32 = turns.trim().parse().context("reading its turns")?;
    ensure!(turns <= 4, "its main loop turned {turns} times");
    Ok(())
}

/// The period of the guest's intervals and how long it is paused at least, in nanoseconds.
const PERIOD: i64 = 100_000_000;
const PAUSE: i64 = 3_000_000_000;

/// A tick: when it was due and when it was taken, in nanoseconds.
type Tick = (i64, i64);

/// Each interval gives the tick that came due in the pause, and continues as its behavior says.
fn paused_interval(stage: &mut Stage) -> Result<()> {
    let outcome = stage.run_with(|stage| {
        let domain = stage.domain.clone();
        stage.dom0(&format!(
            "until_said {domain} @ticking && xl pause {domain} && sleep {} && xl unpause {domain} && sleep 1 && \
             echo > $(console_of {domain})",
            PAUSE / 1_000_000_000
        ))?;
        Ok(())
    })?;
    stage.destroy()?;
    ended(&outcome, Reason::Poweroff)?;
    let text = outcome.text();
    for behavior in ["Burst", "Delay", "Skip"] {
        let prefix = format!("@tick {behavior} ");
        let lines = text.lines().filter_map(|line| line.trim_end().strip_prefix(&prefix));
        let parse =
            |line: &str| line.split_once(' ').and_then(|(due, taken)| Some((due.parse().ok()?, taken.parse().ok()?)));
        let ticks: Option<Vec<Tick>> = lines.map(parse).collect();
        let ticks = ticks.with_context(|| format!("reading the ticks of {behavior}"))?;
        ticks_over_pause(behavior, &ticks).with_context(|| format!("{behavior}: {ticks:?}"))?;
    }
    Ok(())
}

/// The ticks of an interval in a domain that was paused once.
fn ticks_over_pause(behavior: &str, ticks: &[Tick]) -> Result<()> {
    let lates: Vec<usize> =
        (0..ticks.len()).filter(|&index| ticks[index].1 - ticks[index].0 > PAUSE - 2 * PERIOD).collect();
    // Ticks of a burst come due later and later in the pause.
    let Some(&late) = lates.first() else { anyhow::bail!("no tick was late by the pause") };
    ensure!(late >= 3 && late + 4 < ticks.len(), "tick {late} of {} was late", ticks.len());
    ensure!(ticks.iter().all(|(due, taken)| taken >= due), "a tick came early");
    let (due, taken) = ticks[late];
    let next = ticks[late + 1].0;
    let mut distances = ticks.windows(2).map(|pair| pair[1].0 - pair[0].0);
    match behavior {
        "Burst" => {
            ensure!(distances.all(|distance| distance == PERIOD), "a tick was lost");
            let missed = usize::try_from((taken - due) / PERIOD)?;
            let last = ticks.get(late + missed).context("not all missed ticks were made up for")?;
            ensure!(last.1 - taken < PAUSE / 4, "{missed} ticks took {} ns", last.1 - taken);
        }
        "Delay" => {
            ensure!(lates.len() == 1, "{} ticks were late", lates.len());
            ensure!(distances.all(|distance| distance >= PERIOD), "two ticks are too close");
            let shifted = next - taken - PERIOD;
            ensure!((-PERIOD / 10..=0).contains(&shifted), "the next tick was {shifted} ns from a period later");
        }
        _ => {
            ensure!(lates.len() == 1, "{} ticks were late", lates.len());
            ensure!(distances.all(|distance| distance > 0 && distance % PERIOD == 0), "the ticks are not aligned");
            ensure!(next - due > PAUSE - 2 * PERIOD, "only {} ns were skipped", next - due);
            ensure!((taken - PERIOD / 2..=taken + PERIOD).contains(&next), "{next} is not the next one after {taken}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Judges as many looks as there are to be, of which one slept otherwise.
    fn judged(slept: i64, count: usize) -> Result<()> {
        let line = |index: usize| {
            let slept = if index == 7 { slept } else { 100_300_000 };
            format!("@clock {} 1700000000000000000 {slept}\r\n", 5_000_000_000 + 101_000_000 * index as i64)
        };
        monotonic(&Outcome {
            domain: 1,
            console: (0..count).map(line).collect::<String>().into_bytes(),
            reason: Some(Reason::Poweroff),
            hypervisor: String::new(),
            took: Duration::ZERO,
        })
    }

    #[test]
    fn each_sleep_is_judged() {
        judged(100_300_000, LOOKS).unwrap();
        assert!(judged(100_300_000, LOOKS - 1).is_err());
        assert!(judged(99_999_999, LOOKS).is_err());
        assert!(judged(3_600_000_000_000, LOOKS).is_err());
    }

    #[test]
    fn ticks_of_another_behavior_fail() {
        let before = (1..=5).map(|number| (number * PERIOD, number * PERIOD + 9));
        let late = (6 * PERIOD, 37 * PERIOD + PERIOD / 4);
        let burst = (7..=37).map(|number| (number * PERIOD, late.1 + number));
        let usual = (38..=44).map(|number| (number * PERIOD, number * PERIOD + 9));
        let delayed = (1..=7).map(|number| (late.1 + number * PERIOD, late.1 + number * PERIOD + 9));
        let start: Vec<Tick> = before.chain([late]).collect();
        let of = |rest: Vec<Tick>| start.iter().copied().chain(rest).collect::<Vec<Tick>>();
        let found = [
            ("Burst", of(burst.chain(usual.clone()).collect())),
            ("Delay", of(delayed.collect())),
            ("Skip", of(usual.collect())),
        ];
        for (behavior, _) in &found {
            for (other, ticks) in &found {
                let judged = ticks_over_pause(behavior, ticks);
                assert_eq!(judged.is_ok(), behavior == other, "{behavior} with ticks of {other}: {judged:?}");
            }
        }
        assert!(ticks_over_pause("Skip", &start).is_err());
        assert!(ticks_over_pause("Skip", &[]).is_err());
    }

    #[test]
    fn a_look_is_read() {
        let look = Look::parse("@clock 5 1000 3\n").unwrap();
        assert_eq!((look.offset(), look.slept), (995, 3));
        for line in ["", "@clock", "@clock 1 2", "@clock 1 2 x", "clock 1 2 3"] {
            assert!(Look::parse(line).is_none(), "{line}");
        }
    }
}
