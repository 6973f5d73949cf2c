//! The FIFO interface: a word for each port, queues of ports that fired, one for each priority, and up to 131,072 ports.
//!
//! Xen puts a port that fires at the end of the queue of its priority; the links of the queue are in the ports' words. So a
//! delivery costs the same however many ports there are, and the higher priority comes first, whatever was first. Words and
//! control block are pages of the domain's own that Xen writes to; they are never given back.
//!
//! | Xen, for an event | [`take`](Fifo::take) | [`unmask`](Fifo::unmask) |
//! |---|---|---|
//! | 1. sets PENDING | 1. clears upcall_pending | 1. clears MASKED, and reads the word |
//! | 2. looks at MASKED and LINKED: it stops if either is set | 2. swaps `ready` with zero | 2. PENDING but not LINKED: lists the port |
//! | 3. sets LINKED | 3. reads `head`, if its queue was empty | 3. sets upcall_pending |
//! | 4. links it: by the word of the last port, or, if that is no longer LINKED, by `head` | 4. takes the link, clears LINKED; if PENDING and not MASKED: sets MASKED, clears PENDING | |
//! | 5. if by `head`: sets `ready` | 5. swaps `ready` again, for the next port | |
//! | 6. if `ready` was not set: sets upcall_pending | | |
//!
//! Each step is sequentially consistent, and the fourth of `take` and the first of `unmask` are one atomic operation each.
//!
//! *`take` loses nothing.* Xen's link is in the word before our fourth step, which then takes it, or finds that LINKED is
//! gone, and goes by `head`, `ready` and upcall_pending, as an event does that finds its queue empty. An event whose sixth
//! step comes before our first has its `ready` seen by our second or fifth; one whose sixth step comes later leaves
//! upcall_pending set, and is looked for in the next turn.
//!
//! *`unmask` loses nothing.* If Xen's first step comes before ours, we see PENDING. Is LINKED there too, `take` comes to the
//! port in its queue, where it finds it unmasked. Else Xen may have stopped at MASKED, so the port is listed, and `take` looks
//! at it without Xen's doing; or Xen is just going to link it, and `take` comes to it twice. If Xen's first step comes after
//! ours, its second finds the port unmasked.
//!
//! *Nothing is counted twice.* An event is what PENDING says, and is delivered by the one operation that clears it. A
//! second look at a port, in whichever list or queue, finds PENDING clear, or an event that came since.
//!
//! *A number that is used again.* Xen gives out no number whose word is LINKED: that of a port which is closed while it is in
//! a queue stays taken until `take` has come to it, in the next turn. A task that binds, notifies and drops ports without
//! waiting may so use up all numbers, for that turn. In a list here a number may be from its port before. Closing clears
//! PENDING, so the entry delivers nothing of that one's; an event of the new port's that comes meanwhile may be delivered by
//! it, in the order of the old priority.

use alloc::vec::Vec;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use crate::sync::Mutex;
use spin::Once;

use super::again::Again;
use super::{ErrorKind, Priority};
use crate::abi::errno::Errno;
use crate::abi::event_channel::fifo::{BUSY, HEAD, LINK, LINKED, MASKED, PENDING, PORTS, PRIORITIES, READY, WORDS};
use crate::shared::{SharedInfo, SharedPage, SharedWord};
use crate::{arch, hypercall, memory};

/// Pages of event words that there may be.
const PAGES: usize = PORTS as usize / WORDS;

/// The interface of a domain that uses it.
#[derive(Debug)]
pub(super) struct Fifo {
    control: Page,
    /// Event words. A page is there when a port with a word in it was bound.
    pages: Vec<Once<Page>>,
    queues: Mutex<Queues>,
}

/// A page of the domain's own.
#[derive(Clone, Copy, Debug)]
struct Page {
    frame: u64,
    page: SharedPage,
}

impl Page {
    /// Takes a page from the heap, with all words the same.
    fn filled(word: u32) -> Option<Self> {
        let frame = memory::take(1)?;
        let page = NonNull::new(arch::phys(frame << 12))?;
        // SAFETY: a frame of the heap is aligned, mapped read-write for good, and nobody else's from here on.
        let words = unsafe { page.cast::<[MaybeUninit<u32>; WORDS]>().as_mut() };
        words.fill(MaybeUninit::new(word));
        // SAFETY: as above; the reference ends here, and this view, or a copy of it, is the only way to the page.
        let page = unsafe { SharedPage::new(page, 1) };
        Some(Self { frame, page })
    }

