//! The end of a load that nobody wants.

use std::cell::Cell;

use super::plan::BoxLoad;
use crate::quietly::quietly;
use crate::sync::thread_local;

/// Up to so many loads are dropped within each other: a load may wait for one that waits for one, and so on, and the
/// last of a long chain would not find room on the stack.
const DEEP: usize = 64;

// Loads that this thread is dropping.
thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Drops a loader's future, and with it the calls that it waits in.
pub(super) fn drop_load<V, E>(load: BoxLoad<V, E>) {
    DEPTH.with(|depth| depth.set(depth.get() + 1));
    quietly(|| drop(load));
    DEPTH.with(|depth| depth.set(depth.get() - 1));
}

/// Whether another load is better dropped elsewhere.
pub(super) fn is_deep() -> bool {
    DEPTH.with(Cell::get) >= DEEP
}
