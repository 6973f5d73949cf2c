//! Copying from and to pages of peers, by Xen: nothing is mapped, and a peer that changes its page meanwhile changes bytes of
//! the copy, and nothing else.
//!
//! For data that is looked at once a copy is usually cheaper than a mapping: Xen keeps no record of it, and no other processor
//! has to forget a translation. What the domain has in its own memory afterwards is private.
//!
//! Xen copies within a page on both sides. A slice of this domain's memory that reaches into another page is cut there: memory
//! that follows itself in addresses does so in frames.

use core::fmt;
use core::marker::PhantomData;

use super::retry::Retry;
use super::{Error, ErrorKind, Grant, Reference};
use crate::abi::errno::Errno;
use crate::abi::grant_table::{COPY_DESTINATION_GRANT, COPY_SOURCE_GRANT, CopySide, GrantCopy, Status};
use crate::abi::xen::DomainId;
use crate::local;
use crate::local::Instance;
use crate::{arch, hypercall};

/// Bytes in a page.
const PAGE: usize = 4096;

/// Segments that a [`Batch`] has room for. A copy takes one, and a second one where its slice reaches into another page: there
/// is room for 32 copies, whatever their places.
pub const SEGMENTS: usize = 64;

/// Which way a copy goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Out of a grant.
    Out,
    /// Into a grant.
    In,
}

/// Copies that are done together, in one hypercall: of packets, say. It is a value of 3 KiB that allocates nothing, and may be
/// used again for other slices as long as nobody looks at those before.
///
/// ```no_run
/// # use domu::gnttab::{Grant, copy::Batch};
/// # async fn example(told: [Grant; 2], packet: &mut [u8], answer: &[u8]) -> domu::Result {
/// let mut batch = Batch::new();
/// batch.read(told[0], 0, packet)?;
/// batch.write(told[1], 0, answer)?;
/// for result in batch.submit().await.iter() {
///     log::info!("{result:?}");
/// }
/// # Ok(())
/// # }
/// ```
#[doc(alias("gnttab_batch_copy", "GNTTABOP_copy"))]
#[derive(Default)]
pub struct Batch<'a> {
    segments: heapless::Vec<GrantCopy, SEGMENTS>,
    /// Segments of each copy.
    parts: heapless::Vec<u8, SEGMENTS>,
    /// Generation in which the copies were added, if there are any.
    filled: Option<Filled>,
    memory: PhantomData<&'a mut [u8]>,
}

/// The domain in which a batch was filled, and the generation of that domain: references and frames mean nothing in another.
#[derive(Clone, Copy)]
struct Filled {
    instance: Instance,
    generation: u64,
}

impl Filled {
    /// The domain that runs here, as it is now.
    fn here() -> Result<Self, ErrorKind> {
        let state = local::current().ok_or(ErrorKind::Refused(Errno::ESRCH))?;
        Ok(Self { instance: state, generation: state.generation() })
    }

    /// Whether copies that were added there may be done here and now.
    fn check(self) -> Result<(), ErrorKind> {
        let state = self.instance.if_running().ok_or(ErrorKind::Refused(Errno::ESRCH))?;
        super::check(state, self.generation)
    }
}

impl<'a> Batch<'a> {
    /// A batch without copies.
    #[must_use]
    pub const fn new() -> Self {
        Self { segments: heapless::Vec::new(), parts: heapless::Vec::new(), filled: None, memory: PhantomData }
    }

    /// How many copies there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Adds a copy out of a grant, from an offset in its page.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BeyondPage`] if it is longer than the rest of the page; [`ErrorKind::BatchFull`] if there is no room for it;
    /// [`ErrorKind::BadPage`] if the slice is none of the domain's RAM; [`ErrorKind::BeforeResume`] if the batch has copies from before
    /// a resume; [`ErrorKind::Refused`] outside of a domain, or if it has copies of another one. The batch is as it was.
    pub fn read(&mut self, from: Grant, offset: usize, into: &'a mut [u8]) -> Result<(), Error> {
        self.add(Way::Out, from, offset, into.as_mut_ptr(), into.len()).map_err(|kind| kind.of_grant(from))
    }

