//! The server and the machine: where a domain finds its ring, when the server acts, and when the domain is interrupted.

use crate::abi::hvm::{Param, STORE_EVTCHN, STORE_PFN};
use crate::sim::Guest;
use crate::sim::machine::Machine;
use crate::sim::xenstored::tests::*;

const PORT: u32 = 1;

/// A machine that has not booted, with a page that shows its events, and its ring.
fn machine(guest: Guest) -> (Machine, SharedPage) {
    let mut machine = Machine::new(guest);
    // SAFETY: the page is aligned and lives as long as the process, as all memory of a machine's; all use it by such views.
    machine.info = Some(unsafe { SharedPage::new(machine.memory.back(0xff00_0000, 4096), 1) });
    let frame = NonNull::new(machine.memory.at(0xfeffc << 12).expect("the ring is where xl puts it"));
    // SAFETY: as above.
    let ring = unsafe { SharedPage::new(frame.unwrap(), 1) };
    (machine, ring)
}

/// Asks for a domain's parameter.
fn param(machine: &Machine, index: u32) -> u64 {
    let mut param = Param { domid: 0x7ff0, pad: 0, index, value: u64::MAX };
    machine.get_param(&mut param).unwrap();
    param.value
}

#[test]
fn a_domain_is_told_where_its_ring_is() {
    let (machine, _) = machine(Guest::new());
    assert_eq!((param(&machine, STORE_PFN), param(&machine, STORE_EVTCHN)), (0xfeffc, 1));
    for guest in [Guest::new().without_xenstore(), Guest::new().initial_domain()] {
        let machine = Machine::new(guest);
        assert_eq!((param(&machine, STORE_PFN), param(&machine, STORE_EVTCHN)), (0, 0));
    }
}

#[test]
fn the_server_acts_when_it_is_notified_and_raises_an_event() {
    let store = Store::new();
    let (mut machine, ring) = machine(Guest::new().xenstore(&store).xenstore_index(u32::MAX));
    let request = [2, 1, 0, 6].into_iter().flat_map(u32::to_le_bytes).chain(*b"domid\0");
    let mut produced = ring.u32(REQ_PROD).load(Ordering::Relaxed);
    assert_eq!(produced, u32::MAX);
    for byte in request {
        ring.u8(REQ + (produced % 1024) as usize).store(byte, Ordering::Relaxed);
        produced = produced.wrapping_add(1);
    }
    ring.u32(REQ_PROD).store(produced, Ordering::Release);
    machine.catch_up();
    assert!(!machine.is_pending(PORT) && store.log().is_empty());
    machine.send_event(PORT).unwrap();
    assert!(machine.is_pending(PORT));
    assert_eq!(store.log(), [(7, Ty::READ, b"domid\0".to_vec())]);
    let replied = ring.u32(RSP_PROD).load(Ordering::Acquire).wrapping_sub(ring.u32(RSP_CONS).load(Ordering::Acquire));
    assert_eq!(replied, 17);
    // There is nothing more to do until somebody does something.
    assert_eq!(machine.next(), None);
}

#[test]
#[cfg_attr(miri, ignore = "seconds; the tests beside it run the same code")]
fn what_others_do_reaches_a_domain_that_waits() {
    let store = Store::new();
    let (mut one, _) = machine(Guest::new().domain(Some(1)).xenstore(&store));
    let (two, _) = machine(Guest::new().domain(Some(2)).xenstore(&store));
    store.send(1, &Message::event("data", "t"));
    assert_eq!((one.next(), two.next()), (Some(0), None));
    one.catch_up();
    assert!(one.is_pending(PORT) && !two.is_pending(PORT));
    assert_eq!(one.next(), None);
    // The homes of both are in the one store.
    assert_eq!(store.read("/local/domain/2/domid").as_deref(), Some(&b"2"[..]));
    assert_eq!(store.read("/local/domain/1/memory/target").as_deref(), Some(&b"16384"[..]));
}
