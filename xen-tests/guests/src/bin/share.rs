//! Two domains that share pages. The first grants them, has the second do what it can do with them, and judges.
//!
//! It tells the second what to do over a ring of its own: requests of a deed, a number of pages, and two numbers. The pages'
//! references stand in another page that both have. When the first has judged, it says `@idle`, with no grant left, and waits
//! for a line on its console.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{Display, Write};
use core::time::Duration;

use domu::eventchn::{self, Port};
use domu::gnttab::{self, Granted, Mapping, ReadOnly, ReadWrite, Reference, copy};
use domu::shared::{BackRing, FrontRing, SharedMemory};
use domu::{Domain, DomainId, time};
use domu_guests::{ensure, option, verdict};

domu::main!(main);

const PAGE: usize = 4096;

/// Pages of a mapping, at most.
const MOST: usize = 500;

/// What the second is asked for: a deed, a number of pages, and two numbers that depend on the deed.
type Request = [u64; 4];
/// Whether it succeeded, and a number that depends on the deed: mostly the hypercalls that it took.
type Answer = [u64; 2];

/// Map the pages, find one pattern in them, write the other, and keep them mapped.
const MAP: u64 = 0;
/// Map them to be read only, find the pattern, and keep them mapped.
const MAP_READ_ONLY: u64 = 1;
/// Unmap all.
const UNMAP: u64 = 2;
/// Copy them out, and find the pattern.
const COPY_OUT: u64 = 3;
/// Copy the pattern into them.
const COPY_IN: u64 = 4;
/// Map them as a ring, and answer so many messages, with notifications over that port.
const SERVE: u64 = 5;
/// Panic.
const PANIC: u64 = 6;
/// End.
const END: u64 = 7;

type Result<T> = core::result::Result<T, String>;

fn said(error: impl Display) -> String {
    format!("{error}")
}

/// `do=all`: everything that both live through; `do=panic` and `do=destroyed`: the second dies with pages mapped.
async fn main(domain: Domain) -> Result<()> {
    let number = |key| option(&domain, key);
    let peer = DomainId(number("peer").ok_or("no peer is given")? as u16);
    if let (Some(ring), Some(list), Some(port)) = (number("ring"), number("list"), number("port")) {
        let [ring, list] = [ring, list].map(|number| Reference(number as u32));
        return Second::new(domain, peer, ring, list, port as u32).await?.serve().await;
    }
    let mut second = Remote::new(domain, peer).await?;
    let is = |word: &str| domain.words().any(|given| given.raw() == word.as_bytes());
    if is("do=all") {
        for pages in [1, 2, 32, 1000] {
            verdict(&domain, &format!("share.pages_{pages}"), pages_of(&mut second, pages).await);
        }
        verdict(&domain, "share.read_only", read_only(&mut second).await);
        verdict(&domain, "share.batch", batch(&mut second).await);
        verdict(&domain, "share.kept", kept(domain, &mut second).await);
        for pages in [1, 2, 4, 8, 16] {
            for start in [0, 0_u32.wrapping_sub(5), (1 << 31) - 5] {
                verdict(&domain, &format!("share.ring_{pages}_{start:#x}"), ring(&mut second, pages, start).await);
            }
        }
        second.ask(END, 0, 0, 0).await?;
    } else {
        verdict(&domain, "share.dies", dies(domain, &mut second, is("do=panic")).await);
    }
    let left = second.end().await;
    verdict(&domain, "share.counters", left);
    writeln!(domain.console(), "@idle").map_err(said)?;
    domain.console().read(&mut [0]).await.map_err(said)?;
    Ok(())
}

/// The second domain, as the first has it.
struct Remote {
    peer: DomainId,
    ring: FrontRing<Request, Answer, Granted<ReadWrite>>,
    /// References of the pages that a request is about.
    list: Granted<ReadWrite>,
    port: Port,
}

