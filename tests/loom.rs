//! `SingleFlight` under every interleaving of a few threads, within a bound on preemptions.
//!
//! `scripts/model` runs it. Each model is small: two or three callers, one key, one thing that goes wrong. What
//! must hold in all of them is checked by [`World`]: one load of a key at a time, no result from before a
//! `forget` or from a run that is over, nothing left in the map. That every caller and every task comes to its
//! end is loom's own check: it calls a thread that waits for ever a deadlock.
#![cfg(stampede_loom)]

#[path = "loom/support.rs"]
mod support;

#[path = "loom/abandoned.rs"]
mod abandoned;
#[path = "loom/ends.rs"]
mod ends;
#[path = "loom/forget.rs"]
mod forget;
#[path = "loom/joins.rs"]
mod joins;
