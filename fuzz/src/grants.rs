//! Grants: peers that map, copy from and to, keep and give back what they like, at any moment, and a Xen that refuses any
//! operation with any status.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use domu::DomainId;
use domu::gnttab::copy::Batch;
use domu::gnttab::{self, Grant, Granted, Mapping, ReadOnly, ReadWrite, Reference};
use domu::sim::abi::grant_table::Status;
use domu::sim::access::fuzz_peer;
use domu::sim::{Guest, outside};
use domu::time;

use crate::guest;
use crate::input::Input;

/// Numbers of the peers, whose part the input plays.
const PEERS: u16 = 3;

/// References that are of interest: the toolstack's, and the first ones that are handed out.
const REFERENCES: usize = 24;

/// What the peers have mapped: whose it is, the reference, and whether writable.
type Kept = Rc<RefCell<Vec<(u16, u32, bool)>>>;

/// A peer does something with a grant of the domain's.
fn act(input: &Input, kept: &Kept) {
    let (what, peer) = (input.u8(), input.u16() % PEERS + 1);
    let (reference, writable) = (8 + input.below(REFERENCES) as u32, what & 0x80 != 0);
    let mut kept = kept.borrow_mut();
    outside(|outside| match what % 4 {
        0 => kept.extend(outside.map(peer, reference, writable).ok().map(|_| (peer, reference, writable))),
        1 if !kept.is_empty() => {
            let chosen = input.below(kept.len());
            let (peer, reference, writable) = kept.swap_remove(chosen);
            outside.unmap(peer, reference, writable);
        }
        2 => drop(outside.copy_to(peer, reference, usize::from(what), &[what; 9])),
        _ => drop(outside.copy_from(peer, reference, usize::from(what), &mut [0; 9])),
    });
}

fn references(input: &Input) -> Vec<Reference> {
    (0..input.u8() % 5).map(|_| Reference(input.below(REFERENCES) as u32)).collect()
}

/// Granting, mapping and copying. A page that a peer uses is used for nothing else (the simulated Xen fails a case for that), and
/// when everything is over and the peers are gone, no grant, mapping or deferred page is left.
pub fn grants(bytes: &[u8]) {
    let input = Input::new(bytes);
    let answers = input.clone();
    let refuse = move |_, _| {
        let answer = answers.u8();
        // One in eight fails, in any way.
        (answer & 7 == 7).then(|| Status(-i16::from(answer >> 3)))
    };
    let kept = Kept::default();
    let (peers, held) = (input.clone(), Rc::clone(&kept));
    let mut pause = input.u8();
    fuzz_peer::at_each_access(move |_| match pause.checked_sub(1) {
        Some(less) => pause = less,
        None if !peers.is_over() && fuzz_peer::is_booted() => {
            act(&peers, &held);
            pause = peers.u8();
        }
        None => {}
    });
    let setup = Guest::new().trusted().command_line("domu.log=off").grant_fault(refuse);
    guest(setup, async |_| {
        // Half of the cases have a limit that a few pages reach.
        let limit = input.u8();
        gnttab::set_deferred_limit((limit < 128).then_some(u32::from(limit % 16)));
        for reference in 0..REFERENCES as u32 {
            outside(|outside| outside.offer_grant(1 + reference as u16 % PEERS, reference, reference % 2 == 0));
        }
        let (mut written, mut read) = (Vec::new(), Vec::new());
        let (mut mapped, mut mapped_to_read) = (Vec::new(), Vec::new());
        let mut buffer = [0; 64];
        while !input.is_over() {
            let (what, peer) = (input.u8(), DomainId(input.u16() % (PEERS + 2)));
            match what % 12 {
                0 => written.extend(Granted::<ReadWrite>::try_new(peer, input.below(6))),
                1 => read.extend(Granted::<ReadOnly>::try_new(peer, input.below(6))),
                2 => drop(written.pop()),
                3 => drop(read.pop().map(Granted::end)),
                4 => mapped.extend(Mapping::<ReadWrite>::new(peer, &references(&input)).await),
                5 => mapped_to_read.extend(Mapping::<ReadOnly>::new(peer, &references(&input)).await),
                6 => drop(mapped.pop().map(Mapping::unmap)),
                7 => drop(mapped_to_read.pop()),
                8 => {
                    let mut batch = Batch::new();
                    let (one, other) = buffer.split_at_mut(32);
                    for (half, way) in [(one, what & 16), (other, what & 32)] {
                        let grant = Grant { domain: peer, reference: Reference(input.below(REFERENCES) as u32) };
                        let offset = input.below(4200);
                        let _ =
                            if way == 0 { batch.read(grant, offset, half) } else { batch.write(grant, offset, half) };
                    }
                    drop(batch.submit().await);
                }
                9 => time::sleep(Duration::from_millis(input.u8().into())).await,
                10 => {
                    for granted in &written {
                        granted.memory().write(usize::from(what), &buffer);
                    }
                }
                _ => act(&input, &kept),
            }
            let stat = gnttab::stat();
            assert!(stat.deferred <= stat.in_use && stat.frames <= stat.max_frames, "{stat:?}");
            let by_peer: u32 = (0..PEERS + 2).map(|peer| gnttab::deferred_pages(DomainId(peer))).sum();
            assert!(stat.deferred <= stat.deferred_pages && by_peer == stat.deferred_pages, "{by_peer}: {stat:?}");
            // A peer that has deferred pages is granted no more of them than the limit allows.
            let deferred = gnttab::deferred_pages(peer);
            if let Ok(more) = Granted::<ReadOnly>::try_new(peer, 1) {
                assert!(deferred == 0 || deferred < gnttab::deferred_limit(), "{deferred}: {stat:?}");
                drop(more);
            }
        }
        drop((written, read, mapped, mapped_to_read));
        kept.borrow_mut().clear();
        (1..=PEERS).for_each(|peer| outside(|outside| outside.end_peer(peer)));
        time::sleep(Duration::from_secs(3)).await;
        // What Xen refused to unmap is mapped still, and its place lost.
        let stat = gnttab::stat();
        assert!(
            stat.in_use == 0 && stat.deferred == 0 && stat.deferred_pages == 0 && stat.mapped <= stat.lost,
            "{stat:?}"
        );
        assert!(outside(|outside| outside.granted()).is_empty());
    });
}
