//! The grant table of a simulated domain, as Xen sees it: its pages, and which entries are in use.
//!
//! Xen looks at an entry when somebody wants to use it, and marks it while it is used. A domain that then changes it, or
//! uses the page for something else, fails the test: at the next hypercall or access to a shared page, or when the use ends.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::collections::BTreeMap;
use std::vec::Vec;

use crate::abi::errno::Errno;
use crate::abi::grant_table::{ENTRIES_PER_FRAME, ENTRY_SIZE, Flags, QuerySize, Status};
use crate::abi::memory::E820_RAM;
use crate::abi::xen::DomainId;
use crate::shared::SharedPage;
use crate::sim::backends::peer::Peer;
use crate::sim::machine::Machine;
use crate::sim::machine::config::GrantsConfig;
use crate::sim::machine::mappings::Mappings;
use crate::sim::machine::memory::{self, CONSOLE_FRAME, STORE_FRAME};

/// Decides about one of the operations of a hypercall on grants before Xen does, by the hypercall's operation and the grant's
/// reference, or the mapping's handle: what is returned is its status.
pub type GrantFault = std::boxed::Box<dyn FnMut(u64, u32) -> Option<Status> + Send>;

/// What Xen knows of a domain's grants, and of those that it uses.
pub(crate) struct Grants {
    frames: Vec<SharedPage>,
    /// Pages that the table may have.
    limit: u32,
    /// Where they are placed.
    placed: BTreeMap<u32, u64>,
    /// Entries in use, by reference.
    pins: BTreeMap<u32, Pin>,
    /// How many entries in use name a frame.
    pinned: BTreeMap<u64, u32>,
    /// The entry that the domain accessed last.
    touched: Option<u32>,
    /// Frames that are granted, by reference: what the entries said when the domain had accessed them.
    granted: Vec<Option<u64>>,
    /// How many those are: nothing is looked for among none.
    count: usize,
    pub(in crate::sim) mappings: Mappings,
    /// Domains whose part the test plays.
    pub(in crate::sim) peers: BTreeMap<u16, Peer>,
    pub(in crate::sim) fault: Option<GrantFault>,
}

/// An entry in use.
#[derive(Debug)]
struct Pin {
    domain: u16,
    frame: u64,
    readers: u32,
    writers: u32,
}

/// An entry, read at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    flags: Flags,
    domain: u16,
    frame: u64,
}

impl Entry {
    const fn word(self) -> u32 {
        self.flags.bits() as u32 | (self.domain as u32) << 16
    }
}

impl Grants {
    /// The table as the toolstack leaves it: its daemons have the console's and xenstore's rings mapped.
    pub(in crate::sim) fn new(config: GrantsConfig, initial_domain: bool) -> Self {
        let grants = Self {
            frames: std::vec![memory::page()],
            limit: config.frames,
            placed: BTreeMap::new(),
            pins: BTreeMap::new(),
            pinned: BTreeMap::new(),
            touched: None,
            granted: std::vec![None; ENTRIES_PER_FRAME as usize],
            count: 0,
            mappings: Mappings::default(),
            peers: BTreeMap::new(),
            fault: config.fault,
        };
        let frames = [CONSOLE_FRAME, STORE_FRAME];
        for (reference, frame) in (0..).zip(frames).filter(|_| !initial_domain) {
            let flags = Flags::PERMIT_ACCESS | Flags::READING | Flags::WRITING;
            grants.frames[0].u32(ENTRY_SIZE * reference + 4).store(frame as u32, Ordering::Relaxed);
            grants.frames[0].u32(ENTRY_SIZE * reference).store(u32::from(flags.bits()), Ordering::Release);
        }
        grants
    }

    /// Those of a domain that goes on from this one, with the same limit and the same tests around it.
    pub(in crate::sim) fn next(&mut self) -> Self {
        let next = Self::new(GrantsConfig { frames: self.limit, fault: self.fault.take() }, false);
        Self { peers: core::mem::take(&mut self.peers), ..next }
    }

