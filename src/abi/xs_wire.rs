//! The wire protocol of xenstore, and the page over which a domain speaks it (`io/xs_wire.h`).

use core::fmt;

/// What a message is (`enum xsd_sockmsg_type`); a number that this crate does not know is kept.
#[doc(alias = "xsd_sockmsg_type")]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct MessageType(pub u32);

macro_rules! message_types {
    ($($alias:literal $name:ident = $value:literal, $doc:literal;)*) => {
        impl MessageType {
            $(#[doc = $doc] #[doc(alias = $alias)] pub const $name: Self = Self($value);)*

            /// The symbolic name, if this crate knows the number.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

message_types! {
    "XS_CONTROL" CONTROL = 0, "A command to the server itself; refused to guests.";
    "XS_DIRECTORY" DIRECTORY = 1, "The names of a node's children.";
    "XS_READ" READ = 2, "A node's value.";
    "XS_GET_PERMS" GET_PERMS = 3, "A node's permissions.";
    "XS_WATCH" WATCH = 4, "Asks for events of a node and what is below.";
    "XS_UNWATCH" UNWATCH = 5, "Ends that.";
    "XS_TRANSACTION_START" TRANSACTION_START = 6, "Opens a transaction.";
    "XS_TRANSACTION_END" TRANSACTION_END = 7, "Commits a transaction, or drops it.";
    "XS_INTRODUCE" INTRODUCE = 8, "Tells the server of a new domain; refused to guests.";
    "XS_RELEASE" RELEASE = 9, "Tells the server of a domain's end; refused to guests.";
    "XS_GET_DOMAIN_PATH" GET_DOMAIN_PATH = 10, "The home of a domain.";
    "XS_WRITE" WRITE = 11, "Sets a node's value, and makes the node if need be.";
    "XS_MKDIR" MKDIR = 12, "Makes a node, unless it is there.";
    "XS_RM" RM = 13, "Removes a node and what is below.";
    "XS_SET_PERMS" SET_PERMS = 14, "Sets a node's permissions.";
    "XS_WATCH_EVENT" WATCH_EVENT = 15, "From the server, unasked: something changed at a path that is watched.";
    "XS_ERROR" ERROR = 16, "From the server: a request is refused, with the name of an error.";
    "XS_IS_DOMAIN_INTRODUCED" IS_DOMAIN_INTRODUCED = 17, "Whether the server knows a domain.";
    "XS_RESUME" RESUME = 18, "Clears a domain's mark of having shut down; refused to guests.";
    "XS_SET_TARGET" SET_TARGET = 19, "Lets a domain act for another; refused to guests.";
    "XS_RESET_WATCHES" RESET_WATCHES = 21, "Ends all watches and transactions of the caller's.";
    "XS_DIRECTORY_PART" DIRECTORY_PART = 22, "Some of the names of a node's children.";
    "XS_GET_FEATURE" GET_FEATURE = 23, "The features that the server offers a domain; refused to guests.";
    "XS_SET_FEATURE" SET_FEATURE = 24, "Sets them; refused to guests.";
    "XS_GET_QUOTA" GET_QUOTA = 25, "The server's limits; refused to guests.";
    "XS_SET_QUOTA" SET_QUOTA = 26, "Sets them; refused to guests.";
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "xenstore message {}", self.0),
        }
    }
}

impl fmt::Debug for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What precedes the payload of each message, in either direction (`struct xsd_sockmsg`). A reply repeats the first three
/// fields of its request, except for the type of an [error](MessageType::ERROR).
#[doc(alias = "xsd_sockmsg")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Header {
    /// What the message is.
    pub ty: MessageType,
    /// The number that the client gave the request; 0 in an event.
    pub req_id: u32,
    /// The transaction; 0 for none.
    pub tx_id: u32,
    /// Bytes that follow, at most [`PAYLOAD_MAX`].
    pub len: u32,
}

/// Bytes of a [`Header`].
pub const HEADER_SIZE: usize = 16;

