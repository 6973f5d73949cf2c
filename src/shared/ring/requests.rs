//! Requests in flight, by the id that their responses come back with.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::shared::Error;

/// What a front end keeps for each request in flight, found again by the id in the response.
///
/// Ids are below the capacity. One that is free again is the last to be given out again, so that a response that comes twice
/// is found out as long as there is room. Nothing is allocated after the table was made.
#[derive(Debug)]
pub struct Requests<T> {
    in_flight: Vec<Option<T>>,
    /// Ids that are not in flight, the one that was so for longest first.
    free: VecDeque<u32>,
}

impl<T> Requests<T> {
    /// Makes room for so many requests, as many as the [ring](super::FrontRing::size) has.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn new(capacity: u32) -> Result<Self, Error> {
        let (mut in_flight, mut free) = (Vec::new(), VecDeque::new());
        in_flight.try_reserve_exact(capacity as usize).map_err(|_| Error::OutOfMemory)?;
        free.try_reserve_exact(capacity as usize).map_err(|_| Error::OutOfMemory)?;
        in_flight.resize_with(capacity as usize, || None);
        free.extend(0..capacity);
        Ok(Self { in_flight, free })
    }

    /// How many requests are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() - self.free.len()
    }

    /// Keeps something for a request, and returns the id for it.
    ///
    /// # Errors
    ///
    /// The value, if as many requests are in flight as there is room for.
    pub fn insert(&mut self, value: T) -> Result<u32, T> {
        let Some(id) = self.free.pop_front() else { return Err(value) };
        // Ids that are free are below the capacity.
        self.in_flight[id as usize] = Some(value);
        Ok(id)
    }

    /// Takes back what was kept for the request that a response names.
    ///
    /// # Errors
    ///
    /// [`Error::NotInFlight`] if no such request is in flight: the peer has made it up, or has answered it before. The rest
    /// stays as it is; a device whose peer does this is not to be used any more.
    pub fn remove(&mut self, id: impl Into<u64>) -> Result<T, Error> {
        let id = id.into();
        let index = u32::try_from(id).map_err(|_| Error::NotInFlight(id))?;
        let value = self.in_flight.get_mut(index as usize).and_then(Option::take).ok_or(Error::NotInFlight(id))?;
        // There was room for all ids at once.
        self.free.push_back(index);
        Ok(value)
    }
}
