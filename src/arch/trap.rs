//! Exceptions as the CPU delivers them: the frame that `boot/trap.S` builds, their names and error codes.

use core::fmt;

/// The vector of the page fault.
pub(crate) const PAGE_FAULT: u64 = 14;

/// The stack of the TSS that an exception runs on: what may interrupt the handler of another exception has its own.
pub(crate) const fn stack(vector: u64) -> u64 {
    const NMI: u64 = 2;
    const DOUBLE_FAULT: u64 = 8;
    const MACHINE_CHECK: u64 = 18;
    match vector {
        NMI | MACHINE_CHECK => 2,
        DOUBLE_FAULT => 3,
        _ => 1,
    }
}

/// The selector of the code segment, in the boot code's GDT and in the final one.
const CODE_SELECTOR: u64 = 8;

/// An entry of the IDT: an interrupt gate to a handler, which runs on the given stack of the TSS.
pub(crate) const fn gate(handler: u64, stack: u64) -> [u64; 2] {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e00;
    let low = handler & 0xffff | CODE_SELECTOR << 16 | stack << 32 | PRESENT_INTERRUPT_GATE << 32;
    [low | (handler >> 16 & 0xffff) << 48, handler >> 32]
}

/// The state of the interrupted code, as `boot/trap.S` and the CPU push it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Frame {
    pub(crate) r15: u64,
    pub(crate) r14: u64,
    pub(crate) r13: u64,
    pub(crate) r12: u64,
    pub(crate) r11: u64,
    pub(crate) r10: u64,
    pub(crate) r9: u64,
    pub(crate) r8: u64,
    pub(crate) rbp: u64,
    pub(crate) rdi: u64,
    pub(crate) rsi: u64,
    pub(crate) rdx: u64,
    pub(crate) rcx: u64,
    pub(crate) rbx: u64,
    pub(crate) rax: u64,
    pub(crate) vector: u64,
    pub(crate) error_code: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

/// Names of the exceptions, by vector.
const NAMES: [(&str, &str); 32] = [
    ("divide error", "#DE"),
    ("debug exception", "#DB"),
    ("non-maskable interrupt", "NMI"),
    ("breakpoint", "#BP"),
    ("overflow", "#OF"),
    ("bound range exceeded", "#BR"),
    ("invalid opcode", "#UD"),
    ("device not available", "#NM"),
    ("double fault", "#DF"),
    ("coprocessor segment overrun", "vector 9"),
    ("invalid TSS", "#TS"),
    ("segment not present", "#NP"),
    ("stack-segment fault", "#SS"),
    ("general protection fault", "#GP"),
    ("page fault", "#PF"),
    ("reserved exception", "vector 15"),
    ("x87 floating-point error", "#MF"),
    ("alignment check", "#AC"),
    ("machine check", "#MC"),
    ("SIMD floating-point exception", "#XM"),
    ("virtualization exception", "#VE"),
    ("control protection exception", "#CP"),
    ("reserved exception", "vector 22"),
    ("reserved exception", "vector 23"),
    ("reserved exception", "vector 24"),
    ("reserved exception", "vector 25"),
    ("reserved exception", "vector 26"),
    ("reserved exception", "vector 27"),
    ("hypervisor injection exception", "#HV"),
    ("VMM communication exception", "#VC"),
    ("security exception", "#SX"),
    ("reserved exception", "vector 31"),
];

impl Frame {
    /// The exception's name and mnemonic.
    pub(crate) fn name(&self) -> (&'static str, &'static str) {
        NAMES.get(self.vector as usize).copied().unwrap_or(("interrupt", "unknown vector"))
    }

    /// What a page fault was doing.
    pub(crate) const fn access(&self) -> &'static str {
        match self.error_code {
            code if code & 1 << 4 != 0 => "execution",
            code if code & 1 << 1 != 0 => "write",
            _ => "read",
        }
    }
}

