//! A ring of bytes in a shared page, seen by the side that produces (the console's output, xenstore's requests) or that
//! consumes (the console's input, xenstore's answers).
//!
//! Indices are 32 bits wide, run freely and wrap at 2^32; an index modulo the ring's size is a place in the buffer.
//! Each side keeps its own index here and never reads it back; the other index is the peer's, who may lie.
//!
//! ```text
//!   producer                                  consumer
//!   1. read cons           (Acquire)          a. read prod           (Acquire)
//!   2. write bytes         (after 1)          b. read bytes          (after a)
//!   3. write prod          (Release)          c. write cons          (Release)
//!   4. notify, when the batch is complete     d. notify
//! ```
//!
//! 1 pairs with c: bytes are overwritten only after they were read. 3 pairs with a: the consumer sees the bytes of every
//! index that it sees. 4 and d are hypercalls and thereby full barriers: the peer that wakes sees 3, or c. Waiting, for room
//! or for bytes, works the other way round: take note of the port's events, then look at the peer's index; a notification
//! that comes in between ends the wait that follows.

use core::sync::atomic::Ordering;

use super::SharedPage;

/// Where a ring lies in its page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Offset of the buffer.
    pub(crate) data: usize,
    /// Bytes in the buffer, a power of two.
    pub(crate) size: u32,
    /// Offset of the producer index.
    pub(crate) producer: usize,
    /// Offset of the consumer index.
    pub(crate) consumer: usize,
}

/// The peer's index is impossible: it claims bytes that were never produced, or takes back bytes it consumed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Corrupt;

/// The producing side of a ring.
#[derive(Debug)]
pub(crate) struct Producer {
    page: SharedPage,
    layout: Layout,
    /// The index we published last.
    produced: u32,
    /// The last index of the peer that was possible.
    consumed: u32,
}

impl Producer {
    /// Joins a ring where its indices stand: they need not start at zero.
    pub(crate) fn attach(page: SharedPage, layout: Layout) -> Result<Self, Corrupt> {
        let produced = page.u32(layout.producer).load(Ordering::Relaxed);
        let consumed = page.u32(layout.consumer).load(Ordering::Acquire);
        if produced.wrapping_sub(consumed) > layout.size {
            return Err(Corrupt);
        }
        Ok(Self { page, layout, produced, consumed })
    }

    /// The last index of the peer that was possible.
    pub(crate) const fn consumed(&self) -> u32 {
        self.consumed
    }

    /// Reads how many bytes the peer has yet to consume.
    pub(crate) fn read_pending(&mut self) -> Result<u32, Corrupt> {
        let consumed = self.page.u32(self.layout.consumer).load(Ordering::Acquire);
        let newly = consumed.wrapping_sub(self.consumed);
        let pending = self.produced.wrapping_sub(self.consumed);
        // Monotonic and not past what was produced: the only indices that an honest peer can show.
        let rest = pending.checked_sub(newly).ok_or(Corrupt)?;
        self.consumed = consumed;
        Ok(rest)
    }

    /// Reads the peer's index, and then as [`append`](Self::append).
    #[cfg(test)]
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<usize, Corrupt> {
        self.read_pending()?;
        Ok(self.append(bytes))
    }

    /// Copies as many bytes as fit, publishes them and returns their number. The caller notifies.
    ///
    /// The room is that of the last look at the peer's index. The peer can make room only.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> usize {
        let room = (self.layout.size - self.produced.wrapping_sub(self.consumed)) as usize;
        let count = room.min(bytes.len());
        if count == 0 {
            return 0;
        }
        let place = (self.produced & (self.layout.size - 1)) as usize;
        let (head, tail) = bytes[..count].split_at(count.min(self.layout.size as usize - place));
        self.page.write(self.layout.data + place, head);
        self.page.write(self.layout.data, tail);
        // `count` is at most the ring's size and thus fits.
        self.produced = self.produced.wrapping_add(count as u32);
        self.page.u32(self.layout.producer).store(self.produced, Ordering::Release);
        count
    }
}

/// The consuming side of a ring.
#[derive(Debug)]
pub(crate) struct Consumer {
    page: SharedPage,
    layout: Layout,
    /// The index we published last.
    consumed: u32,
    /// The last index of the peer that was possible.
    produced: u32,
}

impl Consumer {
    /// Joins a ring where its indices stand; what lies in it already is there to be read.
    pub(crate) fn attach(page: SharedPage, layout: Layout) -> Result<Self, Corrupt> {
        let consumed = page.u32(layout.consumer).load(Ordering::Relaxed);
        let mut consumer = Self { page, layout, consumed, produced: consumed };
        consumer.read_available().map(|_| consumer)
    }

