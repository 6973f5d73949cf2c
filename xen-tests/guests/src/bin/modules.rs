//! Looks for a ramdisk of 100,000 patterned bytes, after all free memory was written to.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;

#[path = "../../../suite/src/pattern.rs"]
#[expect(dead_code, reason = "each guest uses a part of it")]
mod pattern;

use domu_guests::{AllMemory, verdict};

domu::main!(main);

async fn main(domain: domu::Domain) -> domu::Result {
    drop(AllMemory::take());
    let result = match domain.modules() {
        // The toolstack of 4.14 rounds the size up to whole pages, and fills with zeroes.
        [module]
            if module.data().len() != pattern::RAMDISK_SIZE
                && module.data().len() != pattern::RAMDISK_SIZE.next_multiple_of(4096) =>
        {
            Err(format!("it has {} bytes", module.data().len()))
        }
        [module] => match module
            .data()
            .iter()
            .enumerate()
            .position(|(i, &byte)| byte != if i < pattern::RAMDISK_SIZE { pattern::ramdisk_byte(i) } else { 0 })
        {
            None => Ok(()),
            Some(place) => Err(format!("byte {place} differs")),
        },
        modules => Err(format!("there are {} modules", modules.len())),
    };
    verdict(&domain, "modules.ramdisk", result);
    Ok(())
}
