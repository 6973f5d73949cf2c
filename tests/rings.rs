//! Rings against a peer that is written from the description of the ring, not from our code; last, both our ends against each
//! other. What the two ends do at the same time is in `tests/ring_races.rs`.

use std::sync::atomic::Ordering;

use domu::shared::{BackRing, Error, FrontRing, Owner, Requests, SharedWord};
use domu::sim::SharedPages;
use proptest::prelude::*;
use zerocopy::{FromBytes, Immutable, IntoBytes};

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;

/// So many entries at a time; Miri takes milliseconds for each.
const MANY: u32 = if cfg!(miri) { 4 } else { 100 };
/// Up to all entries of a ring.
const MOST: u32 = if cfg!(miri) { 9 } else { 256 };

fn config() -> ProptestConfig {
    let config = ProptestConfig { failure_persistence: None, ..Default::default() };
    if cfg!(miri) { ProptestConfig { cases: 2, ..config } } else { config }
}

/// Indices from anywhere, often from where they wrap or change their sign.
fn starts() -> impl Strategy<Value = u32> {
    let near = |to: u32| (0_u32..600).prop_map(move |before| to.wrapping_sub(before));
    prop_oneof![any::<u32>(), near(0), near(1 << 31)]
}

/// An index that a peer chooses.
#[derive(Clone, Copy, Debug)]
enum Choice {
    Anywhere(u32),
    /// Two before the first or the last that decides, or a few beyond that.
    First(u32),
    Last(u32),
}

fn choices() -> impl Strategy<Value = Choice> {
    prop_oneof![
        any::<u32>().prop_map(Choice::Anywhere),
        (0_u32..300).prop_map(Choice::Anywhere),
        (0_u32..8).prop_map(Choice::First),
        (0_u32..8).prop_map(Choice::Last),
    ]
}

impl Choice {
    const fn index(self, first: u32, last: u32) -> u32 {
        match self {
            Self::Anywhere(index) => index,
            Self::First(offset) => first.wrapping_add(offset).wrapping_sub(2),
            Self::Last(offset) => last.wrapping_add(offset).wrapping_sub(2),
        }
    }
}

fn word(pages: &SharedPages, offset: usize) -> SharedWord<'_, u32> {
    pages.memory().u32(offset)
}

fn get(pages: &SharedPages, offset: usize) -> u32 {
    word(pages, offset).load(Ordering::SeqCst)
}

fn set(pages: &SharedPages, offset: usize, value: u32) {
    word(pages, offset).store(value, Ordering::SeqCst);
}

/// A peer: the front end if it produces requests, the back end if it produces responses.
struct Peer {
    pages: SharedPages,
    stride: usize,
    size: u32,
    produces: usize,
    consumes: usize,
    /// Indices of what it sent and received.
    sent: u32,
    received: u32,
}

impl Peer {
    fn new(pages: &SharedPages, stride: usize, produces: usize, start: u32) -> Self {
        let mut size = 1;
        while 64 + 2 * size * stride <= pages.memory().len() {
            size *= 2;
        }
        let pages = pages.clone();
        let consumes = REQ_PROD + RSP_PROD - produces;
        Self { pages, stride, size: size as u32, produces, consumes, sent: start, received: start }
    }

    fn back(pages: &SharedPages, stride: usize, start: u32) -> Self {
        Self::new(pages, stride, RSP_PROD, start)
    }

    /// A front end makes the ring.
    fn front(pages: &SharedPages, stride: usize, start: u32) -> Self {
        for (offset, value) in [
            (REQ_PROD, start),
            (REQ_EVENT, start.wrapping_add(1)),
            (RSP_PROD, start),
            (RSP_EVENT, start.wrapping_add(1)),
        ] {
            set(pages, offset, value);
        }
        Self::new(pages, stride, REQ_PROD, start)
    }

    /// Sends something, whether or not there is room.
    fn send(&mut self, value: &(impl IntoBytes + Immutable)) {
        let place = 64 + (self.sent % self.size) as usize * self.stride;
        self.pages.memory().write(place, value.as_bytes());
        self.sent = self.sent.wrapping_add(1);
        set(&self.pages, self.produces, self.sent);
    }

