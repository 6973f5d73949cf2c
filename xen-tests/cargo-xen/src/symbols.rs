//! Turns the addresses of a crash report into functions, files and lines.
//!
//! A unikernel that crashes prints addresses only: names and lines would make every image several
//! times larger. The ELF with symbols has them, and the tool has just built it. The report ends in
//! lines of this form, on the console with CR LF, on the hypervisor's log with a prefix:
//!
//! ```text
//! domu: backtrace:
//! domu:   at 0x0000000000100abc
//! domu:   by 0x0000000000101234
//! domu: build id 1f2e3d4c
//! ```
//!
//! `at` is the instruction that faulted, `by` an address to return to: the call stands before that.

use std::borrow::Cow;
use std::fmt::Write;
use std::fs;
use std::ops::Range;
use std::path::Path;

use addr2line::gimli::{DwarfSections, EndianSlice, RunTimeEndian, SectionId};
use anyhow::{Context, Result, anyhow};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

/// What begins each line of a report.
const MARK: &str = "domu: ";

/// Explains the first backtrace in a text with an ELF's symbols, a line for each call, those that
/// the compiler inlined too. `None`: there is no backtrace. Where the text has the build id of
/// another ELF, that is what the one line says.
pub fn explain(elf: &Path, text: &str) -> Result<Option<Vec<String>>> {
    let Some(trace) = Trace::find(text) else {
        return Ok(None);
    };
    let name = elf.display();
    let bytes = fs::read(elf).with_context(|| format!("reading {name}"))?;
    let lines = lines(&trace, &bytes).with_context(|| format!("looking for symbols in {name}"))?;
    Ok(Some(match lines {
        Lines::Found(lines) => lines,
        Lines::OtherBuild(id) => {
            let theirs = trace.build_id.unwrap_or_default();
            vec![format!("no symbols: what crashed has build id {theirs}, {name} has {id}")]
        }
        Lines::Stripped => vec![format!("no symbols: {name} is stripped")],
    }))
}

/// What a crash is reported with: the backtrace of the first of these texts that has one, explained.
/// Empty where there is none, and the reason where it cannot be explained.
pub fn report(elf: &Path, texts: &[&str]) -> String {
    let explained = texts.iter().find_map(|text| explain(elf, text).transpose());
    let lines = match explained {
        None => return String::new(),
        Some(Ok(lines)) => lines,
        Some(Err(error)) => vec![format!("no symbols: {error:#}")],
    };
    format!("its backtrace with symbols:\n{}", lines.iter().map(|line| format!("  {line}\n")).collect::<String>())
}

/// A backtrace as printed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Trace {
    addresses: Vec<Address>,
    /// In hexadecimal.
    build_id: Option<String>,
}

/// A line of a backtrace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address {
    /// Of an instruction.
    At(u64),
    /// Of the instruction behind a call.
    By(u64),
}

impl Trace {
    /// The first one in a text, which may have other lines between.
    fn find(text: &str) -> Option<Trace> {
        let mut lines = text.lines().filter_map(|line| line.split_once(MARK)).map(|(_, rest)| rest.trim_end());
        lines.by_ref().find(|line| *line == "backtrace:")?;
        let mut trace = Trace::default();
        let mut whole = false;
        for line in lines {
            if let Some(id) = line.strip_prefix("build id ") {
                trace.build_id = Some(id.trim().to_ascii_lowercase());
                break;
            }
            match Address::parse(line) {
                Some(address) if !whole => trace.addresses.push(address),
                // The same report on another line of output.
                _ if line == "backtrace:" => break,
                _ => whole = true,
            }
        }
        (!trace.addresses.is_empty()).then_some(trace)
    }
}

impl Address {
    fn parse(line: &str) -> Option<Address> {
        let (kind, address) = line.trim_start().split_once(" 0x")?;
        let address = u64::from_str_radix(address.split_whitespace().next()?, 16).ok()?;
        match kind {
            "at" => Some(Address::At(address)),
            "by" => Some(Address::By(address)),
            _ => None,
        }
    }

    /// As it is printed.
    fn shown(self) -> String {
        match self {
            Address::At(address) => format!("at {address:#018x}"),
            Address::By(address) => format!("by {address:#018x}"),
        }
    }

    /// An address within the instruction meant: what follows a call may belong to another line, or
    /// to another function where the call never returns.
    fn within(self) -> u64 {
        match self {
            Address::At(address) => address,
            Address::By(address) => address.saturating_sub(1),
        }
    }
}

