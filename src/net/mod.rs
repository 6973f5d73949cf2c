//! Network interfaces of Xen (vif).
//!
//! [`protocol`] has the layouts, flags and checks of the wire between the two ends, without any I/O.

pub mod protocol;
