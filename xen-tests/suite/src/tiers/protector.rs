//! Every function of a hardened image that has more than scalars on its stack checks its canary, whoever wrote it.
//!
//! `-Zstack-protector=strong` and `-Zbuild-std` are flags, and flags get lost: one crate compiled without them would
//! look the same from outside. So the machine code is read, function by function. Two things in it tell that a frame
//! holds what can be overrun: the address of a part of it is put into another register or stored, or a part is accessed
//! with an index. LLVM's `strong` protects a function that has an array among its variables or whose variable's
//! address escapes. What is found here is more than that; what LLVM leaves out for a reason stands in [`EXPLAINED`].
//!
//! A function that never returns has no check, since what the canary guards is the address that it returns to. Assembly
//! has none either: of ours, nothing returns by RET or by a jump to another function.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

use cargo_xen::build::{self, Flavour, Image};
use cargo_xen::paths;
use cargo_xen::project::Project;
use cargo_xen::say;

/// Functions without a check, and why LLVM is right: part of the name, without hashes. Each entry must be needed.
const EXPLAINED: [(&str, &str); 2] = [
    ("<alloc::raw_vec::RawVecInner>::finish_grow", CURRENT_MEMORY),
    ("<alloc::raw_vec::RawVecInner>::deallocate", CURRENT_MEMORY),
];

/// It was read in the disassembly: `lea rax, [rbp-16]` on one path, `lea rax, [rbp-8]` on the other, then a single
/// `mov [rax], rdi`. LLVM follows an address through such a choice, and finds a store that stays inside.
const CURRENT_MEMORY: &str = "RawVecInner::current_memory, inlined, builds an Option in two words of the frame: one \
                              store of a whole word goes to either of them, and nothing else is done with the address";

/// What must be among the protected functions: they have arrays, or lend out variables, in every version of Rust and of
/// the crates.
const PROTECTED: [&str; 6] = [
    // The digits.
    "<u64 as core::fmt::Display>::fmt",
    // A formatter, lent to the code of each argument.
    "core::fmt::write",
    // The result of growing is written by the callee.
    "<alloc::raw_vec::RawVecInner>::grow_amortized",
    // A dependency.
    "<talc::base::Talc<",
    // This crate.
    "domu::boot::boot",
    // A guest, with arrays on the stack beyond doubt.
    "float::cases::",
];

/// Fewer protected functions than this in an image would mean that the flags were lost for most of its code. (The
/// smallest image has 38.)
const LEAST_PROTECTED: usize = 25;

/// How many functions of an image check a canary.
pub fn protected(image: &Image) -> Result<usize> {
    Ok(functions(image)?.iter().filter(|function| function.code.is_protected()).count())
}

/// Runs the test.
pub fn run() -> Result<()> {
    let workspace = paths::workspace();
    let all = Project::find(&workspace)?.programs();
    let all: Vec<&str> = all.iter().map(|program| &*program.name).collect();
    let build = |names: &[&str], flavour| build::named_in(&paths::target().join("beside"), &workspace, names, flavour);
    let mut images = build(&all, Flavour::Hardened)?;
    images.extend(build(&["float"], Flavour::Float)?);
    let mut protected = BTreeSet::new();
    let mut unprotected = BTreeMap::new();
    for image in &images {
        let found = functions(image)?;
        let names = found.iter().filter(|function| function.code.is_protected()).map(|function| function.name.clone());
        let count = names.map(|name| protected.insert(name)).count();
        ensure!(count >= LEAST_PROTECTED, "{} has only {count} protected functions", image.elf.display());
        unprotected.extend(found.into_iter().filter_map(|function| {
            let at = function.code.lacks_protection()?;
            Some((function.name, format!("{at:#x} in {}", image.elf.display())))
        }));
    }
    for wanted in PROTECTED {
        ensure!(protected.iter().any(|name| name.starts_with(wanted)), "no protected function begins with {wanted:?}");
    }
    judge(&unprotected, &EXPLAINED)?;
    say!("{} images have {} functions that check a canary", images.len(), protected.len());

    // The test can fail: it does where nothing is protected.
    for image in build(&["hello"], Flavour::Plain)? {
        let found = functions(&image)?;
        let lacking = found.iter().filter(|function| function.code.lacks_protection().is_some()).count();
        let protected = found.iter().filter(|function| function.code.is_protected()).count();
        ensure!(
            lacking >= LEAST_PROTECTED && protected == 0,
            "a plain build has nothing protected, but {protected} functions are found protected and {lacking} not"
        );
    }
    Ok(())
}

