//! Futures of requests.

use core::cell::RefCell;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use super::super::ErrorKind;
use super::super::protocol::{Operation, PAGE, SECTOR};
use super::durability::Flushed;
use super::state::{Buffer, Lent, NONE, Refusal, State};
use crate::memory::Pages;

/// Calls the wakers that were collected, none of them while the state is borrowed.
pub(super) fn wake(state: &RefCell<State>) {
    loop {
        let Some(waker) = state.borrow_mut().next_wake() else { return };
        waker.wake();
    }
}

/// The caller's data.
pub(super) enum Data<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
    /// So many bytes to be discarded.
    Discard(u64),
}

impl Data<'_> {
    const fn operation(&self) -> Operation {
        match self {
            Self::Read(_) => Operation::Read,
            Self::Write(_) => Operation::Write,
            Self::Discard(_) => Operation::Discard,
        }
    }

    const fn len(&self) -> u64 {
        match self {
            Self::Read(data) => data.len() as u64,
            Self::Write(data) => data.len() as u64,
            Self::Discard(length) => *length,
        }
    }
}

/// Numbers of the completed writes of a request, the first and the last.
pub(super) type Numbers = (u64, u64);

/// Transfers of a request that are in flight at once, so that a request takes no memory.
const WINDOW: usize = 8;

/// A transfer of a request's: its index, and the offset and length of its data.
type Piece = (u16, usize, usize);

/// A request whose data is copied to or from the pool.
pub(super) struct Copied<'a> {
    state: &'a RefCell<State>,
    position: u64,
    data: Data<'a>,
    /// Bytes that were submitted.
    submitted: u64,
    pieces: [Piece; WINDOW],
    numbers: Option<Numbers>,
    error: Option<ErrorKind>,
    room: Option<u64>,
    change: Option<u64>,
}

impl<'a> Copied<'a> {
    pub(super) const fn new(state: &'a RefCell<State>, position: u64, data: Data<'a>) -> Self {
        Self {
            state,
            position,
            data,
            submitted: 0,
            pieces: [(NONE, 0, 0); WINDOW],
            numbers: None,
            error: None,
            room: None,
            change: None,
        }
    }

    /// Takes results, and copies what was read.
    fn reap(&mut self, state: &mut State) {
        for (index, offset, length) in &mut self.pieces {
            if *index == NONE {
                continue;
            }
            let Some(finished) = state.take_finished(*index) else { continue };
            *index = NONE;
            match finished.result {
                Err(kind) => self.error = self.error.or(Some(kind)),
                Ok(()) => {
                    if let (Data::Read(data), Buffer::Pool(run), Some(pool)) =
                        (&mut self.data, &finished.buffer, &state.pool)
                    {
                        pool.read(run, &mut data[*offset..*offset + *length]);
                    }
                    let (first, last) = self.numbers.unwrap_or((finished.number, finished.number));
                    self.numbers = Some((first.min(finished.number), last.max(finished.number)));
                }
            }
            drop(state.give(finished.buffer));
        }
    }

    /// Submits the next piece.
    fn submit(&mut self, state: &mut State, place: usize) -> Result<(), Refusal> {
        let (operation, all) = (self.data.operation(), self.data.len());
        // The whole range counts, so that nothing is done of one that the disk does not have.
        state.check(operation, self.position, all)?;
        let offset = self.submitted;
        let most = if operation == Operation::Discard { all } else { (state.most_pages() * PAGE) as u64 };
        let length = most.min(all - offset);
        let sectors = state.check_part(self.position + offset, length)?;
        if state.is_behind_orphan(sectors) {
            return Err(Refusal::Wait);
        }
        if !state.is_next(self.room) {
            return Err(Refusal::Wait);
        }
        let index = match &self.data {
            Data::Read(_) => state.submit_pool(operation, sectors, None),
            Data::Write(data) => {
                let data = &data[offset as usize..(offset + length) as usize];
                state.submit_pool(operation, sectors, Some(data))
            }
            Data::Discard(_) => state.submit(operation, sectors, Buffer::None).ok(),
        };
        let index = index.ok_or(Refusal::Wait)?;
        self.pieces[place] = (index, offset as usize, length as usize);
        self.submitted += length;
        debug_assert!(length.is_multiple_of(SECTOR), "a disk has whole sectors");
        Ok(())
    }
}

