//! Events: storms of them, and bitmaps, event words and queues with anything in them.

use std::rc::Rc;

use domu::DomainId;
use domu::eventchn::{self, Port, Priority};
use domu::executor::{spawn, yield_now};
use domu::sim::Guest;
use domu::sim::abi::xen::{shared_info, vcpu_time_info};
use domu::sim::access::fuzz_peer::{self, Kind};

use crate::input::Input;
use crate::{guest, liar};

/// Ports that are bound, waited for and closed, by either interface. Counts never fall, and each turn ends. The clock tells the
/// truth, and nobody sleeps: without Xen's events nothing would end that.
pub fn events(bytes: &[u8]) {
    let input = Input::new(bytes);
    let setup = Guest::new().trusted().command_line("domu.log=off").port_limit(1 << (2 + input.u8() % 12));
    let setup = if input.flag() { setup.without_fifo() } else { setup };
    liar::begin(&input, |kind, at| match kind {
        Kind::SharedInfo => {
            let time = shared_info::VCPU_TIME & !3..=shared_info::VCPU_TIME + vcpu_time_info::TSC_SHIFT;
            !time.contains(&at)
        }
        Kind::Control | Kind::Words => true,
        Kind::Console | Kind::Xenstore | Kind::Other => false,
    });
    guest(setup, async |_| {
        let mut ports: Vec<(Rc<Port>, u64)> = Vec::new();
        let mut waiting = Vec::new();
        while !input.is_over() {
            let what = input.u8();
            let bound = match what % 12 {
                0 => eventchn::bind_ipi().ok(),
                1 => eventchn::alloc_unbound(DomainId(5)).ok(),
                2 => eventchn::bind_virq(input.u8().into()).ok(),
                _ => None,
            };
            ports.extend(bound.map(|port| (Rc::new(port), 0)));
            let chosen = input.below(ports.len());
            let Some((port, before)) = ports.get_mut(chosen) else { continue };
            match what % 12 {
                3 => drop(ports.swap_remove(chosen)),
                4 => drop(port.notify()),
                5 => drop(Priority::new(input.u8()).map(|priority| port.set_priority(priority))),
                6 => {
                    let (port, before) = (Rc::clone(port), port.count());
                    waiting.push(spawn(async move { port.after(before).await }));
                }
                7 if !waiting.is_empty() => drop(waiting.swap_remove(input.below(waiting.len())).abort().await),
                8 => fuzz_peer::notify(input.u8().into()),
                9 => {
                    let now = port.count();
                    assert!(now >= *before, "a count falls");
                    *before = now;
                }
                10 => drop(port.binding()),
                _ => yield_now().await,
            }
        }
        // Turns in which the liar has let go end, too.
        for _ in 0..4 {
            yield_now().await;
        }
    });
}
