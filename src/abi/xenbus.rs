//! The states by which the two ends of a device tell each other how far they are (`io/xenbus.h`).

use core::fmt;

/// A state of one end of a device (`enum xenbus_state`); a number that this crate does not know is kept.
#[doc(alias("xenbus_state", "XenbusState", "Device_state"))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct State(pub u32);

macro_rules! states {
    ($($alias:literal $name:ident = $value:literal, $text:literal, $doc:literal;)*) => {
        impl State {
            $(#[doc = $doc] #[doc(alias = $alias)] pub const $name: Self = Self($value);)*

            /// The name, if this crate knows the number.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

states! {
    "XenbusStateUnknown" UNKNOWN = 0, "Unknown", "None: an end that has no state.";
    "XenbusStateInitialising" INITIALISING = 1, "Initialising", "It begins: as the toolstack has made it, or again.";
    "XenbusStateInitWait" INIT_WAIT = 2, "InitWait", "It has said what it offers, and waits for details of the other.";
    "XenbusStateInitialised" INITIALISED = 3, "Initialised", "It has given its details, and waits for the other to connect.";
    "XenbusStateConnected" CONNECTED = 4, "Connected", "It is ready.";
    "XenbusStateClosing" CLOSING = 5, "Closing", "It wants to end the connection, or the other does.";
    "XenbusStateClosed" CLOSED = 6, "Closed", "It uses nothing of the other's any more.";
    "XenbusStateReconfiguring" RECONFIGURING = 7, "Reconfiguring", "It changes what it offers, while connected.";
    "XenbusStateReconfigured" RECONFIGURED = 8, "Reconfigured", "It has taken note of that.";
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "state {}", self.0),
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn states_are_numbers_with_names() {
        let names = (0..10).map(|number| State(number).to_string()).collect::<std::vec::Vec<_>>();
        let known = ["Unknown", "Initialising", "InitWait", "Initialised", "Connected", "Closing", "Closed"];
        assert_eq!(names[..7], known);
        assert_eq!(names[7..], ["Reconfiguring", "Reconfigured", "state 9"]);
        assert_eq!((State(4), State(9).name()), (State::CONNECTED, None));
    }
}