    /// Adds a copy into a grant, to an offset in its page.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn write(&mut self, to: Grant, offset: usize, from: &'a [u8]) -> Result<(), Error> {
        self.add(Way::In, to, offset, from.as_ptr(), from.len()).map_err(|kind| kind.of_grant(to))
    }

    /// Adds a copy of so many bytes at a pointer, which are borrowed for as long as the batch lives, exclusively if Xen writes
    /// to them: then the pointer is one that may be written through.
    fn add(&mut self, way: Way, grant: Grant, offset: usize, own: *const u8, len: usize) -> Result<(), ErrorKind> {
        if offset > PAGE || len > PAGE - offset {
            return Err(ErrorKind::BeyondPage);
        }
        let filled = match self.filled.filter(|_| !self.is_empty()) {
            Some(filled) => filled.check().map(|()| filled),
            None => Filled::here(),
        }?;
        let first = len.min(PAGE - own.addr() % PAGE);
        let (mut done, mut parts) = (0, heapless::Vec::<GrantCopy, 2>::new());
        for part in [first, len - first].into_iter().filter(|part| *part > 0) {
            let own = own.wrapping_add(done);
            let place = arch::copied_frame(own).ok_or(ErrorKind::BadPage)?;
            let own = CopySide { place, domid: DomainId::SELF.0, offset: (own.addr() % PAGE) as u16 };
            let peer =
                CopySide { place: grant.reference.0.into(), domid: grant.domain.0, offset: (offset + done) as u16 };
            let (source, dest, flags) = match way {
                Way::Out => (peer, own, COPY_SOURCE_GRANT),
                Way::In => (own, peer, COPY_DESTINATION_GRANT),
            };
            // What Xen does not come to is not copied.
            let segment = GrantCopy { source, dest, len: part as u16, flags, status: Status::AGAIN };
            // There is room for two.
            let _ = parts.push(segment);
            done += part;
        }
        // Copies of nothing have no segments.
        if self.parts.is_full() || self.segments.extend_from_slice(&parts).is_err() {
            return Err(ErrorKind::BatchFull);
        }
        self.filled = Some(filled);
        self.parts.push(parts.len() as u8).map_err(|_| ErrorKind::BatchFull)
    }

    /// Has Xen do all copies, and tells what came of each. The batch is empty then, and may be filled again.
    ///
    /// If Xen says that a page is not there now, its copies are tried again, up to ten times within a second.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves some copies done, and others not. None is done later, unless the batch is submitted again:
    /// then the others are, and all have results.
    pub async fn submit(&mut self) -> Results {
        let mut retry = Retry::new();
        loop {
            // By a reference from before a resume another page might be found, and other memory by an own frame of another
            // domain's.
            let current = self.filled.map_or(Ok(()), Filled::check);
            let refused = current.and_then(|()| self.attempt().map_err(ErrorKind::Refused));
            let complete = self.segments.iter().all(|segment| segment.status != Status::AGAIN);
            if complete || refused.is_err() || !retry.wait().await {
                let results = self.results(refused.err());
                self.segments.clear();
                self.parts.clear();
                self.filled = None;
                return results;
            }
        }
    }

    /// Has Xen do what is not done: one hypercall, unless a page was missing in their midst.
    fn attempt(&mut self) -> Result<(), Errno> {
        let again =
            self.segments.chunk_by_mut(|one, other| (one.status == Status::AGAIN) == (other.status == Status::AGAIN));
        for run in again.filter(|run| run[0].status == Status::AGAIN) {
            // SAFETY: the own frames are those of slices that are borrowed for as long as the batch lives, which is here,
            // exclusively where Xen writes to them; each segment lies within its slice. Their pointers were exposed when their
            // frames were asked for, those that are written to as pointers that may be: the compiler knows that a call may
            // access them.
            unsafe { hypercall::grant_copy(run) }?;
        }
        Ok(())
    }

    /// What came of each copy; `refused` is why there was no status.
    fn results(&self, refused: Option<ErrorKind>) -> Results {
        let mut segments = self.segments.iter();
        let result = |parts: &u8| {
            let of_parts = segments.by_ref().take(usize::from(*parts)).map(|segment| {
                let result = match (segment.status, refused) {
                    (Status::AGAIN, Some(kind)) => Err(kind),
                    (status, _) => ErrorKind::check(status),
                };
                result.map_err(|kind| kind.of_grant(granted(segment)))
            });
            of_parts.fold(Ok(()), Result::and)
        };
        Results(self.parts.iter().map(result).collect())
    }
}

/// The grant of a segment.
fn granted(segment: &GrantCopy) -> Grant {
    let side = if segment.flags & COPY_SOURCE_GRANT != 0 { &segment.source } else { &segment.dest };
    Grant { domain: DomainId(side.domid), reference: Reference(side.place as u32) }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("copies", &self.len()).field("segments", &self.segments.len()).finish()
    }
}

/// What came of each copy of a [`Batch`], in their order: a slice of results.
///
/// The errors are [`ErrorKind::NoDomain`], [`ErrorKind::NoReference`], [`ErrorKind::NotGranted`] and the like, as Xen refuses one;
/// [`ErrorKind::Unavailable`] if the page was not there all the time; [`ErrorKind::BeforeResume`] if the domain was resumed elsewhere
/// after the copy was added; and [`ErrorKind::Refused`] if Xen refuses the hypercall, or outside of the domain in which it was
/// added.
#[derive(Debug)]
#[must_use = "some of the copies may have failed"]
pub struct Results(heapless::Vec<Result<(), Error>, SEGMENTS>);

