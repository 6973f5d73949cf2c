//! Hypercalls: any of them answered with any error, at any moment, or done in part.

use std::time::Duration;

use domu::DomainId;
use domu::eventchn::{self, Priority};
use domu::memory::{self, Pages, balloon};
use domu::sim::Guest;
use domu::sim::abi::errno::Errno;
use domu::sim::abi::sched;
use domu::sim::abi::xen::Hypercall;
use domu::time;

use crate::guest;
use crate::input::Input;

const ERRORS: [Errno; 8] = [
    Errno::EPERM,
    Errno::EINVAL,
    Errno::ENOSYS,
    Errno::ENOMEM,
    Errno::EOPNOTSUPP,
    Errno::ENOSPC,
    Errno::EEXIST,
    Errno(0x7fff),
];

/// Boot, the balloon, page runs, ports and the console, while Xen refuses what it likes. What it grants it does: for that, and
/// for the timer, it is trusted. At the end the figures of memory agree.
pub fn hypercalls(bytes: &[u8]) {
    let input = Input::new(bytes);
    let most = input.u8();
    let answers = input.clone();
    let fault = move |call, operation| {
        let needed = call == Hypercall::SetTimer || (call, operation) == (Hypercall::Sched, sched::SHUTDOWN);
        let answer = if needed { 0 } else { answers.u8() };
        // One in eight fails.
        (answer & 7 == 7).then(|| ERRORS[usize::from(answer >> 3) % ERRORS.len()])
    };
    let setup =
        Guest::new().trusted().memory_mib(4, 6).maximum(6 << 8).backed_mib(6).extents_taken(u64::from(most) + 1);
    let setup = if input.flag() { setup.fragmented_host() } else { setup };
    guest(setup.fault(fault), async |domain| {
        let (mut ports, mut pages) = (Vec::new(), Vec::new());
        while !input.is_over() {
            match input.u8() % 14 {
                0 => drop(balloon::give(input.number() % (640 << 10))),
                1 => drop(balloon::take_back(input.number() % (640 << 10))),
                2 => drop(balloon::aim(input.number() % (7 << 10))),
                3 => drop(balloon::limit()),
                4 => pages.extend(Pages::new(input.below(50))),
                5 => drop(pages.pop()),
                6 => drop(memory::trim()),
                7 => ports.extend(eventchn::bind_ipi()),
                8 => ports.extend(eventchn::bind_interdomain(DomainId(input.u16()), input.u32())),
                9 => drop(ports.pop()),
                10 => {
                    if let Some(port) = ports.last() {
                        let _ = (port.notify(), port.binding(), port.set_priority(Priority::HIGHEST));
                    }
                }
                11 => drop(domain.console().try_write(&input.bytes(3000))),
                12 => assert!(memory::stat().is_ok()),
                _ => time::sleep(Duration::from_micros(input.u8().into())).await,
            }
        }
        drop(pages);
        assert!(balloon::absent() >= balloon::given());
    });
}
