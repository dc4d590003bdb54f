//! Code of the user's whose panic concerns nobody: it ends here.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs it. A panic ends here, and so does one that comes of dropping what it panicked with.
pub(crate) fn quietly(run: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(run))
        && let Err(last) = catch_unwind(AssertUnwindSafe(|| drop(payload)))
    {
        // There might be no end to it.
        std::mem::forget(last);
    }
}