    /// Takes the next, if there is one.
    fn receive<T: FromBytes + IntoBytes>(&mut self) -> Option<T> {
        if get(&self.pages, self.consumes) == self.received {
            return None;
        }
        let place = 64 + (self.received % self.size) as usize * self.stride;
        self.received = self.received.wrapping_add(1);
        let mut value = T::new_zeroed();
        self.pages.memory().read(place, value.as_mut_bytes());
        Some(value)
    }
}

/// A value that its number tells from others.
fn numbered<T: FromBytes + IntoBytes>(number: u32) -> T {
    let mut value = T::new_zeroed();
    for (index, byte) in (0_u32..).zip(value.as_mut_bytes()) {
        *byte = (number.wrapping_add(index).wrapping_mul(0x9e37_79b1) >> 24) as u8;
    }
    value
}

fn bytes<T: IntoBytes + Immutable>(value: &T) -> Vec<u8> {
    value.as_bytes().to_vec()
}

trait Entry: FromBytes + IntoBytes + Immutable {}
impl<T: FromBytes + IntoBytes + Immutable> Entry for T {}

/// Fills a ring of so many pages twice and a bit, in both directions: our front end with a peer, a peer with our back end, and
/// both of ours.
fn round_trip<Req: Entry, Rsp: Entry>(pages: usize, stride: usize, size: u32) {
    // The last lap begins before the wrap, and ends behind it.
    let starts = [0_u32.wrapping_sub(2 * size), (1 << 31) - 2 * size];
    for start in starts.into_iter().take(if cfg!(miri) { 1 } else { 2 }) {
        let memory = [SharedPages::new(pages), SharedPages::new(pages), SharedPages::new(pages)];
        let mut front = FrontRing::<Req, Rsp, _>::starting_at(memory[0].clone(), start);
        let mut peers_back = Peer::back(&memory[0], stride, start);
        let mut peers_front = Peer::front(&memory[1], stride, start);
        let mut back = BackRing::<Req, Rsp, _>::attach(memory[1].clone()).unwrap();
        let mut our_front = FrontRing::<Req, Rsp, _>::starting_at(memory[2].clone(), start);
        let mut our_back = BackRing::<Req, Rsp, _>::attach(memory[2].clone()).unwrap();
        assert_eq!([front.size(), back.size(), our_front.size(), our_back.size()], [size; 4]);

        let mut number = 0;
        for batch in [size, (size - 1).max(1), 2.min(size)] {
            let numbers = number..number + batch;
            number += batch;
            for number in numbers.clone() {
                front.push(&numbered(number)).unwrap();
                peers_front.send(&numbered::<Req>(number));
                our_front.push(&numbered(number)).unwrap();
            }
            assert_eq!(peers_back.receive::<Req>().map(|request| bytes(&request)), None, "not published");
            assert!(front.publish() && our_front.publish(), "somebody waits for the first request");
            for number in numbers.clone() {
                let expected = bytes(&numbered::<Req>(number));
                assert_eq!(peers_back.receive::<Req>().map(|request| bytes(&request)).as_ref(), Some(&expected));
                assert_eq!(back.poll_request().unwrap().map(|request| bytes(&request)).as_ref(), Some(&expected));
                assert_eq!(our_back.poll_request().unwrap().map(|request| bytes(&request)).as_ref(), Some(&expected));
            }
            assert!(back.poll_request().unwrap().is_none() && our_back.poll_request().unwrap().is_none());
            set(&memory[0], REQ_EVENT, peers_back.received.wrapping_add(1));
            for number in numbers.clone() {
                peers_back.send(&numbered::<Rsp>(!number));
                back.push(&numbered(!number)).unwrap();
                our_back.push(&numbered(!number)).unwrap();
            }
            assert!(back.publish() && our_back.publish(), "somebody waits for the first response");
            for number in numbers {
                let expected = bytes(&numbered::<Rsp>(!number));
                assert_eq!(front.poll_response().unwrap().map(|response| bytes(&response)).as_ref(), Some(&expected));
                assert_eq!(peers_front.receive::<Rsp>().map(|response| bytes(&response)).as_ref(), Some(&expected));
                let response = our_front.poll_response().unwrap();
                assert_eq!(response.map(|response| bytes(&response)).as_ref(), Some(&expected));
            }
            assert!(front.poll_response().unwrap().is_none() && our_front.poll_response().unwrap().is_none());
            set(&memory[1], RSP_EVENT, peers_front.received.wrapping_add(1));
        }
    }
}

