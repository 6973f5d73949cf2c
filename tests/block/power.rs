//! Power cuts: a write that was acknowledged as durable is there after each, whole.

use std::collections::BTreeMap;

use domu::sim::backends::block::PowerCut;

use super::*;

const SECTORS: u64 = 512;

/// Generations of each sector: what was attempted last, and what is durable for sure.
type Record = BTreeMap<u64, (u64, u64)>;

fn sector_of(generation: u64, sector: u64) -> Vec<u8> {
    let mut data = pattern(generation, sector, 512);
    data[..8].copy_from_slice(&generation.to_le_bytes());
    data[8..16].copy_from_slice(&sector.to_le_bytes());
    data
}

/// Writes durably until the power is cut.
async fn work(disk: Disk, worker: u64, seed: u64, record: &Mutex<Record>) {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (worker + 1).wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
    let mut next = |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % limit
    };
    for generation in 1.. {
        // Each worker has its own part, as writes in flight at the same time have no order.
        let count = 1 + next(4);
        let first = worker * 64 + next(64 - count);
        let data: Vec<u8> = (first..first + count).flat_map(|sector| sector_of(generation, sector)).collect();
        for sector in first..first + count {
            record.lock().unwrap().entry(sector).or_default().0 = generation;
        }
        let sure = if next(2) == 0 {
            disk.write_durable(first * 512, &data).await.is_ok()
        } else {
            let written = disk.write(first * 512, &data).await;
            let flushed = disk.flush().await;
            written.is_ok_and(|written| flushed.is_ok_and(|flushed| flushed.covers(&written)))
        };
        if !sure {
            return;
        }
        for sector in first..first + count {
            record.lock().unwrap().entry(sector).or_default().1 = generation;
        }
    }
}

/// Runs until the power is cut; how many sectors are not what they must be, of how many durable ones.
fn lost_sectors(
    seed: u64,
    cut: PowerCut,
    prepare: impl FnOnce(&back::Disk),
    options: fn() -> Options,
) -> (usize, usize) {
    let disk = back::Disk::new(SECTORS as usize, seed);
    prepare(&disk);
    disk.set_power_cut(Some(cut));
    let record = Mutex::new(Record::new());
    let store = Store::new();
    attach(&store);
    let (served, kept, its) = (&disk, &record, &store);
    let _ = Host::new()
        .domain(FRONT, Guest::new().xenstore(its), async move |domain: Domain| -> domu::Result {
            let (disk, driver) = open(domain, Config::default()).await;
            let mut working: Vec<_> = (0..8).map(|worker| Box::pin(work(disk.clone(), worker, seed, kept))).collect();
            let all = std::future::poll_fn(|context| {
                working.retain_mut(|work| work.as_mut().poll(context).is_pending());
                if served.is_cut() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            });
            let timed = time::timeout(Duration::from_secs(2), all).await;
            assert!(timed.is_ok(), "stuck: {:?} {:?}", disk.stat(), disk);
            drop(driver);
            Ok(())
        })
        .domain(BACK, Guest::new().xenstore(its), async move |domain: Domain| -> domu::Result {
            back::serve(domain, DomainId(FRONT), XVDA, served, &mut options()).await
        })
        .run();
    assert!(disk.is_cut(), "the power was cut");
    let contents = disk.contents();
    let record = record.into_inner().unwrap();
    let durable = record.values().filter(|(_, durable)| *durable > 0).count();
    let lost = record.iter().filter(|(sector, (attempted, durable))| {
        let found = &contents[**sector as usize * 512..][..512];
        let generation = u64::from_le_bytes(found[..8].try_into().unwrap());
        let whole = generation == 0 && found == [0; 512] || found == sector_of(generation, **sector);
        !whole || generation < *durable || generation > *attempted
    });
    (lost.count(), durable)
}

fn cut_of(seed: u64, index: u64) -> PowerCut {
    PowerCut { after: 3 + (index * 17 + seed * 7) % 97, answers: (seed + index).is_multiple_of(2) }
}

/// Cuts the power of disks of these seeds, so many times each, and returns how many sectors were durable. None of them is lost.
fn cut_power(seeds: u64, cuts: u64) -> usize {
    let mut durable = 0;
    for seed in 0..seeds {
        for index in 0..cuts {
            let (lost, sure) = lost_sectors(seed, cut_of(seed, index), |_| (), Options::default);
            assert_eq!(lost, 0, "seed {seed}, cut {index}");
            durable += sure;
        }
    }
    durable
}

#[test]
fn acknowledged_durable_writes_survive_power_cuts() {
    let durable = cut_power(8, 5);
    assert!(durable > 1_000, "{durable} sectors were durable");
}

#[test]
#[ignore = "2,000 simulated boots"]
fn durable_writes_survive_two_thousand_power_cuts() {
    let durable = cut_power(100, 20);
    assert!(durable > 50_000, "{durable} sectors were durable");
}

#[test]
fn barriers_alone_make_writes_durable() {
    let options = || Options { flush: false, persistent: false, indirect: 0, order: 0, ..Options::default() };
    for seed in 0..10 {
        let (lost, _) = lost_sectors(seed, cut_of(seed, 3), |_| (), options);
        assert_eq!(lost, 0, "seed {seed}");
    }
}

/// The control: with flushes that do nothing the same test finds what is lost.
#[test]
fn ignored_flushes_lose_data_in_the_same_test() {
    let lost: usize =
        (0..10).map(|seed| lost_sectors(seed, cut_of(seed, 5), back::Disk::ignore_flushes, Options::default).0).sum();
    assert!(lost > 20, "{lost} sectors were lost");
}
