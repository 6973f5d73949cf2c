//! Auto traits and other compile-time promises of the public types.

use core::fmt::Debug;

use domu::console::{Console, Lines};
use domu::eventchn::{After, Port};
use domu::executor::Task;
use domu::gnttab::copy::{Batch, Results};
use domu::gnttab::{Granted, Mapping, ReadOnly, ReadWrite, References};
use domu::lifecycle::{Resumes, ShutdownRequests, SysRq, Watchdog};
use domu::memory::Pages;
use domu::options::{Word, Words};
use domu::shared::{BackRing, FrontRing, Requests, SharedMemory};
use domu::time::{Instant, Interval, Sleep};
use domu::xenbus::{Backend, Device, Frontend};
use domu::xenstore::{Nodes, Path, Transaction, Value, Watch, Xenstore};
use domu::{Domain, Error, Module};

/// Handles and values are `Send`, `Sync` and `Debug`: a removal of one of them does not compile.
const _: () = {
    const fn is_shareable<T: Send + Sync + Debug>() {}
    is_shareable::<(Console, Lines, Port, After<'static>, Task<u32>)>();
    is_shareable::<(Batch<'static>, Results, Granted<ReadWrite>, Mapping<ReadOnly>, References<'static>)>();
    is_shareable::<(Resumes, ShutdownRequests, SysRq, Watchdog, Pages, Word<'static>, Words<'static>)>();
    is_shareable::<(SharedMemory<'static>, Requests<u32>)>();
    is_shareable::<(FrontRing<u32, u32, Granted<ReadWrite>>, BackRing<u32, u32, Mapping<ReadWrite>>)>();
    is_shareable::<(Instant, Interval, Sleep, Backend, Device, Frontend)>();
    is_shareable::<(Nodes, Path, Transaction, Value, Watch, Xenstore, Domain, Error, Module)>();
};

/// All errors can be sent to other threads, boxed and cloned, and what is compared is comparable.
const _: () = {
    const fn is_error<T: core::error::Error + Clone + PartialEq + Send + Sync + 'static>() {}
    is_error::<domu::Error>();
    is_error::<domu::console::Error>();
    is_error::<domu::eventchn::Error>();
    is_error::<domu::gnttab::Error>();
    is_error::<domu::lifecycle::SuspendError>();
    is_error::<domu::lifecycle::WatchdogError>();
    is_error::<domu::memory::Error>();
    is_error::<domu::memory::Violation>();
    is_error::<domu::random::Error>();
    is_error::<domu::shared::Error>();
    is_error::<domu::time::Elapsed>();
    is_error::<domu::xenbus::Error>();
    is_error::<domu::xenstore::Error>();
    const fn is_kind<T: core::fmt::Display + Copy + PartialEq + Debug + Send + Sync + 'static>() {}
    is_kind::<domu::eventchn::ErrorKind>();
    is_kind::<domu::gnttab::ErrorKind>();
    is_kind::<domu::xenstore::ErrorKind>();
};