    /// Reads how many bytes the peer has produced that were not taken yet.
    fn read_available(&mut self) -> Result<u32, Corrupt> {
        let produced = self.page.u32(self.layout.producer).load(Ordering::Acquire);
        let available = produced.wrapping_sub(self.consumed);
        // Monotonic and not beyond the ring: the only indices that an honest peer can show.
        if available > self.layout.size || available < self.produced.wrapping_sub(self.consumed) {
            return Err(Corrupt);
        }
        self.produced = produced;
        Ok(available)
    }

    /// Takes as many bytes as there are room and bytes for, gives their places back and returns their number. The caller
    /// notifies.
    pub(crate) fn pop(&mut self, bytes: &mut [u8]) -> Result<usize, Corrupt> {
        let count = (self.read_available()? as usize).min(bytes.len());
        let place = (self.consumed & (self.layout.size - 1)) as usize;
        let (head, tail) = bytes[..count].split_at_mut(count.min(self.layout.size as usize - place));
        self.page.read(self.layout.data + place, head);
        self.page.read(self.layout.data, tail);
        // `count` is at most the ring's size and thus fits.
        self.consumed = self.consumed.wrapping_add(count as u32);
        self.page.u32(self.layout.consumer).store(self.consumed, Ordering::Release);
        Ok(count)
    }
}

