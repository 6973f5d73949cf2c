//! A domain that holds more memory than its limit, after `xl mem-set`: a restore would fail.

use std::time::Duration;

use domu::executor::{self, spawn};
use domu::lifecycle::{self, Resumption, SuspendError};
use domu::memory::balloon;
use domu::sim::{Guest, Report, Store};
use domu::{time, xenstore};

use crate::{MS, SECOND, SHUTDOWN, obedient};

const TARGET: &str = "/local/domain/7/memory/target";
/// Slack that `xl` adds to the target for the limit.
const SPARE_KIB: u64 = 1024;
/// Pages beside the RAM that the reservation counts: 16.
const EXTRA_KIB: u64 = 64;

/// A domain of 16 MiB whose limit was lowered to what belongs to a target of 10 MiB.
fn lowered(guest: Guest) -> Guest {
    guest.memory_mib(16, 16).backed_mib(16).maximum((10 * 1024 + SPARE_KIB) / 4)
}

fn warned(report: &Report, text: &str) -> usize {
    report.console_text().lines().filter(|line| line.contains(text)).count()
}

#[test]
fn suspend_over_the_limit_is_warned_of() {
    let store = Store::new();
    let dom0 = store.clone();
    let guest = lowered(obedient(&store)).after(SECOND, move |_| dom0.write(SHUTDOWN, "suspend"));
    let report = guest.run(async |domain| assert_eq!(domain.resumes().next().await, Resumption::Restored));
    let report = report.powered_off();
    let warning = "a restore will fail: the domain holds 16448 KiB and its limit is 11264 KiB";
    assert_eq!((report.resumes, warned(&report, warning)), (1, 1), "{}", report.console_text());
}

#[test]
fn warnings_of_refused_suspends_are_limited() {
    use domu::sim::abi::errno::Errno;
    use domu::sim::abi::sched::SHUTDOWN as OPERATION;
    use domu::sim::abi::xen::Hypercall;
    let guest = lowered(Guest::new()).fault(|call, operation| {
        ((call, operation) == (Hypercall::Sched, OPERATION) && lifecycle::stat().requests == 0).then_some(Errno::EPERM)
    });
    let store = Store::new();
    let report = guest.xenstore(&store).run(async |domain| -> domu::Result {
        for _ in 0..100 {
            assert_eq!(lifecycle::suspend().await, Err(SuspendError::Refused(Errno::EPERM)));
        }
        // The end of the domain is not refused.
        store.write(SHUTDOWN, "poweroff");
        domain.shutdown_requests().next().await?;
        Ok(())
    });
    assert!((1..=15).contains(&warned(&report.powered_off(), "a restore will fail")));
}

#[test]
fn forbidden_suspend_over_the_limit_is_refused() {
    let error = SuspendError::OverLimit { held: 16448 << 10, limit: 11264 << 10 };
    let refused = "suspend refused: a restore would fail, as the domain holds 16448 KiB and its limit is 11264 KiB";
    // By the command line, for a domain that obeys.
    let store = Store::new();
    let dom0 = store.clone();
    let guest = lowered(obedient(&store)).command_line("domu.suspend-over-limit=off");
    let report = guest.after(SECOND, move |_| dom0.write(SHUTDOWN, "suspend")).run(async |domain| {
        time::sleep(10 * SECOND).await;
        assert_eq!((domain.generation(), lifecycle::stat().suspends), (0, 1));
        assert_eq!(lifecycle::suspend().await, Err(error));
        // Again within its limit.
        balloon::give(6 << 20).unwrap();
        assert_eq!(lifecycle::suspend().await, Ok(Resumption::Restored));
    });
    let report = report.powered_off();
    assert_eq!((report.resumes, warned(&report, refused)), (1, 1), "{}", report.console_text());
    // By the program.
    let report = lowered(Guest::new()).run(async |_| {
        lifecycle::allow_suspend_over_limit(false);
        assert_eq!(lifecycle::suspend().await, Err(error));
        lifecycle::allow_suspend_over_limit(true);
        assert_eq!(lifecycle::suspend().await, Ok(Resumption::Restored));
    });
    assert_eq!(report.powered_off().resumes, 1);
    lifecycle::allow_suspend_over_limit(false);
}

#[test]
fn suspend_within_the_limit_is_not_warned_of() {
    let report = Guest::new().run(async |_| {
        assert!(balloon::held().unwrap() <= balloon::limit().unwrap());
        lifecycle::allow_suspend_over_limit(false);
        assert_eq!(lifecycle::suspend().await, Ok(Resumption::Restored));
    });
    assert_eq!(warned(&report.powered_off(), "WARN"), 0);
    assert_eq!(balloon::held(), Err(domu::memory::Error::Refused));
}

fn held_kib() -> u64 {
    balloon::held().unwrap() >> 10
}