/// All functions that lack protection must be explained, and all that is explained must lack it.
fn judge(unprotected: &BTreeMap<String, String>, explained: &[(&str, &str)]) -> Result<()> {
    let explains = |name: &str| explained.iter().any(|(part, _)| name.contains(part));
    let open: Vec<String> = unprotected
        .iter()
        .filter(|(name, _)| !explains(name))
        .map(|(name, place)| format!("  {name} (see {place})\n"))
        .collect();
    ensure!(
        open.is_empty(),
        "these functions have more than scalars on their stack, and check no canary:\n{}",
        open.concat()
    );
    let needed = |part: &str| unprotected.keys().any(|name| name.contains(part));
    let stale: Vec<&str> = explained.iter().map(|(part, _)| *part).filter(|part| !needed(part)).collect();
    ensure!(stale.is_empty(), "explained, but protected or gone: {}", stale.join(", "));
    Ok(())
}

/// A function of an image.
struct Function {
    name: String,
    code: Code,
}

/// What the code of a function shows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Code {
    /// The first instruction that shows more than scalars in its frame.
    exposed: Option<u64>,
    /// How often it reads the canary, or writes it: once into the frame, and once at each check.
    guard: usize,
    /// Whether it can go to where a changed canary ends.
    fails: bool,
    /// Whether it returns, or ends with a jump to another function, which returns for it.
    leaves: bool,
}

impl Code {
    fn is_protected(&self) -> bool {
        self.guard >= 2 && self.fails
    }

    /// Where to look, if it ought to be protected and is not.
    fn lacks_protection(&self) -> Option<u64> {
        if self.leaves && !self.is_protected() { self.exposed } else { None }
    }
}

/// Where the canary and its failure are. The second is absent from an image that has no check.
struct Symbols {
    guard: u64,
    fail: Option<u64>,
}

/// Reads all functions of an image.
fn functions(image: &Image) -> Result<Vec<Function>> {
    let bytes = fs::read(&image.elf).with_context(|| format!("reading {}", image.elf.display()))?;
    functions_of(&bytes).with_context(|| format!("reading {}", image.elf.display()))
}

fn functions_of(bytes: &[u8]) -> Result<Vec<Function>> {
    let file = object::File::parse(bytes)?;
    let address = |name| file.symbol_by_name(name).map(|symbol| symbol.address());
    let guard = address("__stack_chk_guard").context("there is no __stack_chk_guard")?;
    let symbols = Symbols { guard, fail: address("__stack_chk_fail") };
    // Calls of other objects' functions go through a table of addresses.
    let word = |address: u64| {
        let data = file.sections().find_map(|section| section.data_range(address, 8).ok().flatten())?;
        Some(u64::from_le_bytes(data.try_into().ok()?))
    };
    let mut functions = Vec::new();
    let mut covered = 0;
    let mut seen = BTreeSet::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        // One function can have several names.
        if !seen.insert(symbol.address()) {
            continue;
        }
        let name = symbol.name()?;
        let section = symbol.section_index().with_context(|| format!("{name} is in no section"))?;
        let data = file.section_by_index(section)?.data_range(symbol.address(), symbol.size())?;
        let data = data.with_context(|| format!("{name} is not in its section"))?;
        covered += symbol.size();
        // `#` leaves the hash of the crate out.
        let name = format!("{:#}", rustc_demangle::demangle(name));
        functions.push(Function { name, code: read(data, symbol.address(), &symbols, word) });
    }
    let text = file.section_by_name(".text").context("there is no .text")?.size();
    // The rest is what the linker fills up with.
    if covered * 100 < text * 98 {
        bail!("the symbols cover only {covered} of {text} bytes of code");
    }
    Ok(functions)
}

/// Reads one function; `word` gives what a constant address holds.
fn read(bytes: &[u8], address: u64, symbols: &Symbols, word: impl Fn(u64) -> Option<u64>) -> Code {
    let inside = address..address + bytes.len() as u64;
    let mut code = Code::default();
    for instruction in &mut Decoder::with_ip(64, bytes, address, DecoderOptions::NONE) {
        if code.exposed.is_none() && exposes(&instruction) {
            code.exposed = Some(instruction.ip());
        }
        let constant = constant_address(&instruction);
        code.guard += usize::from(constant == Some(symbols.guard));
        if let Some(target) = target(&instruction, constant, &word) {
            code.fails |= target.is_some() && target == symbols.fail;
            code.leaves |= instruction.mnemonic() == Mnemonic::Jmp && is_outside(target, &inside);
        }
        code.leaves |= instruction.mnemonic() == Mnemonic::Ret;
    }
    code
}

/// Whether a jump goes elsewhere, as one to a place that only running it would show is taken to do.
fn is_outside(target: Option<u64>, inside: &Range<u64>) -> bool {
    target.is_none_or(|target| !inside.contains(&target))
}

