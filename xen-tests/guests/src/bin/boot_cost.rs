//! Tells what booting has cost: `@cost TICKS HYPERCALLS PAGE_TABLE_BYTES`, counted from the entry point to main.

#![no_std]
#![no_main]

use core::fmt::Write;

use domu::Domain;

domu::main!(main);

async fn main(domain: Domain) -> Result<(), core::fmt::Error> {
    let cost = domain.cost();
    writeln!(domain.console(), "@cost {} {} {}", cost.tsc_ticks, cost.hypercalls, cost.page_table_bytes)
}
