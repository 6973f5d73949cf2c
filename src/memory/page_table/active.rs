//! The page tables in force: made at boot, read-only from then on, and changed through [`protect`] alone.

use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;

use super::address_space::{self, Layout, Place, Region, TooManyRegions};
use super::mapper::{Entry, MOST_SPLIT, Mapper, OutOfTables, Protection, TableMemory, tables_needed};
use crate::arch::{self, Cpu};
use crate::local;
use crate::local::domain_local;
use crate::memory::{FrameRange, Frames};
use crate::sync::Mutex;

domain_local! {
    /// The page tables in force.
    pub(crate) static TABLES: Mutex<Tables>;
}

/// Pages of RAM for tables: adjacent, so that they are one read-only range.
#[derive(Debug)]
struct Arena {
    /// What an earlier chunk had left.
    rest: FrameRange,
    /// Pages of the current chunk that are not in use yet.
    fresh: FrameRange,
}

impl Arena {
    const fn spare(&self) -> u64 {
        self.rest.len() + self.fresh.len()
    }
}

impl TableMemory for Arena {
    fn allocate(&mut self) -> Option<u64> {
        let from = if !self.rest.is_empty() { &mut self.rest } else { &mut self.fresh };
        if from.is_empty() {
            return None;
        }
        let table = from.start << 12;
        from.start += 1;
        // SAFETY: the page is RAM that belongs to the arena, and in no table yet. It can be written to: at boot because
        // the boot tables map it so, later because tables are taken inside of `arch::edit_tables` only.
        unsafe { arch::phys(table).write_bytes(0, 4096) };
        Some(table)
    }

    fn table(&self, address: u64) -> &[AtomicU64; 512] {
        // SAFETY: the trait says that `address` comes from `allocate`: a page of the arena, aligned and initialised, which
        // is only ever seen as these atomics, by this type and by the CPU. Stores have the same ground as in `allocate`.
        unsafe { &*arch::phys(address).cast() }
    }
}

/// The tables, and what they are to say.
#[derive(Debug)]
pub(crate) struct Tables {
    arena: Arena,
    cpu: Cpu,
    root: u64,
    /// Tables in use, in bytes.
    bytes: u64,
    /// What lies where. Boot keeps its own list until there is a heap.
    regions: Vec<Region>,
}

/// There is no room for the tables, or for the list of what they map.
pub(crate) struct NoRoom;

impl From<TooManyRegions> for NoRoom {
    fn from(_: TooManyRegions) -> Self {
        Self
    }
}

impl From<OutOfTables> for NoRoom {
    fn from(_: OutOfTables) -> Self {
        Self
    }
}

/// Tables that a refill may take: the chunk is aligned to its size, and so in one large page.
const REFILL_SPLIT: u64 = 2;

/// Pages in a chunk that the heap gives for more tables.
const REFILL: u64 = 16;

impl Tables {
    /// Makes the tables for a layout, in RAM that is taken out of `free`, and adds their own place to the layout.
    ///
    /// # Safety
    ///
    /// `free` is RAM that nothing uses, and the boot tables are in force.
    pub(crate) unsafe fn build(layout: &mut Layout, free: &mut Frames, cpu: Cpu) -> Result<Self, NoRoom> {
        // To cut the arena out of its surroundings may split two large pages at each level.
        let needed = tables_needed(address_space::mappings(layout.regions()), &cpu) + MOST_SPLIT + REFILL_SPLIT;
        // The boot tables map 4 GiB, and `take` hands out the lowest frames.
        let start = free.take(needed).filter(|start| start + needed <= 1 << 20).ok_or(NoRoom)?;
        let frames = FrameRange { start, end: start + needed };
        layout.place_tables(frames)?;
        let mut arena = Arena { rest: FrameRange { start, end: start }, fresh: frames };
        let mut mapper = Mapper::new(&mut arena, cpu)?;
        for (frames, protection) in address_space::mappings(layout.regions()) {
            mapper.map(frames, protection)?;
        }
        let root = mapper.root();
        let bytes = (needed - arena.spare()) << 12;
        Ok(Self { arena, cpu, root, bytes, regions: Vec::new() })
    }

