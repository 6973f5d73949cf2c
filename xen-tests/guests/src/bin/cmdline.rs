//! Prints its command line between brackets, raw.

#![no_std]
#![no_main]

domu::main!(main);

async fn main(domain: domu::Domain) -> domu::Result {
    let console = domain.console();
    console.write(b"[")?;
    console.write(domain.command_line())?;
    console.write(b"]\n")?;
    Ok(())
}