#[test]
fn rings_of_1_to_16_pages_round_trip() {
    if cfg!(miri) {
        // One that is full with little.
        return round_trip::<[u8; 1000], [u16; 3]>(2, 1000, 8);
    }
    for (log, pages) in [1, 2, 4, 8, 16].into_iter().enumerate() {
        // Block devices: 32 requests in a page. Network, both ways: 256.
        round_trip::<[u64; 14], [u64; 2]>(pages, 112, 32 << log);
        round_trip::<[u32; 3], u32>(pages, 12, 256 << log);
        round_trip::<u64, [u16; 4]>(pages, 8, 256 << log);
        round_trip::<[u8; 16], [u64; 2]>(pages, 16, 128 << log);
        // An entry has the alignment of either.
        round_trip::<[u32; 3], u64>(pages, 16, 128 << log);
        // As much as fits into a page: one page has one entry, and 16 have 16.
        round_trip::<[u8; 4032], [u8; 5]>(pages, 4032, 1 << log);
    }
    // As little as there can be.
    round_trip::<u8, u8>(1, 1, 2048);
}

#[test]
fn a_new_ring_is_as_peers_expect_it() {
    let pages = SharedPages::new(1);
    let ring = FrontRing::<u64, u64, _>::new(pages.clone());
    let words: Vec<u32> = (0..16).map(|word| get(&pages, 4 * word)).collect();
    assert_eq!(words, [0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((ring.size(), ring.room()), (256, 256));
}

#[test]
fn neither_end_writes_more_than_there_is_room_for() {
    let pages = SharedPages::new(1);
    let mut front = FrontRing::<[u64; 14], u64, _>::new(pages.clone());
    let mut back = BackRing::<[u64; 14], u64, _>::attach(pages.clone()).unwrap();
    assert_eq!(back.push(&0), Err(Error::NoRequest));
    for _ in 0..32 {
        front.push(&[1; 14]).unwrap();
    }
    assert_eq!((front.push(&[2; 14]), front.room()), (Err(Error::Full), 0));
    assert!(front.publish());
    assert!(!front.publish(), "nothing new");
    assert_eq!(back.poll_request(), Ok(Some([1; 14])));
    assert_eq!(front.push(&[2; 14]), Err(Error::Full), "taken is not answered");
    back.push(&7).unwrap();
    assert_eq!((back.push(&8), back.unanswered()), (Err(Error::NoRequest), 0));
    assert!(back.publish());
    assert_eq!(front.poll_response(), Ok(Some(7)));
    assert_eq!((front.push(&[3; 14]), front.room()), (Ok(()), 0));
}

/// A back end that starts anew finds the requests that have no response.
#[test]
fn a_back_end_joins_behind_the_last_response() {
    let pages = SharedPages::new(1);
    let mut front = FrontRing::<u64, u64, _>::starting_at(pages.clone(), u32::MAX);
    for request in [1, 2, 3] {
        front.push(&request).unwrap();
    }
    let _ = front.publish();
    let mut first = BackRing::<u64, u64, _>::attach(pages.clone()).unwrap();
    assert_eq!((first.poll_request(), first.poll_request()), (Ok(Some(1)), Ok(Some(2))));
    first.push(&1).unwrap();
    let _ = first.publish();
    let mut second = BackRing::<u64, u64, _>::attach(first.into_memory()).unwrap();
    assert_eq!((second.poll_request(), second.poll_request()), (Ok(Some(2)), Ok(Some(3))));
    assert_eq!(second.poll_request(), Ok(None));
    set(&pages, REQ_PROD, get(&pages, RSP_PROD).wrapping_add(257));
    assert_eq!(BackRing::<u64, u64, _>::attach(pages).unwrap_err(), Error::Corrupt);
}

/// What one end published is its own: a peer that writes over it changes nothing but what the peer itself sees.
#[test]
fn what_was_published_is_never_read_back() {
    let pages = SharedPages::new(1);
    let mut front = FrontRing::<u64, u64, _>::new(pages.clone());
    let mut back = BackRing::<u64, u64, _>::attach(pages.clone()).unwrap();
    for round in 0..3_u32 {
        // An index that claims all or nothing, and a wish to be woken, for good and never.
        for own in [REQ_PROD, RSP_EVENT] {
            set(&pages, own, [u32::MAX, 1 << 31, 0][round as usize]);
        }
        set(&pages, REQ_EVENT, round + 1);
        front.push(&u64::from(round)).unwrap();
        assert!(front.publish(), "the event is the new index, counted from what was published");
        assert_eq!((get(&pages, REQ_PROD), front.room()), (round + 1, 255 - round));
        assert_eq!(front.poll_response(), Ok(None));
    }
    for round in 0..3_u32 {
        assert_eq!(back.poll_request(), Ok(Some(u64::from(round))));
        set(&pages, RSP_PROD, 77);
        set(&pages, RSP_EVENT, round + 1);
        back.push(&0).unwrap();
        assert!(back.publish());
        assert_eq!(get(&pages, RSP_PROD), round + 1);
    }
}

/// A peer that changes what it has written at every access changes nothing that was taken: each byte is read once, in words or
/// alone, and each look at an index is one read.
#[test]
fn entries_are_read_once() {
    read_once::<16>(8);
    read_once::<12>(4);
    read_once::<13>(1);
}

fn read_once<const SIZE: usize>(word: usize) {
    use std::cell::RefCell;
    use std::rc::Rc;

    let word = if cfg!(miri) { 1 } else { word };
    let pages = SharedPages::new(1);
    let mut peer = Peer::front(&pages, SIZE, 0);
    let mut back = BackRing::<[u8; SIZE], u8, _>::attach(pages.clone()).unwrap();
    peer.send(&[0x11_u8; SIZE]);
    let accesses = Rc::new(RefCell::new(Vec::new()));
    let (log, memory) = (accesses.clone(), pages.clone());
    let taken = pages.with_peer(
        move |offset| {
            log.borrow_mut().push(offset);
            // What is read from here on is something else each time.
            let now = log.borrow().len() as u8;
            memory.memory().write(64, &[now; SIZE]);
        },
        || back.poll_request(),
    );
    let expected: Vec<usize> = [REQ_PROD].into_iter().chain((64..64 + SIZE).step_by(word)).collect();
    assert_eq!(*accesses.borrow(), expected);
    let entry = core::array::from_fn(|index| (index / word) as u8 + 2);
    assert_eq!(taken, Ok(Some(entry)), "each byte as it was at its one read");
}

#[test]
fn a_corrupt_ring_stays_corrupt() {
    let pages = SharedPages::new(1);
    let mut front = FrontRing::<u64, u64, _>::new(pages.clone());
    front.push(&1).unwrap();
    let _ = front.publish();
    front.push(&2).unwrap();
    // A response to a request that was not published.
    set(&pages, RSP_PROD, 2);
    assert_eq!(front.poll_response(), Err(Error::Corrupt));
    set(&pages, RSP_PROD, 1);
    assert_eq!(front.poll_response(), Err(Error::Corrupt));
    assert_eq!(front.push(&3), Err(Error::Corrupt));
    set(&pages, REQ_EVENT, 2);
    assert!(!front.publish());
    assert_eq!(get(&pages, REQ_PROD), 1);

    let pages = SharedPages::new(1);
    let mut peer = Peer::front(&pages, 8, 0);
    let mut back = BackRing::<u64, u64, _>::attach(pages.clone()).unwrap();
    peer.send(&1_u64);
    assert_eq!(back.poll_request(), Ok(Some(1)));
    // Takes back what was taken.
    set(&pages, REQ_PROD, 0);
    assert_eq!(back.poll_request(), Err(Error::Corrupt));
    set(&pages, REQ_PROD, 1);
    assert_eq!(back.poll_request(), Err(Error::Corrupt));
    assert_eq!(back.push(&1), Err(Error::Corrupt));
    assert!(!back.publish());
}

/// One that answers at once, and one that answers late and out of order, are both told apart by ids.
#[test]
fn responses_find_their_requests_in_any_order() {
    let pages = SharedPages::new(1);
    let mut front = FrontRing::<[u64; 2], u64, _>::starting_at(pages.clone(), u32::MAX - 50);
    let mut back = BackRing::<[u64; 2], u64, _>::attach(pages).unwrap();
    let (in_flight, rounds) = if cfg!(miri) { (4, 3) } else { (front.size(), 40) };
    let mut requests = Requests::new(in_flight).unwrap();
    let (mut kept, mut next, mut answered) = (Vec::new(), 0_u64, Vec::new());
    for round in 0..rounds {
        while front.room() > front.size() - in_flight {
            let id = requests.insert(next).expect("as many as the ring has room for");
            front.push(&[u64::from(id), next]).unwrap();
            next += 1;
        }
        assert_eq!(requests.insert(0), Err(0), "none is left when there is no room");
        let _ = front.publish();
        while let Some(request) = back.poll_request().unwrap() {
            kept.push(request);
        }
        for _ in 0..=round {
            let [id, _] = kept.swap_remove(round * 7 % kept.len());
            back.push(&id).unwrap();
        }
        let _ = back.publish();
        while let Some(id) = front.poll_response().unwrap() {
            answered.push(requests.remove(id).expect("a request in flight"));
        }
        assert_eq!(requests.in_flight(), kept.len());
    }
    answered.extend(kept.iter().map(|&[_, number]| number));
    answered.sort_unstable();
    assert_eq!(answered, (0..next).collect::<Vec<_>>());
}

#[test]
fn an_id_is_used_again_after_its_response_and_last_of_all() {
    let mut requests = Requests::new(4).unwrap();
    let ids: Vec<u32> = (0..3).map(|value| requests.insert(value).unwrap()).collect();
    assert_eq!(requests.remove(ids[1]), Ok(1));
    assert_eq!(requests.remove(ids[1]), Err(Error::NotInFlight(ids[1].into())), "answered twice");
    let fourth = requests.insert(3).unwrap();
    assert!(!ids.contains(&fourth), "an id that was never used comes before one that was");
    assert_eq!(requests.remove(ids[1]), Err(Error::NotInFlight(ids[1].into())), "and a late one is still found out");
    assert_eq!(requests.insert(4), Ok(ids[1]));
    assert_eq!(requests.insert(5), Err(5));
    for id in [4, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        assert_eq!(requests.remove(id), Err(Error::NotInFlight(id)));
    }
    assert_eq!(requests.in_flight(), 4);
}

proptest! {
    #![proptest_config(config())]

    /// Any responses, in any order and as often as a peer likes: what is in flight is taken back once, the rest is refused.
    #[test]
    fn any_response_is_matched(capacity in 0_u32..9, steps in proptest::collection::vec(any::<Option<u8>>(), 0..MANY as usize)) {
        let mut requests = Requests::new(capacity).unwrap();
        let mut model = std::collections::BTreeMap::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                None => match requests.insert(number) {
                    Ok(id) => {
                        prop_assert!(id < capacity);
                        prop_assert_eq!(model.insert(id, number), None, "an id in flight is not given out");
                    }
                    Err(back) => prop_assert_eq!((back, model.len() as u32), (number, capacity)),
                },
                Some(id) => {
                    let id = u32::from(id % 10);
                    prop_assert_eq!(requests.remove(id), model.remove(&id).ok_or(Error::NotInFlight(id.into())));
                }
            }
            prop_assert_eq!(requests.in_flight(), model.len());
        }
    }

    /// Whatever the batches, and wherever indices start: nothing is lost, repeated or reordered, and no more is in flight
    /// than there is room for.
    #[test]
    fn a_front_end_is_served(
        start in starts(),
        pages in 1_usize..4,
        steps in proptest::collection::vec((0..MANY, 0..MANY, 0..MANY), 1..12),
    ) {
        let memory = SharedPages::new(pages);
        let mut front = FrontRing::<[u32; 14], u32, _>::starting_at(memory.clone(), start);
        let mut peer = Peer::back(&memory, 56, start);
        let (mut pushed, mut served, mut answered, mut taken) = (0_u32, 0, 0, 0);
        for (push, serve, answer) in steps {
            for _ in 0..push {
                let room = pushed - taken < peer.size;
                prop_assert_eq!(front.push(&[pushed; 14]), if room { Ok(()) } else { Err(Error::Full) });
                pushed += u32::from(room);
            }
            let _ = front.publish();
            for _ in 0..serve.min(pushed - served) {
                prop_assert_eq!(peer.receive(), Some([served; 14]));
                served += 1;
            }
            for _ in 0..answer.min(served - answered) {
                peer.send(&!answered);
                answered += 1;
            }
            // Not always all of them.
            for _ in 0..answer.max(push) {
                let response = front.poll_response().unwrap();
                prop_assert_eq!(response, (taken < answered).then_some(!taken));
                taken += u32::from(response.is_some());
            }
        }
    }

    /// As above, for a back end.
    #[test]
    fn a_back_end_serves(
        start in starts(),
        pages in 1_usize..4,
        steps in proptest::collection::vec((0..MANY, 0..MANY, 0..MANY), 1..12),
    ) {
        let memory = SharedPages::new(pages);
        let mut peer = Peer::front(&memory, 56, start);
        let mut back = BackRing::<[u32; 14], u32, _>::attach(memory).unwrap();
        let (mut sent, mut taken, mut answered, mut received) = (0_u32, 0, 0, 0);
        for (send, take, answer) in steps {
            for _ in 0..send.min(peer.size - (sent - received)) {
                peer.send(&[sent; 14]);
                sent += 1;
            }
            for _ in 0..take {
                let request = back.poll_request().unwrap();
                prop_assert_eq!(request, (taken < sent).then_some([taken; 14]));
                taken += u32::from(request.is_some());
            }
            for _ in 0..answer {
                let owed = answered < taken;
                prop_assert_eq!(back.push(&!answered), if owed { Ok(()) } else { Err(Error::NoRequest) });
                answered += u32::from(owed);
            }
            prop_assert_eq!(peer.receive::<u32>().is_some(), false, "not published");
            let _ = back.publish();
            while received < answered {
                prop_assert_eq!(peer.receive(), Some(!received));
                received += 1;
            }
        }
    }

    /// Any index of a back end is one of a response to a published request, or an error.
    #[test]
    fn any_index_of_a_back_end_is_judged(
        start in starts(),
        published in 0..=MOST,
        taken in 0..=MOST,
        unpublished in 0_u32..9,
        choice in choices(),
    ) {
        let shown = choice.index(taken.min(published), published);
        let pages = SharedPages::new(1);
        let mut front = FrontRing::<u64, u64, _>::starting_at(pages.clone(), start);
        for _ in 0..published {
            front.push(&0).unwrap();
        }
        let _ = front.publish();
        let taken = taken.min(published);
        set(&pages, RSP_PROD, start.wrapping_add(taken));
        for _ in 0..taken {
            prop_assert!(front.poll_response().unwrap().is_some());
        }
        for _ in 0..unpublished.min(front.room()) {
            front.push(&0).unwrap();
        }
        set(&pages, RSP_PROD, start.wrapping_add(shown));
        let mut count = 0;
        let result = loop {
            match front.poll_response() {
                Ok(Some(_)) => count += 1,
                other => break other,
            }
        };
        let possible = (taken..=published).contains(&shown);
        prop_assert_eq!(result, if possible { Ok(None) } else { Err(Error::Corrupt) });
        prop_assert_eq!(count, if possible { shown - taken } else { 0 });
    }

    /// Any index of a front end is one of a request that there is room for, or an error.
    #[test]
    fn any_index_of_a_front_end_is_judged(
        start in starts(),
        sent in 0..=MOST,
        answered in 0..=MOST,
        unpublished in 0_u32..9,
        choice in choices(),
    ) {
        let shown = choice.index(sent, answered.min(sent) + 256);
        let pages = SharedPages::new(1);
        let mut peer = Peer::front(&pages, 8, start);
        let mut back = BackRing::<u64, u64, _>::attach(pages.clone()).unwrap();
        for _ in 0..sent {
            peer.send(&0_u64);
            prop_assert!(back.poll_request().unwrap().is_some());
        }
        let answered = answered.min(sent);
        for _ in 0..answered {
            back.push(&0).unwrap();
        }
        let _ = back.publish();
        for _ in 0..unpublished.min(back.unanswered()) {
            back.push(&0).unwrap();
        }
        set(&pages, REQ_PROD, start.wrapping_add(shown));
        let mut count = 0;
        let result = loop {
            match back.poll_request() {
                Ok(Some(_)) => count += 1,
                other => break other,
            }
        };
        let possible = (sent..=answered + 256).contains(&shown);
        prop_assert_eq!(result, if possible { Ok(None) } else { Err(Error::Corrupt) });
        prop_assert_eq!(count, if possible { shown - sent } else { 0 });
    }

    /// The peer is notified when its event is among the new indices, whatever it says otherwise.
    #[test]
    fn the_event_decides_who_is_notified(
        start in starts(),
        before in 0..MANY,
        count in 0..MANY,
        choice in choices(),
    ) {
        let event = choice.index(before, before + count);
        let pages = SharedPages::new(1);
        let mut front = FrontRing::<u64, u64, _>::starting_at(pages.clone(), start);
        for _ in 0..before {
            front.push(&0).unwrap();
        }
        let _ = front.publish();
        for _ in 0..count {
            front.push(&0).unwrap();
        }
        set(&pages, REQ_EVENT, start.wrapping_add(event));
        prop_assert_eq!(front.publish(), (before + 1..=before + count).contains(&event));
        prop_assert!(!front.publish());
    }
}

