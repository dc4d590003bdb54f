//! What can go wrong with a load, as every caller that waited for it sees it.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::sync::Mutex;

/// Why a call got no value.
///
/// One failed run is one error, shared by everyone who waited for it: the loader's own error comes in an
/// [`Arc`], so `E` need not be `Clone`. No variant is cached; the next call for the key loads anew.
///
/// It is an [`Error`](std::error::Error) itself where `E` is one. `anyhow::Error` and `Box<dyn Error>` are none: wrap them
/// in a type that is, say `#[derive(Debug, thiserror::Error)] #[error("{0:#}")] struct Failed(anyhow::Error);`.
///
/// ```
/// use stampede_guard::{LoadError, SingleFlight};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let flights: SingleFlight<u64, String, std::io::Error> = SingleFlight::new();
/// let answer = flights.run(7, || async { Err(std::io::Error::other("database is down")) }).await;
/// match answer {
///     Err(LoadError::Failed(why)) => assert_eq!(why.to_string(), "database is down"),
///     other => unreachable!("{other:?}"),
/// }
/// # }
/// ```
#[non_exhaustive]
pub enum LoadError<E> {
    /// The loader returned this error.
    Failed(Arc<E>),
    /// The loader panicked. The panic stays in the load: no waiter panics.
    Panicked(Panicked),
    /// The load outlasted its `load_timeout` and was dropped.
    TimedOut(TimedOut),
    /// A cap was reached; nothing was started for this call.
    Overloaded(Overloaded),
    /// A loader asked for a key that is waiting for that very loader. Waiting would never end.
    Reentrant,
    /// The load was dropped before it finished: its runtime shut down, or the cache was closed.
    Cancelled,
    /// The load ran in another instance that shares the cache's tier, and failed there.
    Remote {
        /// How it failed. The error itself stays in its instance.
        kind: RemoteKind,
    },
}

/// How a load failed in another instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RemoteKind {
    /// Its loader returned an error.
    Failed,
    /// Its loader panicked.
    Panicked,
    /// It outlasted its `load_timeout`.
    TimedOut,
}

impl<E> Clone for LoadError<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Failed(error) => Self::Failed(Arc::clone(error)),
            Self::Panicked(panic) => Self::Panicked(panic.clone()),
            Self::TimedOut(limit) => Self::TimedOut(*limit),
            Self::Overloaded(limit) => Self::Overloaded(*limit),
            Self::Reentrant => Self::Reentrant,
            Self::Cancelled => Self::Cancelled,
            Self::Remote { kind } => Self::Remote { kind: *kind },
        }
    }
}

impl<E: fmt::Debug> fmt::Debug for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => f.debug_tuple("Failed").field(error).finish(),
            Self::Panicked(panic) => f.debug_tuple("Panicked").field(panic).finish(),
            Self::TimedOut(limit) => f.debug_tuple("TimedOut").field(limit).finish(),
            Self::Overloaded(limit) => f.debug_tuple("Overloaded").field(limit).finish(),
            Self::Reentrant => f.write_str("Reentrant"),
            Self::Cancelled => f.write_str("Cancelled"),
            Self::Remote { kind } => f.debug_struct("Remote").field("kind", kind).finish(),
        }
    }
}

impl<E> fmt::Display for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(_) => f.write_str("the loader failed"),
            Self::Panicked(panic) => panic.fmt(f),
            Self::TimedOut(limit) => limit.fmt(f),
            Self::Overloaded(limit) => limit.fmt(f),
            Self::Reentrant => f.write_str("the loader asked for a key that is waiting for it"),
            Self::Cancelled => f.write_str("the load was cancelled before it finished"),
            Self::Remote { kind } => f.write_str(match kind {
                RemoteKind::Failed => "the loader failed in another instance",
                RemoteKind::Panicked => "the loader panicked in another instance",
                RemoteKind::TimedOut => "the load took longer than its time-out in another instance",
            }),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for LoadError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(error) => Some(&**error),
            _ => None,
        }
    }
}

/// A loader's panic, caught and shared by all who waited.
///
/// ```
/// use stampede_guard::{LoadError, SingleFlight};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let flights: SingleFlight<u64, u64> = SingleFlight::new();
/// let answer = flights.run(7, || async { panic!("no such shard") }).await;
/// let Err(LoadError::Panicked(panic)) = answer else { unreachable!() };
/// assert_eq!(panic.message(), Some("no such shard"));
/// # }
/// ```
#[derive(Clone)]
pub struct Panicked(Arc<PanickedInner>);