    /// Where the table is placed.
    pub(in crate::sim) fn placed_frames(&self) -> Vec<u64> {
        self.placed.values().copied().collect()
    }

    /// The page and offset of an entry, if the table is large enough.
    fn place(&self, reference: u32) -> Option<(SharedPage, usize)> {
        let page = *self.frames.get((reference / ENTRIES_PER_FRAME) as usize)?;
        Some((page, (reference % ENTRIES_PER_FRAME) as usize * ENTRY_SIZE))
    }

    fn entry(&self, reference: u32) -> Option<Entry> {
        let (page, offset) = self.place(reference)?;
        let word = page.u32(offset).load(Ordering::SeqCst);
        let frame = page.u32(offset + 4).load(Ordering::SeqCst);
        Some(Entry { flags: Flags::from_bits_retain(word as u16), domain: (word >> 16) as u16, frame: frame.into() })
    }

    /// Looks whether the domain has left an entry in use alone. It may make it read-only while nobody writes.
    fn check(&self, reference: u32) {
        let (Some(pin), Some(entry)) = (self.pins.get(&reference), self.entry(reference)) else { return };
        let mut flags = Flags::PERMIT_ACCESS | Flags::READING;
        flags.set(Flags::WRITING, pin.writers > 0);
        flags.set(Flags::READ_ONLY, pin.writers == 0 && entry.flags.contains(Flags::READ_ONLY));
        let expected = Entry { flags, domain: pin.domain, frame: pin.frame };
        assert_eq!(entry, expected, "grant {reference} was changed while it is in use: {pin:?}");
    }

    /// The domain does something else: what it did to the entry that it accessed last is done.
    pub(in crate::sim) fn check_touched(&mut self) {
        if let Some(reference) = self.touched.take() {
            self.check(reference);
            self.note(reference);
        }
    }

    /// Notes what an entry says.
    fn note(&mut self, reference: u32) {
        let entry = self.entry(reference).filter(|entry| !entry.flags.is_empty());
        if let Some(granted) = self.granted.get_mut(reference as usize) {
            self.count -= usize::from(granted.is_some());
            *granted = entry.map(|entry| entry.frame);
            self.count += usize::from(granted.is_some());
        }
    }

    /// The domain accesses a page that Xen has placed at a frame.
    pub(in crate::sim) fn touch(&mut self, frame: u64, offset: usize) {
        self.check_touched();
        if let Some((index, _)) = self.placed.iter().find(|(_, place)| **place == frame) {
            self.touched = Some(index * ENTRIES_PER_FRAME + (offset / ENTRY_SIZE) as u32);
        }
    }

    /// References that are granted to somebody, without those of the toolstack's.
    pub(in crate::sim) fn granted(&mut self) -> Vec<u32> {
        self.check_touched();
        let granted = (0..).zip(&self.granted).skip(2).filter(|(_, frame)| frame.is_some());
        granted.map(|(reference, _)| reference).collect()
    }

    /// The domain uses frames anew, or gives them to Xen.
    ///
    /// # Panics
    ///
    /// If somebody else may still access them.
    pub(in crate::sim) fn freed(&mut self, frames: core::ops::Range<u64>) {
        // A domain that panics leaves things as they are.
        if std::thread::panicking() {
            return;
        }
        self.check_touched();
        let pinned = self.pinned.range(frames.clone()).next();
        assert!(pinned.is_none(), "freed while a peer uses it: frame {pinned:x?}");
        if self.count == 0 {
            return;
        }
        let granted = self.granted.iter().flatten().find(|frame| frames.contains(frame));
        assert!(granted.is_none(), "freed while it is granted: frame {granted:x?}");
    }
}

