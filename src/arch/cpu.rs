//! What CPUID says of the CPU, read once, as each CPUID instruction costs an exit under Xen; and control registers.

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

    /// What CR4 is to hold: what the entry code needs, and of what keeps a kernel from user memory and user code from a
    /// kernel's secrets (SMEP, SMAP, UMIP) that which the CPU has, and global pages likewise.
    pub(crate) const fn cr4(&self) -> u64 {
        const PAE_OSFXSR_OSXMMEXCPT: u64 = 0x620;
        const fn set(word: u32, bit: u32, to: u32) -> u64 {
            ((word >> bit & 1) as u64) << to
        }
        PAE_OSFXSR_OSXMMEXCPT
            | set(self.leaf1_ecx, 26, 18)
            | set(self.leaf1_edx, 13, 7)
            | set(self.leaf7_ebx, 7, 20)
            | set(self.leaf7_ebx, 20, 21)
            | set(self.leaf7_ecx, 2, 11)
    }
}

/// The registers that say how memory is seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ControlRegisters {
    pub(crate) cr0: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cpuid_shows_is_turned_on() {
        let more = |cpu: Cpu| cpu.cr4() & !0x620;
        assert_eq!(Cpu::default().cr4(), 0x620);
        for (name, cpu, bit) in [
            ("OSXSAVE", Cpu { leaf1_ecx: 1 << 26, ..Cpu::default() }, 18),
            ("PGE", Cpu { leaf1_edx: 1 << 13, ..Cpu::default() }, 7),
            ("SMEP", Cpu { leaf7_ebx: 1 << 7, ..Cpu::default() }, 20),
            ("SMAP", Cpu { leaf7_ebx: 1 << 20, ..Cpu::default() }, 21),
            ("UMIP", Cpu { leaf7_ecx: 1 << 2, ..Cpu::default() }, 11),
        ] {
            assert_eq!(more(cpu), 1 << bit, "{name}");
        }
    }
}
