//! What things cost, in instructions: the figures repeat whatever else the machine does.
//!
//! QEMU counts instructions instead of time (one is a nanosecond), and Xen accounts processor time
//! to each domain, its own work for the domain included. So a figure prices code and hypercalls
//! alike, on any machine. The guest reads the clock without an exit (`tsc_mode="native"`), as on
//! hosts whose clock is stable.
//!
//! Of what another answers, the domain's part is priced: time that dom0's xenstored takes is dom0's. There the hypercalls are
//! the notifications, and a round trip of the ring is a halt, in which the domain waits for an answer.

mod claims;

use std::array;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use claims::Figures;

use cargo_xen::build::{self, Flavour};
use cargo_xen::cargo;
use cargo_xen::cpio::Archive;
use cargo_xen::lab::dom0::{Lab, Session};
use cargo_xen::lab::domain::{self, COMMAND_LIMIT, Config, Reason, Watch};
use cargo_xen::lab::pair::Plan;
use cargo_xen::paths;
use cargo_xen::process::output_of;
use cargo_xen::run::{base_config, machine_memory};
use cargo_xen::say;
use cargo_xen::say::grouped;
use cargo_xen::setup;

/// How often each thing is measured in the one boot.
const ROUNDS: usize = 3;
/// How long one round may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Something that is measured.
struct Row {
    what: &'static str,
    guest: &'static str,
    /// What the OCaml unikernels' bindings to Xen need, measured in the same way.
    predecessor: u64,
    /// What this crate is to need at most.
    aim: u64,
}

static ROWS: [Row; 1] =
    // The predecessor's with one line, by its option `--solo5:quiet`; as shipped it prints about 17, and takes 934,061.
    [Row { what: "hello, unpause to shutdown", guest: "hello", predecessor: 561_310, aim: 450_000 }];

/// Something that a guest does many times: what one of them costs is the difference of two runs.
struct Operation {
    what: &'static str,
    /// Its name for the guest.
    name: &'static str,
    times: u64,
    /// Options of the crate's.
    options: &'static str,
    /// The guest's memory in MiB.
    memory: u32,
    /// Whether another domain takes part, which is not priced.
    paired: bool,
    /// What the predecessor needs, and the aim, where there are such.
    predecessor: Option<u64>,
    aim: Option<u64>,
}

const fn operation(what: &'static str, name: &'static str, times: u64) -> Operation {
    Operation { what, name, times, options: "", memory: 16, paired: false, predecessor: None, aim: None }
}

/// With another domain.
const fn paired(what: &'static str, name: &'static str, times: u64) -> Operation {
    Operation { paired: true, ..operation(what, name, times) }
}

/// By the interface for events that all Xens have.
const TWO_LEVEL: &str = " domu.fifo=off";

/// Memory of a large guest, in MiB.
const LARGE: u32 = 4096;

/// The guest of these.
const OPERATION: &str = "op";

