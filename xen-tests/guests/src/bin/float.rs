//! Uses floating point and vectors, which takes the target with SSE (`cargo xen run float --float`).
//!
//! * `float.control`: MXCSR and the x87 control word have the values that the ABI wants at a program's entry.
//! * `float.arithmetic`, `float.conversion`, `float.format`: results are those of IEEE 754 to the last bit, printed and
//!   parsed too.
//! * `float.sse2`: the intrinsics of the target's own features.
//! * `float.xmm_cpuid`, `float.xmm_yield`: all XMM registers survive exits to Xen, and another virtual CPU that runs.
//! * `float.memory`: `memcpy`, `memmove`, `memset` and `memcmp`, for which this target has code of its own.
//! * `float.avx`: AVX2 after detection, and YMM registers survive as the XMM registers do. On a CPU without AVX2 the
//!   verdict is `float.avx_absent` instead: the test knows which of them to expect.

#![no_std]
#![no_main]

domu::main!(main);

#[cfg(target_feature = "sse2")]
async fn main(domain: domu::Domain) -> domu::Result {
    cases::all(&domain);
    Ok(())
}

/// On a target that passes floats in general registers the intrinsics cannot be called: say what to do instead.
#[cfg(not(target_feature = "sse2"))]
async fn main(domain: domu::Domain) -> domu::Result {
    domu_guests::verdict(&domain, "float", Err("it was built for a target without SSE; build it with --float".into()));
    Ok(())
}

#[cfg(target_feature = "sse2")]
mod cases {
    extern crate alloc;

    use alloc::format;
    use alloc::string::String;
    use alloc::vec::Vec;
    use core::arch::asm;
    use core::arch::x86_64::{
        __cpuid, __cpuid_count, _mm_add_epi64, _mm_cvtsd_f64, _mm_cvttpd_epi32, _mm_loadu_pd, _mm_mul_pd,
        _mm_set_epi64x, _mm_set_sd, _mm_setr_pd, _mm_shuffle_epi32, _mm_sqrt_sd, _mm_storeu_pd, _mm_storeu_si128,
        _mm256_add_epi32, _mm256_loadu_si256, _mm256_mullo_epi32, _mm256_permute4x64_epi64, _mm256_storeu_si256,
    };
    use core::hint::black_box;

    use domu::Domain;
    use domu_guests::verdict;

    pub fn all(domain: &Domain) {
        // First of all: arithmetic sets the flags that stand beside MXCSR's control bits.
        verdict(domain, "float.control", control());
        verdict(domain, "float.arithmetic", arithmetic());
        verdict(domain, "float.conversion", conversion());
        verdict(domain, "float.format", format());
        verdict(domain, "float.sse2", sse2());
        verdict(domain, "float.xmm_cpuid", xmm_survive(Exit::Cpuid));
        verdict(domain, "float.xmm_yield", xmm_survive(Exit::yielding()));
        verdict(domain, "float.memory", memory());
        match Avx2::detect() {
            Avx2::Usable => verdict(domain, "float.avx", avx()),
            Avx2::Absent => verdict(domain, "float.avx_absent", Ok(())),
            Avx2::NotEnabled(what) => {
                verdict(domain, "float.avx", Err(format!("CPUID shows it, but it is not enabled: {what}")));
            }
        }
    }

    /// Compares bits, so that 0 differs from -0.
    fn equal(what: &str, found: u64, expected: u64) -> Result<(), String> {
        if found == expected { Ok(()) } else { Err(format!("{what}: {found:#x} instead of {expected:#x}")) }
    }