    /// The address of the root table.
    pub(crate) const fn root(&self) -> u64 {
        self.root
    }

    /// What the tables in use take.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes the list that [`build`](Self::build) worked from, now that there is a heap.
    pub(crate) fn keep(&mut self, layout: &Layout) -> Result<(), NoRoom> {
        self.regions.try_reserve_exact(layout.regions().len()).map_err(|_| NoRoom)?;
        self.regions.extend_from_slice(layout.regions());
        Ok(())
    }

    /// Holds the tables against what they are to say.
    pub(crate) fn check(&mut self, regions: Option<&Layout>) -> Result<Checked, Violation> {
        let Self { arena, cpu, root, bytes, regions: kept } = self;
        let regions = regions.map_or(&**kept, Layout::regions);
        let is_table = |address: u64| {
            address_space::find(regions, address >> 12).is_some_and(|region| region.place == Place::PageTables)
        };
        let mut expected = address_space::mappings(regions);
        // What is still to come of the mapping that the walk is in.
        let mut rest: Option<(FrameRange, Protection)> = None;
        let mut pages = 0;
        Mapper::at(arena, *cpu, *root).visit(is_table, |mut frames, leaf, run| {
            pages += run;
            if leaf.frame() != frames.start {
                return Err(Violation { address: frames.start << 12, kind: Wrong::Mapped(leaf) });
            }
            while !frames.is_empty() {
                let wrong = Violation { address: frames.start << 12, kind: Wrong::Mapped(leaf) };
                let (range, protection) = rest.or_else(|| expected.next()).ok_or(wrong)?;
                if range.start < frames.start {
                    return Err(Violation { address: range.start << 12, kind: Wrong::Missing });
                }
                // All leaves of a run are as the first.
                if range.start > frames.start || !leaf.is(leaf.frame(), protection, cpu) {
                    return Err(wrong);
                }
                let end = frames.end.min(range.end);
                frames.start = end;
                rest = (end < range.end).then_some((FrameRange { start: end, end: range.end }, protection));
            }
            Ok(())
        })?;
        match rest.or_else(|| expected.next()) {
            Some((range, _)) => Err(Violation { address: range.start << 12, kind: Wrong::Missing }),
            None => Ok(Checked { pages, table_bytes: *bytes }),
        }
    }

    fn protect(&mut self, frames: FrameRange, protection: Protection) -> Result<(), Error> {
        let first = self.regions.partition_point(|region| region.frames.end <= frames.start);
        let mut next = frames.start;
        for region in &self.regions[first..] {
            if next >= frames.end {
                break;
            }
            if region.frames.start > next || !matches!(region.place, Place::Ram | Place::Data) {
                return Err(Error::Reserved);
            }
            next = region.frames.end;
        }
        if next < frames.end {
            return Err(Error::Reserved);
        }
        if self.arena.spare() < MOST_SPLIT + REFILL_SPLIT {
            self.refill()?;
        }
        let list = self.list()?;
        self.change(list, frames, protection, None)
    }

    /// Maps frames, where nothing is, as a place of its own; they begin and end at large pages.
    pub(in crate::memory) fn add(&mut self, frames: FrameRange, place: Place) -> Result<(), Error> {
        if self.regions.iter().any(|region| region.frames.overlaps(frames)) {
            return Err(Error::Reserved);
        }
        if self.arena.spare() < MOST_SPLIT + REFILL_SPLIT {
            self.refill()?;
        }
        let mut list = self.list()?;
        let next = self.regions.partition_point(|region| region.frames.end <= frames.start);
        let (before, after) = self.regions.split_at(next);
        list.extend_from_slice(before);
        list.push(Region { frames, place, protection: place.protection() });
        list.extend_from_slice(after);
        self.edit(list, frames, place.protection())
    }

