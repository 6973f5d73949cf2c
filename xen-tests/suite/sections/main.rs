//! A unikernel with sections that the linker script does not name: a test puts it in the place of the README's, in a
//! crate that also depends on `linkme`.

#![no_std]
#![no_main]

use core::arch::global_asm;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};

use linkme::distributed_slice;

#[distributed_slice]
static NAMES: [&'static str];
#[distributed_slice(NAMES)]
static ONE: &str = "one";
#[distributed_slice(NAMES)]
static TWO: &str = "two";

#[distributed_slice]
static COUNTERS: [AtomicU64];
#[distributed_slice(COUNTERS)]
static COUNTER: AtomicU64 = AtomicU64::new(5);

/// Named for the test, which looks for each in the segment of its protection.
macro_rules! data {
    ($($name:ident in $section:literal = $value:literal;)*) => {
        $(
            #[unsafe(no_mangle)]
            #[unsafe(link_section = $section)]
            static $name: AtomicU64 = AtomicU64::new($value);
        )*
        /// The values that data begins with: what has no bytes in the file is zero.
        fn check_data() {
            $(assert_eq!($name.fetch_add(1, Ordering::SeqCst), $value, "{}", $section);)*
        }
    };
}

data! {
    rw_named in "my_data" = 7;
    rw_dotted in ".mine" = 8;
    rw_zero in "my_zero" = 0;
    rw_noinit in ".noinit" = 0;
    rw_lbss in ".lbss.mine" = 0;
    rw_ldata in ".ldata.mine" = 9;
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "my_constants")]
static ro_constants: [u64; 2] = [1, 2];

#[unsafe(no_mangle)]
#[unsafe(link_section = "my_code")]
#[inline(never)]
extern "C" fn rx_code(number: u64) -> u64 {
    number.wrapping_mul(3)
}

// Sections without bytes in the file, which Rust makes only under the usual names.
global_asm!(
    ".section my_nobits, \"aw\", @nobits",
    ".balign 8192",
    ".globl rw_nobits",
    "rw_nobits: .skip 8",
    ".section .my_large, \"awl\", @nobits",
    ".balign 8",
    ".globl rw_large",
    "rw_large: .skip 8",
    ".section .lrodata.mine, \"al\", @progbits",
    ".balign 8",
    ".globl ro_large",
    "ro_large: .quad 10",
    ".text",
);

unsafe extern "C" {
    safe static rw_nobits: AtomicU64;
    safe static rw_large: AtomicU64;
    safe static ro_large: u64;
}

domu::main!(main);

async fn main(_: domu::Domain) -> domu::Result {
    check_data();
    for zero in [&rw_nobits, &rw_large] {
        assert_eq!(zero.fetch_add(1, Ordering::SeqCst), 0);
    }
    assert_eq!((ro_constants[black_box(1)], black_box(ro_large), rx_code(black_box(4))), (2, 10, 12));
    assert_eq!((NAMES.len(), COUNTERS.len()), (2, 1));
    assert!(NAMES.contains(&"one") && NAMES.contains(&"two"));
    COUNTERS[0].fetch_add(1, Ordering::SeqCst);
    assert_eq!(COUNTER.load(Ordering::SeqCst), 6);
    log::info!("all sections are in their place");
    Ok(())
}

// Refused by the linker script; the test asks for one of them at a time.
#[cfg(feature = "writable-code")]
global_asm!(".section my_wx, \"awxR\", @progbits", "nop", ".text");
#[cfg(feature = "thread-local")]
global_asm!(".section my_tls, \"awTR\", @progbits", ".quad 1", ".text");
#[cfg(feature = "zero-constants")]
global_asm!(".section my_zeros, \"aR\", @nobits", ".skip 8", ".text");
