//! Does one thing many times, to be priced: its command line is the thing and the number. It tells what it took of what only
//! it can count: `@took HYPERCALLS HALTS`; of sleeps also by how much they were late: `@late LEAST MEDIAN MOST`, in nanoseconds.
//!
//! What needs another domain is done by two of these: the first grants its pages and offers them, and the second is priced.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::Ordering;
use core::time::Duration;

use domu::executor::{activity, spawn, yield_now};
use domu::gnttab::{Grant, Granted, Mapping, ReadWrite, Reference, copy};
use domu::shared::{BackRing, FrontRing};
use domu::{Domain, DomainId, eventchn, memory, time};
use domu_guests::option;

domu::main!(main);

async fn main(domain: Domain) -> Result<(), &'static str> {
    let mut words = domain.words().filter_map(|word| core::str::from_utf8(word.raw()).ok());
    let (Some(thing), Some(times)) = (words.next(), words.next().and_then(|word| word.parse().ok())) else {
        return Err("the command line is a thing and a number");
    };
    let peer = option(&domain, "peer").map(|number| DomainId(number as u16));
    if let Some(peer) = peer
        && option(&domain, "port").is_none()
    {
        let served = if thing == IDLE { knock(domain, peer).await } else { serve(domain, peer).await };
        return served.map_err(|_| "it failed");
    }
    let before = (domain.cost().hypercalls, activity().halts);
    price(domain, thing, times).await.map_err(|_| "it failed")?;
    let after = (domain.cost().hypercalls, activity().halts);
    writeln!(domain.console(), "@took {} {}", after.0 - before.0, after.1 - before.1).map_err(|_| "no console")
}

async fn price(domain: Domain, thing: &str, times: u64) -> domu::Result {
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
        // Nothing is waited for: it has come already.
        "wait" => {
            let port = eventchn::bind_ipi()?;
            port.notify()?;
            port.after(0).await?;
            for _ in 0..times {
                core::hint::black_box(port.after(0).await?);
            }
        }
        // Registered and forgotten, without being waited for.
        "timer" => {
            for _ in 0..times {
                let _ = time::timeout(Duration::from_secs(3600), yield_now()).await;
            }
        }
        // Twice as much as the ring holds.
        "console" => {
            for _ in 0..times {
                domain.console().write_all(&[b'.'; 4096]).await?;
                domain.console().flush().await?;
            }
        }
        "stat_100" => statistics(100, times)?,
        "stat_100000" => statistics(100_000, times)?,
        "stat_1000000" => statistics(1_000_000, times)?,
        "packet" => packets(times, || ()),
        // What halved the bandwidth of the predecessor's firewall.
        "packet_stat" => packets(times, || _ = core::hint::black_box(memory::quick_stat())),
        "pages_1" => pages(1, times)?,
        "pages_16" => pages(16, times)?,
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
        "late" => lateness(domain, times).await?,
        "late_busy" => {
            let busy = spawn(async {
                loop {
                    yield_now().await;
                }
            });
            lateness(domain, times).await?;
            drop(busy);
        }
        // To a domain that does not use it.
        "grant" => {
            for _ in 0..times {
                Granted::<ReadWrite>::try_new(DomainId(0), 1)?.end()?;
            }
        }
        "copy_1" => copies(domain, 1, times).await?,
        "copy_32" => copies(domain, 32, times).await?,
        "map_1" => mappings(domain, 1, times).await?,
        "map_32" => mappings(domain, GRANTED, times).await?,
        "ring" => round_trips(domain, times).await?,
        IDLE => knocks(domain, times).await?,
        "store_read" => reads(domain, 1, times).await?,
        "store_sequence" => reads(domain, READS, times).await?,
        "store_overlap" => overlapping_reads(domain, times).await?,
        "store_transaction" => transactions(domain, times).await?,
        "store_write" => {
            let store = domain.xenstore();
            for number in 0..times {
                store.write("data/n", number.to_string()).await?;
            }
        }
        "store_event" => changes(domain, times).await?,
        _ => log::error!("no such thing: {thing}"),
    }
    Ok(())
}