    /// Takes a chunk for more tables from the heap, for good.
    fn refill(&mut self) -> Result<(), Error> {
        let list = self.list()?;
        let start = crate::memory::heap::take(REFILL).ok_or(Error::OutOfMemory)?;
        let frames = FrameRange { start, end: start + REFILL };
        self.change(list, frames, Protection::Read, Some(Place::PageTables))?;
        self.arena.rest = self.arena.fresh;
        self.arena.fresh = frames;
        Ok(())
    }

    /// An empty list with room for what a change makes of this one: a range cuts at most two regions in two.
    fn list(&self) -> Result<Vec<Region>, Error> {
        let mut list = Vec::new();
        list.try_reserve_exact(self.regions.len() + 2).map_err(|_| Error::OutOfMemory)?;
        Ok(list)
    }

    /// Changes the tables and the list. There are enough spare tables for it.
    fn change(
        &mut self,
        mut list: Vec<Region>,
        frames: FrameRange,
        protection: Protection,
        place: Option<Place>,
    ) -> Result<(), Error> {
        let changed = |region: Region| Region { protection, place: place.unwrap_or(region.place), ..region };
        address_space::replace(&self.regions, frames, changed, |region| list.push(region));
        self.edit(list, frames, protection)
    }

    /// Changes the tables, and takes the list that tells of it.
    fn edit(&mut self, list: Vec<Region>, frames: FrameRange, protection: Protection) -> Result<(), Error> {
        let Self { arena, cpu, root, .. } = self;
        let before = arena.spare();
        // SAFETY: the edit writes to pages of the arena alone. The range is RAM or data of the program's own, as the
        // callers have checked, mapped at its own address before and after, or nothing was mapped there before; what is
        // mapped elsewhere stays as it is.
        unsafe {
            arch::edit_tables(frames.start..frames.end, || Mapper::at(arena, *cpu, *root).map(frames, protection))
        }
        .map_err(|OutOfTables| Error::OutOfMemory)?;
        self.bytes += (before - self.arena.spare()) << 12;
        self.regions = list;
        Ok(())
    }
}

/// What lies at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg(any(target_os = "none", test))]
pub(crate) enum Found {
    /// This, which [`protect`] may have protected otherwise than boot did.
    Place(Place, Option<Protection>),
    /// Nothing: no page is mapped there.
    Nothing,
    /// It is not in the image, and that is all that can be known: boot makes the tables, or a change is under way.
    Unknown,
}

#[cfg(any(target_os = "none", test))]
impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(place, changed) => {
                place.fmt(f)?;
                changed.map_or(Ok(()), |protection| write!(f, ", protected as {protection:?} after boot"))
            }
            Self::Nothing => f.write_str("not mapped"),
            Self::Unknown => f.write_str("outside of the image"),
        }
    }
}

/// What lies at an address: as the list of regions has it, or, while that is being made or changed, the image alone.
#[cfg(any(target_os = "none", test))]
pub(crate) fn find(address: u64) -> Found {
    match local::current().and_then(|state| TABLES.of(state).try_lock()) {
        Some(tables) => match address_space::find(&tables.regions, address >> 12) {
            Some(&Region { place, protection, .. }) => {
                Found::Place(place, (protection != place.protection()).then_some(protection))
            }
            None => Found::Nothing,
        },
        None => match address_space::place_in_image(&crate::memory::Image::get(), address >> 12) {
            Some(place) => Found::Place(place, None),
            None => Found::Unknown,
        },
    }
}

/// Error of an operation on memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The range is empty, or does not start and end at multiples of 4096.
    NotPages,
    /// Part of the range is neither heap nor data of the program.
    Reserved,
    /// Not enough free memory, or not contiguous; for [`protect`], none for page tables.
    OutOfMemory,
    /// Refused by Xen: the domain has its maximum, the host has no free memory, or the domain may not ask.
    Refused,
    /// Called again, by the handler for exhausted memory, while the balloon or the page tables wait for memory.
    Busy,
    /// No unpopulated address space left for pages of other domains, or none that is large enough.
    NoSpace,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPages => "memory: not a range of whole pages",
            Self::Reserved => "memory: range outside of the heap and the data of the program",
            Self::OutOfMemory => "memory: not enough free memory",
            Self::Refused => "memory: change of the reservation refused by Xen (maxmem)",
            Self::Busy => "memory: balloon or page tables busy",
            Self::NoSpace => "memory: no unpopulated address space left",
        })
    }
}