// Of events and tasks: sent to woken is "an event", a wait when it has come already "a wait", going idle and back "while
// idle", a timer set and fired "a sleep".
static OPERATIONS: [Operation; 34] = [
    operation("a yield, with its turn", "yield", 10_000),
    operation("a wait for what has come", "wait", 10_000),
    operation("a timer set, yield, given up", "timer", 10_000),
    operation("spawn and join", "spawn", 10_000),
    Operation { predecessor: Some(38), aim: Some(45), ..operation("time::now", "clock", 10_000) },
    Operation { aim: Some(100), ..operation("memory::quick_stat of 100 blocks", "stat_100", 10_000) },
    Operation { aim: Some(100), ..operation("the same of 100,000 blocks", "stat_100000", 10_000) },
    Operation { aim: Some(100), memory: LARGE, ..operation("of 100 in 4 GiB", "stat_100", 10_000) },
    Operation { aim: Some(100), memory: LARGE, ..operation("of 1,000,000 in 4 GiB", "stat_1000000", 10_000) },
    operation("a packet", "packet", 10_000),
    operation("a packet with quick_stat", "packet_stat", 10_000),
    operation("a page taken and freed", "pages_1", 1_000),
    operation("16 pages taken and freed", "pages_16", 1_000),
    operation("a notification", "notify", 1_000),
    operation("an event, sent to delivered", "event", 1_000),
    operation("the same with 10 ports", "event_10", 1_000),
    operation("the same with 1000 ports", "event_1000", 1_000),
    Operation { options: TWO_LEVEL, ..operation("two-level, with 10 ports", "event_10", 1_000) },
    Operation { options: TWO_LEVEL, ..operation("two-level, with 1000 ports", "event_1000", 1_000) },
    Operation { predecessor: Some(45_301), aim: Some(20_000), ..operation("a sleep of 1 ms, halted", "sleep", 200) },
    Operation {
        // The least of repeated measurements, the most being 10.3 ms.
        predecessor: Some(5_500_000),
        aim: Some(100_000),
        ..operation("4096 bytes on the console", "console", 20)
    },
    operation("a read from xenstore", "store_read", 200),
    operation("32 reads in sequence", "store_sequence", 20),
    operation("32 reads at once", "store_overlap", 20),
    operation("a transaction of 10 writes", "store_transaction", 20),
    operation("a write to xenstore", "store_write", 200),
    operation("a write, its watch's event", "store_event", 200),
    operation("a page granted, access ended", "grant", 1_000),
    operation("a packet copied from a grant", "copy_1", 1_000),
    operation("32 packets copied", "copy_32", 200),
    paired("a page mapped and unmapped", "map_1", 1_000),
    paired("32 pages mapped and unmapped", "map_32", 200),
    paired("a request and its response", "ring", 1_000),
    paired("an event, while idle", "idle", 200),
];

/// What is told of sleeps beside what they cost: how late they are.
static LATENESS: [Operation; 2] =
    [operation("a sleep of 1 ms, halted", "late", 200), operation("the same beside a busy task", "late_busy", 200)];

/// The guest that tells what its boot has cost, and the memory in MiB that it is given: the cost is not to follow that.
const BOOT: &str = "boot_cost";
const BOOT_MEMORY: [u32; 2] = [16, 6144];

/// The guest that prices allocators, its memory in MiB, and the numbers of blocks that it is to have.
const ALLOCATORS: &str = "allocators";
const ALLOCATORS_MEMORY: u32 = 6144;
const ALLOCATORS_BLOCKS: &str = "1000 20000 1000000";

