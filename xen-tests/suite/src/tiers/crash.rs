//! The unikernels that must crash, each with its report: the form of a report is fixed here, line by line.
//!
//! Straight under Xen they run on every version and processor, and in both builds; made by `xl` they have to end with
//! the crash reason, with the same report on the console and on the hypervisor's log.

use anyhow::{Context, Result, ensure};

use super::case::{Case, Stage, Where, ended};
use cargo_xen::build::{Flavour, Image};
use cargo_xen::lab::domain::{Outcome, Reason};
use cargo_xen::lab::smoke::Ended;
use cargo_xen::symbols;

/// The guest.
pub const GUEST: &str = "crash";

/// A way to crash.
pub struct Crash {
    /// What the guest's command line says.
    pub how: &'static str,
    /// What it is to say, where an address stands for `*`.
    report: Said,
    /// A function that the explained backtrace has to name.
    function: &'static str,
}

/// What a crash says.
enum Said {
    /// An exception: the first line, and the error code where there is one.
    Trap(&'static str, Option<&'static str>),
    /// A panic or the like: the first lines.
    Lines(&'static [&'static str]),
    /// These lines alone: the report itself failed.
    Cut(&'static [&'static str]),
}

const fn trap(how: &'static str, first: &'static str, code: Option<&'static str>, function: &'static str) -> Crash {
    Crash { how, report: Said::Trap(first, code), function }
}

const WRITE: Option<&str> = Some("0x0003 (protection, write, supervisor)");
const EXECUTE: Option<&str> = Some("0x0011 (protection, execute, supervisor)");
const READ_ABSENT: Option<&str> = Some("0x0000 (not present, read, supervisor)");
const WRITE_ABSENT: Option<&str> = Some("0x0002 (not present, write, supervisor)");
const EXECUTE_ABSENT: Option<&str> = Some("0x0010 (not present, execute, supervisor)");
const ZERO: Option<&str> = Some("0x0000");

/// All of them but for the NMI, which somebody has to send.
pub static CRASHES: [Crash; 28] = [
    trap("write_code", "page fault (#PF): write at *, code", WRITE, "write"),
    trap("write_constant", "page fault (#PF): write at *, read-only data", WRITE, "write"),
    trap("write_idt", "page fault (#PF): write at *, descriptor tables, read-only after boot", WRITE, "write"),
    trap("write_page_table", "page fault (#PF): write at *, page tables, read-only after boot", WRITE, "write"),
    trap("write_canary", "page fault (#PF): write at *, descriptor tables, read-only after boot", WRITE, "write"),
    trap(
        "write_protected",
        "page fault (#PF): write at *, heap, or other RAM, protected as Read after boot",
        WRITE,
        "write",
    ),
    trap("execute_constant", "page fault (#PF): execution at *, read-only data", EXECUTE, "execute"),
    trap("execute_data", "page fault (#PF): execution at *, data", EXECUTE, "execute"),
    trap("execute_heap", "page fault (#PF): execution at *, heap, or other RAM", EXECUTE, "execute"),
    trap("execute_stack", "page fault (#PF): execution at *, main stack", EXECUTE, "execute"),
    trap("read_null", "page fault (#PF): read at *, null page", READ_ABSENT, "read"),
    trap("read_hole", "page fault (#PF): read at *, not mapped", READ_ABSENT, "read"),
    trap("jump_null", "page fault (#PF): execution at *, null page", EXECUTE_ABSENT, "execute"),
    trap(
        "overflow",
        "page fault (#PF): write at *, guard page below the main stack: stack overflow",
        WRITE_ABSENT,
        "recurse",
    ),
    trap(
        "overflow_exception_stack",
        "page fault (#PF): write at *, guard page below the exception stack: stack overflow",
        WRITE_ABSENT,
        "overflow_exception_stack",
    ),
    trap(
        "overflow_nmi_stack",
        "page fault (#PF): write at *, guard page below the NMI stack: stack overflow",
        WRITE_ABSENT,
        "overflow_exception_stack",
    ),
    trap("divide", "divide error (#DE) at *", None, "divide"),
    trap("undefined", "invalid opcode (#UD) at *", None, "undefined"),
    trap("breakpoint", "breakpoint (#BP) at *", None, "breakpoint"),
    trap("non_canonical", "general protection fault (#GP) at *", ZERO, "read"),
    trap("double_fault", "double fault (#DF) at *", ZERO, "read"),
    Crash {
        how: "smash",
        report: Said::Lines(&["domu: stack smashed: a function overran a buffer in its frame"]),
        function: "smash",
    },
    Crash {
        how: "heap_overrun",
        report: Said::Lines(&["domu: heap: written past the end of the block of 100 bytes at *"]),
        function: "heap_overrun",
    },
    Crash {
        how: "heap_freed_twice",
        report: Said::Lines(&["domu: heap: the block of 100 bytes at * is freed twice"]),
        function: "heap_freed_twice",
    },
    Crash {
        how: "heap_foreign",
        report: Said::Lines(&["domu: heap: no block of 100 bytes at * is in use"]),
        function: "heap_foreign",
    },
    Crash {
        how: "panic",
        report: Said::Lines(&["domu: panicked at xen-tests/guests/src/bin/crash.rs:*", "as the command line asks"]),
        function: "panics",
    },
    Crash {
        how: "panic_while_panicking",
        report: Said::Cut(&[
            "domu: panicked at xen-tests/guests/src/bin/crash.rs:*",
            "domu: panicked at xen-tests/guests/src/bin/crash.rs:* (while reporting a crash)",
        ]),
        function: "",
    },
    Crash {
        how: "trap_while_panicking",
        report: Said::Cut(&[
            "domu: panicked at xen-tests/guests/src/bin/crash.rs:*",
            "domu: page fault (#PF): read at * (while reporting a crash)",
        ]),
        function: "",
    },
];