impl core::error::Error for Error {}

/// Changes what may be done with pages of the heap, or of static data.
///
/// For the few changes that come after boot: data that is written once, guard pages, generated code. There is no
/// [`Protection`] that is writable and executable, so no sequence of calls makes a page both at once; on a CPU without
/// NX, of which boot warns, whatever can be read can be executed. A change costs a few exits and, where it splits a
/// larger page, a page for the new table; these come from the heap in chunks of 64 KiB and are not given back.
///
/// # Errors
///
/// [`Error::NotPages`] unless the memory is one or more whole pages, [`Error::Reserved`] if not all of it is heap or
/// static data (code, constants, stacks, page tables and what others share are not to be changed), and
/// [`Error::OutOfMemory`]. After an error everything is as before.
///
/// # Safety
///
/// The memory is the caller's. Nobody accesses it in a way that the protection forbids, until another call allows it
/// again: that is a fault, and the end of the domain. Before memory goes back to the heap it is made
/// [`ReadWrite`](Protection::ReadWrite). What is made [`ReadExecute`](Protection::ReadExecute) holds code if anybody
/// calls it.
pub unsafe fn protect(memory: NonNull<[u8]>, protection: Protection) -> Result<(), Error> {
    let whole = |number: usize| number.is_multiple_of(4096);
    if memory.is_empty() || !whole(memory.len()) || !whole(memory.cast::<u8>().addr().get()) {
        return Err(Error::NotPages);
    }
    let state = local::current().ok_or(Error::Reserved)?;
    let start = arch::frame_of(memory.cast::<u8>().as_ptr()).ok_or(Error::Reserved)?;
    let frames = FrameRange { start, end: start + (memory.len() >> 12) as u64 };
    TABLES.of(state).lock().protect(frames, protection)
}

/// What a self-check found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Checked {
    /// Pages that are mapped, of whatever size.
    pub pages: u64,
    /// What the page tables take, in bytes.
    pub table_bytes: u64,
}

/// A page that is not mapped as it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Violation {
    address: u64,
    kind: Wrong,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrong {
    /// By an entry that should not be there.
    Mapped(Entry),
    Missing,
    /// All of it, by a control register.
    Unprotected(&'static str),
}

impl Violation {
    /// Where the page is; zero where it is all of them.
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.address
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Wrong::Mapped(entry) => {
                write!(f, "page at {:#x} has a wrong mapping: ", self.address)?;
                match (entry.writable(), entry.executable()) {
                    (true, true) => f.write_str("writable and executable")?,
                    (true, false) => f.write_str("writable")?,
                    (false, true) => f.write_str("executable")?,
                    (false, false) => f.write_str("read-only")?,
                }
                write!(f, ", entry {:#x}", entry.bits())
            }
            Wrong::Missing => write!(f, "page at {:#x} is not mapped", self.address),
            Wrong::Unprotected(what) => f.write_str(what),
        }
    }
}

impl core::error::Error for Violation {}

