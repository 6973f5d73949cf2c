//! Sends back what is typed on the console, byte for byte, until Ctrl-D; with the word `echo=N`, exactly N bytes of any value.

#![no_std]
#![no_main]

use domu::Domain;

domu::main!(main);

/// What a terminal sends for Ctrl-D.
const END_OF_TRANSMISSION: u8 = 4;

async fn main(domain: Domain) -> domu::Result {
    let number = domain.words().find_map(|word| {
        word.value_of("echo")?.try_fold(0_u64, |number, byte| {
            let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
            number.checked_mul(10)?.checked_add(u64::from(digit))
        })
    });
    log::info!("type something; Ctrl-D ends");
    let (console, mut left, mut bytes) = (domain.console(), number.unwrap_or(u64::MAX), [0; 1024]);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let count = console.read(&mut bytes[..most]).await?;
        let typed = &bytes[..count];
        let end = typed.iter().position(|&byte| number.is_none() && byte == END_OF_TRANSMISSION);
        console.write_all(&typed[..end.unwrap_or(count)]).await?;
        left = if end.is_some() { 0 } else { left - count as u64 };
    }
    Ok(())
}