/// An error code in words, for the exceptions that have one: Intel SDM volume 3, sections 6.13 and 6.15.
pub(crate) struct ErrorCode {
    vector: u64,
    code: u64,
}

impl ErrorCode {
    /// That of a frame, or `None` where the CPU pushes none.
    pub(crate) const fn of(frame: &Frame) -> Option<Self> {
        match frame.vector {
            8 | 10..=14 | 17 | 21 | 29 | 30 => Some(Self { vector: frame.vector, code: frame.error_code }),
            _ => None,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code;
        write!(f, "{code:#06x}")?;
        let set = |bit: u32| code & 1 << bit != 0;
        match self.vector {
            PAGE_FAULT => {
                let cause = match () {
                    () if set(3) => "reserved bit set in a table",
                    () if set(5) => "protection key",
                    () if set(0) => "protection",
                    () => "not present",
                };
                let who = if set(2) { "user" } else { "supervisor" };
                let access = match () {
                    () if set(4) => "execute",
                    () if set(1) => "write",
                    () => "read",
                };
                write!(f, " ({cause}, {access}, {who})")
            }
            10..=13 if code != 0 => {
                let table = match (set(1), set(2)) {
                    (true, _) => "IDT",
                    (false, true) => "LDT",
                    (false, false) => "GDT",
                };
                let entry = code >> 3 & 0x1fff;
                let external = if set(0) { ", while delivering an event" } else { "" };
                write!(f, " ({table} entry {entry}{external})")
            }
            21 => f.write_str(match code & 0x7fff {
                1 => " (near return)",
                2 => " (far return or IRET)",
                3 => " (missing ENDBRANCH)",
                4 => " (RSTORSSP)",
                5 => " (SETSSBSY)",
                _ => "",
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::ToString;

    use super::*;

    fn code(vector: u64, error_code: u64) -> Option<std::string::String> {
        ErrorCode::of(&Frame { vector, error_code, ..Frame::default() }).map(|code| code.to_string())
    }

    #[test]
    fn error_codes_in_words() {
        assert_eq!(code(14, 0).unwrap(), "0x0000 (not present, read, supervisor)");
        assert_eq!(code(14, 3).unwrap(), "0x0003 (protection, write, supervisor)");
        assert_eq!(code(14, 0x11).unwrap(), "0x0011 (protection, execute, supervisor)");
        assert_eq!(code(14, 0xd).unwrap(), "0x000d (reserved bit set in a table, read, user)");
        assert_eq!(code(13, 0).unwrap(), "0x0000");
        assert_eq!(code(13, 0x28).unwrap(), "0x0028 (GDT entry 5)");
        assert_eq!(code(13, 33 << 3 | 2).unwrap(), "0x010a (IDT entry 33)");
        assert_eq!(code(11, 14 << 3 | 3).unwrap(), "0x0073 (IDT entry 14, while delivering an event)");
        assert_eq!(code(21, 3).unwrap(), "0x0003 (missing ENDBRANCH)");
        assert_eq!(code(8, 0).unwrap(), "0x0000");
        assert_eq!(code(3, 0), None);
    }

    #[test]
    fn gates_hold_the_whole_address() {
        assert_eq!((stack(2), stack(8), stack(14), stack(18)), (2, 3, 1, 2));
        assert_eq!(gate(0x1234_5678_9abc_def0, 3), [0x9abc_8e03_0008_def0, 0x1234_5678]);
    }

    #[test]
    fn every_vector_has_a_name_and_each_error_code_is_known_to_the_stubs() {
        let mask = (0..32).filter(|&vector| code(vector, 0).is_some()).fold(0_u32, |mask, vector| mask | 1 << vector);
        let stubs = include_str!("../../boot/trap.S");
        assert!(stubs.contains(&format!("DOMU_PUSHES_ERROR_CODE, {mask:#x}")), "{mask:#x}");
        for vector in 0..40 {
            let (name, mnemonic) = Frame { vector, ..Frame::default() }.name();
            assert!(!name.is_empty() && !mnemonic.is_empty());
        }
    }
}
