//! Prints its command line between brackets, raw.

#![no_std]
#![no_main]

domu::main!(main);

async fn main(domain: domu::Domain) -> domu::Result {
    let console = domain.console();
    console.write_all(b"[").await?;
    console.write_all(domain.command_line()).await?;
    console.write_all(b"]\n").await?;
    Ok(())
}