impl Remote {
    async fn new(domain: Domain, peer: DomainId) -> Result<Self> {
        ensure(gnttab::stat().in_use == 0, || format!("at the start: {:?}", gnttab::stat()))?;
        let memory = Granted::<ReadWrite>::new(peer, 1).await.map_err(said)?;
        let list = Granted::<ReadWrite>::new(peer, 1).await.map_err(said)?;
        let port = eventchn::alloc_unbound(peer).map_err(said)?;
        let first = |granted: &Granted<ReadWrite>| granted.references().next().map_or(0, |reference| reference.0);
        let offer = format!("@offer ring={} list={} port={}\n", first(&memory), first(&list), port.number());
        domain.console().write_all(offer.as_bytes()).await.map_err(said)?;
        Ok(Self { peer, ring: FrontRing::new(memory), list, port })
    }

    /// Has the second do something with pages whose references the list has, and waits for its answer.
    async fn ask(&mut self, deed: u64, pages: usize, a: u64, b: u64) -> Result<u64> {
        self.tell(deed, pages, a, b)?;
        self.answer().await
    }

    fn tell(&mut self, deed: u64, pages: usize, a: u64, b: u64) -> Result<()> {
        self.ring.push(&[deed, pages as u64, a, b]).map_err(said)?;
        if self.ring.publish() { self.port.notify().map_err(said) } else { Ok(()) }
    }

    async fn answer(&mut self) -> Result<u64> {
        let ring = &mut self.ring;
        let [succeeded, number] =
            self.port.until(|| ring.poll_response().transpose()).await.map_err(said)?.map_err(said)?;
        ensure(succeeded == 1, || "the second failed".into()).map(|()| number)
    }

    /// Writes the references of pages into the list.
    fn list(&self, references: impl Iterator<Item = Reference>) {
        for (index, reference) in references.enumerate() {
            self.list.memory().write_value(4 * index, &reference.0);
        }
    }

    /// Ends the grants that the second had all the time; it has ended, or is dead.
    async fn end(self) -> Result<()> {
        drop((self.ring, self.list, self.port));
        wait_for(|| gnttab::stat().in_use == 0).await.map(drop)
    }
}

/// Waits until something holds, for twenty seconds at most; tells how long that took.
async fn wait_for(condition: impl Fn() -> bool) -> Result<Duration> {
    let start = time::now();
    while !condition() {
        ensure(start.elapsed() < Duration::from_secs(20), || format!("after 20 s: {:?}", gnttab::stat()))?;
        time::sleep(Duration::from_millis(10)).await;
    }
    Ok(start.elapsed())
}

