//! Devices, on the simulated Xen: our front end against our back end in two domains, and each against a peer and a toolstack
//! that a test plays.

#![cfg_attr(miri, allow(dead_code, unused_imports, reason = "for the tests that Miri does not run"))]

#[cfg(not(miri))]
mod back;
#[cfg(not(miri))]
mod front;
#[cfg(not(miri))]
mod lies;
#[cfg(not(miri))]
mod two_ends;

use std::time::Duration;

use domu::Domain;
use domu::lifecycle::Reason;
use domu::sim::{Dom0, End, Guest, Report, Store};
use domu::xenbus::{self, Error, ErrorKind, Frontend, State};
use domu::xenstore::{self, Path};

/// Whether the error is one of xenstore, of this kind.
fn is_of_xenstore(error: &Error, kind: xenstore::ErrorKind) -> bool {
    matches!(error.kind(), ErrorKind::Xenstore(error) if *error == kind)
}

/// The kind of a result's error.
fn kind<T>(result: Result<T, Error>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind().clone())
}

/// The domain of the front ends, and that of the back ends.
const FRONT: u16 = 7;
const BACK: u16 = 3;
const MS: Duration = Duration::from_millis(1);

const FRONT_END: &str = "/local/domain/7/device/vif/0";
const BACK_END: &str = "/local/domain/3/backend/vif/7/0";

fn front_end() -> Path {
    Path::new("device/vif/0").unwrap()
}

fn make_front_end(dom0: &mut Dom0<'_>, id: usize) {
    let (front, back) = (format!("/local/domain/7/device/vif/{id}"), format!("/local/domain/3/backend/vif/7/{id}"));
    dom0.make_device_end(&front, FRONT, ("backend", &back, BACK));
}

fn make_back_end(dom0: &mut Dom0<'_>, id: usize) {
    let (front, back) = (format!("/local/domain/7/device/vif/{id}"), format!("/local/domain/3/backend/vif/7/{id}"));
    dom0.make_device_end(&back, BACK, ("frontend", &front, FRONT));
    dom0.write(&format!("{back}/online"), "1");
}

fn make(store: &Store, id: usize) {
    store.dom0(|dom0| {
        make_front_end(dom0, id);
        make_back_end(dom0, id);
    });
}

/// What a back end does that finds its front end in some state, as long as it has its directory.
fn answer(dom0: &mut Dom0<'_>, id: usize) {
    let back = format!("/local/domain/3/backend/vif/7/{id}/state");
    let state = match dom0.read(&format!("/local/domain/7/device/vif/{id}/state")).as_deref() {
        Some(b"1") => "2",
        Some(b"3" | b"4") => "4",
        Some(b"5") => "5",
        Some(b"6") => "6",
        _ => return,
    };
    if dom0.read(&back).is_some_and(|now| now != state.as_bytes()) {
        dom0.write(&back, state);
    }
}

/// A back end that does what a front end waits for.
fn serve(store: &Store, id: usize) {
    store.react(&format!("/local/domain/7/device/vif/{id}/state"), move |dom0, _| answer(dom0, id));
}

fn check(report: &Report) {
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{}{}", report.debug_text(), report.console_text());
    assert_eq!((report.granted.len(), report.mapped), (0, 0));
}

/// Runs a domain with front ends that is to end well.
fn run<F: Future<Output = domu::Result>>(store: &Store, main: impl FnOnce(Domain) -> F) -> Report {
    let report = Guest::new().xenstore(store).run(main);
    check(&report);
    report
}

/// That a domain has no watch and no transaction, now that what it asked for last is done.
async fn check_nothing_left(store: &Store, domain: Domain) {
    domain.xenstore().read("name").await.unwrap();
    let id = domain.id().0;
    assert_eq!((store.watches(id), store.transactions(id)), (Vec::new(), 0));
}

#[test]
#[cfg_attr(miri, ignore = "takes a minute, most of it boot and server; the module has no unsafe code")]
fn a_front_end_connects_and_closes() {
    let store = Store::new();
    serve(&store, 0);
    make(&store, 0);
    store.write(&format!("{BACK_END}/feature-sg"), "1");
    run(&store, async |domain| {
        let xenstore = domain.xenstore();
        assert_eq!(xenbus::frontends(&xenstore, "vif").await?, [front_end()]);
        let mut front = Frontend::open(&xenstore, &front_end()).await?;
        assert_eq!((front.device().peer().0, front.device().id()), (BACK, "0"));
        // The back end has yet to be told that there is somebody.
        store.write(&format!("{BACK_END}/state"), "2");
        front.prepare().await?;
        assert_eq!(front.feature("feature-sg", 0u32, 1).await?, 1);
        front.connect(State::CONNECTED, &[("ring-ref", &8), ("event-channel", &4)]).await?;
        assert_eq!(store.read(&format!("{FRONT_END}/ring-ref")).as_deref(), Some(&b"8"[..]));
        assert_eq!((front.state(), front.peer_state().await?), (State::CONNECTED, Some(State::CONNECTED)));
        front.close().await?;
        assert_eq!((front.state(), front.peer_state().await?), (State::CLOSED, Some(State::CLOSED)));
        store.remove(FRONT_END);
        assert_eq!(front.prepare().await.unwrap_err(), ErrorKind::Gone);
        drop(front);
        check_nothing_left(&store, domain).await;
        Ok(())
    });
}