/// What an ELF tells about a backtrace.
enum Lines {
    /// The lines.
    Found(Vec<String>),
    /// Nothing: it is not the one that crashed, but has this build id.
    OtherBuild(String),
    /// Nothing: it has no symbols.
    Stripped,
}

fn lines(trace: &Trace, elf: &[u8]) -> Result<Lines> {
    let file = object::File::parse(elf).context("reading it as an ELF")?;
    let own_id = file.build_id().context("reading its build id")?.map(hexadecimal);
    if let (Some(id), Some(own)) = (&trace.build_id, own_id)
        && *id != own
    {
        return Ok(Lines::OtherBuild(own));
    }
    let functions = Functions::of(&file);
    let sections = DwarfSections::load(|id: SectionId| section(&file, id))?;
    let dwarf = sections.borrow(|bytes| EndianSlice::new(bytes, RunTimeEndian::Little));
    if functions.0.is_empty() && file.section_by_name(SectionId::DebugLine.name()).is_none() {
        return Ok(Lines::Stripped);
    }
    let code = code(&file);
    let symbols = Symbols { code, functions, places: addr2line::Context::from_dwarf(dwarf).map_err(unreadable)? };
    let mut out = Vec::new();
    for address in &trace.addresses {
        symbols.explain(*address, &mut out)?;
    }
    Ok(Lines::Found(out))
}

type Slice<'a> = EndianSlice<'a, RunTimeEndian>;

/// A section's bytes; one that is not there is empty.
fn section<'a>(file: &object::File<'a>, id: SectionId) -> Result<Cow<'a, [u8]>> {
    match file.section_by_name(id.name()) {
        Some(section) => section.uncompressed_data().with_context(|| format!("reading its section {}", id.name())),
        None => Ok(Cow::Borrowed(&[])),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// All that an ELF knows of its addresses.
struct Symbols<'a> {
    /// Where its code is.
    code: Vec<Range<u64>>,
    functions: Functions<'a>,
    places: addr2line::Context<Slice<'a>>,
}

impl Symbols<'_> {
    /// Adds an address's lines: the innermost call first, as in the backtrace itself.
    fn explain(&self, address: Address, out: &mut Vec<String>) -> Result<()> {
        let within = address.within();
        let symbol = self.functions.at(within);
        let frames = self.frames(within)?;
        let mut start = address.shown();
        if frames.is_empty() {
            // Code without lines: assembly has only its labels.
            let name = symbol.map(|(function, offset)| format!("{}+{offset:#x}", demangled(function.name)));
            out.push(format!("{start} {}", name.unwrap_or_else(|| "?? (no function there)".into())));
        }
        let outermost = frames.len().saturating_sub(1);
        for (index, (name, place)) in frames.into_iter().enumerate() {
            // The symbol has the whole path; the debug information of inlined calls may lack it.
            let name = match symbol {
                Some((function, _)) if index == outermost => Some(demangled(function.name)),
                _ => name,
            };
            let name = name.unwrap_or_else(|| "??".into());
            let inlined = if index == outermost { "" } else { " (inlined)" };
            let place = place.map(|place| format!(" at {place}")).unwrap_or_default();
            out.push(format!("{start} {name}{inlined}{place}"));
            start = " ".repeat(start.len());
        }
        Ok(())
    }

    /// The calls at an address with their names and places, the innermost first.
    fn frames(&self, address: u64) -> Result<Vec<(Option<String>, Option<String>)>> {
        let mut frames = Vec::new();
        // Functions that the linker has dropped are still in the debug information, where no code is.
        if !self.code.iter().any(|code| code.contains(&address)) {
            return Ok(frames);
        }
        let mut found = self.places.find_frames(address).skip_all_loads().map_err(unreadable)?;
        while let Some(frame) = found.next().map_err(unreadable)? {
            let name = match &frame.function {
                Some(function) => Some(short(&demangled(&function.raw_name().map_err(unreadable)?)).to_owned()),
                None => None,
            };
            frames.push((name, frame.location.as_ref().and_then(place)));
        }
        Ok(frames)
    }
}

fn unreadable(error: addr2line::gimli::Error) -> anyhow::Error {
    anyhow!("reading its debug information: {error}")
}

fn demangled(name: &str) -> String {
    // The alternative form leaves out the hash.
    format!("{:#}", rustc_demangle::demangle(name))
}

/// A name without its generic arguments: the debug information spells those of inlined iterators
/// out over several lines of a terminal.
fn short(name: &str) -> &str {
    match name.find('<') {
        None | Some(0) => name,
        Some(at) => &name[..at],
    }
}