/// How late so many sleeps of a millisecond are.
async fn lateness(domain: Domain, times: u64) -> domu::Result {
    let mut late = Vec::new();
    for _ in 0..times {
        let deadline = time::now() + Duration::from_millis(1);
        time::sleep_until(deadline).await;
        late.push(deadline.elapsed().as_nanos());
    }
    late.sort_unstable();
    if let [least, .., most] = late[..] {
        domain.console().write_all(format!("@late {least} {} {most}\n", late[late.len() / 2]).as_bytes()).await?;
    }
    Ok(())
}

/// A look at the statistics while there are so many blocks.
fn statistics(blocks: usize, times: u64) -> domu::Result {
    let blocks: Vec<_> = (0..blocks).map(alloc::boxed::Box::new).collect();
    for _ in 0..times {
        core::hint::black_box(memory::quick_stat());
    }
    drop(blocks);
    Ok(())
}

/// What a gateway does with each packet, and one thing more: it comes in a buffer, its sum is checked, its address translated,
/// and it goes out in another.
fn packets(times: u64, more: impl Fn()) {
    const LENGTH: usize = 1514;
    let sum = |packet: &[u8]| packet.iter().fold(0_u16, |sum, &byte| sum.rotate_left(8).wrapping_add(byte.into()));
    for number in 0..times {
        let mut packet = alloc::vec![number as u8; LENGTH];
        let found = sum(core::hint::black_box(&packet));
        packet[26..30].copy_from_slice(&(number as u32).to_be_bytes());
        let mut out = Vec::with_capacity(LENGTH);
        out.extend_from_slice(&packet);
        let new = sum(&out);
        out[24..26].copy_from_slice(&found.wrapping_sub(new).to_be_bytes());
        drop(core::hint::black_box(out));
        more();
    }
}

/// A run of so many pages, zeroed and freed.
fn pages(count: usize, times: u64) -> domu::Result {
    for _ in 0..times {
        core::hint::black_box(memory::Pages::new(count)?);
    }
    Ok(())
}

/// Events on the last of so many ports.
async fn events(ports: usize, times: u64) -> domu::Result {
    let ports = (0..ports).map(|_| eventchn::bind_ipi()).collect::<Result<Vec<_>, _>>()?;
    let Some(port) = ports.last() else { return Ok(()) };
    for seen in 0..times {
        port.notify()?;
        port.after(seen).await?;
    }
    Ok(())
}

/// Bytes of a copy: a packet.
const PACKET: usize = 1514;

/// So many packets, copied by one hypercall out of pages of the domain's own: Xen does the same as for another's.
async fn copies(domain: Domain, count: usize, times: u64) -> domu::Result {
    let granted = Granted::<ReadWrite>::try_new(domain.id(), count)?;
    let grants: Vec<_> = granted.references().map(|reference| Grant { domain: domain.id(), reference }).collect();
    // None of them reaches into another page, so that each is one segment.
    let pages = (0..count).map(|_| memory::Pages::new(1)).collect::<Result<Vec<_>, _>>();
    let mut pages = pages?;
    for _ in 0..times {
        let mut batch = copy::Batch::new();
        for (grant, page) in grants.iter().zip(&mut pages) {
            batch.read(*grant, 0, &mut page.bytes_mut()[..PACKET])?;
        }
        for result in batch.submit().await.iter() {
            (*result)?;
        }
    }
    Ok(())
}

/// Pages that the first domain offers, and how they are told to the second.
const GRANTED: usize = 32;

/// The first of two domains: grants pages, and answers on a ring in the first of them, once the second has made it.
async fn serve(domain: Domain, peer: DomainId) -> domu::Result {
    let port = eventchn::alloc_unbound(peer)?;
    let granted = (0..GRANTED).map(|_| Granted::<ReadWrite>::try_new(peer, 1)).collect::<Result<Vec<_>, _>>()?;
    let mut offer = format!("@offer port={} references=", port.number());
    for reference in granted.iter().flat_map(Granted::references) {
        offer.push_str(&format!("{reference},"));
    }
    offer.push('\n');
    domain.console().write_all(offer.as_bytes()).await?;
    let mut granted = granted.into_iter();
    let Some(memory) = granted.next() else { return Ok(()) };
    // Until the second has made the ring: what it asks to be notified of is not zero then.
    port.until(|| (memory.memory().u32(4).load(Ordering::Acquire) != 0).then_some(())).await?;
    let mut ring = BackRing::<u64, u64, _>::attach(memory)?;
    loop {
        let request = port.until(|| ring.poll_request().transpose()).await??;
        ring.push(&request)?;
        if ring.publish() {
            port.notify()?;
        }
    }
}

