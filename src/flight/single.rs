//! `SingleFlight`, the public face of the flights.

use std::borrow::Borrow;
use std::convert::Infallible;
use std::fmt;
use std::hash::Hash;

use super::SingleFlightBuilder;
use super::core::{FlightConfig, Flights};
use super::plan::{Borrowed, Owned};
use super::run::{Finish, FirstPoll, Landed, Role, Run};
use super::stats::FlightStats;
use crate::error::LoadError;
use crate::sync::Arc;

/// Concurrent calls for one key share one run of one loader.
///
/// The first caller of a key leads: its loader runs. Callers that come while it runs follow: they wait for the
/// same run and get a clone of its value, or the same error. When the run is over the key is free again; nothing
/// is cached. A clone of a `SingleFlight` is a cheap handle to the same flights.
///
/// The flight owns the loader, not the caller. Any caller, the leader included, can be dropped at any await, or
/// polled once and forgotten, and the others still get the value of the same run. A loader that is ready at its
/// first poll costs no task; a pending one moves, half-done, to a task of its own.
///
/// ```
/// use stampede_guard::SingleFlight;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let flights: SingleFlight<String, u64> = SingleFlight::new();
/// let load = || async {
///     tokio::task::yield_now().await; // the database
///     Ok(42)
/// };
/// let (first, second) = tokio::join!(flights.run("answer".into(), load), flights.run("answer".into(), load));
/// assert_eq!((first.unwrap(), second.unwrap()), (42, 42));
/// assert_eq!(flights.stats().loads, 1);
/// # }
/// ```
///
/// Loaders are `'static`, since they outlive their callers. One that borrows takes a clone of the handle:
///
/// ```
/// # use std::sync::Arc;
/// # use stampede_guard::{LoadError, SingleFlight};
/// # struct Db;
/// # impl Db { async fn user(&self, id: u64) -> Result<String, std::io::Error> { Ok(format!("user {id}")) } }
/// # async fn get(flights: &SingleFlight<u64, String, std::io::Error>, db: &Arc<Db>, id: u64)
/// #     -> Result<String, LoadError<std::io::Error>> {
/// let db = Arc::clone(db);
/// flights.run(id, move || async move { db.user(id).await }).await
/// # }
/// ```
///
/// # Runtimes
///
/// That task is one of the runtime on which the leader was polled first. If that has only the thread of its `block_on`,
/// the load stands still while nobody drives it, and its [`load_timeout`](SingleFlightBuilder::load_timeout) with it:
/// callers on other runtimes wait until somebody does, or until it is dropped.
///
/// # Deadlocks
///
/// A loader that asks, directly or through loads it started, for a key that is waiting for it gets
/// [`LoadError::Reentrant`]. This is not seen through `tokio::spawn`, nor between two loads that were started apart and
/// each wait for the other's key; set a [`load_timeout`](SingleFlightBuilder::load_timeout) where that can happen.
pub struct SingleFlight<K, V, E = Infallible> {
    pub(super) flights: Arc<Flights<K, V, E, ()>>,
}

impl<K, V, E> Clone for SingleFlight<K, V, E> {
    fn clone(&self) -> Self {
        Self { flights: Arc::clone(&self.flights) }
    }
}

impl<K, V, E> fmt::Debug for SingleFlight<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.flights.fmt(f)
    }
}

impl<K, V, E> Default for SingleFlight<K, V, E>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    fn default() -> Self {
        Self::new()
    }
}

/// A value and how the caller came by it, from [`SingleFlight::run_detailed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flown<V> {
    /// The loader's value.
    pub value: V,
    /// Whether this caller's loader ran.
    pub role: Role,
}

