//! What a crash says: the one form that people read and tools parse.

use core::fmt;

use super::backtrace::Backtrace;
use crate::arch::ControlRegisters;
use crate::arch::trap::{ErrorCode, Frame, PAGE_FAULT};
use crate::memory::{Found, QuickStat};

/// An exception.
pub(super) struct Trap<'a> {
    pub(super) frame: &'a Frame,
    pub(super) control: ControlRegisters,
    /// CR2: the address of the last page fault.
    pub(super) address: u64,
}

/// What an exception is, in a line.
pub(super) struct Headline<'a> {
    pub(super) trap: &'a Trap<'a>,
    /// What lies at the address of a page fault, if that was looked for.
    pub(super) found: Option<Found>,
}

impl fmt::Display for Headline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trap { frame, address, .. } = self.trap;
        let (name, mnemonic) = frame.name();
        write!(f, "{name} ({mnemonic})")?;
        if frame.vector != PAGE_FAULT {
            return write!(f, " at {:#018x}", frame.rip);
        }
        write!(f, ": {} at {:#018x}", frame.access(), address)?;
        self.found.map_or(Ok(()), |found| write!(f, ", {found}"))
    }
}

/// What follows the first line of a report.
pub(super) struct Report<'a> {
    /// The message of a panic.
    pub(super) message: Option<&'a dyn fmt::Display>,
    /// The registers at an exception.
    pub(super) trap: Option<&'a Trap<'a>>,
    /// What memory is used for, if it has run out before.
    pub(super) memory: Option<QuickStat>,
    pub(super) backtrace: Backtrace,
    /// The image's, as the linker made it; empty if it was not told to.
    pub(super) build_id: &'a [u8],
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(message) = self.message {
            writeln!(f, "{message}")?;
        }
        if let Some(trap) = self.trap {
            trap.registers(f)?;
        }
        if let Some(QuickStat { heap, live, free, blocks, failed, .. }) = self.memory {
            write!(f, "domu: memory: of {heap} bytes {live} are in use, in {blocks} blocks, and {free} free; ")?;
            writeln!(f, "allocations that failed: {failed}")?;
        }
        f.write_str("domu: backtrace:")?;
        if let Some(at) = self.backtrace.at {
            write!(f, "\ndomu:   at {at:#018x}")?;
        }
        for (caller, times) in &self.backtrace.callers {
            write!(f, "\ndomu:   by {caller:#018x}")?;
            if *times > 1 {
                write!(f, " ({times} times)")?;
            }
        }
        if self.backtrace.cut {
            f.write_str("\ndomu:   and more")?;
        }
        f.write_str("\ndomu: build id ")?;
        if self.build_id.is_empty() {
            return f.write_str("none: link with -Clink-arg=--build-id");
        }
        self.build_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Trap<'_> {
    /// The error code and all registers.
    fn registers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (r, c) = (self.frame, &self.control);
        if let Some(code) = ErrorCode::of(r) {
            writeln!(f, "domu: error code {code}")?;
        }
        writeln!(f, "domu: rip {:016x}  cs {:04x}  rflags {:016x}  ss {:04x}", r.rip, r.cs, r.rflags, r.ss)?;
        for [(name1, one), (name2, two), (name3, three), (name4, four)] in [
            [("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx), ("rdx", r.rdx)],
            [("rsi", r.rsi), ("rdi", r.rdi), ("rbp", r.rbp), ("rsp", r.rsp)],
            [("r8 ", r.r8), ("r9 ", r.r9), ("r10", r.r10), ("r11", r.r11)],
            [("r12", r.r12), ("r13", r.r13), ("r14", r.r14), ("r15", r.r15)],
            [("cr0", c.cr0), ("cr2", self.address), ("cr3", c.cr3), ("cr4", c.cr4)],
        ] {
            writeln!(f, "domu: {name1} {one:016x}  {name2} {two:016x}  {name3} {three:016x}  {name4} {four:016x}")?;
        }
        Ok(())
    }
}