impl core::ops::Deref for Results {
    type Target = [Result<(), Error>];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Copies out of pages of a domain's, taken as if they followed each other, from an offset in the first.
///
/// # Errors
///
/// [`ErrorKind::BeyondPage`] if the pages have not so many bytes; else what the first copy that failed has, as told by
/// [`Results`]. What the slice holds is not known then.
///
/// # Cancel safety
///
/// As [`Batch::submit`]. What the slice holds is not known then.
pub async fn read(domain: DomainId, references: &[Reference], offset: usize, into: &mut [u8]) -> Result<(), Error> {
    let mut rest = into;
    let mut pieces = Pieces::new(domain, references, offset, rest.len())?;
    let mut batch = Batch::new();
    while !rest.is_empty() {
        while batch.has_room()
            && let Some((grant, offset, len)) = pieces.next(rest.len())
        {
            let (piece, behind) = rest.split_at_mut(len);
            batch.read(grant, offset, piece)?;
            rest = behind;
        }
        batch.submit().await.iter().copied().collect::<Result<(), Error>>()?;
    }
    Ok(())
}

/// Copies into pages of a domain's, taken as if they followed each other, from an offset in the first.
///
/// # Errors
///
/// As [`read`]. What the pages hold is not known then.
///
/// # Cancel safety
///
/// As [`Batch::submit`]. What the pages hold is not known then.
pub async fn write(domain: DomainId, references: &[Reference], offset: usize, from: &[u8]) -> Result<(), Error> {
    let mut rest = from;
    let mut pieces = Pieces::new(domain, references, offset, rest.len())?;
    let mut batch = Batch::new();
    while !rest.is_empty() {
        while batch.has_room()
            && let Some((grant, offset, len)) = pieces.next(rest.len())
        {
            let (piece, behind) = rest.split_at(len);
            batch.write(grant, offset, piece)?;
            rest = behind;
        }
        batch.submit().await.iter().copied().collect::<Result<(), Error>>()?;
    }
    Ok(())
}

impl Batch<'_> {
    /// Whether there is room for any copy.
    fn has_room(&self) -> bool {
        self.segments.len() + 2 <= SEGMENTS
    }
}

/// Where the next bytes are, among pages that follow each other.
struct Pieces<'a> {
    domain: DomainId,
    references: &'a [Reference],
    at: usize,
}

impl<'a> Pieces<'a> {
    const fn new(domain: DomainId, references: &'a [Reference], at: usize, len: usize) -> Result<Self, Error> {
        let size = references.len().saturating_mul(PAGE);
        if at > size || len > size - at {
            return Err(ErrorKind::BeyondPage.of_peer(domain));
        }
        Ok(Self { domain, references, at })
    }

    /// The page of the next bytes, their offset there, and how many of those that are left it has.
    fn next(&mut self, left: usize) -> Option<(Grant, usize, usize)> {
        let reference = *self.references.get(self.at / PAGE).filter(|_| left > 0)?;
        let offset = self.at % PAGE;
        let len = left.min(PAGE - offset);
        self.at += len;
        Some((Grant { domain: self.domain, reference }, offset, len))
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::lifecycle::Reason;
    use crate::sim::{End, Guest, outside};

    const PEER: DomainId = DomainId(3);

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        /// Wherever the slice and the pages begin and end, the same bytes arrive that copying between slices gives, and no
        /// others.
        #[test]
        #[cfg_attr(miri, ignore = "tens of thousands of bytes, each by itself; tests/copies.rs has the same code in less")]
        fn all_splits_agree_with_copying_between_slices(
            pages in 1_usize..5, own in 0_usize..4096, near in prop::bool::ANY, out in prop::bool::ANY,
            at in any::<prop::sample::Index>(), len in any::<prop::sample::Index>()) {
            let size = pages * PAGE;
            // Half of the cases are near the edges, where things go wrong.
            let edge = |value: usize, most: usize| match near {
                true => (value % 5 + most - most % PAGE).saturating_sub(2).min(most),
                false => value,
            };
            let at = edge(at.index(size + 1), at.index(size + 1));
            let len = edge(len.index(size - at + 1), len.index(size - at + 1));
            let report = Guest::new().run(async |_| {
                let references: Vec<_> = (0..pages as u32).map(|page| Reference(8 + page * 3 % 7)).collect();
                let mut model: Vec<u8> = (0..size).map(|index| (index % 249) as u8).collect();
                let mut buffer: Vec<u8> = (0..size + 2 * PAGE).map(|index| (index % 251) as u8).collect();
                let peers: Vec<_> = references.iter().zip(model.chunks(PAGE)).map(|(reference, bytes)| {
                    let page = outside(|outside| outside.offer_grant(PEER.0, reference.0, true));
                    page.write(0, bytes);
                    page
                }).collect();
                let start = buffer.as_ptr().align_offset(PAGE) + own;
                if out {
                    let mut expected = buffer.clone();
                    expected[start..start + len].copy_from_slice(&model[at..at + len]);
                    read(PEER, &references, at, &mut buffer[start..start + len]).await.unwrap();
                    assert!(buffer == expected, "out");
                } else {
                    model[at..at + len].copy_from_slice(&buffer[start..start + len]);
                    write(PEER, &references, at, &buffer[start..start + len]).await.unwrap();
                }
                for (page, bytes) in peers.iter().zip(model.chunks(PAGE)) {
                    let mut found = [0; PAGE];
                    page.read(0, &mut found);
                    assert!(found == bytes, "in the peer's page");
                }
            });
            prop_assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{}", report.debug_text());
        }
    }
}
