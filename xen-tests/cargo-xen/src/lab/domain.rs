//! A guest in a session: its configuration, its start, its console, its end.
//!
//! Every guest starts from a configuration file that users have too (examples/hello.xl, or a file
//! NAME.xl beside it), with what the test wants different appended: of two lines with the same key
//! xl takes the later. A domain that ends is preserved until its console has been read, since xl
//! may otherwise destroy it before xenconsoled has emptied its ring.

use std::fmt;
use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::dom0::Session;
use super::input::Input;
use crate::cpio::Archive;
use crate::say;

pub use super::dom0::COMMAND_LIMIT;

/// Why a domain has ended, with the numbers of Xen's `SHUTDOWN_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It powered off.
    Poweroff = 0,
    /// It asked to be started anew.
    Reboot = 1,
    /// It is suspended.
    Suspend = 2,
    /// It crashed.
    Crash = 3,
    /// Its watchdog fired.
    Watchdog = 4,
    /// It asked for a soft reset.
    SoftReset = 5,
}

impl Reason {
    /// From the number that Xen has for it.
    pub fn from_number(number: u32) -> Option<Reason> {
        use Reason::*;
        [Poweroff, Reboot, Suspend, Crash, Watchdog, SoftReset].into_iter().find(|reason| *reason as u32 == number)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Reason::Poweroff => "poweroff",
            Reason::Reboot => "reboot",
            Reason::Suspend => "suspend",
            Reason::Crash => "crash",
            Reason::Watchdog => "watchdog",
            Reason::SoftReset => "soft reset",
        })
    }
}

/// What a guest is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The configuration to start from.
    pub base: String,
    /// MiB of memory; the base's when absent.
    pub memory: Option<u32>,
    /// MiB that its memory map shows.
    pub maxmem: Option<u32>,
    /// Its command line.
    pub cmdline: Option<String>,
    /// Name of a file in dom0's folder of guests.
    pub ramdisk: Option<String>,
    /// More lines.
    pub more: Vec<String>,
}

impl Config {
    /// The configuration file's text.
    pub fn text(&self, name: &str, kernel: &str) -> String {
        let mut text = self.base.clone();
        text.push_str("\n# For this run:\n");
        let mut line = |key: &str, value: String| text.push_str(&format!("{key} = {value}\n"));
        line("name", quoted(name));
        line("kernel", quoted(&format!("/guests/{kernel}")));
        if let Some(memory) = self.memory {
            line("memory", memory.to_string());
        }
        if let Some(maxmem) = self.maxmem {
            line("maxmem", maxmem.to_string());
        }
        if let Some(cmdline) = &self.cmdline {
            line("cmdline", quoted(cmdline));
        }
        if let Some(ramdisk) = &self.ramdisk {
            line("ramdisk", quoted(&format!("/guests/{ramdisk}")));
        }
        for event in ["on_poweroff", "on_reboot", "on_crash", "on_watchdog", "on_soft_reset"] {
            line(event, quoted("preserve"));
        }
        for more in &self.more {
            text.push_str(more);
            text.push('\n');
        }
        text
    }
}

/// A string of xl's configuration language, which knows the escapes of C within quotes.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                out.push('\\');
                out.push(character);
            }
            '\n' => out.push_str("\\n"),
            _ => out.push(character),
        }
    }
    out.push('"');
    out
}

/// Puts a guest's configuration among dom0's files.
pub fn add(archive: &mut Archive, name: &str, kernel: &str, config: &Config) {
    archive.file(&format!("guests/{name}.xl"), 0o644, config.text(name, kernel).as_bytes());
}

/// What became of a guest.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its number.
    pub domain: u32,
    /// Its console, byte for byte as xenconsoled logged it, as far as it has been fetched.
    pub console: Vec<u8>,
    /// Why it ended; `None`: it was still running when its time was up.
    pub reason: Option<Reason>,
    /// What came over the hypervisor's serial line meanwhile; a guest's own lines start with `(dN)`.
    pub hypervisor: String,
    /// How long it took, from before `xl create` to its end.
    pub took: Duration,
}

impl Outcome {
    /// The console as text, lines ending in LF.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.console).replace("\r\n", "\n")
    }

    /// The hypervisor's log without what others said there.
    pub fn own_lines(&self) -> String {
        let own = format!("(d{})", self.domain);
        self.hypervisor.lines().filter(|line| line.contains(&own)).map(|line| format!("{line}\n")).collect()
    }
}

/// Where a running domain stands.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Running,
    Ended(Reason),
}

/// How a guest is followed.
pub struct Watch<'a> {
    /// How long it may run.
    pub limit: Duration,
    /// How much of its console is fetched; the line out of dom0 carries some 15 KiB a second.
    pub most: usize,
    /// Gets the console as it comes.
    pub on_console: &'a mut dyn FnMut(&[u8]),
}

/// Starts the guest, follows its console, and waits for its end; the domain is still there then.
pub fn run(session: &mut Session, name: &str, watch: Watch<'_>) -> Result<Outcome> {
    let mark = session.serial().length();
    let start = Instant::now();
    session.must(&format!("xl create {}", config_of(name)), COMMAND_LIMIT)?;
    follow(session, name, start, mark, watch)
}