fn place(location: &addr2line::Location<'_>) -> Option<String> {
    // As seen from the workspace, which has this name in an image.
    let file = location.file?;
    let mut text = file.strip_prefix("domu/").unwrap_or(file).to_owned();
    for number in [location.line, location.column].into_iter().map_while(|number| number.filter(|n| *n > 0)) {
        // Writing to a string cannot fail.
        let _ = write!(text, ":{number}");
    }
    Some(text)
}

/// Where an ELF's sections of code are.
fn code(file: &object::File<'_>) -> Vec<Range<u64>> {
    let sections = file.sections().filter(|section| section.kind() == SectionKind::Text);
    sections.map(|section| section.address()..section.address().saturating_add(section.size())).collect()
}

/// An ELF's code symbols.
struct Functions<'a>(Vec<Function<'a>>);

struct Function<'a> {
    name: &'a str,
    address: u64,
    /// 0: unknown, as for a label of assembly.
    size: u64,
    /// The end of its section.
    end: u64,
}

impl<'a> Functions<'a> {
    fn of(file: &object::File<'a>) -> Functions<'a> {
        let functions = file.symbols().filter_map(|symbol| {
            let section = file.section_by_index(symbol.section_index()?).ok()?;
            let is_code = section.kind() == SectionKind::Text
                && matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Label | SymbolKind::Unknown);
            let name = symbol.name().ok().filter(|name| is_code && !name.is_empty())?;
            let end = section.address().saturating_add(section.size());
            Some(Function { name, address: symbol.address(), size: symbol.size(), end })
        });
        Functions(functions.collect())
    }

