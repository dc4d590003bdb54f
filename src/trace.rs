//! The tracing span of a load, to which the callers that wait for it are linked.
//!
//! What a subscriber does is code of others: nothing here is called under a lock but `clone`, which counts.

#[cfg(feature = "tracing")]
use std::sync::Arc;

#[cfg(feature = "tracing")]
use tracing::{Level, Span, debug_span, level_enabled};

/// Empty where nobody listens, and without the feature `tracing`.
#[derive(Clone, Default)]
pub(crate) struct LoadSpan {
    #[cfg(feature = "tracing")]
    span: Option<Arc<Span>>,
}

#[cfg(feature = "tracing")]
impl LoadSpan {
    /// Of a load that the running code starts: a span of its own, within the caller's, or the caller's if the
    /// subscriber does not want it.
    #[inline]
    pub(crate) fn new() -> Self {
        if !level_enabled!(Level::ERROR) {
            return Self::default();
        }
        let own = debug_span!("load");
        let span = if own.is_disabled() { Span::current() } else { own };
        Self { span: (!span.is_disabled()).then(|| Arc::new(span)) }
    }

    pub(crate) fn is_some(&self) -> bool {
        self.span.is_some()
    }

    /// Runs code of the load.
    #[inline]
    pub(crate) fn within<T>(&self, run: impl FnOnce() -> T) -> T {
        match &self.span {
            Some(span) => span.in_scope(run),
            None => run(),
        }
    }

    /// The running code waits for this load.
    #[inline]
    pub(crate) fn link(&self) {
        if let Some(span) = &self.span {
            Span::current().follows_from(&**span);
        }
    }
}

#[cfg(not(feature = "tracing"))]
#[allow(clippy::unused_self)]
impl LoadSpan {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn is_some(&self) -> bool {
        false
    }

    pub(crate) fn within<T>(&self, run: impl FnOnce() -> T) -> T {
        run()
    }

    pub(crate) fn link(&self) {}
}
