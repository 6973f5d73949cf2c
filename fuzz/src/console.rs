//! The console: a back end that writes anything into the rings, their indices included.

use std::time::Duration;

use domu::console::{Error, MAX_LINE};
use domu::sim::abi::console::{IN_CONS, OUT_PROD};
use domu::sim::access::fuzz_peer::{self, Kind};
use domu::sim::{Backend, Guest};
use domu::time;

use crate::input::Input;
use crate::{guest, liar};

const MS: Duration = Duration::from_millis(1);

/// The index at a place in the console's page.
fn index(at: usize) -> Option<u32> {
    fuzz_peer::console().map(|page| page.load(at))
}

/// The console's rings, both directions. What the domain publishes are its own indices, whatever the peer writes over them; a
/// console that was found corrupt stays closed.
pub fn console(bytes: &[u8]) {
    let input = Input::new(bytes);
    let start = input.u32();
    let setup = Guest::new().trusted().command_line("domu.log=off").console_index(start).backend(Backend::Idle);
    liar::begin(&input.clone(), |kind, _| kind == Kind::Console);
    guest(setup, async |domain| {
        let console = domain.console();
        let mut lines = console.lines();
        let mut buffer = [b'x'; 5000];
        // The indices as they must stand after each publication, once one was seen: there may be lies in the ring when it
        // is joined, and what `lines` takes is not known.
        let (mut produced, mut consumed) = (None, None);
        while !input.is_over() {
            let size = input.below(buffer.len());
            let written = |count: usize, produced: &mut Option<u32>| {
                assert!(count <= size, "more was written than there is");
                let now = index(OUT_PROD).filter(|_| count > 0);
                let expected = produced.map(|produced| produced.wrapping_add(count as u32));
                assert!(now.is_none() || expected.is_none() || now == expected, "another index was published");
                *produced = now.or(*produced);
            };
            let result = match input.u8() % 8 {
                0 | 1 => console.try_write(&buffer[..size]).map(|count| written(count, &mut produced)),
                2 => {
                    let write = console.write(&buffer[..size]);
                    time::timeout(MS, write).await.unwrap_or(Ok(0)).map(|count| written(count, &mut produced))
                }
                3 | 4 => console.try_read(&mut buffer[..size]).map(|count| {
                    assert!(count <= size, "more was read than there is room for");
                    let now = index(IN_CONS).filter(|_| count > 0);
                    let expected = consumed.map(|consumed: u32| consumed.wrapping_add(count as u32));
                    assert!(now.is_none() || expected.is_none() || now == expected, "another index was published");
                    consumed = now.or(consumed);
                }),
                5 => {
                    consumed = None;
                    let line = time::timeout(MS, lines.next()).await.unwrap_or(Ok(&[]));
                    line.map(|line| assert!(line.len() <= MAX_LINE && !line.contains(&b'\n')))
                }
                6 => console.flush().await,
                _ => {
                    let _ = console.is_connected();
                    Ok(())
                }
            };
            if result == Err(Error::Corrupt) {
                assert_eq!(console.try_write(b"more"), Err(Error::Corrupt), "a corrupt console is closed for good");
                assert_eq!(console.try_read(&mut buffer), Err(Error::Corrupt), "a corrupt console is closed for good");
                return;
            }
        }
    });
}