#[test]
fn followed_target_keeps_the_domain_within_its_limit() {
    let store = Store::new();
    let report = lowered(obedient(&store)).run(async |domain| -> domu::Result {
        spawn(lifecycle::follow_memory_target(domain, 8 << 20)).detach();
        time::sleep(SECOND).await;
        assert_eq!(held_kib(), 16384 + EXTRA_KIB);
        store.write(TARGET, "10240");
        time::sleep(SECOND).await;
        assert_eq!(held_kib(), 10240 + EXTRA_KIB);
        let before = executor::activity().halts;
        time::sleep(3600 * SECOND).await;
        assert_eq!(executor::activity().halts - before, 1, "nothing to do");
        store.write(SHUTDOWN, "suspend");
        time::sleep(SECOND).await;
        // The target of the new domain is 16 MiB, of which its limit allows less.
        assert_eq!((domain.generation(), held_kib()), (1, 10240 + SPARE_KIB));
        store.write("/local/domain/8/memory/target", "9216");
        time::sleep(SECOND).await;
        assert_eq!(held_kib(), 9216 + EXTRA_KIB);
        Ok(())
    });
    let report = report.powered_off();
    assert_eq!(warned(&report, "a restore will fail"), 0, "{}", report.console_text());
    assert_eq!(warned(&report, "memory target 16384 KiB not reached"), 1, "{}", report.console_text());
}

#[test]
fn nonsense_targets_are_bounded() {
    let store = Store::new();
    let report = Guest::new().xenstore(&store).memory_mib(16, 16).backed_mib(16).run(async |domain| -> domu::Result {
        spawn(lifecycle::follow_memory_target(domain, 8 << 20)).detach();
        time::sleep(SECOND).await;
        for _ in 0..10 {
            for (target, kib) in [("0", 8192), ("x", 8192), ("-1", 8192), ("18446744073709551615", 16384), ("1", 8192)]
            {
                store.write(TARGET, target);
                time::sleep(SECOND).await;
                assert_eq!(held_kib(), kib + EXTRA_KIB, "{target}");
            }
        }
        store.remove(TARGET);
        time::sleep(60 * SECOND).await;
        store.write(TARGET, "12288");
        time::sleep(SECOND).await;
        assert_eq!(held_kib(), 12288 + EXTRA_KIB);
        // Changes without end are looked at ten times a second, and warned of twice.
        let (before, start) = (store.log().len(), time::now());
        while start.elapsed() < SECOND {
            store.write(TARGET, "12288");
            time::sleep(MS).await;
        }
        assert!(store.log().len() - before <= 12, "{} requests", store.log().len() - before);
        let start = time::now();
        while start.elapsed() < 20 * SECOND {
            store.write(TARGET, "3");
            time::sleep(10 * MS).await;
        }
        Ok(())
    });
    let report = report.powered_off();
    // One a second for most of 50 s, which the limit lets pass.
    assert_eq!(warned(&report, "memory target 0 KiB is below the least of 8192 KiB"), 10, "{}", report.console_text());
    assert!((20..=52).contains(&warned(&report, "memory target 3 KiB")), "{}", report.console_text());
    assert!(warned(&report, "WARN") <= 110, "{}", report.console_text());
}

#[test]
fn unreached_target_is_tried_again() {
    let store = Store::new();
    let report = Guest::new().xenstore(&store).memory_mib(16, 16).backed_mib(16).run(async |domain| -> domu::Result {
        let mut pages = Vec::new();
        while let Ok(page) = domu::memory::Pages::new(64) {
            pages.push(page);
        }
        spawn(lifecycle::follow_memory_target(domain, 0)).detach();
        store.write(TARGET, "8192");
        time::sleep(25 * SECOND).await;
        assert!(held_kib() > 15 << 10, "there is none to be given: {}", held_kib());
        pages.truncate(8);
        domu::memory::trim();
        time::sleep(10 * SECOND).await;
        assert_eq!(held_kib(), 8192 + EXTRA_KIB);
        Ok(())
    });
    assert_eq!(warned(&report.powered_off(), "memory target 8192 KiB not reached"), 1);
}

#[test]
fn following_without_a_store_is_an_error() {
    let report = Guest::new().without_xenstore().run(async |domain| {
        assert_eq!(lifecycle::follow_memory_target(domain, 0).await.unwrap_err(), xenstore::ErrorKind::Absent);
    });
    report.powered_off();
    let store = Store::new();
    let report = Guest::new().xenstore(&store).run(async |domain| -> domu::Result {
        assert!(time::timeout(Duration::from_secs(5), lifecycle::follow_memory_target(domain, 0)).await.is_err());
        domain.xenstore().read("name").await?;
        assert_eq!(store.watches(7), []);
        Ok(())
    });
    report.powered_off();
}