/// `cargo xen bench`.
pub fn run() -> Result<()> {
    let workspace = paths::workspace();
    let guests: Vec<&str> = ROWS.iter().map(|row| row.guest).chain([BOOT, OPERATION, ALLOCATORS]).collect();
    let images = build::named(&workspace, &guests, Flavour::Hardened)?;
    let mut archive = Archive::default();
    archive.file("usr/bin/cputime", 0o755, &helper()?);
    for (row, image) in ROWS.iter().zip(&images) {
        archive.file(&format!("guests/{}", row.guest), 0o644, &image.read()?);
        let config = config(row.guest, 16, None)?;
        for round in 0..ROUNDS {
            domain::add(&mut archive, &domain_of(row, round), row.guest, &config);
        }
    }
    for (name, image) in [BOOT, OPERATION, ALLOCATORS].iter().zip(&images[ROWS.len()..]) {
        archive.file(&format!("guests/{name}"), 0o644, &image.read()?);
    }
    for operation in &OPERATIONS {
        for times in [0, operation.times] {
            let config = config(OPERATION, operation.memory, Some(operation_words(operation, times)))?;
            domain::add(&mut archive, &operation_domain(operation, times), OPERATION, &config);
        }
    }
    for operation in &LATENESS {
        let config = config(OPERATION, operation.memory, Some(operation_words(operation, operation.times)))?;
        domain::add(&mut archive, &operation_domain(operation, operation.times), OPERATION, &config);
    }
    for memory in BOOT_MEMORY {
        domain::add(&mut archive, &boot_domain(memory), BOOT, &config(BOOT, memory, None)?);
    }
    let allocators_config = config(ALLOCATORS, ALLOCATORS_MEMORY, Some(ALLOCATORS_BLOCKS.into()))?;
    domain::add(&mut archive, ALLOCATORS, ALLOCATORS, &allocators_config);
    let memory_mb = BOOT_MEMORY.map(machine_memory).into_iter().max().unwrap_or(0);
    let lab = Lab { counted: true, memory_mb, ..Lab::new(setup::MAIN) };
    let mut session = Session::boot(&lab, archive, &paths::new_logs("bench")?)?;
    let mut lines = Vec::new();
    for row in &ROWS {
        let mut times = Vec::new();
        for round in 0..ROUNDS {
            let time =
                measure(&mut session, &domain_of(row, round)).with_context(|| format!("measuring: {}", row.what))?;
            say!("{}: {} ns", row.what, grouped(time));
            times.push(time);
        }
        lines.push(line(row, &times));
    }
    let mut boots = Vec::new();
    for memory in BOOT_MEMORY {
        let cost = boot_cost(&mut session, &boot_domain(memory));
        boots.push((memory, cost.with_context(|| format!("measuring a boot with {memory} MiB"))?));
    }
    let mut operations = Vec::new();
    for operation in &OPERATIONS {
        let mut measured =
            |times| took(&mut session, operation, times).with_context(|| format!("measuring: {}", operation.what));
        let (none, all) = (measured(0)?, measured(operation.times)?);
        let price: [u64; 3] = array::from_fn(|figure| all[figure].saturating_sub(none[figure]));
        say!("{}: {} ns", operation.what, grouped(price[0] / operation.times));
        operations.push(price.map(|figure| figure as f64 / operation.times as f64));
    }
    let mut late = Vec::new();
    for operation in &LATENESS {
        let figures = lateness(&mut session, operation);
        late.push((operation.what, figures.with_context(|| format!("measuring how late is: {}", operation.what))?));
    }
    let (prices, payloads) = allocators(&mut session)?;
    let mut missed = 0;
    println!("{:<28} {:>12}  {:>12}  {:>12}", "entry to main", "instructions", "hypercalls", "table bytes");
    for (memory, [instructions, hypercalls, tables]) in boots {
        let what = format!("{memory} MiB");
        println!("{what:<28} {:>12}  {hypercalls:>12}  {:>12}", grouped(instructions), grouped(tables));
    }
    println!();
    println!("{:<28} {:>12}  {:>12}  {:>12}  {:>12}", "vCPU time in ns", "least", "most", "predecessor", "aim");
    for line in lines {
        missed += usize::from(line.ends_with(MISSED));
        println!("{line}");
    }
    println!();
    println!(
        "{:<28} {:>10} {:>7}  {:>12}  {:>12}  {:>12}",
        "of one", "hypercalls", "halts", "vCPU time/ns", "predecessor", "aim"
    );
    for (operation, [time, hypercalls, halts]) in OPERATIONS.iter().zip(&operations) {
        let price = *time as u64;
        let shown = |figure: Option<u64>| figure.map_or_else(|| "-".into(), grouped);
        let verdict = match operation.aim {
            Some(aim) if price <= aim => REACHED,
            Some(_) => MISSED,
            None => "",
        };
        missed += usize::from(verdict == MISSED);
        let (predecessor, aim) = (shown(operation.predecessor), shown(operation.aim));
        println!(
            "{:<28} {hypercalls:>10.2} {halts:>7.2}  {:>12}  {predecessor:>12}  {aim:>12}  {verdict}",
            operation.what,
            grouped(price)
        );
    }
    println!();
    println!("{:<28} {:>12}  {:>12}  {:>12}", "late by ns", "least", "median", "most");
    for (what, figures) in late {
        let [least, median, most] = figures.map(grouped);
        println!("{what:<28} {least:>12}  {median:>12}  {most:>12}");
    }
    println!();
    println!("{:<28} {:>12}  {:>12}  {:>12}  {:>12}", "instructions", "allocate", "at most", "free", "at most");
    for Price { name, blocks, figures: [mean, worst, mean_free, worst_free] } in &prices {
        let what = format!("{name}, {blocks} blocks");
        println!("{what:<28} {mean:>12}  {worst:>12}  {mean_free:>12}  {worst_free:>12}");
    }
    payloads.iter().for_each(|line| println!("{line}"));
    println!();
    for (claim, holds) in (Figures { operations: &operations, prices: &prices }).claims() {
        missed += usize::from(!holds);
        println!("{:<8} {claim}", if holds { REACHED } else { MISSED });
    }
    if missed > 0 {
        bail!("{missed} of the aims are missed");
    }
    Ok(())
}