/// Where a call or a jump goes to, if it is one: `Some(None)` is a place that only running it would show. A jump
/// through a table goes where the table's first entry does, which tells a `match` from a table of functions.
fn target(instruction: &Instruction, constant: Option<u64>, word: impl Fn(u64) -> Option<u64>) -> Option<Option<u64>> {
    match instruction.op0_kind() {
        OpKind::NearBranch64 => Some(Some(instruction.near_branch_target())),
        _ if matches!(instruction.mnemonic(), Mnemonic::Call | Mnemonic::Jmp) => {
            let table = instruction.memory_base() == Register::None && instruction.memory_index() != Register::None;
            let place = if table { Some(instruction.memory_displacement64()) } else { constant };
            Some(place.and_then(word))
        }
        _ => None,
    }
}

fn operands(instruction: &Instruction) -> impl Iterator<Item = OpKind> {
    (0..instruction.op_count()).map(|operand| instruction.op_kind(operand))
}

/// The address that an instruction accesses, where that is a constant.
fn constant_address(instruction: &Instruction) -> Option<u64> {
    let accesses = operands(instruction).any(|kind| kind == OpKind::Memory);
    let constant = matches!(instruction.memory_base(), Register::None | Register::RIP)
        && instruction.memory_index() == Register::None;
    (accesses && constant).then(|| instruction.memory_displacement64())
}

fn is_frame(register: Register) -> bool {
    matches!(register, Register::RSP | Register::RBP)
}

