//! The request/response ring, each end against a peer that writes anything: indices, event thresholds, slots, and ids.

use std::sync::atomic::Ordering;

use domu::shared::{BackRing, Error, FrontRing, Owner, Requests};
use domu::sim::SharedPages;

use crate::input::Input;
use crate::liar;

/// Offsets of the indices in the ring's first page.
const REQUESTS_PRODUCED: usize = 0;
const RESPONSES_PRODUCED: usize = 8;

fn word(pages: &SharedPages, at: usize) -> u32 {
    pages.memory().u32(at).load(Ordering::SeqCst)
}

/// Has a liar write to the pages before each access that `run` makes to them.
fn lied_to(input: &Input, pages: &SharedPages, run: impl FnOnce()) {
    let (input, peer) = (input.clone(), pages.clone());
    let mut pause = input.u8();
    let write = move |at| {
        if input.is_over() {
            return;
        }
        let load = |at: usize| word(&peer, at % peer.memory().len() / 4 * 4);
        let store =
            |at: usize, value| peer.memory().u32(at % peer.memory().len() / 4 * 4).store(value, Ordering::SeqCst);
        pause = match pause.checked_sub(1) {
            Some(less) => less,
            None => liar::lie(&input, at, load, store),
        };
    };
    pages.with_peer(write, run);
}

/// A front end. It takes no more responses than it has published requests, publishes its own index whatever stands in its place,
/// and finds out an id that is not in flight; a ring that was corrupt stays so.
pub fn front_ring(bytes: &[u8]) {
    let input = Input::new(bytes);
    let pages = SharedPages::new(1 << (input.u8() % 3));
    let start = input.u32();
    lied_to(&input, &pages, || {
        let mut ring = FrontRing::<[u32; 4], [u32; 2], _>::starting_at(pages.clone(), start);
        let mut requests = Requests::new(ring.size()).expect("there is memory");
        let (mut pushed, mut published, mut taken) = (0, 0, 0);
        while !input.is_over() {
            match input.u8() % 4 {
                0 => {
                    let room = ring.room();
                    assert_eq!(room, ring.size() - (pushed - taken));
                    match ring.push(&[input.u32(); 4]) {
                        Ok(()) => pushed += 1,
                        Err(error) => assert!(error == Error::Full && room == 0, "{error} with room for {room}"),
                    }
                }
                1 => {
                    let _ = ring.publish();
                    published = pushed;
                }
                2 => {
                    let _ = requests.insert(input.u8());
                    assert!(requests.in_flight() <= ring.size() as usize);
                }
                _ => match ring.poll_response() {
                    Ok(Some([id, _])) => {
                        taken += 1;
                        assert!(taken <= published, "more responses than requests");
                        let before = requests.in_flight();
                        let found = requests.remove(id).is_ok();
                        assert_eq!(requests.in_flight(), before - usize::from(found));
                    }
                    Ok(None) => {}
                    Err(error) => {
                        assert_eq!(error, Error::Corrupt);
                        assert_eq!(ring.poll_response(), Err(Error::Corrupt), "it stays so");
                        assert_eq!(ring.push(&[0; 4]), Err(Error::Corrupt), "it stays so");
                        return;
                    }
                },
            }
        }
        // Nobody lies any more. What is published from here on is the own index.
        if ring.push(&[0; 4]).is_ok() {
            let _ = ring.publish();
            assert_eq!(word(&pages, REQUESTS_PRODUCED), start.wrapping_add(pushed + 1), "another index was published");
        }
    });
}

/// A back end. It takes no more requests than there is room for, answers each once, and publishes its own index.
pub fn back_ring(bytes: &[u8]) {
    let input = Input::new(bytes);
    let pages = SharedPages::new(1 << (input.u8() % 3));
    let start = input.u32();
    for at in [REQUESTS_PRODUCED, RESPONSES_PRODUCED] {
        pages.memory().u32(at).store(start, Ordering::SeqCst);
    }
    lied_to(&input, &pages, || {
        let Ok(mut ring) = BackRing::<[u32; 4], [u32; 2], _>::attach(pages.clone()) else { return };
        while !input.is_over() {
            let before = ring.unanswered();
            match input.u8() % 3 {
                0 => match ring.poll_request() {
                    Ok(Some(_)) => assert_eq!(ring.unanswered(), before + 1),
                    Ok(None) => {}
                    Err(error) => {
                        assert_eq!(error, Error::Corrupt);
                        assert_eq!(ring.poll_request(), Err(Error::Corrupt), "it stays so");
                        assert_eq!(ring.push(&[0; 2]), Err(Error::Corrupt), "it stays so");
                        return;
                    }
                },
                1 => match ring.push(&[input.u32(), 7]) {
                    Ok(()) => assert_eq!(ring.unanswered() + 1, before),
                    Err(error) => assert!(error == Error::NoRequest && before == 0),
                },
                _ => {
                    let _ = ring.publish();
                }
            }
            assert!(ring.unanswered() <= ring.size());
        }
    });
}