const REACHED: &str = "reached";
const MISSED: &str = "missed";

/// What an allocator takes with so many blocks, in instructions: allocating, at most, freeing, at most.
struct Price {
    name: String,
    blocks: u64,
    figures: [u64; 4],
}

/// The configuration of a guest that is measured, with its memory in MiB: it reads the clock without an exit.
fn config(guest: &str, memory: u32, cmdline: Option<String>) -> Result<Config> {
    Ok(Config {
        base: base_config(&paths::workspace(), guest)?,
        memory: Some(memory),
        cmdline,
        more: vec!["tsc_mode = \"native\"".into()],
        ..Config::default()
    })
}

/// What the guest says of each allocator: prices with each number of blocks, and a line for the payload.
fn allocators(session: &mut Session) -> Result<(Vec<Price>, Vec<String>)> {
    let watch = Watch { limit: 5 * LIMIT, most: 1 << 16, on_console: &mut |_| {} };
    let outcome = domain::run(session, ALLOCATORS, watch)?;
    domain::destroy(session, ALLOCATORS)?;
    let text = outcome.text();
    if outcome.reason != Some(Reason::Poweroff) || text.contains("@fail") {
        bail!("the allocators were not priced; the console:\n{text}");
    }
    let (mut prices, mut payloads) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["@price", name, blocks, ref figures @ ..] => {
                let parsed: Result<Vec<u64>, _> = figures.iter().map(|figure| figure.parse()).collect();
                let figures = parsed.ok().and_then(|figures| figures.try_into().ok());
                let price = figures.zip(blocks.parse().ok());
                let (figures, blocks) = price.with_context(|| format!("reading {line:?}"))?;
                prices.push(Price { name: name.into(), blocks, figures });
            }
            ["@payload", name, percent] => {
                payloads.push(format!("{name}: {percent} % of 32 MiB are payload when it is full"))
            }
            _ => {}
        }
    }
    Ok((prices, payloads))
}

fn operation_domain(operation: &Operation, times: u64) -> String {
    let interface = if operation.options.is_empty() { "" } else { "two-level-" };
    format!("{interface}{}-{}-{times}", operation.name.replace('_', "-"), operation.memory)
}

/// Its command line.
fn operation_words(operation: &Operation, times: u64) -> String {
    format!("{} {times}{}", operation.name, operation.options)
}

fn boot_domain(memory: u32) -> String {
    format!("boot-{memory}")
}

/// What the guest says: instructions (those that Xen executes for it too), hypercalls, bytes of page tables.
fn boot_cost(session: &mut Session, name: &str) -> Result<[u64; 3]> {
    let watch = Watch { limit: LIMIT, most: 4096, on_console: &mut |_| {} };
    let outcome = domain::run(session, name, watch)?;
    domain::destroy(session, name)?;
    let text = outcome.text();
    let line = text.lines().find_map(|line| line.strip_prefix("@cost "));
    let numbers: Vec<u64> = line.unwrap_or_default().split(' ').filter_map(|number| number.parse().ok()).collect();
    numbers.try_into().map_err(|_| anyhow!("the guest did not tell its cost; its console:\n{text}"))
}

fn domain_of(row: &Row, round: usize) -> String {
    format!("{}-{round}", row.guest)
}

fn line(row: &Row, times: &[u64]) -> String {
    let least = times.iter().min().copied().unwrap_or(0);
    let most = times.iter().max().copied().unwrap_or(0);
    let verdict = if most <= row.aim { REACHED } else { MISSED };
    format!(
        "{:<28} {:>12}  {:>12}  {:>12}  {:>12}  {verdict}",
        row.what,
        grouped(least),
        grouped(most),
        grouped(row.predecessor),
        grouped(row.aim)
    )
}

