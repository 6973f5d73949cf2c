//! Does one thing many times, to be priced: its command line is the thing and the number.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;
use core::time::Duration;

use domu::executor::{spawn, yield_now};
use domu::{Domain, DomainId, eventchn, time};

domu::main!(main);

async fn main(domain: Domain) -> Result<(), &'static str> {
    let mut words = domain.words().filter_map(|word| core::str::from_utf8(word.raw()).ok());
    let (Some(thing), Some(times)) = (words.next(), words.next().and_then(|word| word.parse().ok())) else {
        return Err("the command line is a thing and a number");
    };
    price(thing, times).await.map_err(|_| "it failed")
}

async fn price(thing: &str, times: u64) -> domu::Result {
    match thing {
        "yield" => {
            for _ in 0..times {
                yield_now().await;
            }
        }
        "spawn" => {
            for _ in 0..times {
                spawn(async {}).await;
            }
        }
        "clock" => {
            for _ in 0..times {
                core::hint::black_box(time::now());
            }
        }
        // To a port that nobody has bound to: the hypercall alone.
        "notify" => {
            let port = eventchn::alloc_unbound(DomainId::SELF)?;
            for _ in 0..times {
                port.notify()?;
            }
        }
        // Sent by the domain itself: notified, delivered, waited for.
        "event" => events(1, times).await?,
        "event_10" => events(10, times).await?,
        "event_1000" => events(1000, times).await?,
        // Timer set, halt, event, wake-up.
        "sleep" => {
            for _ in 0..times {
                time::sleep(Duration::from_millis(1)).await;
            }
        }
        _ => log::error!("no such thing: {thing}"),
    }
    Ok(())
}

/// Events on the last of so many ports.
async fn events(ports: usize, times: u64) -> domu::Result {
    let ports = (0..ports).map(|_| eventchn::bind_ipi()).collect::<Result<Vec<_>, _>>()?;
    let Some(port) = ports.last() else { return Ok(()) };
    for seen in 0..times {
        port.notify()?;
        port.after(seen).await;
    }
    Ok(())
}
