//! Calls outside of any simulated domain: an error or a value, as their documentation says.
#![forbid(unsafe_code)]

use std::panic::catch_unwind;
use std::time::Duration;

use domu::gnttab::copy::Batch;
use domu::gnttab::{ErrorKind, Grant, Granted, Mapping, ReadWrite, Reference};
use domu::lifecycle::{self, Reason, Watchdog, WatchdogError};
use domu::memory::{self, Pages, balloon};
use domu::sim::Guest;
use domu::sim::abi::errno::Errno;
use domu::{DomainId, eventchn, executor, gnttab, random, time};

const PEER: DomainId = DomainId(3);

#[test]
fn numbers_outside_of_a_domain_are_an_error() {
    assert_eq!(random::u64(), Err(random::Error::Unsupported));
    assert_eq!(random::fill(&mut [0; 9]), Err(random::Error::Unsupported));
}

#[test]
fn grants_outside_of_a_domain_are_errors() {
    let no_domain = ErrorKind::Refused(Errno::ESRCH);
    let grant = Grant { domain: PEER, reference: Reference(9) };
    let mut bytes = [0; 8];
    let mut batch = Batch::new();
    assert_eq!(batch.read(grant, 0, &mut bytes).map_err(|error| error.kind()), Err(no_domain));
    assert_eq!(batch.write(grant, 0, &[1]).map_err(|error| error.kind()), Err(no_domain));
    assert!(batch.is_empty());
    assert_eq!(Granted::<ReadWrite>::try_new(PEER, 1).err().map(|error| error.kind()), Some(no_domain));
    assert_eq!(gnttab::stat(), gnttab::Stat::default());
    let mut mapping = std::pin::pin!(Mapping::<ReadWrite>::new(PEER, &[Reference(9)]));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(mapped) = mapping.as_mut().poll(&mut context) else { panic!("it waits") };
    assert_eq!(mapped.err().map(|error| error.kind()), Some(no_domain));
}

#[test]
fn memory_outside_of_a_domain_is_empty() {
    assert_eq!(Pages::new(1).err(), Some(memory::Error::OutOfMemory));
    assert_eq!(memory::stat(), Ok(memory::Stat::default()));
    assert_eq!(memory::quick_stat(), memory::QuickStat::default());
    assert_eq!((memory::stack().size, memory::stack().deepest), (0, 0));
    assert_eq!(memory::self_check().map(|checked| checked.pages), Ok(0));
    assert_eq!(memory::trim(), 0);
    assert_eq!(balloon::limit(), Err(memory::Error::Refused));
    assert_eq!(balloon::give(4096), Err(memory::Error::OutOfMemory));
    assert_eq!((balloon::given(), balloon::absent()), (0, 0));
}

#[test]
fn time_and_ports_outside_of_a_domain_stand_still() {
    assert_eq!(time::now(), time::now());
    assert_eq!(executor::activity(), executor::Activity::default());
    assert_eq!(
        eventchn::alloc_unbound(PEER).err().map(|error| error.kind()),
        Some(eventchn::ErrorKind::Refused(Errno::ESRCH))
    );
    let watchdog = Watchdog::start(Duration::from_secs(1));
    assert_eq!(watchdog.err(), Some(WatchdogError::Refused(Errno::ESRCH)));
}

#[test]
fn the_end_outside_of_a_domain_panics_with_a_message() {
    let panic = catch_unwind(|| lifecycle::end(Reason::Poweroff)).err().unwrap();
    assert_eq!(panic.downcast_ref(), Some(&"a domain is ended outside of a simulated domain"));
}

#[test]
fn domain_handle_after_its_domain_finds_nothing() {
    let mut kept = None;
    Guest::new().look(|domain| kept = Some(domain)).0.powered_off();
    let domain = kept.unwrap();
    assert_eq!((domain.cost().tsc_ticks, domain.cost().hypercalls), (0, 0));
    assert_eq!(domain.console().try_write(b"x"), Err(domu::console::Error::Absent));
    assert!(!domain.console().is_connected());
}
