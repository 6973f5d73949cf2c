//! A disk: what it is, and a counter in its first sector that survives power cuts.
//!
//! `xl` makes it by `disk = ['phy:/dev/loop0,xvda,w']`.

#![no_std]
#![no_main]

use domu::block::{self, Config, Select};
use domu::{Domain, Result, executor};

domu::main!(main);

async fn main(domain: Domain) -> Result {
    if block::disks(domain).await?.is_empty() {
        log::info!("there is no disk");
        return Ok(());
    }
    let (disk, driver) = block::open(domain, Select::Nth(0), Config::default()).await?;
    let driver = executor::spawn(driver.run());
    let info = disk.connected().await?;
    log::info!("{}: {} bytes, durable by {:?}", disk.number(), info.geometry.bytes(), info.durability);

    let mut sector = [0; 4096];
    disk.read(0, &mut sector).await?;
    let (count, _) = sector.split_at_mut(8);
    let boots = u64::from_le_bytes(count.try_into().unwrap_or_default()).wrapping_add(1);
    count.copy_from_slice(&boots.to_le_bytes());
    match disk.write_durable(0, &sector).await {
        Ok(_) => log::info!("boot {boots}"),
        Err(error) => log::warn!("boot {boots}, which may be forgotten: {error}"),
    }

    // The driver closes the disk when its last handle is dropped.
    drop(disk);
    driver.await?;
    Ok(())
}