/// The same with what is read from somewhere going to its console, from when it is held and `before` has been done.
pub fn run_attached(
    session: &mut Session,
    name: &str,
    watch: Watch<'_>,
    source: impl Read + Send + 'static,
    before: impl FnOnce() -> Result<()>,
) -> Result<Outcome> {
    let mark = session.serial().length();
    session.must(&format!("xl create -p {}", config_of(name)), COMMAND_LIMIT)?;
    before()?;
    let input = Input::new(session, name, source)?;
    let start = Instant::now();
    session.must(&format!("xl unpause {name}"), COMMAND_LIMIT)?;
    follow_with(session, name, start, mark, watch, Some(input))
}

/// Follows a domain that has been created, to its end. `mark` is from where the hypervisor's serial
/// line belongs to it.
pub fn follow(session: &mut Session, name: &str, start: Instant, mark: usize, watch: Watch<'_>) -> Result<Outcome> {
    follow_with(session, name, start, mark, watch, None)
}

fn follow_with(
    session: &mut Session,
    name: &str,
    start: Instant,
    mark: usize,
    watch: Watch<'_>,
    mut input: Option<Input>,
) -> Result<Outcome> {
    let mut followed = Followed::new(name, start, mark, watch);
    let mut next_state = start;
    loop {
        let grown = followed.console.look(session)?;
        let pause = if grown { Duration::ZERO } else { PAUSE };
        if let Some(input) = &mut input {
            input.hand_on(session, pause)?;
            // What comes next takes longest, and who types is to see it come back.
            if Instant::now() < next_state {
                continue;
            }
            next_state = Instant::now() + Duration::from_millis(500);
        }
        if followed.is_over(session)? {
            return followed.outcome(session);
        }
        if input.is_none() {
            std::thread::sleep(pause);
        }
    }
}

/// Follows two domains at once, until both have ended.
pub fn follow_both(session: &mut Session, mut both: [Followed<'_>; 2]) -> Result<[Outcome; 2]> {
    let mut next_state = Instant::now();
    while both.iter().any(|followed| followed.end.is_none()) {
        let mut grown = false;
        for followed in &mut both {
            grown |= followed.console.look(session)?;
        }
        // This takes longer than the consoles, of which the one is to be seen answering the other.
        if Instant::now() >= next_state {
            for followed in both.iter_mut().filter(|followed| followed.end.is_none()) {
                followed.is_over(session)?;
            }
            next_state = Instant::now() + Duration::from_secs(1);
        }
        if !grown {
            std::thread::sleep(PAUSE);
        }
    }
    let [first, second] = both;
    Ok([first.outcome(session)?, second.outcome(session)?])
}

/// How long to wait for more on a console.
const PAUSE: Duration = Duration::from_millis(100);

/// A domain while it is followed.
pub struct Followed<'a> {
    console: Console<'a>,
    start: Instant,
    mark: usize,
    domain: u32,
    /// Why it is not followed any longer, and how long it took.
    end: Option<(Option<Reason>, Duration)>,
}

impl<'a> Followed<'a> {
    /// One that has been created, as for [`follow`].
    pub fn new(name: &str, start: Instant, mark: usize, watch: Watch<'a>) -> Self {
        let console = Console { name: name.to_owned(), bytes: Vec::new(), size: 0, watch };
        Followed { console, start, mark, domain: 0, end: None }
    }

    /// Whether there is nothing to be waited for any longer.
    fn is_over(&mut self, session: &mut Session) -> Result<bool> {
        let reason = match state(session, &self.console.name)? {
            Some((number, state)) => {
                self.domain = number;
                match state {
                    State::Ended(reason) => Some(reason),
                    State::Running if self.start.elapsed() > self.console.watch.limit => None,
                    State::Running => return Ok(false),
                }
            }
            None => None,
        };
        self.end = Some((reason, self.start.elapsed()));
        Ok(true)
    }

    /// What became of it, with the rest of its console.
    fn outcome(mut self, session: &mut Session) -> Result<Outcome> {
        self.console.drain(session)?;
        let Console { name, bytes: console, .. } = self.console;
        let log = session.logs().join(format!("{name}.console"));
        std::fs::write(&log, &console).with_context(|| format!("writing {}", log.display()))?;
        let (reason, took) = self.end.unwrap_or((None, self.start.elapsed()));
        Ok(Outcome { domain: self.domain, console, reason, hypervisor: session.serial().since(self.mark), took })
    }
}

/// Destroys a domain.
pub fn destroy(session: &mut Session, name: &str) -> Result<()> {
    session.must(&format!("xl destroy {name}"), COMMAND_LIMIT)?;
    Ok(())
}

/// A domain's configuration in dom0.
pub fn config_of(name: &str) -> String {
    format!("/guests/{name}.xl")
}

/// Where dom0's xenconsoled logs a domain's console.
pub fn log_of(name: &str) -> String {
    format!("/var/log/xen/console/guest-{name}.log")
}

/// A domain's console while it is followed.
struct Console<'a> {
    name: String,
    bytes: Vec<u8>,
    size: usize,
    watch: Watch<'a>,
}