/// What an operation's guest took: processor time, hypercalls, halts.
fn took(session: &mut Session, operation: &Operation, times: u64) -> Result<[u64; 3]> {
    let name = operation_domain(operation, times);
    let (time, text) = if operation.paired {
        let plan = Plan::new(session, &name, &operation_words(operation, times))?;
        let [first, second] = plan.peers();
        let offer = plan.start_first(session)?;
        plan.hold_second(session, &offer)?;
        let measured = measure_held(session, &second.name)?;
        domain::destroy(session, &first.name)?;
        measured
    } else {
        measure_and_hear(session, &name)?
    };
    match told(&text, "@took ")[..] {
        [hypercalls, halts] => Ok([time, hypercalls, halts]),
        _ => bail!("the guest did not tell what it took; its console:\n{text}"),
    }
}

/// The numbers that the guest of an operation tells behind a mark; none if it does not.
fn told(text: &str, mark: &str) -> Vec<u64> {
    let line = text.lines().find_map(|line| line.split_once(mark)).map(|(_, numbers)| numbers);
    line.unwrap_or_default().split(' ').filter_map(|number| number.parse().ok()).collect()
}

/// How late the sleeps of an operation's guest were: least, median, most, in nanoseconds.
fn lateness(session: &mut Session, operation: &Operation) -> Result<[u64; 3]> {
    let (_, text) = measure_and_hear(session, &operation_domain(operation, operation.times))?;
    told(&text, "@late ")
        .try_into()
        .map_err(|_| anyhow!("the guest did not tell how late it was; its console:\n{text}"))
}

/// Processor time of a domain from when it is let run to when it has powered off.
fn measure(session: &mut Session, name: &str) -> Result<u64> {
    measure_and_hear(session, name).map(|(time, _)| time)
}

/// The same, and what it said.
fn measure_and_hear(session: &mut Session, name: &str) -> Result<(u64, String)> {
    session.must(&format!("xl create -p {}", domain::config_of(name)), COMMAND_LIMIT)?;
    measure_held(session, name)
}

/// The same of a domain that has been created, and is held.
fn measure_held(session: &mut Session, name: &str) -> Result<(u64, String)> {
    let number = session.must(&format!("xl domid {name}"), COMMAND_LIMIT)?;
    let cpu_time = format!("cputime {}", number.trim());
    let before = number_from(&session.must(&cpu_time, COMMAND_LIMIT)?)?;
    let mark = session.serial().length();
    session.must(&format!("xl unpause {name}"), COMMAND_LIMIT)?;
    let watch = Watch { limit: LIMIT, most: 1 << 20, on_console: &mut |_| {} };
    let outcome = domain::follow(session, name, Instant::now(), mark, watch)?;
    if outcome.reason != Some(Reason::Poweroff) {
        bail!("the domain did not power off; its console:\n{}", outcome.text());
    }
    let after = number_from(&session.must(&cpu_time, COMMAND_LIMIT)?)?;
    domain::destroy(session, name)?;
    Ok((after - before, outcome.text()))
}

fn number_from(text: &str) -> Result<u64> {
    text.trim().parse().with_context(|| format!("reading {text:?} as a number"))
}

/// Builds the measuring program for dom0: without shared libraries, so that it runs on any suite.
fn helper() -> Result<Vec<u8>> {
    let workspace = paths::workspace();
    let mut command = cargo::command(&workspace);
    command
        .args(["build", "--quiet", "--release", "--package", "xen-bench", "--bin", "cputime"])
        .args(["--config", "target.'cfg(target_os = \"linux\")'.rustflags=[\"-Ctarget-feature=+crt-static\"]"])
        .arg("--target-dir")
        .arg(paths::target().join("helper"));
    output_of(&mut command).context("building the measuring program")?;
    let path = paths::target().join("helper/release/cputime");
    std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
}
