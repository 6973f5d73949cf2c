//! The chain of callers, by frame pointers.
//!
//! Code built with frame pointers keeps in RBP the address of a pair: the caller's RBP, and the return address. After a
//! crash nothing in memory is to be trusted, so the walk reads within the stacks only, upwards only, and ends at the
//! first pair that is not plausible.

use heapless::Vec;

/// Callers that are listed.
const MOST: usize = 24;

/// Addresses in code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Backtrace {
    /// The instruction that failed, for an exception.
    pub(super) at: Option<u64>,
    /// Return addresses, the innermost first, and how often each stands there in a row: a recursion is one of them.
    pub(super) callers: Vec<(u64, u32), MOST>,
    /// There are more.
    pub(super) cut: bool,
}

impl Backtrace {
    /// Walks from a frame pointer on. `on_stack` says whether two words at an address lie on one stack, `is_code`
    /// whether an address can be a return address, `read` reads a word there.
    pub(super) fn walk(
        start: Start,
        on_stack: impl Fn(u64) -> bool,
        is_code: impl Fn(u64) -> bool,
        read: impl Fn(u64) -> u64,
    ) -> Self {
        let mut trace = Self { at: start.at, ..Self::default() };
        // A call that led out of the code had no time to make a frame: its return address is on top of the stack.
        if start.at.is_some_and(|at| !is_code(at)) && start.stack.is_multiple_of(8) && on_stack(start.stack) {
            let caller = read(start.stack);
            if is_code(caller) {
                trace.add(caller);
            }
        }
        let mut frame = start.frame;
        while !trace.cut && frame.is_multiple_of(8) && on_stack(frame) {
            let (next, caller) = (read(frame), read(frame + 8));
            if !is_code(caller) {
                break;
            }
            trace.add(caller);
            // The stack grows down, so a caller's frame lies above; the entry code's is zero.
            if next <= frame {
                break;
            }
            frame = next;
        }
        trace
    }

    fn add(&mut self, caller: u64) {
        if let Some((_, times)) = self.callers.last_mut().filter(|(last, _)| *last == caller) {
            *times += 1;
        } else {
            self.cut = self.callers.push((caller, 1)).is_err();
        }
    }
}

/// Where a walk begins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Start {
    /// The instruction that failed, for an exception.
    pub(super) at: Option<u64>,
    /// The stack pointer then.
    pub(super) stack: u64,
    /// The frame pointer.
    pub(super) frame: u64,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const STACK: core::ops::Range<u64> = 0x8000..0x9000;
    const CODE: core::ops::Range<u64> = 0x1000..0x2000;

    fn walk(frame: u64, words: &[(u64, u64)]) -> Backtrace {
        let memory: BTreeMap<u64, u64> = words.iter().copied().collect();
        Backtrace::walk(
            Start { frame, ..Start::default() },
            |at| STACK.contains(&at) && STACK.contains(&(at + 8)),
            |at| CODE.contains(&at),
            |at| *memory.get(&at).unwrap_or(&0),
        )
    }

    #[test]
    fn a_chain_is_followed_to_its_end() {
        let words =
            [(0x8100, 0x8200), (0x8108, 0x1111), (0x8200, 0x8ff0), (0x8208, 0x1222), (0x8ff0, 0), (0x8ff8, 0x1333)];
        assert_eq!(walk(0x8100, &words).callers, [(0x1111, 1), (0x1222, 1), (0x1333, 1)]);
    }

    #[test]
    fn what_is_not_plausible_ends_it() {
        // Not on the stack, not aligned, not code, pointing down, pointing at itself, half outside.
        for frame in [0, 0x7ff8, 0x8101, 0x9000, 0x8ff8, u64::MAX, u64::MAX - 7] {
            assert!(walk(frame, &[(0x8ff8, 0x8ff8)]).callers.is_empty(), "{frame:#x}");
        }
        assert!(walk(0x8100, &[(0x8100, 0x8200), (0x8108, 0x3000)]).callers.is_empty());
        assert_eq!(walk(0x8200, &[(0x8200, 0x8100), (0x8208, 0x1111), (0x8108, 0x1222)]).callers, [(0x1111, 1)]);
        assert_eq!(walk(0x8200, &[(0x8200, 0x8200), (0x8208, 0x1111)]).callers, [(0x1111, 1)]);
    }

    #[test]
    fn a_jump_out_of_the_code_has_a_caller() {
        let walk = |at, stack| {
            let read = |at| if at == 0x8100 { 0x1111 } else { 0 };
            let start = Start { at: Some(at), stack, frame: 0 };
            Backtrace::walk(start, |at| STACK.contains(&at), |at| CODE.contains(&at), read).callers
        };
        assert_eq!(walk(0, 0x8100), [(0x1111, 1)]);
        assert!(walk(0x1000, 0x8100).is_empty() && walk(0, 0x8108).is_empty() && walk(0, 0x8104).is_empty());
    }

    #[test]
    fn a_long_chain_is_cut() {
        let words: std::vec::Vec<_> =
            (0..100).flat_map(|i| [(0x8000 + 16 * i, 0x8010 + 16 * i), (0x8008 + 16 * i, 0x1000 + i)]).collect();
        let trace = walk(0x8000, &words);
        assert!(trace.cut && trace.callers.len() == MOST);
    }

    #[test]
    fn a_recursion_is_one_caller() {
        let mut words: std::vec::Vec<_> =
            (0..100).flat_map(|i| [(0x8000 + 16 * i, 0x8010 + 16 * i), (0x8008 + 16 * i, 0x1111)]).collect();
        words.extend([(0x8640, 0), (0x8648, 0x1222)]);
        let trace = walk(0x8000, &words);
        assert!(!trace.cut);
        assert_eq!(trace.callers, [(0x1111, 100), (0x1222, 1)]);
    }

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        /// Whatever memory holds, the walk ends, and lists addresses in code only.
        #[test]
        #[cfg_attr(miri, ignore = "minutes to make the words; the walk itself has no unsafe code")]
        fn any_memory_is_walked(
            words in proptest::collection::vec(prop_oneof![any::<u64>(), STACK, CODE], 512),
            frame in prop_oneof![any::<u64>(), STACK],
            (at, stack) in (prop_oneof![any::<u64>(), CODE], prop_oneof![any::<u64>(), STACK]),
        ) {
            let trace = Backtrace::walk(
                Start { at: Some(at), stack, frame },
                |at| STACK.contains(&at) && STACK.contains(&(at + 8)),
                |at| CODE.contains(&at),
                |at| words[(at - STACK.start) as usize / 8],
            );
            prop_assert!(trace.callers.iter().all(|(caller, _)| CODE.contains(caller)));
        }
    }
}