impl<K, V, E> SingleFlight<K, V, E>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// A group without limits: no time-out, any number of keys and waiters, abandoned loads go on (at most 64).
    #[must_use]
    pub fn new() -> Self {
        Self { flights: Flights::new(FlightConfig::default(), ()) }
    }

    /// Settings other than those of [`new`](Self::new).
    pub fn builder() -> SingleFlightBuilder<K, V, E> {
        SingleFlightBuilder::new()
    }

    /// The value of `key`, from the run that is under way or else from `load`.
    ///
    /// # Errors
    ///
    /// [`LoadError::Failed`], [`Panicked`](LoadError::Panicked) or [`TimedOut`](LoadError::TimedOut): what ended
    /// the run, the same for everyone who waited. [`Overloaded`](LoadError::Overloaded) or
    /// [`Reentrant`](LoadError::Reentrant): nothing was started for this call.
    /// [`Cancelled`](LoadError::Cancelled): the runtime shut down.
    ///
    /// # Panics
    ///
    /// If the loader is not ready at its first poll, outside a Tokio runtime, or on one without a timer
    /// (`enable_time`) where [`load_timeout`](SingleFlightBuilder::load_timeout) is set. A loader's own panic is a
    /// [`LoadError::Panicked`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future takes this caller out of the flight. The load goes on for the others, and for nobody
    /// as [`on_abandon`](SingleFlightBuilder::on_abandon) says.
    pub fn run<F, Fut>(&self, key: K, load: F) -> impl Future<Output = Result<V, LoadError<E>>>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
    {
        Finish { run: Run::new(&self.flights, Owned(key), load, FirstPoll::Inline), finish: value }
    }

    /// [`run`](Self::run) with a borrowed key, which only a leader clones.
    ///
    /// ```
    /// # use stampede_guard::SingleFlight;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let flights: SingleFlight<String, usize> = SingleFlight::new();
    /// assert_eq!(flights.run_ref("key", || async { Ok(3) }).await.unwrap(), 3);
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    ///
    /// As [`run`](Self::run).
    pub fn run_ref<Q, F, Fut>(&self, key: &Q, load: F) -> impl Future<Output = Result<V, LoadError<E>>>
    where
        K: Borrow<Q>,
        Q: ToOwned<Owned = K> + Hash + Eq + ?Sized,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
    {
        Finish { run: Run::new(&self.flights, Borrowed(key), load, FirstPoll::Inline), finish: value }
    }

    /// [`run`](Self::run), telling whether this caller led.
    ///
    /// ```
    /// # use stampede_guard::{Role, SingleFlight};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let flights: SingleFlight<u64, u64> = SingleFlight::new();
    /// let flown = flights.run_detailed(1, || async { Ok(2) }).await.unwrap();
    /// assert_eq!((flown.value, flown.role), (2, Role::Leader));
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    ///
    /// As [`run`](Self::run).
    pub fn run_detailed<F, Fut>(
        &self,
        key: K,
        load: F,
    ) -> impl Future<Output = Result<Flown<V>, LoadError<E>>>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
    {
        let finish = |landed: Landed<V, E, Owned<K>, F>| {
            let role = landed.role;
            landed.result.map(|value| Flown { value, role })
        };
        Finish { run: Run::new(&self.flights, Owned(key), load, FirstPoll::Inline), finish }
    }

    /// Lets go of the run that is under way for `key`: those who wait keep it, later callers start a new one.
    /// True if there was one.
    ///
    /// Call it when what is being loaded has changed.
    ///
    /// ```
    /// # use stampede_guard::SingleFlight;
    /// let flights: SingleFlight<String, u64> = SingleFlight::new();
    /// assert!(!flights.forget("nobody loads this"));
    /// ```
    pub fn forget<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.flights.forget(key)
    }

    /// How many keys are in flight. Runs that were [forgotten](Self::forget) are not counted.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.in_flight()
    }

    /// How many callers wait for `key`, its leader included once the load has had to wait.
    pub fn waiters<Q>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.flights.waiters(key)
    }

    /// What happened so far: a snapshot.
    #[must_use]
    pub fn stats(&self) -> FlightStats {
        self.flights.stats()
    }
}

fn value<V, E, S, P>(landed: Landed<V, E, S, P>) -> Result<V, LoadError<E>> {
    landed.result
}
