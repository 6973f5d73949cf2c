//! Two threads that access the same shared bytes in different sizes, in safe code. Miri finds what the language forbids of it.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering::Relaxed;

use domu::shared::Owner;
use domu::sim::SharedPages;

const ROUNDS: u32 = if cfg!(miri) { 8 } else { 10_000 };

#[test]
fn words_of_all_sizes_from_two_threads_lose_no_update() {
    let pages = SharedPages::new(1);
    let other = pages.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                pages.memory().u8(0).fetch_add(1, Relaxed);
                pages.memory().u16(2).fetch_add(1, Relaxed);
            }
        });
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                other.memory().u32(4).fetch_add(1, Relaxed);
                let _ = other.memory().u64(0).load(Relaxed);
                other.memory().u32(0).fetch_or(0, Relaxed);
            }
        });
    });
    let memory = pages.memory();
    assert_eq!((memory.u8(0).load(Relaxed), memory.u16(2).load(Relaxed)), (ROUNDS as u8, ROUNDS as u16));
    assert_eq!(memory.u32(4).load(Relaxed), ROUNDS);
}

#[test]
fn a_store_and_a_copy_of_another_size_do_not_race() {
    let pages = SharedPages::new(1);
    let other = pages.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pages.memory().u8(0).store(1, Relaxed);
            pages.memory().write(16, &[1; 24]);
        });
        scope.spawn(|| {
            other.memory().u32(0).store(2, Relaxed);
            other.memory().u64(16).store(2, Relaxed);
            other.memory().read(0, &mut [0; 32]);
        });
    });
    let first = pages.memory().u32(0).load(Relaxed);
    assert!([2, 1].contains(&first), "{first:#x}");
}