/// Looks whether memory is protected as it should be: that the page tables in force are this crate's, that the CPU heeds
/// them (CR0.WP and what else is on in CR4), and that each entry of them is what it should be, to the last bit.
///
/// Boot walks the tables before main, and ends the domain if one is wrong; an appliance may ask again at any time. The
/// cost follows the number of page tables: some thousand instructions for each, and a few exits.
///
/// On a CPU without NX nothing can be kept from being executed; boot has warned of it then.
///
/// # Errors
///
/// The first page that is mapped elsewhere or otherwise than it should be, or missing, or the control register that is
/// not as boot set it.
pub fn self_check() -> Result<Checked, Violation> {
    // Where no domain runs nothing is mapped.
    let Some(state) = local::current() else { return Ok(Checked { pages: 0, table_bytes: 0 }) };
    let mut tables = TABLES.of(state).lock();
    let control = arch::control_registers();
    let unprotected = |what| Err(Violation { address: 0, kind: Wrong::Unprotected(what) });
    if control.cr3 & !0xfff != tables.root {
        return unprotected("other page tables are in force than those of boot");
    }
    if control.cr0 & CR0_WP == 0 {
        return unprotected("the kernel may write to read-only pages: CR0.WP is off");
    }
    if control.cr4 != tables.cpu.cr4() {
        return unprotected("CR4 is not as boot set it");
    }
    tables.check(None)
}

