//! Pages on the simulated Xen: runs of all sizes, exhaustion, and what goes back.

use std::collections::BTreeMap;

use domu::memory::{self, Error, Pages};
use domu::sim::{Guest, Report};

/// Runs a guest whose main gives a value.
fn run<T>(guest: Guest, main: impl FnOnce() -> T) -> (T, Report) {
    let (report, found) = guest.look(|_| main());
    let report = report.powered_off();
    (found.expect("main has run"), report)
}

/// Frames that are free in the heap.
fn free(report: &Report) -> u64 {
    report.heap.iter().map(|range| range.end - range.start).sum()
}

/// A domain of so many MiB, all of which are there.
fn guest(mib: u64) -> Guest {
    Guest::new().memory_mib(mib, mib).backed_mib(mib)
}

/// Whether all bytes of some pages are this one.
fn holds(pages: &Pages, byte: u8) -> bool {
    pages.bytes().chunks(4096).all(|page| page == [byte; 4096])
}

/// A generator of numbers that differ, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

#[test]
fn runs_of_all_sizes_are_aligned_zeroed_and_apart() {
    const COUNTS: &[usize] = if cfg!(miri) { &[1, 3, 17] } else { &[1, 2, 3, 5, 8, 255, 256, 257, 511, 512, 700] };
    let before = free(&run(guest(32), || ()).1);
    let ((), report) = run(guest(32), || {
        // What was in use is zeroed before it is again.
        for round in 0..3 {
            let mut all = Vec::new();
            for (index, &count) in COUNTS.iter().enumerate() {
                let mut pages = Pages::new(count).unwrap();
                assert_eq!((pages.count(), pages.len(), pages.bytes().len()), (count, count * 4096, count * 4096));
                assert!(pages.as_ptr().addr().is_multiple_of(4096));
                assert!(holds(&pages, 0), "{count} pages in round {round}");
                pages.bytes_mut().fill(index as u8 + 1);
                all.push(pages);
            }
            for (index, pages) in all.iter().enumerate() {
                assert!(holds(pages, index as u8 + 1), "{} pages", pages.count());
            }
            let mut frames: Vec<_> = all.iter().map(|pages| (pages.frame(), pages.count() as u64)).collect();
            frames.sort_unstable();
            assert!(frames.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "{frames:?}");
        }
        assert_eq!(Pages::new(0).unwrap_err(), Error::NotPages);
        assert_eq!(Pages::new(usize::MAX).unwrap_err(), Error::OutOfMemory);
        memory::trim();
    });
    assert_eq!(free(&report), before);
    // Outside of a domain there is no memory.
    assert_eq!(Pages::new(1).unwrap_err(), Error::OutOfMemory);
    assert_eq!(memory::trim(), 0);
}

#[test]
#[cfg_attr(miri, ignore = "thousands of pages; the same code runs in the other tests")]
fn all_memory_can_be_had_as_pages_and_comes_back() {
    for (mib, count) in [(3, 1), (12, 1), (32, 1), (32, 3), (32, 300)] {
        let before = free(&run(guest(mib), || ()).1);
        let ((taken, again), report) = run(guest(mib), move || {
            let fill = || {
                let mut all = Vec::new();
                let error = loop {
                    match Pages::new(count) {
                        Ok(pages) => all.push(pages),
                        Err(error) => break error,
                    }
                };
                assert_eq!(error, Error::OutOfMemory);
                all.len() * count
            };
            let taken = (fill(), fill());
            assert!(memory::trim() > 0 || count == 300);
            taken
        });
        assert_eq!(taken, again, "{count} pages of {mib} MiB");
        // What is lost: a page of each chunk, and of chunks what runs of no power of two leave free, for smaller ones.
        let in_chunks =
            |frames: usize| frames * if mib < 16 { 30 } else { 31 } / 32 * count / count.next_power_of_two();
        let least = if count > 256 { before as usize - 2 * count } else { in_chunks(before as usize) };
        assert!(taken >= least, "{taken} of {before} pages in {mib} MiB");
        assert_eq!(free(&report), before, "{count} pages of {mib} MiB");
    }
}

#[test]
fn random_operations_agree_with_a_model() {
    const STEPS: usize = if cfg!(miri) { 60 } else { 100_000 };
    let before = free(&run(guest(24), || ()).1);
    let ((), report) = run(guest(24), || {
        let mut numbers = Numbers(42);
        // By first frame: the pages, and what each holds.
        let mut model: BTreeMap<u64, (Pages, u8)> = BTreeMap::new();
        let mut frames = 0;
        for step in 0..STEPS {
            // Three phases: growing, shrinking, even.
            let grows = numbers.below(100) < [70, 35, 50][step * 3 / STEPS];
            if grows {
                let count = match numbers.below(20) {
                    0 => 1 + numbers.below(400),
                    1..4 => 1 + numbers.below(40),
                    _ => 1 + numbers.below(4),
                };
                let Ok(mut pages) = Pages::new(count) else {
                    assert!(frames > 1000, "{count} pages are refused, with {frames} in use");
                    continue;
                };
                let (first, end) = (pages.frame(), pages.frame() + count as u64);
                let below = model.range(..end).next_back();
                assert!(below.is_none_or(|(start, (other, _))| start + other.count() as u64 <= first));
                for page in pages.bytes_mut().chunks_mut(4096) {
                    assert_eq!((page[0], page[2048], page[4095]), (0, 0, 0));
                    let mark = step as u8 | 1;
                    (page[0], page[2048], page[4095]) = (mark, mark, mark);
                }
                frames += count;
                model.insert(first, (pages, step as u8 | 1));
            } else if !model.is_empty() {
                let key = *model.keys().nth(numbers.below(model.len().min(64))).unwrap();
                let (pages, mark) = model.remove(&key).unwrap();
                assert!(pages.bytes().chunks(4096).all(|p| (p[0], p[2048], p[4095]) == (mark, mark, mark)));
                frames -= pages.count();
            }
            if numbers.below(500) == 0 {
                memory::trim();
            }
        }
        drop(model);
        memory::trim();
    });
    assert_eq!(free(&report), before);
}

#[test]
fn a_run_may_be_sent_to_another_thread() {
    fn sendable<T: Send + Sync>() {}
    sendable::<Pages>();
}
