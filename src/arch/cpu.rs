//! What CPUID says of the CPU, read once: under Xen each CPUID instruction costs an exit.

/// The words of CPUID that anything here asks for. `boot/entry.S` fills it, at these offsets.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Cpu {
    /// ECX of leaf 1.
    pub(crate) leaf1_ecx: u32,
    /// EDX of leaf 1.
    pub(crate) leaf1_edx: u32,
    /// EBX of leaf 7, or zero on a CPU without it.
    pub(crate) leaf7_ebx: u32,
    /// ECX of leaf 7, likewise.
    pub(crate) leaf7_ecx: u32,
    /// EDX of leaf 0x80000001.
    pub(crate) extended_edx: u32,
    /// Not zero on a CPU that takes VMMCALL, not VMCALL.
    pub(crate) vmmcall: u32,
    /// Not zero if the stack protector's canary came from the CPU's generator.
    pub(crate) random_canary: u32,
    pub(crate) reserved: u32,
    /// The time stamp counter at the entry point.
    pub(crate) entry_tsc: u64,
}

const _: () = assert!(size_of::<Cpu>() == 40 && core::mem::offset_of!(Cpu, entry_tsc) == 32);

impl Cpu {
    /// Pages can be made not executable.
    pub(crate) const fn no_execute(&self) -> bool {
        self.extended_edx & 1 << 20 != 0
    }

    /// Pages of 1 GiB exist.
    pub(crate) const fn gigabyte_pages(&self) -> bool {
        self.extended_edx & 1 << 26 != 0
    }

    /// Translations can be kept over a change of CR3.
    pub(crate) const fn global_pages(&self) -> bool {
        self.leaf1_edx & 1 << 13 != 0
    }

    /// RDRAND exists.
    pub(crate) const fn rdrand(&self) -> bool {
        self.leaf1_ecx & 1 << 30 != 0
    }

    /// RDSEED exists.
    pub(crate) const fn rdseed(&self) -> bool {
        self.leaf7_ebx & 1 << 18 != 0
    }

    /// What is to be on in CR4 besides what the entry code sets: global pages, and of what keeps a kernel from user
    /// memory and user code from kernel secrets (SMEP, SMAP, UMIP) that which the CPU has.
    #[cfg(any(target_os = "none", test))]
    pub(crate) fn cr4(&self) -> x86_64::registers::control::Cr4Flags {
        use x86_64::registers::control::Cr4Flags;
        let mut flags = Cr4Flags::empty();
        flags.set(Cr4Flags::PAGE_GLOBAL, self.global_pages());
        flags.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, self.leaf7_ebx & 1 << 7 != 0);
        flags.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, self.leaf7_ebx & 1 << 20 != 0);
        flags.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, self.leaf7_ecx & 1 << 2 != 0);
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cpuid_shows_is_turned_on() {
        let cr4 = |cpu: Cpu| cpu.cr4().bits();
        assert_eq!(cr4(Cpu::default()), 0);
        assert_eq!(cr4(Cpu { leaf1_edx: 1 << 13, ..Cpu::default() }), 1 << 7);
        assert_eq!(cr4(Cpu { leaf7_ebx: 1 << 7, ..Cpu::default() }), 1 << 20);
        assert_eq!(cr4(Cpu { leaf7_ebx: 1 << 20, ..Cpu::default() }), 1 << 21);
        assert_eq!(cr4(Cpu { leaf7_ecx: 1 << 2, ..Cpu::default() }), 1 << 11);
    }
}
