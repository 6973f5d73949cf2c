//! Who writes to the memory that a domain shares: anything, between any two accesses of the domain's, as the input says.
//!
//! Even a liar must let go in the end where the domain has to wait for Xen, which is trusted for that: when the input is over,
//! no version stays odd and no event word BUSY.

use domu::sim::abi::event_channel::fifo::BUSY;
use domu::sim::abi::xen::{shared_info, vcpu_time_info};
use domu::sim::access::fuzz_peer::{self, Access, Kind};

use crate::input::Input;

/// Has a liar write to pages of some kinds until the input is over, where `may` allows it for the place in the page.
pub fn begin(input: &Input, may: impl Fn(Kind, usize) -> bool + 'static) {
    let input = input.clone();
    let mut pause = input.u8();
    fuzz_peer::at_each_access(move |access| {
        let (kind, at) = (access.kind(), access.offset());
        if input.is_over() {
            return let_go(kind, access);
        }
        if !may(kind, at) {
            return;
        }
        match pause.checked_sub(1) {
            Some(less) => pause = less,
            None => {
                let store = |at, value| {
                    if may(kind, at % 4096) {
                        access.store(at, value);
                    }
                };
                pause = lie(&input, at, |at| access.load(at), store);
            }
        }
    });
}

/// Writes something, where an access is about to be, or elsewhere; gives how many accesses pass before the next lie.
pub fn lie(input: &Input, access: usize, load: impl Fn(usize) -> u32, store: impl Fn(usize, u32)) -> u8 {
    let what = input.u8();
    // Mostly where the domain is about to look.
    let at = if what & 0x80 == 0 { access } else { usize::from(input.u16()) };
    let before = load(at);
    let after = match what % 8 {
        // As an honest index moves.
        0 | 1 => before.wrapping_add(u32::from(input.u8())),
        2 => before.wrapping_sub(u32::from(input.u8())),
        3 => before ^ 1 << (input.u8() % 32),
        4 => input.u32(),
        5 => u32::MAX,
        6 => load(usize::from(input.u16())),
        _ => {
            fuzz_peer::notify(u32::from(input.u8()));
            before
        }
    };
    store(at, after);
    input.u8()
}

/// Ends what the domain must not be kept waiting for.
fn let_go(kind: Kind, access: &Access) {
    let free = |at, stuck: u32| {
        let word = access.load(at);
        if word & stuck != 0 {
            access.store(at, word & !stuck);
        }
    };
    match kind {
        // A version is looked up once, and read again and again.
        Kind::SharedInfo => {
            free(shared_info::WALL_CLOCK_VERSION, 1);
            free(shared_info::VCPU_TIME + vcpu_time_info::VERSION, 1);
        }
        Kind::Words => free(access.offset(), BUSY),
        Kind::Control | Kind::Console | Kind::Xenstore | Kind::Other => {}
    }
}
