//! The first unikernel: one line on the console, then power off.

#![no_std]
#![no_main]

domu::main!(main);

async fn main(domain: domu::Domain) -> domu::Result {
    log::info!("hello from domain {}", domain.id());
    Ok(())
}