impl Future for Copied<'_> {
    type Output = Result<Numbers, ErrorKind>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let cell = this.state;
        let mut state = cell.borrow_mut();
        this.reap(&mut state);
        let mut waits = false;
        // At least once, so that an empty range is an error.
        while this.error.is_none() && (this.submitted < this.data.len() || this.data.len() == 0) {
            let Some(place) = this.pieces.iter().position(|piece| piece.0 == NONE) else { break };
            match this.submit(&mut state, place) {
                Ok(()) => {}
                Err(Refusal::Error(kind)) => this.error = Some(kind),
                Err(Refusal::Wait) => {
                    waits = true;
                    break;
                }
            }
        }
        if waits {
            let sectors = state.check_part(this.position, this.data.len());
            if sectors.is_ok_and(|sectors| state.is_behind_orphan(sectors)) {
                // Others are not held up by an orphan.
                state.stop_waiting(&mut this.room, &mut None);
                state.wait_for_change(&mut this.change, context.waker());
            } else {
                state.wait_for_room(&mut this.room, context.waker());
            }
        } else {
            state.stop_waiting(&mut this.room, &mut this.change);
        }
        for (index, ..) in this.pieces {
            state.keep_waker(index, context.waker());
        }
        let pending = waits || this.pieces.iter().any(|piece| piece.0 != NONE);
        drop(state);
        wake(cell);
        if pending && (this.error.is_none() || this.pieces.iter().any(|piece| piece.0 != NONE)) {
            return Poll::Pending;
        }
        Poll::Ready(match this.error {
            Some(kind) => Err(kind),
            None => Ok(this.numbers.unwrap_or_default()),
        })
    }
}

impl Drop for Copied<'_> {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        for (index, ..) in self.pieces {
            if index != NONE {
                state.abandon(index);
            }
        }
        state.stop_waiting(&mut self.room, &mut self.change);
        drop(state);
        wake(self.state);
    }
}

/// A request whose pages are lent to the back end.
pub(super) struct Lending<'a> {
    state: &'a RefCell<State>,
    position: u64,
    length: u64,
    operation: Operation,
    /// The pages, until they are submitted.
    lent: Option<Lent>,
    index: u16,
    room: Option<u64>,
    change: Option<u64>,
}

impl<'a> Lending<'a> {
    pub(super) const fn new(state: &'a RefCell<State>, position: u64, length: u64, lent: Lent) -> Self {
        let operation = match lent {
            Lent::Read(_) => Operation::Read,
            Lent::Write(_) => Operation::Write,
        };
        Self { state, position, length, operation, lent: Some(lent), index: NONE, room: None, change: None }
    }

    fn submit(&mut self, state: &mut State) -> Result<(), Refusal> {
        let sectors = state.check(self.operation, self.position, self.length)?;
        if state.is_behind_orphan(sectors) || !state.is_next(self.room) {
            return Err(Refusal::Wait);
        }
        let lent = self.lent.take().ok_or(Refusal::Error(ErrorKind::BufferKept))?;
        match state.submit(self.operation, sectors, Buffer::Lent(lent)) {
            Ok(index) => {
                self.index = index;
                Ok(())
            }
            Err(buffer) => {
                if let Buffer::Lent(lent) = buffer {
                    self.lent = Some(lent);
                }
                Err(Refusal::Wait)
            }
        }
    }
}

impl Future for Lending<'_> {
    type Output = (Result<Numbers, ErrorKind>, Option<Pages>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let cell = this.state;
        let mut state = cell.borrow_mut();
        let mut output = None;
        if this.index == NONE {
            match this.submit(&mut state) {
                Ok(()) => state.stop_waiting(&mut this.room, &mut this.change),
                Err(Refusal::Error(kind)) => {
                    state.stop_waiting(&mut this.room, &mut this.change);
                    output = Some((Err(kind), this.lent.take().and_then(Lent::end)));
                }
                Err(Refusal::Wait) => {
                    let sectors = state.check_part(this.position, this.length);
                    if sectors.is_ok_and(|sectors| state.is_behind_orphan(sectors)) {
                        state.stop_waiting(&mut this.room, &mut None);
                        state.wait_for_change(&mut this.change, context.waker());
                    } else {
                        state.wait_for_room(&mut this.room, context.waker());
                    }
                }
            }
        }
        if this.index != NONE {
            match state.take_finished(this.index) {
                Some(finished) => {
                    this.index = NONE;
                    let pages = state.give(finished.buffer);
                    let result = if pages.is_some() { finished.result } else { Err(ErrorKind::BufferKept) };
                    output = Some((result.map(|()| (finished.number, finished.number)), pages));
                }
                None => state.keep_waker(this.index, context.waker()),
            }
        }
        drop(state);
        wake(cell);
        output.map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Lending<'_> {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        if self.index != NONE {
            state.abandon(self.index);
        }
        state.stop_waiting(&mut self.room, &mut self.change);
        drop(state);
        wake(self.state);
    }
}

/// Waits for a flush.
pub(super) struct Flushing<'a> {
    state: &'a RefCell<State>,
    place: Option<usize>,
}

impl<'a> Flushing<'a> {
    pub(super) const fn new(state: &'a RefCell<State>) -> Self {
        Self { state, place: None }
    }
}

impl Future for Flushing<'_> {
    type Output = Result<Flushed, ErrorKind>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.state.borrow_mut();
        let result = match self.place {
            Some(place) => state.ledger.poll(place, context.waker()),
            None => match state.begin_flush(context.waker()) {
                Ok(place) => {
                    drop(state);
                    self.place = Some(place);
                    wake(self.state);
                    return Poll::Pending;
                }
                Err(result) => Some(result),
            },
        };
        drop(state);
        match result {
            Some(result) => {
                self.place = None;
                Poll::Ready(result)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.state.borrow_mut().ledger.leave(place);
        }
    }
}
