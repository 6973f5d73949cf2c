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
