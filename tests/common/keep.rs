//! What a test never drops, where Miri finds it: it takes what nothing leads to for a leak.

use std::sync::Mutex;
use std::sync::atomic::AtomicPtr;

static KEPT: Mutex<Vec<AtomicPtr<()>>> = Mutex::new(Vec::new());

/// Forgets a value.
pub fn keep<T: 'static>(value: T) {
    let kept = Box::into_raw(Box::new(value));
    KEPT.lock().unwrap().push(AtomicPtr::new(kept.cast()));
}
