//! A first program of a user's own, with xenstore, random numbers and a crate that allocates. A test puts it in the place of
//! the README's.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use alloc::string::ToString;
use core::error::Error;

use serde_json::{Value, json};

domu::main!(main);

async fn main(domain: domu::Domain) -> Result<(), Box<dyn Error>> {
    let store = domain.xenstore();
    let name = store.read("name").await?.to_string();
    let mut token = [0; 16];
    getrandom::fill(&mut token)?;
    let record = json!({ "name": name, "domain": domain.id().0, "token": token });
    store.write("data/record", record.to_string()).await?;
    let stored = store.read("data/record").await?.to_string();
    let read: Value = serde_json::from_str(&stored).map_err(|error| error.to_string())?;
    if read != record {
        return Err(stored.into());
    }
    log::info!("xenstore has {stored}");
    Ok(())
}
