//! Tasks, and the main loop that runs them.
//!
//! Main is the first task; [`spawn`] starts more. All run on the one virtual CPU, one at a time, until each waits: for a
//! port, a moment, another task. So a future need not be `Send`. The handles of this crate, such as ports, grants, mappings and
//! watches, are `Send` and `Sync` all the same, as is a [`Task`] whose output is, for code that asks for it. A turn of the main loop gives every kind of work a bounded share:
//!
//! 1. main, then the tasks that are ready by then, each once: what they make ready has the next turn;
//! 2. timers that are due, and granted pages that peers had in use when their owner was done with them;
//! 3. ports that fired: the cost follows those, not the ports that exist; and what the turn has put into the console's ring;
//! 4. if nothing is ready then: the domain halts until the next event.
//!
//! The application may have functions called [before](before_turn) and [after](after_turn) the first three of them, and
//! futures run [when main has returned](at_exit).
//!
//! So a task that is always ready delays a timer or an event by one turn, and an idle domain costs nothing. Interrupts are
//! on in step 4 alone, inside of `arch::idle`, and what they interrupt is the halt:
//!
//! | Xen, for an event | main loop, interrupts off |
//! |---|---|
//! | 1. sets upcall_pending | 1. finds nothing ready |
//! | 2. injects the callback as soon as interrupts are on | 2. reads upcall_pending: if set, next turn |
//! | | 3. `sti; hlt`: interrupts are on from the second instruction's beginning |
//!
//! An event before our second step is seen there. One after it is injected at the latest when the halt begins, and ends it;
//! between `sti` and `hlt` the CPU holds it back. (Where an emulator does not, the callback returns behind the halt all the
//! same.) The callback turns interrupts off again in the flags that it returns to, so it runs once for each halt.

mod hooks;
mod main_loop;
mod queue;
mod task;
mod timers;

pub(crate) use hooks::{HOOKS, run_exits, with_exits};
pub use hooks::{after_suspend, after_turn, at_exit, before_suspend, before_turn};
pub(crate) use main_loop::{Source, Stop, Turn, TurnHooks, run};
pub(crate) use queue::EXECUTOR;
pub use queue::{Activity, activity};
pub use task::{Task, spawn};
pub(crate) use timers::DueTimers;

pub use crate::sync::yield_now;
