//! The front end of a disk against a back end that does anything: responses to any request or none, indices, events, sizes,
//! states, and pages that it keeps.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use domu::block::protocol::{RESPONSE_SIZE, Response, Status};
use domu::block::{self, Buffers, Config, Disk, Select};
use domu::executor::{Task, spawn};
use domu::memory::Pages;
use domu::sim::{Dom0, Guest, PeerPage, Store, outside};
use domu::{gnttab, time};

use crate::guest;
use crate::input::Input;

const BACK: u16 = 3;
const FRONT_END: &str = "/local/domain/7/device/vbd/51712";
const BACK_END: &str = "/local/domain/3/backend/vbd/7/51712";
/// Requests of a case at most.
const REQUESTS: usize = 40;

/// The back end's part in xenstore, with numbers of the input's.
fn answer(dom0: &mut Dom0<'_>, input: &Input) {
    let state = match dom0.read(&format!("{FRONT_END}/state")).as_deref() {
        Some(b"1") => "2",
        Some(b"3") => {
            let number = |dom0: &mut Dom0<'_>, name: &str, usual: u64| {
                let value = if input.u8() < 240 { usual } else { input.u64() };
                dom0.write(&format!("{BACK_END}/{name}"), value.to_string());
            };
            number(dom0, "sectors", 1 << 20);
            let sector_size = if input.u8() < 200 { 512 } else { 4096 };
            number(dom0, "sector-size", sector_size);
            number(dom0, "info", 0);
            for name in ["feature-flush-cache", "feature-barrier", "feature-persistent", "feature-discard"] {
                number(dom0, name, u64::from(input.u8() % 2));
            }
            "4"
        }
        Some(b"5") => "5",
        Some(b"6") => "6",
        _ => return,
    };
    if dom0.read(&format!("{BACK_END}/state")).is_some_and(|now| now != state.as_bytes()) {
        dom0.write(&format!("{BACK_END}/state"), state);
    }
}

/// What the back end has mapped.
type Mapped = Rc<RefCell<Vec<(u32, PeerPage)>>>;

/// The ring as the front end has told of it, mapped.
fn ring(store: &Store, mapped: &Mapped) -> Option<PeerPage> {
    let text =
        store.read(&format!("{FRONT_END}/ring-ref")).or_else(|| store.read(&format!("{FRONT_END}/ring-ref0")))?;
    let reference = String::from_utf8(text).ok()?.parse().ok()?;
    let mut mapped = mapped.borrow_mut();
    if let Some((_, page)) = mapped.iter().find(|(other, _)| *other == reference) {
        return Some(*page);
    }
    let page = outside(|outside| outside.map(BACK, reference, true)).ok()?;
    mapped.push((reference, page));
    Some(page)
}

fn word(page: &PeerPage, at: usize) -> u32 {
    let mut bytes = [0; 4];
    page.read(at, &mut bytes);
    u32::from_le_bytes(bytes)
}

/// The back end answers a request of the ring, or makes an answer up, and shows it or not.
fn respond(input: &Input, store: &Store, mapped: &Mapped) {
    let Some(page) = ring(store, mapped) else { return };
    let produced = word(&page, 8);
    let (what, slot) = (input.u8(), 64 + 112 * (produced as usize % 32));
    let mut entry = [0; 112];
    page.read(slot, &mut entry);
    let id = match what % 16 {
        0 => u64::from(input.u8()),
        1 => input.u64(),
        _ => u64::from_le_bytes(entry[8..16].try_into().unwrap_or_default()),
    };
    let operation = match (what >> 4, entry[0]) {
        (0, _) => input.u8(),
        (_, 6) => entry[1],
        (_, operation) => operation,
    };
    let status = match input.u8() {
        0..=180 => Status::Okay,
        181..=220 => Status::Error,
        _ => Status::Unsupported,
    };
    let response: [u8; RESPONSE_SIZE] = Response { id, operation, status }.encode();
    page.write(slot, &response);
    let honest = produced != word(&page, 0);
    let step = if what == 255 { input.u32() } else { u32::from(honest || what > 250) };
    page.write(8, &produced.wrapping_add(step).to_le_bytes());
    notify(store);
}

fn notify(store: &Store) {
    let text = store.read(&format!("{FRONT_END}/event-channel"));
    let port = text.and_then(|text| String::from_utf8(text).ok()).and_then(|text| text.parse().ok());
    if let Some(port) = port {
        outside(|outside| outside.notify(port));
    }
}