static NMI: Crash = trap("wait_for_nmi", "non-maskable interrupt (NMI) at *", None, "wait_for_nmi");

impl Crash {
    /// Whether a build without a stack protector crashes so too.
    pub fn in_plain_build(&self) -> bool {
        self.how != "smash"
    }

    /// The report, without addresses and with one caller.
    fn expected(&self) -> Vec<String> {
        let mut lines = Vec::new();
        match self.report {
            Said::Trap(first, code) => {
                lines.push(format!("domu: {first}"));
                lines.extend(code.map(|code| format!("domu: error code {code}")));
                lines.extend(REGISTERS.map(String::from));
                lines.extend(["domu: backtrace:", "domu:   at *"].map(String::from));
            }
            Said::Lines(first) => {
                lines.extend(first.iter().map(|line| String::from(*line)));
                lines.push("domu: backtrace:".into());
            }
            Said::Cut(all) => return all.iter().map(|line| String::from(*line)).collect(),
        }
        lines.extend(["domu:   by *", "domu: build id *"].map(String::from));
        lines
    }

    /// Holds a text against the report.
    fn check(&self, text: &str) -> Result<()> {
        let (found, expected) = (report_in(text), self.expected());
        ensure!(
            found == expected,
            "the report is not as it should be:\n{}\ninstead of\n{}",
            found.join("\n"),
            expected.join("\n")
        );
        Ok(())
    }

    /// Judges a guest straight under Xen, with the symbols of its image.
    pub fn judge_smoke(&self, ended: &Ended, image: &Image) -> Result<()> {
        ensure!(ended.reason == Some(Reason::Crash), "it ended with {:?} instead of a crash", ended.reason);
        self.check(&ended.serial)?;
        if matches!(self.report, Said::Cut(_)) {
            return Ok(());
        }
        let explained =
            symbols::explain(&image.elf, &ended.serial)?.context("there is no backtrace to be explained")?;
        let names = |line: &String| line.split(['<', '>', ':', ' ', '{']).any(|word| word == self.function);
        ensure!(explained.iter().any(names), "no line names {}:\n{}", self.function, explained.join("\n"));
        Ok(())
    }

    fn judge(&self, outcome: &Outcome) -> Result<()> {
        ended(outcome, Reason::Crash)?;
        self.check(&outcome.own_lines()).context("on the hypervisor's log")?;
        self.check(&outcome.text()).context("on the console")
    }
}

/// The lines of all registers.
const REGISTERS: [&str; 6] = [
    "domu: rip *  cs 0008  rflags *  ss 0010",
    "domu: rax *  rbx *  rcx *  rdx *",
    "domu: rsi *  rdi *  rbp *  rsp *",
    "domu: r8  *  r9  *  r10 *  r11 *",
    "domu: r12 *  r13 *  r14 *  r15 *",
    "domu: cr0 *  cr2 *  cr3 *  cr4 *",
];

/// The report in a text, from its first line to the build id: without what Xen puts before a line, without addresses,
/// and with one line for all callers.
fn report_in(text: &str) -> Vec<String> {
    let own = |line: &str| match line.split_once(") domu") {
        // Xen's mark of the domain, as in `(d3) `.
        Some((before, rest)) if before.contains("(d") => format!("domu{rest}"),
        _ => match line.split_once("(d").and_then(|(_, rest)| rest.split_once(") ")) {
            Some((number, rest)) if number.parse::<u32>().is_ok() => rest.to_owned(),
            _ => line.to_owned(),
        },
    };
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines().map(|line| without_addresses(own(line).trim_end())) {
        if (lines.is_empty() && !line.starts_with("domu: ")) || line.starts_with("(XEN)") {
            continue;
        }
        if line == "domu:   by *" && lines.last() == Some(&line) {
            continue;
        }
        let last = line.starts_with("domu: build id ") || line.ends_with("(while reporting a crash)");
        lines.push(line);
        if last {
            break;
        }
    }
    lines
}

