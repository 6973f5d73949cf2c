//! What the figures must show, beside the aims of single ones: costs that follow the work done, and nothing else.

use super::{OPERATIONS, Price};

/// Something that is claimed, in words, and whether it holds.
pub type Claim = (String, bool);

/// What was measured: processor time, hypercalls and halts of each operation, and what allocators take.
pub struct Figures<'a> {
    pub operations: &'a [[f64; 3]],
    pub prices: &'a [Price],
}

/// The allocator under test, its runs of pages, and what its worst may take.
const HEAP: &str = "domu";
const PAGES: &str = "pages";
const WORST: f64 = 400.0;
/// Numbers of blocks that it is to make no difference between.
const FEW: u64 = 20_000;
const MANY: u64 = 1_000_000;

impl Figures<'_> {
    fn operation(&self, what: &str) -> [f64; 3] {
        let found = OPERATIONS.iter().position(|operation| operation.what == what);
        found.and_then(|index| self.operations.get(index)).copied().unwrap_or([f64::NAN; 3])
    }

    /// The worst of allocating and of freeing.
    fn worst(&self, name: &str, blocks: u64) -> [f64; 2] {
        let price = self.prices.iter().find(|price| price.name == name && price.blocks == blocks);
        price.map_or([f64::NAN; 2], |price| [price.figures[1] as f64, price.figures[3] as f64])
    }

    /// All that is claimed.
    pub fn claims(&self) -> Vec<Claim> {
        let mut claims = Vec::new();
        for (few, many, percent) in [
            ("memory::quick_stat of 100 blocks", "the same of 100,000 blocks", 5.0),
            ("of 100 in 4 GiB", "of 1,000,000 in 4 GiB", 5.0),
            ("a packet", "a packet with quick_stat", 1.0),
            ("the same with 10 ports", "the same with 1000 ports", 5.0),
            ("two-level, with 10 ports", "two-level, with 1000 ports", 5.0),
        ] {
            let [one, other] = [few, many].map(|what| self.operation(what)[0]);
            let apart = (other / one - 1.0).abs() * 100.0;
            claims.push((format!("{many}: {apart:.1} % from: {few} (at most {percent} %)"), apart < percent));
        }
        let [_, hypercalls, halts] = self.operation("an event, while idle");
        let holds = hypercalls < 0.1 && (0.9..1.1).contains(&halts);
        claims.push((format!("an event, while idle: {hypercalls:.2} hypercalls, {halts:.2} halts (0 and 1)"), holds));
        let [_, hypercalls, _] = self.operation("32 pages mapped and unmapped");
        claims.push((format!("32 pages mapped and unmapped: {hypercalls:.2} hypercalls (2)"), hypercalls < 2.1));
        let [in_sequence, at_once] = ["32 reads in sequence", "32 reads at once"].map(|what| self.operation(what)[2]);
        let holds = at_once * 4.0 < in_sequence;
        claims.push((format!("32 reads at once: {at_once:.0} round trips instead of {in_sequence:.0}"), holds));
        for name in [HEAP, PAGES] {
            let [few, many] = [FEW, MANY].map(|blocks| self.worst(name, blocks));
            for (index, what) in ["allocating", "freeing"].into_iter().enumerate() {
                let (few, many) = (few[index], many[index]);
                let apart = (many / few - 1.0).abs() * 100.0;
                let text = format!("{name}: {what} takes {few} at most with {FEW} blocks, and {many} with {MANY}");
                claims.push((format!("{text}: {apart:.0} % apart (at most 25 %)"), apart < 25.0));
                if name == HEAP {
                    claims.push((format!("{name}: {what} takes at most {WORST}"), few <= WORST && many <= WORST));
                }
            }
        }
        claims
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_not_shown() {
        let claims = Figures { operations: &[], prices: &[] }.claims();
        assert!(claims.iter().all(|(_, holds)| !holds), "{claims:?}");
    }

    #[test]
    fn what_is_claimed_is_of_rows_that_there_are() {
        let operations = vec![[1.0, 0.0, 1.0]; OPERATIONS.len()];
        let price = |name: &str, blocks| Price { name: name.into(), blocks, figures: [100; 4] };
        let prices: Vec<Price> = [HEAP, PAGES].iter().flat_map(|name| [price(name, FEW), price(name, MANY)]).collect();
        let missed = Figures { operations: &operations, prices: &prices }.claims();
        let missed: Vec<_> = missed.into_iter().filter(|(_, holds)| !holds).collect();
        assert!(matches!(&missed[..], [(text, _)] if text.starts_with("32 reads at once")), "{missed:?}");
    }
}
