//! Counts of what flights did.

use crate::sync::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What the flights of one [`SingleFlight`](crate::SingleFlight) did since it was made: a snapshot.
        ///
        /// ```
        /// use stampede_guard::SingleFlight;
        ///
        /// # #[tokio::main(flavor = "current_thread")]
        /// # async fn main() {
        /// let flights: SingleFlight<u64, u64> = SingleFlight::new();
        /// flights.run(1, || async { Ok(1) }).await.unwrap();
        /// assert_eq!(flights.stats().loads, 1);
        /// # }
        /// ```
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct FlightStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Count,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> FlightStats {
                FlightStats { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Loader runs started.
    loads,
    /// Callers that joined a run somebody else had started.
    coalesced,
    /// Runs whose loader returned an error.
    failed,
    /// Runs whose loader panicked.
    panicked,
    /// Runs that outlasted `load_timeout`.
    timed_out,
    /// Runs dropped because nobody waited for them any more.
    abandoned,
    /// Runs dropped with their runtime.
    cancelled,
    /// Calls refused by `max_in_flight` or `max_waiters_per_key`.
    overloaded,
    /// Calls refused because they would have waited for themselves.
    reentrant,
}

/// A counter that any thread adds to.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