/// The most bytes of a payload. A server ends the connection of who sends more.
#[doc(alias = "XENSTORE_PAYLOAD_MAX")]
pub const PAYLOAD_MAX: usize = 4096;
/// The most bytes of a path that starts with a slash, without a NUL.
#[doc(alias = "XENSTORE_ABS_PATH_MAX")]
pub const ABS_PATH_MAX: usize = 3072;
/// The most bytes of a path below the domain's home, without a NUL.
#[doc(alias = "XENSTORE_REL_PATH_MAX")]
pub const REL_PATH_MAX: usize = 2048;

/// Byte offset of the buffer of requests.
#[doc(alias = "req")]
pub const REQ: usize = 0;
/// Byte offset of the buffer of replies and events.
#[doc(alias = "rsp")]
pub const RSP: usize = 1024;
/// Bytes in each buffer; a power of two, indices run freely.
#[doc(alias = "XENSTORE_RING_SIZE")]
pub const RING_SIZE: u32 = 1024;
/// Byte offset of the request consumer index, which the server writes.
#[doc(alias = "req_cons")]
pub const REQ_CONS: usize = 2048;
/// Byte offset of the request producer index, which the guest writes.
#[doc(alias = "req_prod")]
pub const REQ_PROD: usize = 2052;
/// Byte offset of the reply consumer index, which the guest writes.
#[doc(alias = "rsp_cons")]
pub const RSP_CONS: usize = 2056;
/// Byte offset of the reply producer index, which the server writes.
#[doc(alias = "rsp_prod")]
pub const RSP_PROD: usize = 2060;
/// Byte offset of the word of features that the server offers.
#[doc(alias = "server_features")]
pub const SERVER_FEATURES: usize = 2064;
/// Byte offset of the word with the state of the connection.
#[doc(alias = "connection")]
pub const CONNECTION: usize = 2068;
/// Byte offset of the word with the reason for which the server serves the ring no more.
#[doc(alias = "error")]
pub const ERROR: usize = 2072;

/// The server can begin a connection anew: see [`RECONNECT`].
#[doc(alias = "XENSTORE_SERVER_FEATURE_RECONNECTION")]
pub const FEATURE_RECONNECTION: u32 = 1 << 0;
/// The server tells in the page why it serves the ring no more.
#[doc(alias = "XENSTORE_SERVER_FEATURE_ERROR")]
pub const FEATURE_ERROR: u32 = 1 << 1;
/// A watch can be limited to so many levels below its node.
#[doc(alias = "XENSTORE_SERVER_FEATURE_WATCHDEPTH")]
pub const FEATURE_WATCH_DEPTH: u32 = 1 << 2;
/// A permission can be given to all domains.
#[doc(alias = "XENSTORE_SERVER_FEATURE_DOMID_ANY")]
pub const FEATURE_DOMID_ANY: u32 = 1 << 3;

/// The connection is served.
#[doc(alias = "XENSTORE_CONNECTED")]
pub const CONNECTED: u32 = 0;
/// The guest has asked for a new connection, or the first has yet to be made. The server empties both buffers, forgets
/// watches and transactions, and then writes [`CONNECTED`].
#[doc(alias = "XENSTORE_RECONNECT")]
pub const RECONNECT: u32 = 1;

/// No error.
#[doc(alias = "XENSTORE_ERROR_NONE")]
pub const ERROR_NONE: u32 = 0;
/// The server could not read or write the ring.
#[doc(alias = "XENSTORE_ERROR_COMM")]
pub const ERROR_COMM: u32 = 1;
/// An index of the guest's was impossible.
#[doc(alias = "XENSTORE_ERROR_RINGIDX")]
pub const ERROR_RING_INDEX: u32 = 2;
/// A message of the guest's was impossible.
#[doc(alias = "XENSTORE_ERROR_PROTO")]
pub const ERROR_PROTOCOL: u32 = 3;

const _: () = assert!(size_of::<Header>() == HEADER_SIZE);
