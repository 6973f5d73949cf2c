//! What the program does. Here, so that tests can use it.

#![no_std]

/// The greeting of a domain.
#[must_use]
pub fn greeting(id: u16) -> Greeting {
    Greeting(id)
}

/// Text for the log.
#[derive(Debug)]
pub struct Greeting(u16);

impl core::fmt::Display for Greeting {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "hello from domain {}", self.0)
    }
}
