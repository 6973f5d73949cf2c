//! The heap on real Xen: statistics, large blocks, fragmentation, exhaustion.

use anyhow::Result;

use super::case::{Case, Where};
use super::table::last_words;
use super::verdict::all_ok;
use cargo_xen::lab::domain::Outcome;

const CASES: [&str; 5] = ["heap.figures", "heap.large", "heap.random", "heap.contiguous", "heap.handler"];

/// Random operations, where the test is one of many and where it is one for itself.
const STEPS: [u32; 2] = [20_000, 1_000_000];

/// All of them.
pub fn cases(cases: &mut Vec<Case>) {
    for (steps, place) in STEPS.into_iter().zip([Where::VERSIONS, Where::NOWHERE]) {
        cases.push(
            Case::new(format!("heap::steps_{steps}"), "heap", |outcome| all_ok(outcome, &CASES))
                .memory(32)
                .cmdline(steps.to_string())
                .seconds(240)
                .on(place),
        );
    }
    cases.push(Case::new("heap::exhausted", "heap", exhausted).cmdline("1000 exhaust"));
}

/// An allocation that cannot fail ends the domain, and tells what the heap holds.
fn exhausted(outcome: &Outcome) -> Result<()> {
    ["memory allocation of 1099511627776 bytes failed", "domu: memory: of ", "allocations that failed: 3"]
        .into_iter()
        .try_for_each(|text| last_words(outcome, text))
}