/// A request, which is given up after a while or not.
fn request(input: &Input, disk: &Disk) -> Task<()> {
    let (what, position) = (input.u8(), u64::from(input.u16()) * 512);
    let length = 512 * (1 + usize::from(input.u8()) % 40);
    let patience = Duration::from_millis(if input.u8() < 128 { 3 } else { 100_000 });
    let disk = disk.clone();
    spawn(async move {
        let work = async {
            match what % 6 {
                0 => drop(disk.read(position, &mut vec![0; length]).await),
                1 => drop(disk.write(position, &vec![1; length]).await),
                2 => drop(disk.flush().await),
                3 => drop(disk.discard(position, length as u64).await),
                4 => {
                    if let Ok(pages) = Pages::new(1 + length % 3) {
                        drop(disk.read_pages(position, pages).await);
                    }
                }
                _ => {
                    disk.clear_flush_failure();
                    let _ = disk.write_durable(position, &vec![1; length]).await;
                }
            }
        };
        let _ = time::timeout(patience, work).await;
    })
}

/// Whatever the back end does, requests end when the toolstack has removed the disk, and when the back end lets go of its pages
/// nothing is in use.
pub fn block_front(bytes: &[u8]) {
    let input = Input::new(bytes);
    let (store, numbers) = (Store::new(), input.clone());
    store.react(&format!("{FRONT_END}/state"), move |dom0, _| answer(dom0, &numbers));
    store.dom0(|dom0| {
        dom0.make_device_end(FRONT_END, 7, ("backend", BACK_END, BACK));
        dom0.make_device_end(BACK_END, BACK, ("frontend", FRONT_END, 7));
        dom0.write(&format!("{BACK_END}/online"), "1");
        dom0.write(&format!("{BACK_END}/state"), "2");
        dom0.write(&format!("{BACK_END}/feature-max-indirect-segments"), (input.u16() % 300).to_string());
    });
    let its = store.clone();
    let setup = Guest::new().trusted().xenstore(&store).command_line("domu.log=off");
    let report = guest(setup, async move |domain| {
        let store = its;
        let buffers = [Buffers::Auto, Buffers::Lend, Buffers::Pool][usize::from(input.u8() % 3)];
        let config = Config { pool_pages: 32, buffers, ..Config::default() };
        let Ok((disk, driver)) = block::open(domain, Select::Name("xvda"), config).await else { return };
        let driver = spawn(driver.run());
        let (mapped, mut tasks) = (Mapped::default(), Vec::new());
        while !input.is_over() {
            match input.u8() % 12 {
                0..=2 if tasks.len() < REQUESTS => tasks.push(request(&input, &disk)),
                3..=6 => respond(&input, &store, &mapped),
                7 => notify(&store),
                8 => {
                    let sectors = if input.u8() < 128 { u64::from(input.u16()) } else { input.u64() };
                    store.write(&format!("{BACK_END}/sectors"), sectors.to_string());
                }
                9 if input.u8() < 64 => store.write(&format!("{BACK_END}/state"), (input.u8() % 8).to_string()),
                10 => {
                    if let Some(page) = ring(&store, &mapped) {
                        page.write(usize::from(input.u16()) % 4096 / 4 * 4 % 4092, &[input.u8(); 4]);
                    }
                }
                _ => time::sleep(Duration::from_millis(u64::from(input.u8() % 8))).await,
            }
            time::sleep(Duration::from_micros(10)).await;
        }
        store.dom0(|dom0| {
            dom0.remove(FRONT_END);
            dom0.remove(BACK_END);
        });
        let ended = time::timeout(Duration::from_secs(60), driver).await;
        assert!(ended.is_ok(), "the driver goes on without a disk: {:?}", disk.stat());
        for task in tasks {
            let ended = time::timeout(Duration::from_secs(1), task).await;
            assert!(ended.is_ok(), "a request goes on without a disk: {:?}", disk.stat());
        }
        let stat = disk.stat();
        assert_eq!((stat.in_flight, stat.orphaned), (0, 0), "{stat:?}");
        assert!(stat.responses <= stat.requests, "{stat:?}");
        drop(disk);
        for (reference, _) in mapped.borrow_mut().drain(..) {
            outside(|outside| outside.unmap(BACK, reference, true));
        }
        time::sleep(Duration::from_secs(3)).await;
        assert_eq!(gnttab::stat().in_use, 0, "grants are left");
    });
    drop(report);
}