/// Whether an instruction shows that the frame holds more than scalars: it accesses it with an index, or makes an
/// address in it known to another register or to memory.
fn exposes(instruction: &Instruction) -> bool {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let accesses = operands(instruction).any(|kind| kind == OpKind::Memory);
    if accesses && (is_frame(base) || is_frame(index)) {
        let indexed = base != Register::None && index != Register::None;
        let address = instruction.mnemonic() == Mnemonic::Lea && !is_frame(instruction.op0_register());
        if indexed || address {
            return true;
        }
    }
    // Comparing an address keeps it where it is, a distance from it is none, and pushing the frame pointer is how every
    // function begins.
    let harmless = matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Sub);
    let to_frame = instruction.op0_kind() == OpKind::Register && is_frame(instruction.op0_register());
    let from_frame = (1..instruction.op_count())
        .any(|operand| instruction.op_kind(operand) == OpKind::Register && is_frame(instruction.op_register(operand)));
    from_frame && !to_frame && !harmless
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0x10_0000;
    const GUARD: u64 = 0x10_1000;
    const FAIL: u64 = 0x10_2000;
    /// Holds the address of the failure.
    const TABLE: u64 = 0x10_3000;
    /// The table of a `match`: begins with an address in the function.
    const CASES: u64 = 0x10_4000;

    fn code(parts: &[&[u8]]) -> Code {
        let bytes = parts.concat();
        let word = |address| match address {
            TABLE => Some(FAIL),
            CASES => Some(START + 4),
            _ => None,
        };
        read(&bytes, START, &Symbols { guard: GUARD, fail: Some(FAIL) }, word)
    }

    /// An instruction at an offset, whose last four bytes are the distance to an address.
    fn relative(bytes: &[u8], offset: u64, target: u64) -> Vec<u8> {
        let end = START + offset + bytes.len() as u64 + 4;
        [bytes, &(target.wrapping_sub(end) as u32).to_le_bytes()].concat()
    }

    const MOV_RAX_RIP: [u8; 3] = [0x48, 0x8b, 0x05];
    const LEA_RDI_FRAME: [u8; 4] = [0x48, 0x8d, 0x7d, 0xf0]; // lea rdi, [rbp-16]
    const RET: [u8; 1] = [0xc3];

    fn exposed(bytes: &[u8]) -> bool {
        code(&[bytes]).exposed == Some(START)
    }

    #[test]
    fn a_frame_of_scalars_needs_no_protection() {
        for bytes in [
            &[0x55][..],                  // push rbp
            &[0x48, 0x89, 0xe5],          // mov rbp, rsp
            &[0x48, 0x83, 0xec, 0x10],    // sub rsp, 16
            &[0x48, 0x89, 0x45, 0xf8],    // mov [rbp-8], rax
            &[0x48, 0x8b, 0x44, 0x24, 8], // mov rax, [rsp+8]
            &[0x48, 0x8d, 0x65, 0xd8],    // lea rsp, [rbp-40]
            &[0x48, 0x8d, 0x04, 0x0f],    // lea rax, [rdi+rcx]
            &[0x48, 0x39, 0xe0],          // cmp rax, rsp
            &[0xe8, 0, 0, 0, 0],          // call
            &[0x0f, 0x1f, 0x44, 0, 0],    // nop [rax+rax+0]
        ] {
            assert!(!exposed(bytes), "{bytes:x?}");
        }
        assert_eq!(code(&[&[0x48, 0x89, 0x45, 0xf8], &RET]).lacks_protection(), None);
    }

    #[test]
    fn addresses_and_indices_are_seen() {
        for bytes in [
            &LEA_RDI_FRAME[..],
            &[0x48, 0x8d, 0x04, 0x24],             // lea rax, [rsp]
            &[0x4c, 0x8d, 0x04, 0x28],             // lea r8, [rax+rbp]
            &[0x48, 0x89, 0xe7],                   // mov rdi, rsp
            &[0x48, 0x89, 0x6f, 0x08],             // mov [rdi+8], rbp
            &[0x48, 0x01, 0xe0],                   // add rax, rsp
            &[0x8a, 0x44, 0x0c, 0x10],             // mov al, [rsp+rcx+16]
            &[0x66, 0x42, 0x89, 0x44, 0x4d, 0xe0], // mov [rbp+r9*2-32], ax
        ] {
            assert!(exposed(bytes), "{bytes:x?}");
            assert_eq!(code(&[bytes, &RET]).lacks_protection(), Some(START), "{bytes:x?}");
        }
    }

    #[test]
    fn a_checked_canary_protects() {
        let load = relative(&MOV_RAX_RIP, 0, GUARD);
        let check = relative(&MOV_RAX_RIP, 11, GUARD);
        for fail in [relative(&[0xe8], 18, FAIL), relative(&[0xff, 0x15], 18, TABLE), relative(&[0x0f, 0x85], 18, FAIL)]
        {
            let code = code(&[&load, &LEA_RDI_FRAME, &check, &fail, &RET]);
            assert_eq!(code, Code { exposed: Some(START + 7), guard: 2, fails: true, leaves: true });
            assert!(code.is_protected() && code.lacks_protection().is_none());
        }
    }

    #[test]
    fn a_canary_that_is_not_checked_does_not() {
        let load = relative(&MOV_RAX_RIP, 0, GUARD);
        let other = relative(&MOV_RAX_RIP, 11, GUARD + 8);
        let fail = relative(&[0xe8], 18, FAIL);
        assert!(code(&[&load, &LEA_RDI_FRAME, &RET]).lacks_protection().is_some());
        assert!(code(&[&load, &LEA_RDI_FRAME, &other, &fail, &RET]).lacks_protection().is_some());
        let elsewhere = relative(&[0xe8], 18, FAIL + 16);
        let check = relative(&MOV_RAX_RIP, 11, GUARD);
        assert!(code(&[&load, &LEA_RDI_FRAME, &check, &elsewhere, &RET]).lacks_protection().is_some());
    }

    #[test]
    fn the_canary_is_known_by_an_absolute_address_too() {
        let load = [&[0x48, 0x8b, 0x04, 0x25][..], &(GUARD as u32).to_le_bytes()].concat();
        assert_eq!(code(&[&load]).guard, 1);
    }

    #[test]
    fn what_never_returns_needs_no_check() {
        let call = relative(&[0xe8], 4, FAIL + 16);
        assert_eq!(code(&[&LEA_RDI_FRAME, &call, &[0x0f, 0x0b]]).lacks_protection(), None);
        // A jump within it, and one to another function.
        assert!(!code(&[&LEA_RDI_FRAME, &[0xeb, 0xfa]]).leaves);
        let away = relative(&[0xe9], 4, START + 64);
        assert!(code(&[&LEA_RDI_FRAME, &away]).lacks_protection().is_some());
        // jmp [rax*8 + table]
        let through = |table: u64| [&[0xff, 0x24, 0xc5][..], &(table as u32).to_le_bytes()].concat();
        assert!(!code(&[&LEA_RDI_FRAME, &through(CASES)]).leaves);
        assert!(code(&[&LEA_RDI_FRAME, &through(TABLE)]).leaves);
        assert!(code(&[&LEA_RDI_FRAME, &through(0)]).leaves);
        // jmp rax
        assert!(code(&[&LEA_RDI_FRAME, &[0xff, 0xe0]]).lacks_protection().is_some());
    }

    #[test]
    fn explanations_are_needed_and_cover_all() {
        let found =
            |names: &[&str]| names.iter().map(|name| ((*name).into(), "there".into())).collect::<BTreeMap<_, _>>();
        let explained = [("a::f", "why")];
        judge(&found(&["<a::f>::g"]), &explained).unwrap();
        let open = judge(&found(&["<a::f>::g", "b::h"]), &explained).unwrap_err().to_string();
        assert!(open.contains("b::h (see there)") && !open.contains("a::f"), "{open}");
        let stale = judge(&found(&[]), &explained).unwrap_err().to_string();
        assert!(stale.contains("a::f"), "{stale}");
    }
}
