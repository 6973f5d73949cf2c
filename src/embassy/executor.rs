//! `embassy-executor` as one task of this crate's executor.
//!
//! Its raw executor keeps a queue of its own, and calls the symbol `__pender` with a word of ours when something is put into
//! it while it is empty. That wakes the task which [`run`] is part of, and there the queue is run once: what is woken
//! meanwhile has the next turn, beside all other tasks.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::future::poll_fn;
use core::task::{Poll, Waker};

use crate::sync::Mutex;
use crate::sync::wait_list::WaitCell;
use embassy_executor::{Spawner, raw};

/// Who polls an executor, while somebody does.
#[derive(Default)]
struct Hook(Mutex<WaitCell>);

impl Hook {
    fn set(&self, waker: Waker) {
        let replaced = self.0.lock().register(waker);
        drop(replaced);
    }

    fn clear(&self) {
        let waker = self.0.lock().take();
        drop(waker);
    }

    fn wake(&self) {
        let waker = self.0.lock().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The hooks of all executors ever made, by the word that each gives to `__pender`. It is a number and no pointer, because
/// whoever makes a raw executor of their own gives it any word. Not a part of the state: a task may be woken from outside of
/// its domain, on the host by another thread.
static HOOKS: Mutex<Vec<&'static Hook>> = Mutex::new(Vec::new());

#[unsafe(export_name = "__pender")]
extern "Rust" fn pender(context: *mut ()) {
    let hook = HOOKS.lock().get(context.addr()).copied();
    if let Some(hook) = hook {
        hook.wake();
    }
}

/// Nobody polls the executor any more.
struct Unhook(&'static Hook);

impl Drop for Unhook {
    fn drop(&mut self) {
        self.0.clear();
    }
}

/// Runs tasks that are made with `#[embassy_executor::task]`, for ever: spawn it, or await it in main.
///
/// `start` is called in the first poll, with what starts such tasks. In each turn of the main loop those that are ready are
/// polled once. The memory for each executor, less than 100 bytes, is never freed; a program needs one.
///
/// On the host the places for tasks, which the attribute's `pool_size` counts, are shared by all domains of the process.
///
/// # Cancel safety
///
/// Dropping the future stops the tasks for good, and does not drop what they own: they keep their places.
///
/// ```
/// # #![no_main]
/// domu::main!(main);
///
/// #[embassy_executor::task]
/// async fn blink() {
///     log::info!("from a task of embassy's");
/// }
///
/// async fn main(_: domu::Domain) {
///     let tasks = domu::executor::spawn(domu::embassy::run(|spawner| match blink() {
///         Ok(task) => spawner.spawn(task),
///         Err(error) => log::error!("{error}"),
///     }));
///     domu::time::sleep(core::time::Duration::from_millis(1)).await;
///     drop(tasks);
/// }
/// ```
pub async fn run(start: impl FnOnce(Spawner)) -> ! {
    let hook: &'static Hook = Box::leak(Box::default());
    let number = {
        let mut hooks = HOOKS.lock();
        hooks.push(hook);
        hooks.len() - 1
    };
    let context = core::ptr::without_provenance_mut(number);
    let executor: &'static raw::Executor = Box::leak(Box::new(raw::Executor::new(context)));
    let _unhook = Unhook(hook);
    start(executor.spawner());
    let never = poll_fn(|context| {
        // First, so that it sees whatever becomes ready from here on.
        hook.set(context.waker().clone());
        // SAFETY: the executor is polled here alone: it was made in this future, and a `Spawner` does not give it away.
        // Whoever polls the future has it exclusively, so this is not reentrant, and the reference to the executor, which is
        // not `Sync`, keeps the future on the thread that made the executor.
        unsafe { executor.poll() };
        Poll::<Infallible>::Pending
    });
    match never.await {}
}
