//! Xenstore: the host's tree of small values, by which a domain and its toolstack tell each other what they want.

#[allow(dead_code, reason = "for the client, which comes next")]
mod code;
#[allow(dead_code, reason = "for the client, which comes next")]
pub(crate) mod wire;

pub use code::{Code, UnknownCode};
