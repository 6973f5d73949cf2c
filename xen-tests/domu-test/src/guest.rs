//! One test in this domain.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use domu::Domain;

use crate::registry::TESTS;

/// The value of an option of the command line.
fn option(domain: Domain, name: &str) -> Option<String> {
    let value = domain.words().filter_map(|word| word.value_of(name)).last()?;
    String::from_utf8(value.collect::<Vec<u8>>()).ok()
}

/// Runs the test that the command line selects.
///
/// # Errors
///
/// The command line selects none. The failure of a test is no error: the console has it.
pub async fn main(domain: Domain) -> Result<(), String> {
    let Some((name, nonce)) = option(domain, "domu.test").zip(option(domain, "domu.test-nonce")) else {
        let names: Vec<&str> = TESTS.iter().map(|test| test.name()).collect();
        return Err(format!("no test selected (domu.test=NAME domu.test-nonce=WORD); there are: {}", names.join(", ")));
    };
    let test = TESTS.iter().find(|test| test.name() == name).ok_or_else(|| format!("no test is named {name}"))?;
    say(domain, &format!("domu-test {nonce} started\r\n")).await?;
    let end = match (test.start)(domain).await {
        Ok(()) => format!("\r\ndomu-test {nonce} passed\r\n"),
        Err(reason) => format!("\r\ndomu-test {nonce} failed: {}\r\n", reason.escape_debug()),
    };
    say(domain, &end).await
}

/// Writes to the console, and waits until it is read.
async fn say(domain: Domain, text: &str) -> Result<(), String> {
    let console = domain.console();
    console.write_all(text.as_bytes()).await.map_err(|error| format!("{error}"))?;
    console.flush().await.map_err(|error| format!("{error}"))
}