/// The build id in a note of the linker's: a header of name size, id size and type, the name, the id.
pub(super) fn build_id(note: &[u8]) -> &[u8] {
    const HEADER: &[u8] = b"\x04\0\0\0";
    const NAME: &[u8] = b"GNU\0";
    match note.strip_prefix(HEADER) {
        Some(rest) if rest.get(8..12) == Some(NAME) => {
            let size = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            rest.get(12..12 + size).unwrap_or_default()
        }
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;
    use crate::memory::{Place, Protection};

    #[test]
    fn an_exception_in_full() {
        let frame = Frame {
            rax: 1,
            rsp: 0x11e008,
            rbp: 0x11e100,
            vector: 14,
            error_code: 2,
            rip: 0x100abc,
            cs: 8,
            rflags: 0x10046,
            ss: 0x10,
            ..Frame::default()
        };
        let control = ControlRegisters { cr0: 0x8001_0033, cr3: 0x1000, cr4: 0x6a0 };
        let trap = Trap { frame: &frame, control, address: 0x11_dff8 };
        let found = Some(Found::Place(Place::Guard(None), None));
        assert_eq!(
            Headline { trap: &trap, found }.to_string(),
            "page fault (#PF): write at 0x000000000011dff8, guard page below the main stack: stack overflow"
        );
        let callers = [(0x10_1000, 1), (0x10_2000, 7)].into_iter().collect();
        let report = Report {
            message: None,
            trap: Some(&trap),
            memory: None,
            backtrace: Backtrace { at: Some(0x10_0abc), callers, cut: true },
            build_id: &[0x1f, 0x02, 0xab],
        };
        assert_eq!(
            report.to_string(),
            "\
domu: error code 0x0002 (not present, write, supervisor)
domu: rip 0000000000100abc  cs 0008  rflags 0000000000010046  ss 0010
domu: rax 0000000000000001  rbx 0000000000000000  rcx 0000000000000000  rdx 0000000000000000
domu: rsi 0000000000000000  rdi 0000000000000000  rbp 000000000011e100  rsp 000000000011e008
domu: r8  0000000000000000  r9  0000000000000000  r10 0000000000000000  r11 0000000000000000
domu: r12 0000000000000000  r13 0000000000000000  r14 0000000000000000  r15 0000000000000000
domu: cr0 0000000080010033  cr2 000000000011dff8  cr3 0000000000001000  cr4 00000000000006a0
domu: backtrace:
domu:   at 0x0000000000100abc
domu:   by 0x0000000000101000
domu:   by 0x0000000000102000 (7 times)
domu:   and more
domu: build id 1f02ab"
        );
    }

    #[test]
    fn a_panic_has_no_registers() {
        let callers = [(0x10_1000, 1)].into_iter().collect();
        let backtrace = Backtrace { at: None, callers, cut: false };
        let memory =
            Some(QuickStat { heap: 5000, live: 4000, blocks: 30, free: 100, failed: 2, ..QuickStat::default() });
        let report = Report { message: Some(&"why"), trap: None, memory, backtrace, build_id: &[] };
        assert_eq!(
            report.to_string(),
            "why\ndomu: memory: of 5000 bytes 4000 are in use, in 30 blocks, and 100 free; allocations that failed: 2\n\
             domu: backtrace:\ndomu:   by 0x0000000000101000\n\
             domu: build id none: link with -Clink-arg=--build-id"
        );
    }

    #[test]
    fn each_exception_has_its_own_first_line() {
        let line = |vector, error_code, place: Option<Place>| {
            let found = place.map_or(Found::Nothing, |place| Found::Place(place, None));
            let frame = Frame { vector, error_code, rip: 0x100abc, ..Frame::default() };
            let trap = Trap { frame: &frame, control: ControlRegisters::default(), address: 0 };
            Headline { trap: &trap, found: Some(found) }.to_string()
        };
        for (vector, expected) in [
            (0, "divide error (#DE) at 0x0000000000100abc"),
            (2, "non-maskable interrupt (NMI) at 0x0000000000100abc"),
            (3, "breakpoint (#BP) at 0x0000000000100abc"),
            (6, "invalid opcode (#UD) at 0x0000000000100abc"),
            (8, "double fault (#DF) at 0x0000000000100abc"),
            (13, "general protection fault (#GP) at 0x0000000000100abc"),
            (15, "reserved exception (vector 15) at 0x0000000000100abc"),
            (31, "reserved exception (vector 31) at 0x0000000000100abc"),
        ] {
            assert_eq!(line(vector, 0, None), expected);
        }
        for (error_code, place, expected) in [
            (0, None, "read at 0x0000000000000000, not mapped"),
            (0, Some(Place::NullPage), "read at 0x0000000000000000, null page"),
            (3, Some(Place::Code), "write at 0x0000000000000000, code"),
            (3, Some(Place::Constants), "write at 0x0000000000000000, read-only data"),
            (3, Some(Place::Sealed), "write at 0x0000000000000000, descriptor tables, read-only after boot"),
            (3, Some(Place::PageTables), "write at 0x0000000000000000, page tables, read-only after boot"),
            (0x11, Some(Place::Data), "execution at 0x0000000000000000, data"),
            (0x11, Some(Place::Ram), "execution at 0x0000000000000000, heap, or other RAM"),
            (0x11, Some(Place::Stack(None)), "execution at 0x0000000000000000, main stack"),
            (0x11, Some(Place::Window), "execution at 0x0000000000000000, window for shared pages"),
            (0x11, Some(Place::Special), "execution at 0x0000000000000000, special page of Xen's or the toolstack's"),
            (
                2,
                Some(Place::Guard(Some(1))),
                "write at 0x0000000000000000, guard page below the exception stack: stack overflow",
            ),
            (
                2,
                Some(Place::Guard(Some(2))),
                "write at 0x0000000000000000, guard page below the NMI stack: stack overflow",
            ),
            (
                2,
                Some(Place::Guard(Some(3))),
                "write at 0x0000000000000000, guard page below the double fault stack: stack overflow",
            ),
        ] {
            assert_eq!(line(14, error_code, place), std::format!("page fault (#PF): {expected}"));
        }
    }

    #[test]
    fn what_is_found_says_how_sure_it_is() {
        assert_eq!(Found::Unknown.to_string(), "outside of the image");
        let changed = Found::Place(Place::Ram, Some(Protection::Read));
        assert_eq!(changed.to_string(), "heap, or other RAM, protected as Read after boot");
        // Where nobody looked, the line ends before.
        let frame = Frame { vector: 14, ..Frame::default() };
        let trap = Trap { frame: &frame, control: ControlRegisters::default(), address: 0 };
        let headline = Headline { trap: &trap, found: None };
        assert_eq!(headline.to_string(), "page fault (#PF): read at 0x0000000000000000");
    }

    #[test]
    fn build_ids_are_read_from_the_note() {
        let note = b"\x04\0\0\0\x03\0\0\0\x03\0\0\0GNU\0\x01\x02\x03\0";
        assert_eq!(build_id(note), [1, 2, 3]);
        // Nothing, something else, cut short.
        assert_eq!(build_id(b""), []);
        assert_eq!(build_id(b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0\x01\x02\x03\0\x01\x02\x03\0"), []);
        assert_eq!(build_id(&note[..17]), []);
        assert_eq!(build_id(&note[..9]), []);
    }
}