impl Machine {
    /// Answers how large a table is.
    pub(in crate::sim) fn grant_table_size(&self, query: &mut QuerySize) {
        if query.dom != DomainId::SELF.0 {
            query.status = Status::PERMISSION_DENIED;
            return;
        }
        query.status = Status::OKAY;
        query.nr_frames = self.grants.frames.len() as u32;
        query.max_nr_frames = self.grants.limit;
    }

    /// Places a page of the table, which grows up to it.
    pub(in crate::sim) fn place_grant_table(&mut self, index: u64, frame: u64) -> Result<u64, Errno> {
        let index = u32::try_from(index).ok().filter(|index| *index < self.grants.limit).ok_or(Errno::EINVAL)?;
        while self.grants.frames.len() <= index as usize {
            self.grants.frames.push(memory::page());
            self.grants.granted.extend([None; ENTRIES_PER_FRAME as usize]);
        }
        // What is placed twice moves.
        if let Some(before) = self.grants.placed.remove(&index) {
            self.memory.remove(before);
        }
        self.place(frame, self.grants.frames[index as usize].start(), "a page of the grant table");
        self.grants.placed.insert(index, frame);
        Ok(0)
    }

    /// Places a page at a frame.
    ///
    /// # Panics
    ///
    /// If something lies there: that would be lost.
    pub(in crate::sim) fn place(&mut self, frame: u64, page: NonNull<u8>, what: &str) {
        let address = frame << 12;
        let over = self.shown_at(frame);
        assert!(over.is_none(), "{what} is mapped over {over:x?}: that page is lost");
        assert!(self.memory.at(address).is_none(), "{what} is mapped over another page: {address:#x}");
        self.memory.place(frame, page);
    }

    /// The page of RAM behind a frame.
    pub(in crate::sim) fn ram(&self, frame: u64) -> Option<NonNull<u8>> {
        let address = frame << 12;
        let is_ram = |&&(start, size, kind): &&(u64, u64, u32)| {
            kind == E820_RAM && address >= start && address.saturating_add(4096) <= start + size
        };
        let gone = self.given_back.iter().any(|range| range.contains(&frame));
        self.map.iter().find(is_ram).filter(|_| !gone)?;
        self.memory.ram(address)
    }

    /// Somebody uses a grant of this domain's: gives its page.
    pub(in crate::sim) fn pin(&mut self, reference: u32, by: u16, write: bool) -> Result<NonNull<u8>, Status> {
        let entry = self.grants.entry(reference).ok_or(Status::BAD_REFERENCE)?;
        self.grants.check(reference);
        let kind = entry.flags & Flags::from_bits_retain(3);
        let refused = kind != Flags::PERMIT_ACCESS || entry.domain != by;
        if refused || (write && entry.flags.contains(Flags::READ_ONLY)) {
            return Err(Status::GENERAL_ERROR);
        }
        let page = self.ram(entry.frame);
        let page = page.unwrap_or_else(|| panic!("grant {reference} of what is no RAM: {entry:x?}"));
        let marked = entry.flags | Flags::READING | if write { Flags::WRITING } else { Flags::empty() };
        if let Some((table, offset)) = self.grants.place(reference) {
            table.u32(offset).store(Entry { flags: marked, ..entry }.word(), Ordering::SeqCst);
        }
        let new = Pin { domain: by, frame: entry.frame, readers: 0, writers: 0 };
        let pin = self.grants.pins.entry(reference).or_insert(new);
        *if write { &mut pin.writers } else { &mut pin.readers } += 1;
        *self.grants.pinned.entry(entry.frame).or_default() += 1;
        Ok(page)
    }