#[test]
fn next_response_names_slot_and_never_arms() {
    let pages = SharedPages::new(1);
    let mut front = FrontRing::<[u8; 12], [u8; 4], _>::starting_at(pages.clone(), u32::MAX - 1);
    let mut back = BackRing::<[u8; 12], [u8; 4], _>::attach(pages.clone()).unwrap();
    let event = word(&pages, RSP_EVENT).load(Ordering::Relaxed);
    for number in 0..4 {
        assert_eq!(front.next_slot(), (254 + u32::from(number)) % 256);
        front.push(&[number; 12]).unwrap();
    }
    assert_eq!((front.publish(), front.in_flight()), (true, 4));
    assert_eq!(front.next_response(), Ok(None));
    while let Some(request) = back.poll_request().unwrap() {
        back.push(&[request[0]; 4]).unwrap();
    }
    assert!(back.publish(), "the event of a new ring");
    for number in 0..4 {
        let slot = (254 + u32::from(number)) % 256;
        assert_eq!(front.next_response(), Ok(Some((slot, [number; 4]))));
    }
    assert_eq!((front.next_response(), front.in_flight()), (Ok(None), 0));
    assert_eq!(word(&pages, RSP_EVENT).load(Ordering::Relaxed), event);
}

#[test]
fn requested_notification_comes_at_its_count() {
    let pages = SharedPages::new(1);
    let mut front = FrontRing::<[u8; 12], [u8; 4], _>::new(pages.clone());
    let mut back = BackRing::<[u8; 12], [u8; 4], _>::attach(pages).unwrap();
    // With nothing in flight the next one is asked for.
    assert_eq!(front.request_notification(7), Ok(false));
    for number in 0..8 {
        front.push(&[number; 12]).unwrap();
    }
    assert!(front.publish());
    assert_eq!(front.request_notification(4), Ok(false));
    let mut notified = Vec::new();
    while let Some(request) = back.poll_request().unwrap() {
        back.push(&[request[0]; 4]).unwrap();
        notified.push(back.publish());
    }
    assert_eq!(notified, [false, false, false, true, false, false, false, false]);
    assert_eq!(front.request_notification(1), Ok(true), "responses are there");
    for _ in 0..8 {
        assert!(front.next_response().unwrap().is_some());
    }
    assert_eq!(front.request_notification(u32::MAX), Ok(false), "held to what is in flight, or 1");
    front.push(&[9; 12]).unwrap();
    assert!(front.publish());
    assert_eq!(front.request_notification(u32::MAX), Ok(false));
    back.poll_request().unwrap().unwrap();
    back.push(&[9; 4]).unwrap();
    assert!(back.publish());
}

#[test]
fn index_that_moves_back_to_a_possible_one_is_corrupt() {
    let pages = SharedPages::new(1);
    let mut front = FrontRing::<[u8; 12], [u8; 4], _>::new(pages.clone());
    for number in 0..4 {
        front.push(&[number; 12]).unwrap();
    }
    assert!(front.publish());
    word(&pages, RSP_PROD).store(3, Ordering::Release);
    assert!(front.next_response().unwrap().is_some());
    word(&pages, RSP_PROD).store(2, Ordering::Release);
    assert_eq!(front.request_notification(1), Err(Error::Corrupt));
    assert_eq!(front.push(&[0; 12]), Err(Error::Corrupt));
}
