//! A test of all modules: no waker is cloned, woken or dropped while a lock is held.

use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};
use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::lock::held_here;
use crate::eventchn;
use crate::executor::{spawn, yield_now};
use crate::gnttab::{self, Granted as AnyGranted, ReadWrite};
use crate::lifecycle;
use crate::sim::{Guest, Store};
use crate::time;

/// Uses of wakers, and those while a lock was held.
#[derive(Default, Debug)]
struct Uses {
    clones: AtomicUsize,
    wakes: AtomicUsize,
    drops: AtomicUsize,
    under_lock: AtomicUsize,
}

impl Uses {
    fn count(&self, use_: &AtomicUsize) {
        use_.fetch_add(1, Ordering::Relaxed);
        if held_here() > 0 {
            self.under_lock.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What a probed waker is: a waker, and the uses that it counts.
type Probe = (Waker, Arc<Uses>);

type Granted = AnyGranted<ReadWrite>;

const VTABLE: RawWakerVTable = RawWakerVTable::new(
    |data| {
        // SAFETY: the data of each waker with these functions is an `Arc` that was made a pointer by `probe`, and of which the
        // waker holds one reference.
        let probe = core::mem::ManuallyDrop::new(unsafe { Arc::from_raw(data.cast::<Probe>()) });
        probe.1.count(&probe.1.clones);
        RawWaker::new(Arc::into_raw(Arc::clone(&probe)).cast(), &VTABLE)
    },
    |data| {
        // SAFETY: as above; the waker gives its reference away.
        let probe = unsafe { Arc::from_raw(data.cast::<Probe>()) };
        probe.1.count(&probe.1.wakes);
        probe.0.wake_by_ref();
    },
    |data| {
        // SAFETY: as for a clone.
        let probe = core::mem::ManuallyDrop::new(unsafe { Arc::from_raw(data.cast::<Probe>()) });
        probe.1.count(&probe.1.wakes);
        probe.0.wake_by_ref();
    },
    |data| {
        // SAFETY: as above; the waker gives its reference away.
        let probe = unsafe { Arc::from_raw(data.cast::<Probe>()) };
        probe.1.count(&probe.1.drops);
    },
);

fn probe(waker: &Waker, uses: &Arc<Uses>) -> Waker {
    let data = Arc::into_raw(Arc::new((waker.clone(), Arc::clone(uses)))).cast();
    // SAFETY: the functions keep the contract of wakers: each gives back the references that it takes, and may be called on any
    // thread, as what they use is `Send` and `Sync`.
    unsafe { Waker::from_raw(RawWaker::new(data, &VTABLE)) }
}

/// Polls a future, twice each time, with a new waker each.
async fn probed<F: Future>(uses: Arc<Uses>, future: F) -> F::Output {
    let mut future = pin!(future);
    core::future::poll_fn(|context| {
        for _ in 0..2 {
            let waker = probe(context.waker(), &uses);
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    })
    .await
}

#[test]
#[cfg_attr(miri, ignore = "a minute; the lists have tests of their own")]
fn no_waker_is_used_while_a_lock_is_held() {
    const MS: Duration = Duration::from_millis(1);
    let (store, all) = (Store::new(), Arc::new(Uses::default()));
    let uses = Arc::clone(&all);
    Guest::new()
        .xenstore(&store)
        .memory_mib(16, 16)
        .grant_frames(1)
        .run(async move |domain| -> crate::Result {
            let uses = &|| Arc::clone(&uses);
            let port = Arc::new(eventchn::bind_ipi()?);
            // Events and timers: to the end, and given up.
            for _ in 0..3 {
                let wait = |limit| {
                    let port = Arc::clone(&port);
                    spawn(probed(uses(), async move { time::timeout(limit, port.after(port.count())).await.is_ok() }))
                };
                let waits = [wait(100 * MS), wait(MS), wait(100 * MS)];
                time::sleep(2 * MS).await;
                port.notify()?;
                let [first, second, third] = waits;
                assert_eq!((first.await, second.await, third.await), (true, false, true));
            }
            // Xenstore: requests and watches, and those that are given up.
            let store = domain.xenstore();
            let mut watch = probed(uses(), store.watch("data")).await?;
            for _ in 0..3 {
                probed(uses(), watch.next()).await?;
                assert!(probed(uses(), time::timeout(MS, watch.next())).await.is_err());
                probed(uses(), store.write("data/node", "1")).await?;
                let _ = probed(uses(), time::timeout(MS / 1000, store.read("data/node"))).await;
            }
            drop(watch);
            // Grants: those that wait in order, of which one is given up.
            let peer = crate::DomainId(1);
            let mut most = std::vec::Vec::new();
            while gnttab::stat().in_use < 480 {
                most.push(Granted::new(peer, 16).await?);
            }
            let first = spawn(probed(uses(), Granted::new(peer, 28)));
            let second = spawn(probed(uses(), Granted::new(peer, 1)));
            assert!(probed(uses(), time::timeout(MS, Granted::new(peer, 30))).await.is_err());
            assert!(!first.is_finished() && !second.is_finished());
            drop(first);
            drop(second.await?);
            drop(most);
            // Suspends, and a port that is gone after one.
            let (mut resumes, mut other) = (domain.resumes(), domain.resumes());
            assert!(probed(uses(), time::timeout(MS, other.next())).await.is_err());
            let resumed = spawn(probed(uses(), async move { resumes.next().await }));
            let cut_off = spawn(probed(uses(), async move { port.after(port.count()).await.is_err() }));
            yield_now().await;
            lifecycle::suspend().await?;
            assert_eq!(resumed.await, lifecycle::Resumption::Restored);
            assert!(cut_off.await);
            Ok(())
        })
        .powered_off();
    let count = |uses: &AtomicUsize| uses.load(Ordering::Relaxed);
    assert_eq!(count(&all.under_lock), 0, "{all:?}");
    assert!(count(&all.clones) > 50 && count(&all.wakes) > 10 && count(&all.drops) > 50, "{all:?}");
}