    fn fill(&self, word: u32) {
        for index in 0..WORDS {
            self.page.u32(4 * index).store(word, Ordering::Relaxed);
        }
    }

    /// Gives the page to Xen for good, or back to the heap if Xen refuses it.
    fn give(self, hypercall: impl FnOnce(u64) -> Result<(), Errno>) -> Result<Self, Errno> {
        hypercall(self.frame).map(|()| self).inspect_err(|_| {
            // SAFETY: `filled` took this frame alone, Xen has not kept it, and the only pointer to it ends here.
            unsafe { memory::put_back(self.frame) };
        })
    }
}

/// How far the queues were read.
#[derive(Debug, Default)]
struct Queues {
    /// Priorities in whose queue there may be ports, as bits.
    ready: u32,
    /// The next port of each queue; zero if that stands in the control block.
    heads: [u32; PRIORITIES],
    /// Ports that `unmask` has listed.
    again: Again,
    /// The last port was one of those: where there are both, they take turns.
    was_again: bool,
}

/// Whether a word says that its port is to be delivered.
const fn fires(word: u32) -> bool {
    word & (PENDING | MASKED) == PENDING
}

/// The word of a port that was looked at: no longer pending, and masked, if it is to be delivered.
const fn looked_at(word: u32) -> u32 {
    if fires(word) { (word | MASKED) & !PENDING } else { word }
}

impl Fifo {
    /// Switches the domain to this interface. None if it stays with the other: Xen refuses, or there is no memory.
    ///
    /// From when Xen has agreed there is no way back: a reset would close the ports that the toolstack made. Should there be no
    /// page of words then, or Xen refuse it, the domain keeps to this interface, no port can be bound, and each one that is to
    /// be tries again. As long as that fails, who waits for a moment waits awake, as the timer has no port, and a write that
    /// the console has no room for fails.
    pub(super) fn start() -> Option<Self> {
        let mut pages = Vec::new();
        pages.try_reserve_exact(PAGES).ok()?;
        pages.resize_with(PAGES, Once::new);
        // SAFETY: the page is this structure's own, for good, and a `SharedPage` is accessed by atomics.
        let give = |frame| unsafe { hypercall::event_init_control(frame) };
        let control = Page::filled(0)?.give(give).ok()?;
        Some(Self { control, pages, queues: Mutex::default() })
    }

    /// Switches to this interface again, with the same pages, after a resume: no port has a word that means anything.
    pub(super) fn resume(&self) -> Result<(), Errno> {
        *self.queues.lock() = Queues::default();
        self.control.fill(0);
        // SAFETY: as when it was given first.
        unsafe { hypercall::event_init_control(self.control.frame) }?;
        self.pages.iter().map_while(Once::get).try_for_each(|page| {
            page.fill(MASKED);
            // SAFETY: as when it was given first.
            unsafe { hypercall::event_expand_array(page.frame) }
        })
    }

    /// Makes room for a port that was bound, which has the default priority: its word, and a place in the lists.
    pub(super) fn reserve(&self, port: u32) -> Result<(), ErrorKind> {
        self.add_pages(port)?;
        self.queues.lock().again.reserve(port)
    }

    /// Sees to it that the page with a port's word is there, and all before it.
    pub(super) fn add_pages(&self, port: u32) -> Result<(), ErrorKind> {
        let pages = self.pages.get(..=port as usize / WORDS).ok_or(ErrorKind::NoPort)?;
        if pages.last().is_some_and(Once::is_completed) {
            return Ok(());
        }
        // SAFETY: the page is this structure's own, for good, and a `SharedPage` is accessed by atomics.
        let give = |frame| unsafe { hypercall::event_expand_array(frame) };
        let next = || {
            let page = Page::filled(MASKED).ok_or(ErrorKind::OutOfMemory)?;
            page.give(give).map_err(|errno| ErrorKind::from_xen(errno, None))
        };
        pages.iter().try_for_each(|page| page.try_call_once(next).map(|_| ()))
    }