impl Console<'_> {
    /// Fetches what the log has got since; says whether there was anything.
    fn look(&mut self, session: &mut Session) -> Result<bool> {
        const AT_ONCE: usize = 4096;
        let room = self.watch.most.saturating_sub(self.bytes.len()).min(AT_ONCE);
        let command = format!("look {} {} {room}", self.name, self.bytes.len());
        let reply = session.run(&command, COMMAND_LIMIT)?;
        let end = reply.output.iter().position(|byte| *byte == b'\n').unwrap_or(0);
        let size = String::from_utf8_lossy(&reply.output[..end]);
        let size = size.parse().with_context(|| format!("reading the answer to `{command}`"))?;
        let new = &reply.output[end + 1..];
        (self.watch.on_console)(new);
        self.bytes.extend_from_slice(new);
        let grown = size != self.size || !new.is_empty();
        self.size = size;
        Ok(grown)
    }

    /// Waits until the log no longer grows. xenconsoled pauses for a fifth of a second when it has
    /// read a lot: only a longer silence is an end.
    fn drain(&mut self, session: &mut Session) -> Result<()> {
        let mut quiet = Instant::now();
        while quiet.elapsed() < Duration::from_millis(300) {
            if self.look(session)? {
                quiet = Instant::now();
            } else {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }
}

/// Where a domain stands, with its number; `None`: there is none.
fn state(session: &mut Session, name: &str) -> Result<Option<(u32, State)>> {
    let list = format!("xl list -v {name}");
    let mut reply = session.run(&list, COMMAND_LIMIT)?;
    if reply.status != 0 {
        // It has failed once beside a domain that was there, before and after. What is gone stays so.
        std::thread::sleep(Duration::from_millis(500));
        say!("`{list}` says {:?}: asking again", reply.text().trim());
        reply = session.run(&list, COMMAND_LIMIT)?;
    }
    if reply.status != 0 {
        return Ok(None);
    }
    let text = reply.text();
    let state = parse_state(&text).with_context(|| format!("reading what `xl list -v` says:\n{text}"))?;
    Ok(Some(state))
}

/// Reads the line of one domain in the output of `xl list -v`: name, number, memory, processors,
/// state, time, UUID, reason and more.
fn parse_state(text: &str) -> Result<(u32, State)> {
    let Some(line) = text.lines().nth(1) else {
        bail!("there is no line with the domain");
    };
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (Some(number), Some(flags), Some(reason)) = (fields.get(1), fields.get(4), fields.get(7)) else {
        bail!("the line is too short");
    };
    let number = number.parse().with_context(|| format!("{number} is no domain's number"))?;
    // The flags are r(unning) b(locked) p(aused) s(hut down) c(rashed) d(ying).
    if !flags.contains(['s', 'c']) {
        return Ok((number, State::Running));
    }
    match reason.parse().ok().and_then(Reason::from_number) {
        Some(reason) => Ok((number, State::Ended(reason))),
        None => bail!("{reason} is no reason for a shutdown"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "Name  ID   Mem VCPUs\tState\tTime(s)   UUID   Reason-Code\tSecurity Label\n";

    fn state_of(flags: &str, reason: &str) -> Result<(u32, State)> {
        parse_state(&format!(
            "{HEAD}hello   3    16     1     {flags}       0.1 \
             5a6b7c8d-0000-4000-8000-000000000000        {reason}                -\n"
        ))
    }

    #[test]
    fn the_state_is_read_from_the_list() {
        assert_eq!(state_of("r-----", "-").unwrap(), (3, State::Running));
        assert_eq!(state_of("-b----", "-").unwrap(), (3, State::Running));
        assert_eq!(state_of("---s--", "0").unwrap(), (3, State::Ended(Reason::Poweroff)));
        assert_eq!(state_of("---s--", "1").unwrap(), (3, State::Ended(Reason::Reboot)));
        assert_eq!(state_of("---sc-", "3").unwrap(), (3, State::Ended(Reason::Crash)));
    }

    #[test]
    fn nonsense_is_no_state() {
        assert!(parse_state("").is_err());
        assert!(parse_state(HEAD).is_err());
        assert!(state_of("---s--", "17").is_err());
        assert!(state_of("---s--", "-").is_err());
    }

    #[test]
    fn a_configuration_is_the_base_and_what_differs() {
        let config = Config {
            base: "type = \"pvh\"\nmemory = 16\n".into(),
            memory: Some(4),
            cmdline: Some("a \"b\" \\ ü".into()),
            ..Config::default()
        };
        let text = config.text("t1", "hello");
        assert!(text.starts_with("type = \"pvh\"\nmemory = 16\n"));
        assert!(text.contains("\nmemory = 4\n"));
        assert!(text.contains("\nname = \"t1\"\n"));
        assert!(text.contains("\nkernel = \"/guests/hello\"\n"));
        assert!(text.contains("\ncmdline = \"a \\\"b\\\" \\\\ ü\"\n"));
        assert!(text.contains("\non_crash = \"preserve\"\n"));
        assert!(!text.contains("maxmem"));
    }
}