    /// The function that an address belongs to, and how far into it: one that says so, or else the
    /// last label before it in its section.
    fn at(&self, address: u64) -> Option<(&Function<'a>, u64)> {
        let before = || self.0.iter().filter(|function| function.address <= address && address < function.end);
        let sized = before().find(|function| address - function.address < function.size);
        let found = sized.or_else(|| before().filter(|function| function.size == 0).max_by_key(|f| f.address));
        found.map(|function| (function, address - function.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "hello\r\n\
        domu: page fault (#PF): read of 0x8\r\n\
        domu: rip 0x0000000000100abc rsp 0x200000\r\n\
        domu: backtrace:\r\n\
        domu:   at 0x0000000000100abc\r\n\
        domu:   by 0x0000000000101234\r\n\
        domu:   by 0x0000000000101300\r\n\
        domu: build id 1F2e\r\n";

    fn expected() -> Trace {
        use Address::*;
        Trace { addresses: vec![At(0x10_0abc), By(0x10_1234), By(0x10_1300)], build_id: Some("1f2e".into()) }
    }

    #[test]
    fn a_backtrace_is_found_on_a_console() {
        assert_eq!(Trace::find(CONSOLE), Some(expected()));
    }

    #[test]
    fn a_backtrace_is_found_in_the_hypervisors_log() {
        let log: String = CONSOLE
            .lines()
            .map(|line| format!("(XEN) [2026-01-01 10:00:00] (d3) {line}\n(XEN) something else at 0x12\n"))
            .collect();
        assert_eq!(Trace::find(&log), Some(expected()));
    }

    #[test]
    fn the_first_backtrace_counts() {
        let second = "domu: backtrace:\ndomu:   by 0x1\ndomu: build id 77\n";
        assert_eq!(Trace::find(&format!("{CONSOLE}{second}")), Some(expected()));
        let without_id = "domu: backtrace:\ndomu:   by 0x2\n";
        let trace = Trace { addresses: vec![Address::By(2)], build_id: None };
        assert_eq!(Trace::find(&format!("{without_id}{second}")), Some(trace));
    }

    #[test]
    fn lines_behind_a_backtrace_do_not_belong_to_it() {
        let text = "domu: backtrace:\ndomu:   by 0x2\ndomu: the end\ndomu:   by 0x3\n";
        assert_eq!(Trace::find(text), Some(Trace { addresses: vec![Address::By(2)], build_id: None }));
    }

    #[test]
    fn what_is_no_backtrace_is_none() {
        for text in [
            "",
            "domu: backtrace:\ndomu: build id 12\n",
            "domu: rip 0x100",
            "backtrace:\n by 0x1",
            "domu: a backtrace: none\n",
        ] {
            assert_eq!(Trace::find(text), None, "{text}");
        }
        let elf = std::env::current_exe().unwrap();
        assert_eq!(explain(&elf, "nothing").unwrap(), None);
    }

    /// Calls a function that the compiler must not inline.
    #[inline(never)]
    fn caller_of_something(number: u64) -> u64 {
        std::hint::black_box(inlined_into_it(number)) + 1
    }

    #[inline(always)]
    fn inlined_into_it(number: u64) -> u64 {
        std::hint::black_box(number).wrapping_mul(3)
    }

    /// Where this test program has a function by its own account: address and size.
    fn function(name: &str) -> (u64, u64) {
        let bytes = fs::read(std::env::current_exe().unwrap()).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let found = Functions::of(&file).0.into_iter().find(|function| demangled(function.name).ends_with(name));
        let found = found.unwrap_or_else(|| panic!("there is no {name}"));
        (found.address, found.size)
    }

    fn explained(text: &str) -> Vec<String> {
        explain(&std::env::current_exe().unwrap(), text).unwrap().unwrap()
    }

    #[test]
    fn addresses_become_names_and_lines() {
        assert_eq!(std::hint::black_box(caller_of_something)(2), 7);
        let (address, size) = function("tests::caller_of_something");
        let at: String = (address..address + size).map(|address| format!("domu:   at {address:#x}\n")).collect();
        let all = explained(&format!("domu: backtrace:\n{at}"));
        let first = format!("at {address:#018x} cargo_xen::symbols::tests::caller_of_something");
        assert!(all[0].starts_with(&first), "{}", all[0]);
        assert!(all.iter().all(|line| line.contains("src/symbols.rs") || line.contains("inlined")), "{all:#?}");
        let inlined = all.iter().position(|line| line.contains("inlined_into_it (inlined) at ")).unwrap();
        assert!(
            all[inlined + 1].starts_with("                      cargo_xen::symbols::tests::caller_of_something at ")
        );
    }

    #[test]
    fn a_return_address_belongs_to_what_called() {
        let (address, size) = function("tests::caller_of_something");
        let end = address + size;
        let lines = explained(&format!("domu: backtrace:\r\ndomu:   by {end:#x}\r\n"));
        assert!(lines[0].starts_with(&format!("by {end:#018x} ")), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("tests::caller_of_something at ")), "{lines:#?}");
    }

    #[test]
    fn addresses_of_nothing_do_no_harm() {
        let text = "domu: backtrace:\ndomu:   by 0x0\ndomu:   at 0xffffffffffffffff\n";
        let lines = explained(text);
        assert_eq!(lines.len(), 2, "{lines:#?}");
        assert!(lines.iter().all(|line| line.ends_with("?? (no function there)")), "{lines:#?}");
    }

    #[test]
    fn another_build_is_noticed() {
        let bytes = fs::read(std::env::current_exe().unwrap()).unwrap();
        let own = object::File::parse(&*bytes).unwrap().build_id().unwrap().map(hexadecimal);
        let report = |id: &str| explained(&format!("domu: backtrace:\ndomu:   by 0x1\ndomu: build id {id}\n"));
        // Whether the host's linker makes an id is not ours to say.
        let Some(own) = own else { return };
        assert!(report(&own)[0].starts_with("by 0x"));
        let lines = report("0123");
        assert_eq!(lines.len(), 1);
        assert!(
            lines[0].contains("no symbols") && lines[0].contains("0123") && lines[0].contains(&own),
            "{}",
            lines[0]
        );
    }

    #[test]
    fn the_first_text_with_a_backtrace_is_reported() {
        let elf = std::env::current_exe().unwrap();
        let one = "domu: backtrace:\ndomu:   by 0x1\n";
        let other = "(d3) domu: backtrace:\n(d3) domu:   by 0x2\n";
        assert_eq!(report(&elf, &["hello", ""]), "");
        assert!(report(&elf, &["hello", other, one]).contains("\n  by 0x0000000000000002 "));
        assert!(report(Path::new("/nowhere/at all"), &[one]).contains("no symbols: reading /nowhere/at all"));
    }

    #[test]
    fn a_label_reaches_to_the_next_one() {
        let symbol = |name, address, size| Function { name, address, size, end: 0x200 };
        let functions =
            Functions(vec![symbol("entry", 0x100, 0), symbol("label", 0x110, 0), symbol("sized", 0x120, 8)]);
        let at = |address| functions.at(address).map(|(function, offset)| (function.name, offset));
        assert_eq!(at(0xff), None);
        assert_eq!(at(0x104), Some(("entry", 4)));
        assert_eq!(at(0x115), Some(("label", 5)));
        assert_eq!(at(0x121), Some(("sized", 1)));
        assert_eq!(at(0x200), None);
    }
}