    fn control() -> Result<(), String> {
        let mut mxcsr = 0_u32;
        let mut x87 = 0_u16;
        // SAFETY: the instructions store four and two bytes into variables that have room for them.
        unsafe {
            asm!(
                "stmxcsr [{}]",
                "fnstcw [{}]",
                in(reg) &raw mut mxcsr,
                in(reg) &raw mut x87,
                options(nostack, preserves_flags),
            );
        }
        /// What operations leave behind: the exceptions that have occurred.
        const OCCURRED: u32 = 0x3f;
        equal("MXCSR", (mxcsr & !OCCURRED).into(), 0x1f80)?;
        equal("x87 control word", x87.into(), 0x37f)
    }

    fn arithmetic() -> Result<(), String> {
        let (tenth, fifth, one, three) = black_box((0.1_f64, 0.2_f64, 1.0_f64, 3.0_f64));
        equal("0.1 + 0.2", (tenth + fifth).to_bits(), 0x3fd3_3333_3333_3334)?;
        equal("1 / 3", (one / three).to_bits(), 0x3fd5_5555_5555_5555)?;
        equal("0.1 * 3 - 0.2", (tenth * three - fifth).to_bits(), 0x3fb9_9999_9999_999c)?;
        equal("5.5 % 2", (black_box(5.5_f64) % black_box(2.0)).to_bits(), 1.5_f64.to_bits())?;
        equal("-0.0", (black_box(-1.0_f64) * black_box(0.0)).to_bits(), 1 << 63)?;
        equal("half of the least normal", (black_box(f64::MIN_POSITIVE) / 2.0).to_bits(), 1 << 51)?;
        equal("overflow", (black_box(f64::MAX) * 2.0).to_bits(), f64::INFINITY.to_bits())?;
        equal("0 / 0 is NaN", (black_box(0.0_f64) / black_box(0.0)).is_nan().into(), 1)?;
        let (tenth, fifth, one, three) = black_box((0.1_f32, 0.2_f32, 1.0_f32, 3.0_f32));
        equal("f32: 0.1 + 0.2", (tenth + fifth).to_bits().into(), 0x3e99_999a)?;
        equal("f32: 1 / 3", (one / three).to_bits().into(), 0x3eaa_aaab)?;
        equal("f32: 2^24 + 1", (black_box(16_777_216.0_f32) + one).to_bits().into(), 0x4b80_0000)
    }

    fn conversion() -> Result<(), String> {
        equal("2^53 + 1", (black_box(9_007_199_254_740_993_u64) as f64).to_bits(), 0x4340_0000_0000_0000)?;
        equal("u64::MAX", (black_box(u64::MAX) as f64).to_bits(), 0x43f0_0000_0000_0000)?;
        equal("-(2^100)", (black_box(-(1_i128 << 100)) as f64).to_bits(), 0xc630_0000_0000_0000)?;
        equal("0.1 as f32", (black_box(0.1_f64) as f32).to_bits().into(), 0x3dcc_cccd)?;
        equal("0.1f32 as f64", f64::from(black_box(0.1_f32)).to_bits(), 0x3fb9_9999_a000_0000)?;
        equal("-1.9 as i32", u64::from((black_box(-1.9_f64) as i32).cast_unsigned()), 0xffff_ffff)?;
        equal("1e20 as i32", u64::from((black_box(1e20_f64) as i32).cast_unsigned()), 0x7fff_ffff)?;
        equal("1e19 as u64", black_box(1e19_f64) as u64, 10_000_000_000_000_000_000)?;
        equal("2^70 as u128", (black_box(1_180_591_620_717_411_303_424.0_f64) as u128 >> 64) as u64, 64)?;
        equal("NaN as u8", (black_box(f64::NAN) as u8).into(), 0)
    }