/// What one domain waits for, and the other does each millisecond.
const IDLE: &str = "idle";

/// The first of two domains: sends events, once the second has sent one.
async fn knock(domain: Domain, peer: DomainId) -> domu::Result {
    let port = eventchn::alloc_unbound(peer)?;
    domain.console().write_all(format!("@offer port={} references=\n", port.number()).as_bytes()).await?;
    port.after(port.count()).await?;
    loop {
        time::sleep(Duration::from_millis(1)).await;
        port.notify()?;
    }
}

/// Events that come while the domain is halted.
async fn knocks(domain: Domain, times: u64) -> domu::Result {
    let port = eventchn::bind_interdomain(peer_of(domain), option(&domain, "port").unwrap_or(0) as u32)?;
    // The first comes with the binding.
    let mut seen = port.after(0).await?;
    port.notify()?;
    for _ in 0..times {
        seen = port.after(seen).await?;
    }
    Ok(())
}

/// What the first domain has offered.
fn offered(domain: Domain) -> Vec<Reference> {
    let list = domain.words().find_map(|word| word.value_of("references"));
    let list: String = list.into_iter().flatten().map(char::from).collect();
    list.split(',').filter_map(|number| number.parse().ok()).collect()
}

fn peer_of(domain: Domain) -> DomainId {
    DomainId(option(&domain, "peer").unwrap_or(0) as u16)
}

/// So many pages mapped and unmapped.
async fn mappings(domain: Domain, count: usize, times: u64) -> domu::Result {
    let references = offered(domain);
    for _ in 0..times {
        Mapping::<ReadWrite>::new(peer_of(domain), &references[..count]).await?.unmap()?;
    }
    Ok(())
}

/// Requests, each of which waits for its response.
async fn round_trips(domain: Domain, times: u64) -> domu::Result {
    let memory = Mapping::<ReadWrite>::new(peer_of(domain), &offered(domain)[..1]).await?;
    let port = eventchn::bind_interdomain(peer_of(domain), option(&domain, "port").unwrap_or(0) as u32)?;
    let mut ring = FrontRing::<u64, u64, _>::new(memory);
    port.notify()?;
    for number in 0..times {
        ring.push(&number)?;
        if ring.publish() {
            port.notify()?;
        }
        port.until(|| ring.poll_response().transpose()).await??;
    }
    Ok(())
}

/// Reads that belong together.
const READS: usize = 32;

/// So many reads, each after the one before.
async fn reads(domain: Domain, count: usize, times: u64) -> domu::Result {
    let store = domain.xenstore();
    for _ in 0..times {
        for _ in 0..count {
            core::hint::black_box(store.read("name").await?);
        }
    }
    Ok(())
}

/// As many, by a task each.
async fn overlapping_reads(domain: Domain, times: u64) -> domu::Result {
    for _ in 0..times {
        let read = || {
            let store = domain.xenstore();
            spawn(async move { store.read("name").await })
        };
        let tasks: Vec<_> = (0..READS).map(|_| read()).collect();
        for task in tasks {
            core::hint::black_box(task.await?);
        }
    }
    Ok(())
}

/// Transactions of ten writes, one after the other, that nobody interferes with.
async fn transactions(domain: Domain, times: u64) -> domu::Result {
    let store = domain.xenstore();
    for _ in 0..times {
        let change = async |nodes: &domu::xenstore::Nodes| {
            for number in 0..10 {
                nodes.write(format!("data/{number}"), "value").await?;
            }
            Ok::<_, domu::xenstore::Error>(())
        };
        store.transaction(change).await?;
    }
    Ok(())
}

/// Writes, each of which is seen by a watch of the node before there is another.
async fn changes(domain: Domain, times: u64) -> domu::Result {
    let store = domain.xenstore();
    let mut watch = store.watch("data/n").await?;
    watch.next().await?;
    for number in 0..times {
        store.write("data/n", number.to_string()).await?;
        watch.next().await?;
    }
    Ok(())
}
