//! The two-level interface: a bit for each port in the page of shared information, and a word that says where to look.

use core::sync::atomic::Ordering;

use crate::abi::xen::shared_info as offset;
use crate::shared::{SharedInfo, SharedWord};

/// The word of a bitmap that has a port's bit, and the bit. Looked up for each access, since the simulated Xen may act
/// before each look-up.
fn bit_of(info: &SharedInfo, bitmap: usize, port: u32) -> (SharedWord<'_, u64>, u64) {
    (info.page().u64(bitmap + 8 * (port as usize / 64)), 1 << (port % 64))
}

/// Forgets that a port is pending, so that the next event on it can be noticed.
pub(super) fn clear_pending(info: &SharedInfo, port: u32) {
    let (word, bit) = bit_of(info, offset::PENDING, port);
    word.fetch_and(!bit, Ordering::SeqCst);
}

/// Keeps events on a port from being taken.
pub(super) fn mask(info: &SharedInfo, port: u32) {
    let (word, bit) = bit_of(info, offset::MASK, port);
    word.fetch_or(bit, Ordering::SeqCst);
}

/// Lets events on a port be taken again. One that came meanwhile is raised anew, as Xen would, but without asking it:
/// the port notifies the only virtual CPU.
pub(super) fn unmask(info: &SharedInfo, port: u32) {
    let (word, bit) = bit_of(info, offset::MASK, port);
    word.fetch_and(!bit, Ordering::SeqCst);
    let (word, bit) = bit_of(info, offset::PENDING, port);
    if word.load(Ordering::SeqCst) & bit != 0 {
        info.page().u64(offset::PENDING_SELECTOR).fetch_or(1 << (port / 64), Ordering::SeqCst);
        info.set_upcall();
    }
}

/// Hands on the ports that are pending and not masked: they are masked and no longer pending.
///
/// | Xen, for an event | here |
/// |---|---|
/// | 1. sets the port's pending bit | 1. clears upcall_pending |
/// | 2. sets the word's bit in the selector | 2. swaps the selector with zero |
/// | 3. sets upcall_pending | 3. reads and clears pending bits |
///
/// Each step is sequentially consistent. An event whose third step comes before our first has its bits seen by our
/// second and third; one whose third step comes later leaves upcall_pending set, and is seen in the next turn.
pub(super) fn take(info: &SharedInfo, mut each: impl FnMut(u32)) {
    info.take_upcall();
    for word in bits(info.page().u64(offset::PENDING_SELECTOR).swap(0, Ordering::SeqCst)) {
        for bit in bits(take_word(info, word as usize)) {
            each(word * 64 + bit);
        }
    }
}

/// Takes the ports of a word.
fn take_word(info: &SharedInfo, word: usize) -> u64 {
    let pending = || info.page().u64(offset::PENDING + 8 * word);
    let mask = || info.page().u64(offset::MASK + 8 * word);
    let unmasked = !mask().load(Ordering::SeqCst);
    let ready = pending().load(Ordering::SeqCst) & unmasked;
    if ready != 0 {
        mask().fetch_or(ready, Ordering::SeqCst);
        pending().fetch_and(!ready, Ordering::SeqCst);
    }
    ready
}

/// The numbers of the bits that are set, lowest first.
fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        // Clears the lowest bit that is set.
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
}