    fn format() -> Result<(), String> {
        let text = format!(
            "{} {} {:.3} {:e} {:?} {} {}",
            black_box(0.1_f64) + black_box(0.2),
            black_box(0.1_f32),
            black_box(2.0_f64 / 3.0),
            black_box(6.022_140_76e23_f64),
            black_box(1.0_f64),
            black_box(f64::NEG_INFINITY),
            black_box(f64::NAN),
        );
        let expected = "0.30000000000000004 0.1 0.667 6.02214076e23 1.0 -inf NaN";
        if text != expected {
            return Err(format!("{text:?} instead of {expected:?}"));
        }
        for (text, bits) in [("0.1", 0x3fb9_9999_9999_999a), ("5e-324", 1), ("-1.5e3", 0xc097_7000_0000_0000)] {
            let parsed: f64 = black_box(text).parse().map_err(|error| format!("{text}: {error}"))?;
            equal(text, parsed.to_bits(), bits)?;
        }
        Ok(())
    }

    fn sse2() -> Result<(), String> {
        let source = black_box([1.5_f64, -2.5]);
        let mut doubled = [0.0_f64; 2];
        let mut shuffled = [0_u32; 4];
        // SAFETY: all of this target's code may use SSE2, as the `cfg` of this module says; the unaligned loads and
        // stores stay within the arrays, each of sixteen bytes.
        let (truncated, root) = unsafe {
            let vector = _mm_loadu_pd(source.as_ptr());
            _mm_storeu_pd(doubled.as_mut_ptr(), _mm_mul_pd(vector, _mm_setr_pd(2.0, 2.0)));
            let sum = _mm_add_epi64(_mm_set_epi64x(1 << 32, 3), _mm_set_epi64x(2, 4));
            _mm_storeu_si128(shuffled.as_mut_ptr().cast(), _mm_shuffle_epi32::<0b00_01_10_11>(sum));
            let mut truncated = [0_i32; 4];
            _mm_storeu_si128(truncated.as_mut_ptr().cast(), _mm_cvttpd_epi32(vector));
            let two = _mm_set_sd(black_box(2.0));
            (truncated, _mm_cvtsd_f64(_mm_sqrt_sd(two, two)))
        };
        equal("product", doubled[0].to_bits(), 3.0_f64.to_bits())?;
        equal("product, upper", doubled[1].to_bits(), (-5.0_f64).to_bits())?;
        equal("root of 2", root.to_bits(), 0x3ff6_a09e_667f_3bcd)?;
        if shuffled != [1, 2, 0, 7] || truncated != [1, -2, 0, 0] {
            return Err(format!("{shuffled:?}, {truncated:?}"));
        }
        Ok(())
    }

    /// An instruction that Xen handles.
    #[derive(Clone, Copy)]
    enum Exit {
        /// CPUID, for which Xen comes back at once.
        Cpuid,
        /// The hypercall SCHEDOP_yield, after which other virtual CPUs may run first; by VMCALL.
        YieldIntel,
        /// The same by VMMCALL.
        YieldAmd,
    }

    impl Exit {
        /// The hypercall by the instruction of this CPU's vendor.
        fn yielding() -> Exit {
            const AUTH: u32 = u32::from_le_bytes(*b"Auth");
            const HYGO: u32 = u32::from_le_bytes(*b"Hygo");
            // Intel and AMD differ in what the other's instruction does; all others follow Intel.
            if matches!(__cpuid(0).ebx, AUTH | HYGO) { Exit::YieldAmd } else { Exit::YieldIntel }
        }
    }

    /// How often each of them is executed.
    const EXITS: u32 = 200;

    /// Bytes that differ from register to register.
    fn pattern<const SIZE: usize>() -> [u8; SIZE] {
        core::array::from_fn(|index| (index * 7 + 3) as u8 ^ (index >> 5) as u8)
    }

    /// The first byte that is not what was loaded.
    fn same(found: &[u8], expected: &[u8], register: usize) -> Result<(), String> {
        match found.iter().zip(expected).position(|(found, expected)| found != expected) {
            None => Ok(()),
            Some(at) => Err(format!("byte {} of register {} has changed", at % register, at / register)),
        }
    }

