//! Event channels, time and the executor on real Xen, within a domain.

use super::case::{Case, Where};
use super::verdict::all_ok;

const CASES: [&str; 8] =
    ["events.self", "events.bind", "events.many", "time.sleep", "time.order", "time.busy", "time.wall", "idle.halts"];

/// Events that the domain sends itself, and the same where the test is one of many.
const MANY: u32 = 200_000;
const REDUCED: u32 = 20_000;

/// All of them.
pub fn cases(cases: &mut Vec<Case>) {
    let case = |name: &str, count: u32| {
        Case::new(name, "events", |outcome| all_ok(outcome, &CASES)).cmdline(count.to_string()).seconds(240)
    };
    cases.push(case("events::one_domain", REDUCED).on(Where { processors: true, ..Where::VERSIONS }));
    cases.push(case("events::many", MANY));
}