/// Write protection also for the kernel.
const CR0_WP: u64 = 1 << 16;

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering;

    use super::*;

    use crate::memory::Image;
    use crate::sim::Guest;

    /// Memory of the guest's as a caller of `protect` names it.
    fn pages(frame: u64, count: usize) -> NonNull<[u8]> {
        NonNull::slice_from_raw_parts(NonNull::new(arch::phys(frame << 12)).unwrap(), count * 4096)
    }

    fn run(guest: Guest, main: impl FnOnce()) {
        guest
            .run(async |_| -> Result<(), Error> {
                main();
                Ok(())
            })
            .powered_off();
    }

    /// Changes that need a table each: more than boot leaves, also where each takes long.
    const CHANGES: u64 = if cfg!(miri) { 3 } else { 58 };

    /// A frame of the heap in every guest here.
    const HEAP: u64 = 0x180;

    #[test]
    fn only_the_programs_own_memory_can_be_changed() {
        run(Guest::new(), || {
            // SAFETY: nothing uses this memory of the guest's.
            let protect = |frame, count| unsafe { protect(pages(frame, count), Protection::Absent) };
            assert_eq!(protect(HEAP, 1), Ok(()));
            assert_eq!(protect(0x110, 4), Ok(()), "data");
            let image = Image::get();
            let root = TABLES.of(local::current().unwrap()).lock().root() >> 12;
            for frame in [0, image.code.start, image.constants.start, image.sealed.start, image.main_stack.guard] {
                assert_eq!(protect(frame, 1), Err(Error::Reserved), "{frame:#x}");
            }
            for frame in [image.main_stack.frames.start, image.trap_stacks[0].frames.start, root] {
                assert_eq!(protect(frame, 1), Err(Error::Reserved), "{frame:#x}");
            }
            assert_eq!(protect(0x113, 2), Err(Error::Reserved), "data and what is sealed");
            assert_eq!(protect(HEAP, 0), Err(Error::NotPages));
            let odd = NonNull::slice_from_raw_parts(pages(HEAP, 1).cast(), 4095);
            // SAFETY: as before.
            assert_eq!(unsafe { super::protect(odd, Protection::Read) }, Err(Error::NotPages));
            assert!(self_check().is_ok());
        });
    }

    #[test]
    fn changes_are_known_to_the_check_and_to_reports() {
        run(Guest::new().poor_cpu(), || {
            let before = self_check().unwrap();
            let all = [Protection::Read, Protection::ReadExecute, Protection::Absent, Protection::ReadWrite];
            for protection in all.into_iter().skip(if cfg!(miri) { 2 } else { 0 }) {
                // SAFETY: nothing uses this memory of the guest's.
                unsafe { protect(pages(HEAP, 3), protection) }.unwrap();
                let absent = if protection == Protection::Absent { 3 } else { 0 };
                assert_eq!(self_check().unwrap().pages, before.pages - absent);
                let changed = (protection != Protection::ReadWrite).then_some(protection);
                assert_eq!(find(HEAP << 12), Found::Place(Place::Ram, changed));
                assert_eq!(find(0x7fff_0000_0000), Found::Nothing);
            }
        });
    }

    #[test]
    fn tables_for_many_changes_come_from_the_heap() {
        // Each change splits another large page, as far as the simulated memory goes and beyond: the tables of those
        // are real.
        run(Guest::new().memory_mib(512, 512).poor_cpu(), || {
            let before = self_check().unwrap();
            for index in 2..2 + CHANGES {
                let frames = FrameRange { start: index * 512 + 5, end: index * 512 + 6 };
                TABLES.of(local::current().unwrap()).lock().protect(frames, Protection::Read).unwrap();
            }
            let after = self_check().unwrap();
            assert_eq!(after.table_bytes - before.table_bytes, CHANGES * 4096);
            assert_eq!(after.pages - before.pages, CHANGES * 511);
        });
    }

    #[test]
    fn the_check_finds_what_is_wrong() {
        let broken = |frame: u64, change: fn(u64) -> u64| {
            let mut tables = TABLES.of(local::current().unwrap()).lock();
            let mut table = tables.root;
            for level in 1..5 {
                let index = (frame >> (9 * (4 - level))) as usize % 512;
                let place = &tables.arena.table(table)[index];
                let entry = place.load(Ordering::Relaxed);
                if level == 4 || entry & 0x80 != 0 {
                    place.store(change(entry), Ordering::Relaxed);
                    let violation = tables.check(None).unwrap_err();
                    tables.arena.table(table)[index].store(entry, Ordering::Relaxed);
                    return violation;
                }
                table = entry & 0x000f_ffff_ffff_f000;
            }
            unreachable!("the last level has only pages")
        };
        let text = |violation: Violation| std::format!("{violation}");
        run(Guest::new(), || {
            let code = Image::get().code.start;
            assert_eq!(
                text(broken(code, |entry| entry | 2)),
                "page at 0x100000 has a wrong mapping: writable and executable, entry 0x100123"
            );
            assert_eq!(broken(code, |entry| entry | 2).address(), code << 12);
            assert_eq!(text(broken(code + 1, |_| 0)), "page at 0x101000 is not mapped");
            // For user code too, elsewhere, executable, not cached: any bit counts.
            for change in
                [|entry| entry | 4, |entry| entry + 0x1000, |entry| entry & !(1 << 63 | 2), |entry| entry | 0x10]
            {
                let violation = broken(HEAP, change);
                assert_eq!(violation.address(), HEAP << 12);
                assert!(text(violation).starts_with("page at 0x180000 has a wrong mapping: "));
            }
            assert_eq!(
                text(broken(0, |_| 0x8000_0000_0000_0021)),
                "page at 0x0 has a wrong mapping: read-only, entry 0x8000000000000021"
            );
            assert!(TABLES.of(local::current().unwrap()).lock().check(None).is_ok());
        });
    }

    #[test]
    fn a_table_from_elsewhere_is_not_followed() {
        run(Guest::new(), || {
            let mut tables = TABLES.of(local::current().unwrap()).lock();
            let root = tables.root;
            for entry in [HEAP << 12 | 0x23, 0xdead_beef_0000_0023] {
                let before = tables.arena.table(root)[5].swap(entry, Ordering::Relaxed);
                assert_eq!(tables.check(None).unwrap_err().address(), 5 << 39);
                tables.arena.table(root)[5].store(before, Ordering::Relaxed);
            }
            assert!(tables.check(None).is_ok());
        });
    }

    #[test]
    fn the_hosts_own_memory_is_not_the_guests() {
        run(Guest::new(), || {
            let page = std::alloc::Layout::from_size_align(4096, 4096).unwrap();
            // SAFETY: the size is not zero; the call below is refused and changes nothing.
            let result = unsafe {
                let memory = NonNull::new(std::alloc::alloc_zeroed(page)).unwrap();
                let result = super::protect(NonNull::slice_from_raw_parts(memory, 4096), Protection::Read);
                std::alloc::dealloc(memory.as_ptr(), page);
                result
            };
            assert_eq!(result, Err(Error::Reserved));
        });
    }
}