/// Each side against another that is written from the header's description, not from our code; last, both against each
/// other.
#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::ptr::NonNull;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const LAYOUT: Layout = Layout { data: 1024, size: 2048, producer: 3084, consumer: 3080 };

    #[repr(align(4096))]
    struct Page(#[expect(dead_code, reason = "reached by raw pointers")] [u8; 4096]);

    /// A page that both ends reach by raw pointers of one allocation, as with real shared memory.
    struct Shared(NonNull<u8>);

    // SAFETY: both ends access the page by atomics only.
    unsafe impl Send for Shared {}

    impl Shared {
        fn new(index: u32) -> Self {
            let page = NonNull::from(Box::leak(Box::new(Page([0xaa; 4096])))).cast();
            let shared = Self(page);
            shared.peer().u32(LAYOUT.producer).store(index, Ordering::Relaxed);
            shared.peer().u32(LAYOUT.consumer).store(index, Ordering::Relaxed);
            shared
        }

        fn peer(&self) -> SharedPage {
            // SAFETY: the page is aligned and lives until `drop`; all accesses go through `SharedPage`.
            unsafe { SharedPage::new(self.0, 1) }
        }

        fn producer(&self) -> Producer {
            Producer::attach(self.peer(), LAYOUT).unwrap()
        }
    }

    impl Drop for Shared {
        fn drop(&mut self) {
            // SAFETY: allocated by `new` as a box of this type; both ends are gone.
            drop(unsafe { Box::from_raw(self.0.cast::<Page>().as_ptr()) });
        }
    }

    /// Consumes up to `limit` bytes.
    fn consume(page: &SharedPage, limit: u32) -> Vec<u8> {
        let produced = page.u32(LAYOUT.producer).load(Ordering::Acquire);
        let mut consumed = page.u32(LAYOUT.consumer).load(Ordering::Relaxed);
        let mut bytes = Vec::new();
        while consumed != produced && (bytes.len() as u32) < limit {
            bytes.push(page.u8(LAYOUT.data + (consumed % LAYOUT.size) as usize).load(Ordering::Relaxed));
            consumed = consumed.wrapping_add(1);
        }
        page.u32(LAYOUT.consumer).store(consumed, Ordering::Release);
        bytes
    }

    #[test]
    fn fills_and_advances_by_what_was_written() {
        let shared = Shared::new(0);
        let mut producer = shared.producer();
        let bytes: Vec<u8> = (0..5000_u32).map(|i| i as u8).collect();
        assert_eq!(producer.push(&bytes), Ok(2048));
        assert_eq!(producer.push(&bytes[2048..]), Ok(0));
        assert_eq!(consume(&shared.peer(), 1), bytes[..1]);
        assert_eq!(producer.push(&bytes[2048..]), Ok(1));
        assert_eq!(consume(&shared.peer(), 5000), bytes[1..2049]);
        assert_eq!(producer.read_pending(), Ok(0));
    }

    #[test]
    fn indices_pass_two_to_the_31_and_two_to_the_32() {
        let starts = [u32::MAX - 2047, u32::MAX, u32::MAX - 2048, (1 << 31) - 5];
        for start in starts.into_iter().take(if cfg!(miri) { 1 } else { 4 }) {
            let shared = Shared::new(start);
            let mut producer = shared.producer();
            let bytes: Vec<u8> = (0..2048_u32).map(|i| (i * 7) as u8).collect();
            for _ in 0..if cfg!(miri) { 1 } else { 3 } {
                assert_eq!(producer.push(&bytes), Ok(2048));
                assert_eq!(producer.push(b"x"), Ok(0));
                assert_eq!(consume(&shared.peer(), 4096), bytes);
            }
        }
    }

    #[test]
    fn impossible_indices_are_detected() {
        // Ahead of what was produced; behind what was consumed; far away.
        for lie in [101, 150, 49, 0, 1 << 31, u32::MAX] {
            let shared = Shared::new(0);
            let mut producer = shared.producer();
            producer.push(&[1; 100]).unwrap();
            assert_eq!(consume(&shared.peer(), 50).len(), 50);
            assert_eq!(producer.read_pending(), Ok(50));
            shared.peer().u32(LAYOUT.consumer).store(lie, Ordering::Release);
            assert_eq!(producer.push(b"more"), Err(Corrupt), "{lie}");
            // The lie does not stick: the peer may correct itself, or the owner of the ring closes it.
            shared.peer().u32(LAYOUT.consumer).store(50, Ordering::Release);
            assert_eq!(producer.read_pending(), Ok(50));
        }
        let shared = Shared::new(0);
        shared.peer().u32(LAYOUT.consumer).store(1, Ordering::Relaxed);
        assert_eq!(Producer::attach(shared.peer(), LAYOUT).unwrap_err(), Corrupt);
    }

    /// Has a thread read what our producer writes, a piece at a time.
    fn exchange(shared: &Shared, mut read: impl FnMut() -> Vec<u8> + Send + 'static) {
        let total = if cfg!(miri) { 500 } else { 200_000 };
        let mut producer = shared.producer();
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            while bytes.len() < total {
                bytes.extend(read());
                std::thread::yield_now();
            }
            bytes
        });
        let bytes: Vec<u8> = (0..total as u32).map(|i| (i ^ i >> 8) as u8).collect();
        let mut written = 0;
        while written < total {
            written += producer.push(&bytes[written..]).unwrap();
            std::thread::yield_now();
        }
        assert_eq!(reader.join().unwrap(), bytes);
    }

    /// Under Miri a plain access to the page on either side would be reported as a data race.
    #[test]
    fn two_threads_exchange_every_byte_in_order() {
        let shared = Shared::new(u32::MAX - 300);
        let peer = shared.peer();
        exchange(&shared, move || consume(&peer, 77));
    }

    /// Produces as much as fits, as a peer does.
    fn produce(page: &SharedPage, bytes: &[u8]) -> usize {
        let consumed = page.u32(LAYOUT.consumer).load(Ordering::Acquire);
        let produced = page.u32(LAYOUT.producer).load(Ordering::Relaxed);
        let count = bytes.len().min((LAYOUT.size - produced.wrapping_sub(consumed)) as usize);
        for (number, &byte) in (0_u32..).zip(&bytes[..count]) {
            let place = LAYOUT.data + (produced.wrapping_add(number) % LAYOUT.size) as usize;
            page.u8(place).store(byte, Ordering::Relaxed);
        }
        page.u32(LAYOUT.producer).store(produced.wrapping_add(count as u32), Ordering::Release);
        count
    }

    #[test]
    fn what_lies_in_a_ring_when_it_is_joined_is_read() {
        let shared = Shared::new(u32::MAX - 2);
        assert_eq!(produce(&shared.peer(), b"early"), 5);
        let mut consumer = Consumer::attach(shared.peer(), LAYOUT).unwrap();
        let mut bytes = [0; 8];
        assert_eq!(consumer.pop(&mut bytes[..3]), Ok(3));
        assert_eq!(consumer.pop(&mut bytes[3..]), Ok(2));
        assert_eq!(consumer.pop(&mut bytes), Ok(0));
        assert_eq!(&bytes[..5], b"early");
    }

    #[test]
    fn impossible_indices_of_a_producer_are_detected() {
        // Behind what was shown, behind what was taken, beyond the ring, far away.
        for lie in [99, 49, 0, 50 + 2049, 1 << 31, u32::MAX] {
            let shared = Shared::new(0);
            let mut consumer = Consumer::attach(shared.peer(), LAYOUT).unwrap();
            assert_eq!(produce(&shared.peer(), &[1; 100]), 100);
            assert_eq!(consumer.pop(&mut [0; 50]), Ok(50));
            shared.peer().u32(LAYOUT.producer).store(lie, Ordering::Release);
            assert_eq!(consumer.pop(&mut [0; 9]), Err(Corrupt), "{lie}");
        }
        let shared = Shared::new(0);
        shared.peer().u32(LAYOUT.producer).store(2049, Ordering::Relaxed);
        assert_eq!(Consumer::attach(shared.peer(), LAYOUT).unwrap_err(), Corrupt);
    }

    /// Our two sides, each on its thread.
    #[test]
    fn our_ends_exchange_every_byte_in_order() {
        let shared = Shared::new(u32::MAX - 300);
        let mut consumer = Consumer::attach(shared.peer(), LAYOUT).unwrap();
        exchange(&shared, move || {
            let mut piece = [0; 77];
            let count = consumer.pop(&mut piece).unwrap();
            piece[..count].to_vec()
        });
    }

    /// Bytes that are written or read at once, at most: more than the ring has, but for Miri, which takes each by itself.
    const LONGEST: usize = if cfg!(miri) { 300 } else { 5000 };

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        /// Whatever the chunks and the reader's appetite: nothing is lost, repeated or reordered.
        #[test]
        fn a_stream_arrives(
            start: u32,
            writes in proptest::collection::vec(0..LONGEST, 1..12),
            reads in proptest::collection::vec(0..LONGEST as u32, 1..12),
        ) {
            let shared = Shared::new(start);
            let mut producer = shared.producer();
            let (mut sent, mut received) = (Vec::new(), Vec::new());
            for (&write, &read) in writes.iter().zip(reads.iter().cycle()) {
                let bytes: Vec<u8> = (0..write).map(|i| (i * 31 + sent.len()) as u8).collect();
                let room = 2048 - (sent.len() - received.len());
                let count = producer.push(&bytes).unwrap();
                prop_assert_eq!(count, room.min(write));
                sent.extend(&bytes[..count]);
                received.extend(consume(&shared.peer(), read));
            }
            received.extend(consume(&shared.peer(), u32::MAX));
            prop_assert_eq!(received, sent);
        }

        /// Any index the peer shows is either a possible one or an error; the free room never exceeds the ring.
        #[test]
        fn any_index_is_judged(start: u32, pushed in 0_usize..3000, shown: u32) {
            let shared = Shared::new(start);
            let mut producer = shared.producer();
            let pushed = producer.push(&std::vec![0; pushed]).unwrap() as u32;
            shared.peer().u32(LAYOUT.consumer).store(shown, Ordering::Release);
            let possible = shown.wrapping_sub(start) <= pushed;
            prop_assert_eq!(producer.read_pending(), if possible {
                Ok(pushed - shown.wrapping_sub(start))
            } else {
                Err(Corrupt)
            });
        }

        /// Whatever a producer writes and how much is read at a time: nothing is lost, repeated or reordered.
        #[test]
        fn a_stream_is_received(
            start: u32,
            writes in proptest::collection::vec(0..LONGEST, 1..12),
            reads in proptest::collection::vec(0..LONGEST, 1..12),
        ) {
            let shared = Shared::new(start);
            let mut consumer = Consumer::attach(shared.peer(), LAYOUT).unwrap();
            let (mut sent, mut received) = (Vec::<u8>::new(), Vec::<u8>::new());
            for (&write, &read) in writes.iter().zip(reads.iter().cycle()) {
                let bytes: Vec<u8> = (0..write).map(|i| (i * 31 + sent.len()) as u8).collect();
                let count = produce(&shared.peer(), &bytes);
                sent.extend(&bytes[..count]);
                let mut piece = std::vec![0; read];
                let count = consumer.pop(&mut piece).unwrap();
                prop_assert_eq!(count, read.min(sent.len() - received.len()));
                received.extend(&piece[..count]);
            }
            let mut rest = std::vec![0; 2048];
            let count = consumer.pop(&mut rest).unwrap();
            received.extend(&rest[..count]);
            prop_assert_eq!(received, sent);
        }

        /// Any index that a producer shows is either a possible one or an error.
        #[test]
        fn any_index_of_a_producer_is_judged(start: u32, pushed in 0_usize..2048, taken in 0_usize..2048, shown: u32) {
            let shared = Shared::new(start);
            let mut consumer = Consumer::attach(shared.peer(), LAYOUT).unwrap();
            let pushed = produce(&shared.peer(), &std::vec![0; pushed]) as u32;
            let taken = consumer.pop(&mut std::vec![0; taken]).unwrap() as u32;
            shared.peer().u32(LAYOUT.producer).store(shown, Ordering::Release);
            let ahead = shown.wrapping_sub(start.wrapping_add(taken));
            let possible = ahead <= LAYOUT.size && ahead >= pushed - taken;
            let mut bytes = std::vec![0; 4096];
            prop_assert_eq!(consumer.pop(&mut bytes), if possible { Ok(ahead as usize) } else { Err(Corrupt) });
        }
    }
}
