//! The unikernel.

#![no_std]
#![no_main]

domu::main!(main);

async fn main(domain: domu::Domain) -> domu::Result {
    log::info!("{}", {crate}::greeting(domain.id().0));
    Ok(())
}