struct PanickedInner {
    message: Option<Box<str>>,
    payload: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Panicked {
    pub(crate) fn new(payload: Box<dyn Any + Send>) -> Self {
        let text = payload.downcast_ref::<&'static str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self(Arc::new(PanickedInner { message: text.map(Box::from), payload: Mutex::new(Some(payload)) }))
    }

    /// The panic's message, if it was a string, as those of `panic!` are.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        self.0.message.as_deref()
    }

    /// Takes the payload, for [`std::panic::resume_unwind`]. The first taker gets it; the others, `None`.
    #[must_use]
    pub fn take_payload(&self) -> Option<Box<dyn Any + Send>> {
        self.0.payload.lock().take()
    }
}

impl fmt::Debug for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Panicked").field("message", &self.message()).finish()
    }
}

impl std::error::Error for Panicked {}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message() {
            Some(message) => write!(f, "the loader panicked: {message}"),
            None => f.write_str("the loader panicked"),
        }
    }
}

/// A load that outlasted its `load_timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the load took longer than its time-out of {after:?}")]
pub struct TimedOut {
    pub(crate) after: Duration,
}

impl TimedOut {
    /// The time-out that was set.
    #[must_use]
    pub fn after(&self) -> Duration {
        self.after
    }
}

/// The cap that a call ran into.
///
/// ```
/// use stampede_guard::{LoadError, Overloaded, SingleFlight};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), stampede_guard::ConfigError> {
/// let flights: SingleFlight<u64, u64> = SingleFlight::builder().max_in_flight(1).build()?;
/// let slow = || async {
///     tokio::task::yield_now().await; // the database
///     Ok(1)
/// };
/// let (first, second) = tokio::join!(flights.run(1, slow), flights.run(2, || async { Ok(2) }));
/// assert_eq!(first.unwrap(), 1);
/// assert!(matches!(second, Err(LoadError::Overloaded(Overloaded::InFlight { max: 1 }))));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Overloaded {
    /// `max_in_flight` keys are being loaded already.
    #[error("{max} keys are being loaded already, as many as max_in_flight allows")]
    InFlight {
        /// The cap, in keys.
        max: usize,
    },
    /// `max_waiters_per_key` callers wait for this key already.
    #[error("{max} callers wait for this key already, as many as max_waiters_per_key allows")]
    Waiters {
        /// The cap, in callers.
        max: usize,
    },
}

/// A setting outside its range, from a builder's `build()`.
///
/// ```
/// use std::time::Duration;
/// use stampede_guard::SingleFlight;
///
/// let refused = SingleFlight::<u64, u64>::builder().load_timeout(Duration::ZERO).build().unwrap_err();
/// assert_eq!(refused.field(), "load_timeout");
/// assert!(refused.to_string().contains("more than 0"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {given}: it must be {allowed}")]
pub struct ConfigError {
    field: &'static str,
    given: String,
    allowed: &'static str,
}

impl ConfigError {
    pub(crate) fn new(field: &'static str, given: impl fmt::Debug, allowed: &'static str) -> Self {
        Self { field, given: format!("{given:?}"), allowed }
    }

    /// The setter's name.
    #[must_use]
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// The allowed range, in words.
    #[must_use]
    pub fn allowed(&self) -> &'static str {
        self.allowed
    }
}

/// The longest time there is: a hundred years, so that no sum of a few of them overflows a clock.
pub(crate) const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// `value`, or [`MAX_DURATION`] where that is shorter: "for ever" is a setting like any other.
pub(crate) fn bounded(value: Duration) -> Duration {
    value.min(MAX_DURATION)
}

/// `value` if it is more than zero.
pub(crate) fn check_positive(field: &'static str, value: Duration) -> Result<Duration, ConfigError> {
    if value.is_zero() {
        return Err(ConfigError::new(field, value, "more than 0"));
    }
    Ok(value)
}

/// `value` if it is at least one.
pub(crate) fn check_count(field: &'static str, value: usize) -> Result<usize, ConfigError> {
    if value == 0 {
        return Err(ConfigError::new(field, value, "at least 1"));
    }
    Ok(value)
}

#[cfg(feature = "cache")]
/// The name of a cache on a tier: it is part of every key there.
pub(crate) fn check_name(field: &'static str, name: &str) -> Result<(), ConfigError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(legal) {
        return Err(ConfigError::new(field, name, "1 to 64 of A-Z, a-z, 0-9, '_', '-' and '.'"));
    }
    Ok(())
}

#[cfg(all(test, feature = "cache"))]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_place_in_a_key() {
        for good in ["a", "products-v2.eu_1"] {
            check_name("name", good).unwrap();
        }
        let long = "a".repeat(65);
        for bad in ["", "a:b", "{a}", "a b", "a/b", "é", long.as_str()] {
            assert_eq!(check_name("name", bad).unwrap_err().field(), "name");
        }
    }
}