    /// A port's word, if its page is there. Looked up for each access, since the simulated Xen may act before each look-up.
    fn word(&self, port: u32) -> Option<SharedWord<'_, u32>> {
        let page = self.pages.get(port as usize / WORDS)?.get()?.page;
        Some(page.u32(4 * (port as usize % WORDS)))
    }

    /// Changes a port's word as a whole, and returns what it was before. As long as `change` says that it may not be
    /// changed, and when Xen has changed it meanwhile, that is tried again: Xen does so a few times for each event that is
    /// taken from the port, whatever a peer sends.
    fn update(&self, port: u32, change: impl Fn(u32) -> Option<u32>) -> Option<u32> {
        loop {
            let before = self.word(port)?.load(Ordering::SeqCst);
            if let Some(after) = change(before) {
                let result = self.word(port)?.compare_exchange(before, after, Ordering::SeqCst, Ordering::SeqCst);
                if result.is_ok() {
                    return Some(before);
                }
            }
            core::hint::spin_loop();
        }
    }

    /// Forgets that a port is pending.
    pub(super) fn clear_pending(&self, port: u32) {
        self.update(port, |word| Some(word & !PENDING));
    }

    /// Keeps a port from being put into a queue.
    pub(super) fn mask(&self, port: u32) {
        self.update(port, |word| Some(word | MASKED));
    }

    /// Lets a port be put into a queue again, and lists it if it has an event that Xen did not.
    pub(super) fn unmask(&self, info: &SharedInfo, port: u32) {
        // Xen holds BUSY for some instructions.
        let before = self.update(port, |word| if word & BUSY == 0 { Some(word & !MASKED) } else { None });
        if before.is_some_and(|word| word & (PENDING | LINKED) == PENDING) {
            self.queues.lock().again.push(port);
            info.set_upcall();
        }
    }

    /// Sets what a port's next events are delivered before.
    pub(super) fn set_priority(&self, port: u32, priority: Priority) -> Result<(), ErrorKind> {
        hypercall::event_set_priority(port, priority.number()).map_err(ErrorKind::Refused)?;
        self.queues.lock().again.set_priority(port, priority);
        Ok(())
    }

    /// Hands on the ports that are pending and not masked, by priority: they are masked and no longer pending.
    ///
    /// A port that is unmasked meanwhile may fire again at once. So there is a bound, of two for each port, which is in a
    /// queue and listed at most, and of one if no port was bound; what is left then has the next turn.
    pub(super) fn take(&self, info: &SharedInfo, mut each: impl FnMut(u32)) {
        info.take_upcall();
        let most = (2 * self.queues.lock().again.ports()).max(1);
        for _ in 0..most {
            match self.next() {
                Some((port, true)) => each(port),
                Some((_, false)) => {}
                None => return,
            }
        }
        info.set_upcall();
    }

    /// Looks at the next port, and says whether it has fired. None if there is none to look at.
    fn next(&self) -> Option<(u32, bool)> {
        let mut queues = self.queues.lock();
        let ready = || self.control.page.u32(READY);
        // Read first: a swap is dear.
        if ready().load(Ordering::SeqCst) != 0 {
            queues.ready |= ready().swap(0, Ordering::SeqCst);
        }
        let priority = (queues.ready | queues.again.ready()).trailing_zeros() as usize;
        let Queues { ready, heads, again, was_again } = &mut *queues;
        let head = heads.get_mut(priority)?;
        let bit = 1 << priority;
        *was_again = again.ready() & bit != 0 && (*ready & bit == 0 || !*was_again);
        if *was_again {
            let port = again.pop(priority)?;
            let word = self.update(port, |word| Some(looked_at(word)));
            return Some((port, word.is_some_and(fires)));
        }
        let port = if *head == 0 { self.control.page.u32(HEAD + 4 * priority).load(Ordering::SeqCst) } else { *head };
        // A link to a port without a word, which Xen makes none to, ends its queue.
        let word = self.update(port, |word| Some(looked_at(word) & !(LINKED | LINK)));
        *head = word.map_or(0, |word| word & LINK);
        if *head == 0 {
            *ready &= !bit;
        }
        Some((port, word.is_some_and(fires)))
    }
}

#[cfg(test)]
mod tests {
    use crate::eventchn::{self, ErrorKind};

    use crate::shared::INFO;
    use crate::sim::Guest;
    use crate::{executor, local};

    #[test]
    #[cfg_attr(miri, ignore = "a quarter of a minute; tests/fifo.rs has the same code")]
    fn an_upcall_without_a_port_is_over_in_a_turn() {
        // Numbers up to the console's are not to be had.
        Guest::new()
            .port_limit(3)
            .run(async |_| {
                assert_eq!(eventchn::bind_ipi().unwrap_err(), ErrorKind::NoPort);
                assert_eq!(eventchn::abi(), eventchn::Abi::Fifo);
                let info = INFO.of(local::current().unwrap());
                info.set_upcall();
                executor::yield_now().await;
                assert!(!info.upcall_pending());
            })
            .powered_off();
    }
}