/// What stands in a page: a pattern of its number and a seed.
fn pattern(page: usize, seed: u64) -> [u8; PAGE] {
    let mut bytes = [0; PAGE];
    let mut word = (seed << 32 | page as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for place in bytes.chunks_exact_mut(8) {
        word = word.rotate_left(7).wrapping_add(seed | 1);
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn write_pattern(memory: SharedMemory<'_>, first: usize, seed: u64) {
    for page in 0..memory.len() / PAGE {
        memory.write(page * PAGE, &pattern(first + page, seed));
    }
}

/// Looks for the pattern of a seed in pages that can be read.
fn find_pattern(pages: usize, first: usize, seed: u64, read: impl Fn(usize, &mut [u8])) -> Result<()> {
    let mut bytes = [0; PAGE];
    for page in 0..pages {
        read(page * PAGE, &mut bytes);
        ensure(bytes == pattern(first + page, seed), || {
            format!("page {page} of {pages} has another pattern than {seed}")
        })?;
    }
    Ok(())
}

/// All that can be done with so many pages, and that nothing is left of it.
async fn pages_of(second: &mut Remote, pages: usize) -> Result<()> {
    let before = gnttab::stat();
    let granted = Granted::<ReadWrite>::new(second.peer, pages).await.map_err(said)?;
    let found = |granted: &Granted<ReadWrite>, seed| {
        find_pattern(pages, 0, seed, |offset, bytes| granted.memory().read(offset, bytes))
    };
    second.list(granted.references());
    write_pattern(granted.memory(), 0, 1);
    second.ask(MAP, pages, 1, 2).await?;
    found(&granted, 2)?;
    second.ask(UNMAP, 0, 0, 0).await?;
    second.ask(COPY_OUT, pages, 2, 0).await?;
    second.ask(COPY_IN, pages, 3, 0).await?;
    found(&granted, 3)?;
    let own = granted.end().map_err(said)?;
    ensure(own.bytes()[..PAGE] == pattern(0, 3), || "what was written is not there at the end".into())?;
    let after = gnttab::stat();
    ensure((after.in_use, after.deferred) == (before.in_use, 0), || format!("{before:?}, then {after:?}"))?;
    let refused = second.ask(MAP, 1, 3, 4).await;
    ensure(refused.is_err(), || "what is ended can be mapped".into())
}

/// A page that may only be read is not written to.
async fn read_only(second: &mut Remote) -> Result<()> {
    let granted = Granted::<ReadOnly>::new(second.peer, 1).await.map_err(said)?;
    second.list(granted.references());
    write_pattern(granted.memory(), 0, 5);
    ensure(second.ask(MAP, 1, 5, 6).await.is_err(), || "it can be mapped to be written".into())?;
    ensure(second.ask(COPY_IN, 1, 6, 0).await.is_err(), || "it can be copied to".into())?;
    second.ask(COPY_OUT, 1, 5, 0).await?;
    second.ask(MAP_READ_ONLY, 1, 5, 0).await?;
    second.ask(UNMAP, 0, 0, 0).await?;
    granted.end().map(drop).map_err(said)
}

/// 32 pages are mapped by one hypercall, and unmapped by one.
async fn batch(second: &mut Remote) -> Result<()> {
    let granted = Granted::<ReadWrite>::new(second.peer, 32).await.map_err(said)?;
    second.list(granted.references());
    write_pattern(granted.memory(), 0, 7);
    let mapped = second.ask(MAP, 32, 7, 8).await?;
    let unmapped = second.ask(UNMAP, 0, 0, 0).await?;
    ensure((mapped, unmapped) == (1, 1), || format!("{mapped} hypercalls to map, {unmapped} to unmap"))?;
    granted.end().map(drop).map_err(said)
}

/// Pages that the peer keeps are not used again before it unmaps them, and are then free within a second.
async fn kept(domain: Domain, second: &mut Remote) -> Result<()> {
    let before = gnttab::stat();
    for dropped in [false, true] {
        let granted = Granted::<ReadWrite>::new(second.peer, 2).await.map_err(said)?;
        let references: Vec<Reference> = granted.references().collect();
        second.list(references.iter().copied());
        write_pattern(granted.memory(), 0, 9);
        second.ask(MAP, 2, 9, 10).await?;
        let hypercalls = domain.cost().hypercalls;
        if dropped {
            drop(granted);
        } else {
            let Err(error) = granted.end() else { return Err("it ends although the peer has it mapped".into()) };
            ensure(error == gnttab::ErrorKind::InUse, || said(error))?;
        }
        ensure(domain.cost().hypercalls == hypercalls, || "the end took a hypercall".into())?;
        let stat = gnttab::stat();
        ensure((stat.in_use, stat.deferred) == (before.in_use + 2, 2), || format!("while it is kept: {stat:?}"))?;
        // What is granted meanwhile is something else: the second still finds there what it wrote.
        let others: Vec<_> = (0..200).map(|_| Granted::<ReadOnly>::try_new(second.peer, 2)).collect();
        for other in &others {
            let other = other.as_ref().map_err(said)?;
            write_pattern(other.memory(), 0, 11);
            let taken = other.references().any(|reference| references.contains(&reference));
            ensure(!taken, || "a reference is used again".into())?;
        }
        drop(others);
        time::sleep(Duration::from_millis(1200)).await;
        ensure(gnttab::stat().deferred == 2, || "it was taken away while the peer had it".into())?;
        // The mapping itself tells what is in the pages.
        second.ask(UNMAP, 0, 10, 1).await?;
        let took = wait_for(|| gnttab::stat().deferred == 0).await?;
        ensure(took < Duration::from_secs(1), || format!("it was free after {took:?}"))?;
    }
    let after = gnttab::stat();
    ensure((after.in_use, after.reclaimed) == (before.in_use, before.reclaimed + 4), || {
        format!("{before:?}, {after:?}")
    })
}

/// Messages over a ring of so many pages, whose indices start there: so many that it is full, and goes round.
async fn ring(second: &mut Remote, pages: usize, start: u32) -> Result<()> {
    let memory = Granted::<ReadWrite>::new(second.peer, pages).await.map_err(said)?;
    let port = eventchn::alloc_unbound(second.peer).map_err(said)?;
    second.list(memory.references());
    let mut ring = FrontRing::<[u64; 2], u64, _>::starting_at(memory, start);
    ensure(ring.size() as usize >= pages * PAGE / 32, || format!("there are {} entries", ring.size()))?;
    let messages = 3 * u64::from(ring.size()) + 1;
    second.tell(SERVE, pages, port.number().into(), messages)?;
    let (mut sent, mut answered) = (0, 0);
    while answered < messages {
        while sent < messages && ring.room() > 0 {
            ring.push(&[sent, sent * sent]).map_err(said)?;
            sent += 1;
        }
        if ring.publish() {
            port.notify().map_err(said)?;
        }
        let mut next = Some(port.until(|| ring.poll_response().transpose()).await.map_err(said)?.map_err(said)?);
        while let Some(answer) = next {
            ensure(answer == answered + answered * answered, || format!("message {answered} is answered by {answer}"))?;
            answered += 1;
            next = ring.poll_response().map_err(said)?;
        }
    }
    second.answer().await?;
    ring.into_memory().end().map(drop).map_err(said)
}

/// The peer dies with pages mapped.
async fn dies(domain: Domain, second: &mut Remote, panics: bool) -> Result<()> {
    let granted = Granted::<ReadWrite>::new(second.peer, 3).await.map_err(said)?;
    second.list(granted.references());
    write_pattern(granted.memory(), 0, 12);
    second.ask(MAP, 3, 12, 13).await?;
    ensure(granted.end().is_err(), || "it ends although the peer has it mapped".into())?;
    let before = gnttab::stat();
    ensure(before.deferred == 3, || format!("while it lives: {before:?}"))?;
    if panics {
        second.tell(PANIC, 0, 0, 0)?;
    } else {
        domain.console().write_all(b"@destroy\n").await.map_err(said)?;
    }
    wait_for(|| gnttab::stat().deferred == 0).await?;
    ensure(gnttab::stat().reclaimed == before.reclaimed + 3, || format!("{before:?}, then {:?}", gnttab::stat()))
}

/// The second domain: does what it is told, and keeps what it has mapped.
struct Second {
    domain: Domain,
    peer: DomainId,
    ring: BackRing<Request, Answer, Mapping<ReadWrite>>,
    list: Mapping<ReadWrite>,
    port: Port,
    held: Vec<Mapping<ReadWrite>>,
    held_to_read: Vec<Mapping<ReadOnly>>,
}

impl Second {
    async fn new(domain: Domain, peer: DomainId, ring: Reference, list: Reference, port: u32) -> Result<Self> {
        let port = eventchn::bind_interdomain(peer, port).map_err(said)?;
        let memory = Mapping::new(peer, &[ring]).await.map_err(said)?;
        let ring = BackRing::attach(memory).map_err(said)?;
        let list = Mapping::new(peer, &[list]).await.map_err(said)?;
        Ok(Self { domain, peer, ring, list, port, held: Vec::new(), held_to_read: Vec::new() })
    }

    async fn serve(mut self) -> Result<()> {
        loop {
            let ring = &mut self.ring;
            let [deed, pages, a, b] =
                self.port.until(|| ring.poll_request().transpose()).await.map_err(said)?.map_err(said)?;
            let references: Vec<Reference> =
                (0..pages as usize).map(|index| Reference(self.list.memory().read_value(4 * index))).collect();
            let result = self.act(deed, &references, a, b).await;
            if let Err(error) = &result {
                log::info!("deed {deed} with {pages} pages: {error}");
            }
            let answer = [result.is_ok().into(), result.unwrap_or(0)];
            self.ring.push(&answer).map_err(said)?;
            if self.ring.publish() {
                self.port.notify().map_err(said)?;
            }
            if deed == END {
                return Ok(());
            }
        }
    }

    async fn act(&mut self, deed: u64, references: &[Reference], a: u64, b: u64) -> Result<u64> {
        let domain = self.domain;
        let hypercalls = || domain.cost().hypercalls;
        let before = hypercalls();
        match deed {
            MAP => {
                for part in references.chunks(MOST) {
                    self.held.push(Mapping::new(self.peer, part).await.map_err(said)?);
                }
                let took = hypercalls() - before;
                self.find(a)?;
                for (index, mapping) in self.held.iter().enumerate() {
                    write_pattern(mapping.memory(), index * MOST, b);
                }
                Ok(took)
            }
            MAP_READ_ONLY => {
                let mapping = Mapping::<ReadOnly>::new(self.peer, references).await.map_err(said)?;
                find_pattern(references.len(), 0, a, |offset, bytes| mapping.read(offset, bytes))?;
                self.held_to_read.push(mapping);
                Ok(hypercalls() - before)
            }
            UNMAP => {
                if b == 1 {
                    self.find(a)?;
                }
                self.held_to_read.clear();
                for mapping in self.held.drain(..) {
                    mapping.unmap().map_err(said)?;
                }
                Ok(hypercalls() - before)
            }
            COPY_OUT => {
                let mut bytes = alloc::vec![0; references.len() * PAGE];
                copy::read(self.peer, references, 0, &mut bytes).await.map_err(said)?;
                let took = hypercalls() - before;
                find_pattern(references.len(), 0, a, |offset, page| page.copy_from_slice(&bytes[offset..][..PAGE]))?;
                Ok(took)
            }
            COPY_IN => {
                let bytes: Vec<u8> = (0..references.len()).flat_map(|page| pattern(page, a)).collect();
                copy::write(self.peer, references, 0, &bytes).await.map_err(said)?;
                Ok(hypercalls() - before)
            }
            SERVE => self.answer(references, a as u32, b).await.map(|()| hypercalls() - before),
            PANIC => panic!("as it was told"),
            END => Ok(0),
            _ => Err("there is no such deed".into()),
        }
    }

    /// Looks for a pattern in what is mapped.
    fn find(&self, seed: u64) -> Result<()> {
        self.held.iter().enumerate().try_for_each(|(index, mapping)| {
            let read = |offset, bytes: &mut [u8]| mapping.memory().read(offset, bytes);
            find_pattern(mapping.count(), index * MOST, seed, read)
        })
    }

    /// Answers so many messages, each by the sum of its numbers.
    async fn answer(&self, references: &[Reference], port: u32, messages: u64) -> Result<()> {
        let port = eventchn::bind_interdomain(self.peer, port).map_err(said)?;
        let memory = Mapping::<ReadWrite>::new(self.peer, references).await.map_err(said)?;
        let mut ring = BackRing::<[u64; 2], u64, _>::attach(memory).map_err(said)?;
        let mut answered = 0;
        while answered < messages {
            let mut next = Some(port.until(|| ring.poll_request().transpose()).await.map_err(said)?.map_err(said)?);
            while let Some([a, b]) = next {
                ring.push(&(a + b)).map_err(said)?;
                answered += 1;
                next = ring.poll_request().map_err(said)?;
            }
            if ring.publish() {
                port.notify().map_err(said)?;
            }
        }
        Ok(())
    }
}