/// Puts `*` for each address, build id, place in a source file, and count of a recursion.
fn without_addresses(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let digits = rest.trim_start_matches("0x");
        let length = digits.find(|c: char| !matches!(c, '0'..='9' | 'a'..='f')).unwrap_or(digits.len());
        if length >= 16 {
            out.push('*');
            rest = &digits[length..];
            continue;
        }
        if let Some(place) = rest.strip_prefix(".rs:") {
            out.push_str(".rs:*");
            let end = place.find(|c: char| c != ':' && !c.is_ascii_digit()).unwrap_or(place.len());
            rest = &place[place[..end].trim_end_matches(':').len()..];
            continue;
        }
        out.push(first);
        rest = &rest[first.len_utf8()..];
    }
    match out.split_once(" (") {
        Some((before, rest)) if rest.ends_with(" times)") => before.to_owned(),
        _ => out,
    }
}

/// The tests with `xl`.
pub fn cases(cases: &mut Vec<Case>) {
    for crash in &CRASHES {
        cases
            .push(Case::new(format!("crash::{}", crash.how), GUEST, |outcome| crash.judge(outcome)).cmdline(crash.how));
    }
    cases.push(Case::new("crash::nmi", GUEST, |_| Ok(())).cmdline(NMI.how).on(Where::VERSIONS).steps(|stage| {
        let outcome = stage.run_after(send_nmi)?;
        NMI.judge(&outcome)?;
        stage.destroy()
    }));
    let mut more = |name: &str, how: &str, change: fn(Case) -> Case| {
        let crash = CRASHES.iter().find(|crash| crash.how == how);
        cases.extend(crash.map(|crash| {
            change(Case::new(format!("crash::{name}"), GUEST, |outcome| crash.judge(outcome)).cmdline(crash.how))
        }));
    };
    more("overflow_small", "overflow", |case| case.memory(2).on(Where::VERSIONS));
    more("plain", "panic", |case| case.flavour(Flavour::Plain));
    // Nothing silences a report.
    more("log_off", "divide", |case| case.cmdline("divide domu.log=off"));
}

/// Has dom0 send it as soon as the guest says that it waits.
fn send_nmi(stage: &mut Stage) -> Result<()> {
    let (log, domain) = (stage.log(), stage.domain.clone());
    stage.dom0(&format!(
        "(tries=0; until grep -q @waiting {log} || [ $tries -gt 100 ]; do sleep 0.2; tries=$((tries + 1)); done; \
         xl trigger {domain} nmi) > /dev/null 2>&1 &"
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
INFO  domu::boot: something
domu: page fault (#PF): write at 0x0000000000101234, code
domu: error code 0x0003 (protection, write, supervisor)
domu: rip 0000000000100abc  cs 0008  rflags 0000000000000046  ss 0010
domu: rax 0000000000000001  rbx 0000000000000000  rcx 0000000000000000  rdx 0000000000000000
domu: rsi 0000000000000000  rdi 0000000000000000  rbp 000000000011e100  rsp 000000000011e008
domu: r8  0000000000000000  r9  0000000000000000  r10 0000000000000000  r11 0000000000000000
domu: r12 0000000000000000  r13 0000000000000000  r14 0000000000000000  r15 0000000000000000
domu: cr0 0000000080010033  cr2 000000000011dff8  cr3 0000000000001000  cr4 00000000000006a0
domu: backtrace:
domu:   at 0x0000000000100abc
domu:   by 0x0000000000101000
domu:   by 0x0000000000102000 (7 times)
domu: build id 1f02ab1f02ab1f02ab1f02ab1f02ab1f02ab0000
(XEN) something
";

    #[test]
    fn a_report_is_found_with_and_without_xens_mark() {
        assert!(CRASHES[0].check(REPORT).is_ok());
        let marked: String = REPORT.lines().map(|line| format!("(XEN) [    3.2] (d12) {line}\r\n")).collect();
        CRASHES[0].check(&marked).unwrap();
        let marked: String = REPORT.lines().map(|line| format!("(d1) {line}\n(XEN) noise\n")).collect();
        CRASHES[0].check(&marked).unwrap();
    }

    #[test]
    fn another_report_is_refused() {
        assert!(CRASHES[1].check(REPORT).is_err());
        assert!(CRASHES[0].check("").is_err());
        for line in REPORT.lines().filter(|line| line.starts_with("domu: ")) {
            let fewer = REPORT.replace(&format!("{line}\n"), "");
            // A caller may be missing, as long as there is one.
            assert_eq!(CRASHES[0].check(&fewer).is_ok(), line.contains(" by "), "{line}");
        }
    }

    #[test]
    fn places_in_sources_have_no_numbers() {
        assert_eq!(without_addresses("domu: panicked at a/b.rs:12:5:"), "domu: panicked at a/b.rs:*:");
        assert_eq!(without_addresses("at b.rs:12:5 (while)"), "at b.rs:* (while)");
        assert_eq!(without_addresses("by 0x0000000000102000 (7 times)"), "by *");
        assert_eq!(without_addresses("cs 0008"), "cs 0008");
    }
}