    /// One use of a grant of this domain's ends.
    pub(in crate::sim) fn unpin(&mut self, reference: u32, write: bool) {
        self.grants.check(reference);
        let Some(pin) = self.grants.pins.get_mut(&reference) else { panic!("grant {reference} is not in use") };
        *if write { &mut pin.writers } else { &mut pin.readers } -= 1;
        let mut done = Flags::empty();
        done.set(Flags::WRITING, pin.writers == 0);
        done.set(Flags::READING, pin.writers + pin.readers == 0);
        let (frame, over) = (pin.frame, done.contains(Flags::READING));
        if over {
            self.grants.pins.remove(&reference);
        }
        match self.grants.pinned.get_mut(&frame) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.grants.pinned.remove(&frame)),
        }
        if let Some((table, offset)) = self.grants.place(reference) {
            table.u32(offset).fetch_and(!u32::from(done.bits()), Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::String;

    use super::*;
    use crate::abi::grant_table::{
        COPY_DESTINATION_GRANT, COPY_SOURCE_GRANT, CopySide, GrantCopy, MAP_HOST, MapGrantRef, UnmapGrantRef,
    };
    use crate::lifecycle::Reason;
    use crate::memory::Pages;
    use crate::memory::unpopulated::Hole;
    use crate::sim::{End, Guest, outside};
    use crate::{arch, hypercall};

    /// The domain whose part the tests play.
    const PEER: u16 = 3;

    fn run(guest: Guest, main: impl FnOnce()) {
        guest.run(async |_| main()).powered_off();
    }

    /// What the panic of a main said.
    fn punished(main: impl FnOnce()) -> String {
        let report = Guest::new().run(async |_| main());
        assert_eq!(report.end, End::Shutdown(Reason::Crash));
        report.debug_text()
    }

    /// A page of the table, placed.
    fn table(index: u32) -> (Hole, SharedPage) {
        let hole = Hole::new(1).unwrap();
        let frame = hole.frames().start;
        // SAFETY: the hole is this test's.
        unsafe { hypercall::grant_table_map(index, frame) }.unwrap();
        let page = NonNull::new(arch::phys(frame << 12)).unwrap();
        // SAFETY: the page is aligned, and accessed by this type only.
        (hole, unsafe { SharedPage::new(page, 1) })
    }

    fn grant(table: SharedPage, reference: usize, page: &Pages, flags: Flags) {
        table.u32(8 * reference + 4).store(page.frame() as u32, Ordering::SeqCst);
        let word = u32::from(flags.bits()) | u32::from(PEER) << 16;
        table.u32(8 * reference).store(word, Ordering::SeqCst);
    }

    fn flags(table: SharedPage, reference: usize) -> Flags {
        Flags::from_bits_retain(table.u32(8 * reference).load(Ordering::SeqCst) as u16)
    }

    #[test]
    #[cfg_attr(miri, ignore = "it is about the simulated Xen, whose code runs in the tests of the crate too")]
    fn the_table_is_as_the_toolstack_leaves_it_and_grows() {
        run(Guest::new().grant_frames(3), || {
            assert_eq!(hypercall::grant_table_size(), Ok((1, 3)));
            let (_hole, first) = table(0);
            assert_eq!([first.u32(0), first.u32(8)].map(|word| word.load(Ordering::SeqCst)), [0x19, 0x19]);
            assert_eq!([first.u32(4), first.u32(12)].map(|word| word.load(Ordering::SeqCst)), [0xfefff, 0xfeffc]);
            assert!((2..1024).all(|word| first.u32(8 * (word / 2)).load(Ordering::SeqCst) == 0 || word < 4));
            let (_third, _) = table(2);
            assert_eq!(hypercall::grant_table_size(), Ok((3, 3)));
            let hole = Hole::new(1).unwrap();
            // SAFETY: the hole is this test's.
            assert_eq!(unsafe { hypercall::grant_table_map(3, hole.frames().start) }, Err(Errno::EINVAL));
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "it is about the simulated Xen, whose code runs in the tests of the crate too")]
    fn what_a_peer_has_is_marked_until_it_gives_it_back() {
        run(Guest::new(), || {
            let (_hole, table) = table(0);
            let page = Pages::new(1).unwrap();
            let refused = |writable| outside(|peer| peer.map(PEER, 8, writable).err());
            assert_eq!(refused(false), Some(Status::GENERAL_ERROR));
            assert_eq!(outside(|peer| peer.map(PEER, 512, false).err()), Some(Status::BAD_REFERENCE));
            grant(table, 8, &page, Flags::PERMIT_ACCESS | Flags::READ_ONLY);
            assert_eq!(refused(true), Some(Status::GENERAL_ERROR));
            assert_eq!(outside(|peer| peer.map(4, 8, false).err()), Some(Status::GENERAL_ERROR));
            assert!(!flags(table, 8).intersects(Flags::READING | Flags::WRITING));
            grant(table, 8, &page, Flags::PERMIT_ACCESS);
            let view = outside(|peer| peer.map(PEER, 8, false)).unwrap();
            assert_eq!(flags(table, 8), Flags::PERMIT_ACCESS | Flags::READING);
            let _ = outside(|peer| peer.map(PEER, 8, true)).unwrap();
            assert_eq!(flags(table, 8), Flags::PERMIT_ACCESS | Flags::READING | Flags::WRITING);
            view.write(4095, &[7]);
            outside(|peer| peer.unmap(PEER, 8, true));
            assert_eq!(flags(table, 8), Flags::PERMIT_ACCESS | Flags::READING);
            outside(|peer| peer.end_peer(PEER));
            assert_eq!(flags(table, 8), Flags::PERMIT_ACCESS);
            assert_eq!(outside(|peer| peer.granted()), [8]);
            table.u32(64).store(0, Ordering::SeqCst);
            assert_eq!(page.bytes()[4095], 7);
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "it is about the simulated Xen, whose code runs in the tests of the crate too")]
    fn what_a_domain_must_not_do_fails_the_test() {
        /// What it does with an entry in use, or with its page.
        type Misuse = fn(SharedPage, Pages);
        let misuse: [(Misuse, &str); 5] = [
            (|table, _| table.u32(64).store(0, Ordering::SeqCst), "was changed while it is in use"),
            (|table, _| table.u32(68).store(7, Ordering::SeqCst), "was changed while it is in use"),
            (|_, page| drop(page), "freed while a peer uses it"),
            (|table, page| grant(table, 9, &page, Flags::PERMIT_ACCESS), "freed while"),
            (
                |table, page| {
                    grant(table, 9, &page, Flags::PERMIT_ACCESS);
                    table.u32(76).store(0xfefff, Ordering::SeqCst);
                    let _ = outside(|peer| peer.map(PEER, 9, false));
                },
                "of what is no RAM",
            ),
        ];
        let count = if cfg!(miri) { 1 } else { misuse.len() };
        for (act, text) in misuse.into_iter().take(count) {
            let said = punished(|| {
                let (_hole, table) = table(0);
                let page = Pages::new(1).unwrap();
                grant(table, 8, &page, Flags::PERMIT_ACCESS);
                let _ = outside(|peer| peer.map(PEER, 8, true)).unwrap();
                act(table, page);
            });
            assert!(said.contains(text), "{said}");
        }
    }

    /// Maps a grant of the peer's at an address.
    fn map(dom: u16, reference: u32, host_addr: u64) -> MapGrantRef {
        let mut batch = [MapGrantRef { host_addr, flags: MAP_HOST, reference, dom, ..MapGrantRef::default() }];
        // SAFETY: nothing but the test uses the memory there; where something is, the test fails.
        unsafe { hypercall::grant_map(&mut batch) }.unwrap();
        batch[0]
    }

    fn unmap(mapped: MapGrantRef) {
        let MapGrantRef { host_addr, handle, .. } = mapped;
        // SAFETY: nothing but the test uses the memory there.
        unsafe { hypercall::grant_unmap(&mut [UnmapGrantRef { host_addr, handle, ..UnmapGrantRef::default() }]) }
            .unwrap();
    }

    #[test]
    #[cfg_attr(miri, ignore = "it is about the simulated Xen, whose code runs in the tests of the crate too")]
    fn what_a_domain_must_not_do_with_the_grants_of_others_fails_the_test() {
        /// What it does with an address where nothing lies.
        type Misuse = fn(u64);
        let misuse: [(Misuse, &str); 6] = [
            (
                |hole| {
                    let mapped = map(PEER, 8, hole);
                    (0..2).for_each(|_| unmap(mapped));
                },
                "unmapped twice",
            ),
            (|_| _ = map(PEER, 8, 0x20_0000), "that page is lost"),
            (|hole| (0..2).for_each(|_| _ = map(PEER, 8, hole)), "mapped over another page"),
            (|hole| _ = map(7, 8, hole), "its page is lost"),
            (|hole| unmap(MapGrantRef { host_addr: hole + 4096, ..map(PEER, 8, hole) }), "is mapped elsewhere"),
            (
                |hole| {
                    let mapped = map(PEER, 8, hole);
                    let page = NonNull::new(arch::phys(hole)).unwrap();
                    // SAFETY: the page is aligned, and accessed by this type only.
                    let page = unsafe { SharedPage::new(page, 1) };
                    page.u8(1).store(1, Ordering::SeqCst);
                    unmap(mapped);
                    let _ = page.u8(1).load(Ordering::SeqCst);
                },
                "mapped no more",
            ),
        ];
        let skipped = if cfg!(miri) { misuse.len() - 1 } else { 0 };
        for (act, text) in misuse.into_iter().skip(skipped) {
            let said = punished(|| {
                let hole = Hole::new(2).unwrap();
                let _ = outside(|peer| peer.offer_grant(PEER, 8, true));
                act(hole.frames().start << 12);
            });
            assert!(said.contains(text), "{said}");
        }
        run(Guest::new(), || {
            let hole = Hole::new(1).unwrap();
            let address = hole.frames().start << 12;
            assert_eq!(map(DomainId::SELF.0, 8, address).status, Status::BAD_DOMAIN);
            assert_eq!(map(PEER, 8, address).status, Status::BAD_DOMAIN);
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "it is about the simulated Xen, whose code runs in the tests of the crate too")]
    fn a_copy_may_name_the_own_grants() {
        run(Guest::new(), || {
            let (_hole, table) = table(0);
            let (mut from, to) = (Pages::new(1).unwrap(), Pages::new(1).unwrap());
            from.bytes_mut()[1..4].copy_from_slice(b"abc");
            for (reference, page) in [(8, &from), (9, &to)] {
                grant(table, reference, page, Flags::PERMIT_ACCESS);
                let own = u32::from(Flags::PERMIT_ACCESS.bits()) | 7 << 16;
                table.u32(8 * reference).store(own, Ordering::SeqCst);
            }
            let side = |place, offset| CopySide { place, domid: 7, offset };
            let flags = COPY_SOURCE_GRANT | COPY_DESTINATION_GRANT;
            let good = GrantCopy { source: side(8, 1), dest: side(9, 4093), len: 3, flags, status: Status(1) };
            let none = GrantCopy { len: 0, ..good };
            let beyond = GrantCopy { len: 4, ..good };
            let foreign = GrantCopy { flags: COPY_DESTINATION_GRANT, ..good };
            let mut batch = [good, none, beyond, foreign];
            // SAFETY: no frame of the domain's is named but by its grants.
            unsafe { hypercall::grant_copy(&mut batch) }.unwrap();
            let refused = [Status::BAD_COPY_ARGUMENT, Status::PERMISSION_DENIED];
            assert_eq!(batch.map(|copy| copy.status), [Status::OKAY, Status::OKAY, refused[0], refused[1]]);
            assert_eq!(to.bytes()[4093..], *b"abc");
            (8..10).for_each(|reference| table.u32(8 * reference).store(0, Ordering::SeqCst));
        });
    }
}