    /// The body of a test of registers: `$load` and `$store` for all sixteen of `$size` bytes, and in between the
    /// instructions `$exit`, `EXITS` times. What those clobber is kept by them (RBX) or declared.
    macro_rules! through_exits {
        ($move:literal, $kind:literal, $size:literal, $from:expr, $to:expr, $($exit:literal),+) => {
            asm!(
                ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
                concat!($move, " ", $kind, "\\n, [r8 + ", $size, " * \\n]"),
                ".endr",
                "2:",
                $($exit,)+
                "dec r10d",
                "jnz 2b",
                ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
                concat!($move, " [r9 + ", $size, " * \\n], ", $kind, "\\n"),
                ".endr",
                in("r8") $from,
                in("r9") $to,
                inout("r10") EXITS => _,
                out("r11") _, out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nostack),
            )
        };
    }

    fn xmm_survive(exit: Exit) -> Result<(), String> {
        let from = pattern::<256>();
        let mut found = [0_u8; 256];
        let (source, target) = (from.as_ptr(), found.as_mut_ptr());
        // SAFETY: sixteen registers of sixteen bytes are loaded from and stored to arrays of 256; all registers that
        // change are declared or restored; CPUID reads no memory, and neither does SCHEDOP_yield (hypercall 29,
        // operation 0).
        unsafe {
            match exit {
                Exit::Cpuid => through_exits!(
                    "movups",
                    "xmm",
                    "16",
                    source,
                    target,
                    "mov r11, rbx",
                    "xor eax, eax",
                    "cpuid",
                    "mov rbx, r11"
                ),
                Exit::YieldIntel => through_exits!(
                    "movups",
                    "xmm",
                    "16",
                    source,
                    target,
                    "mov eax, 29",
                    "xor edi, edi",
                    "xor esi, esi",
                    "vmcall"
                ),
                Exit::YieldAmd => through_exits!(
                    "movups",
                    "xmm",
                    "16",
                    source,
                    target,
                    "mov eax, 29",
                    "xor edi, edi",
                    "xor esi, esi",
                    "vmmcall"
                ),
            }
        }
        same(&found, &from, 16)
    }

    fn memory() -> Result<(), String> {
        let pattern = |index: usize| (index * 31 + 5) as u8;
        for length in [0, 1, 7, 8, 15, 16, 17, 31, 64, 255, 256, 4095, 4097, 70_000] {
            for offset in [0, 1, 9] {
                let (length, offset) = black_box((length, offset));
                let mut buffer: Vec<u8> = (0..length + offset + 16).map(pattern).collect();
                let copy: Vec<u8> = buffer[offset..offset + length].into();
                let copied = (0..length).all(|index| copy[index] == pattern(index + offset));
                // Overlapping, in either direction.
                buffer.copy_within(offset..offset + length, offset + 5);
                let up = buffer[offset + 5..][..length] == copy[..];
                buffer.copy_within(offset + 5..offset + 5 + length, offset);
                let down = buffer[offset..][..length] == copy[..];
                buffer[offset..offset + length].fill(black_box(0xa5));
                let filled = buffer[offset..offset + length].iter().all(|byte| *byte == 0xa5);
                // What lies behind is what the first of the moves left there, or was there from the start.
                let kept = (length + offset + 5..length + offset + 16).all(|index| buffer[index] == pattern(index));
                if !(copied && up && down && filled && kept) {
                    return Err(format!(
                        "{length} bytes at {offset}: copied {copied}, moved {up} {down}, filled {filled}, kept {kept}"
                    ));
                }
            }
        }
        Ok(())
    }

    enum Avx2 {
        /// The CPU has it, and the state it needs is enabled.
        Usable,
        /// The CPU does not have it.
        Absent,
        /// The CPU has it, but code that uses it would fault: what tells so.
        NotEnabled(String),
    }

    impl Avx2 {
        /// What a program does before it uses AVX2: CPUID tells what the CPU has, XGETBV what is enabled.
        fn detect() -> Avx2 {
            const XSAVE: u32 = 1 << 26;
            const OSXSAVE: u32 = 1 << 27;
            const AVX: u32 = 1 << 28;
            const AVX2: u32 = 1 << 5;
            const XMM_AND_YMM: u32 = 6;
            let leaf1 = __cpuid(1).ecx;
            let has_avx2 = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx & AVX2 != 0;
            // XSAVE is the CPU's, OSXSAVE what boot has made of it.
            if leaf1 & XSAVE == 0 || leaf1 & AVX == 0 || !has_avx2 {
                return Avx2::Absent;
            }
            if leaf1 & OSXSAVE == 0 {
                return Avx2::NotEnabled(format!("leaf 1 has {leaf1:#x} in ECX"));
            }
            let enabled: u32;
            // SAFETY: OSXSAVE says that XGETBV exists; it reads register 0 and changes nothing but EAX and EDX.
            unsafe {
                asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _, options(nomem, nostack, preserves_flags));
            }
            if enabled & XMM_AND_YMM == XMM_AND_YMM {
                Avx2::Usable
            } else {
                Avx2::NotEnabled(format!("XCR0 is {enabled:#x}"))
            }
        }
    }

    fn avx() -> Result<(), String> {
        // SAFETY: the caller has detected AVX2.
        let found = unsafe { lanes(&black_box([1, 2, 3, 4, 5, 6, 7, -8])) };
        if found != [30, 42, 56, 56, 2, 6, 12, 20] {
            return Err(format!("the intrinsics give {found:?}"));
        }
        ymm_survive(Exit::Cpuid).map_err(|why| format!("CPUID: {why}"))?;
        ymm_survive(Exit::yielding()).map_err(|why| format!("yield: {why}"))
    }

    /// `x * x + x` in each lane, the two halves exchanged.
    #[target_feature(enable = "avx2")]
    fn lanes(source: &[i32; 8]) -> [i32; 8] {
        let mut found = [0; 8];
        // SAFETY: the unaligned load and store stay within arrays of 32 bytes.
        unsafe {
            let x = _mm256_loadu_si256(source.as_ptr().cast());
            let y = _mm256_add_epi32(_mm256_mullo_epi32(x, x), x);
            let exchanged = _mm256_permute4x64_epi64::<0b01_00_11_10>(y);
            _mm256_storeu_si256(found.as_mut_ptr().cast(), exchanged);
        }
        found
    }

    /// As [`xmm_survive`], for all 32 bytes of each register; only where AVX is usable.
    fn ymm_survive(exit: Exit) -> Result<(), String> {
        let from = pattern::<512>();
        let mut found = [0_u8; 512];
        let (source, target) = (from.as_ptr(), found.as_mut_ptr());
        // SAFETY: as in `xmm_survive`, with registers of 32 bytes and arrays of 512; the caller has detected AVX. No
        // other code here keeps something in the upper halves, and they are cleared in the end, as the ABI has it.
        unsafe {
            match exit {
                Exit::Cpuid => through_exits!(
                    "vmovdqu",
                    "ymm",
                    "32",
                    source,
                    target,
                    "mov r11, rbx",
                    "xor eax, eax",
                    "cpuid",
                    "mov rbx, r11"
                ),
                Exit::YieldIntel => through_exits!(
                    "vmovdqu",
                    "ymm",
                    "32",
                    source,
                    target,
                    "mov eax, 29",
                    "xor edi, edi",
                    "xor esi, esi",
                    "vmcall"
                ),
                Exit::YieldAmd => through_exits!(
                    "vmovdqu",
                    "ymm",
                    "32",
                    source,
                    target,
                    "mov eax, 29",
                    "xor edi, edi",
                    "xor esi, esi",
                    "vmmcall"
                ),
            }
            asm!("vzeroupper", options(nomem, nostack, preserves_flags));
        }
        same(&found, &from, 32)
    }
}
