//! What a caller says of a key that is void, and hears of those it concerns.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot::Receiver;

/// A form in which a cache's key is borrowed, as `str` is one of `String`, that can be turned back into the key.
///
/// Every key is one of itself. A type of your own that your keys `Borrow` as needs two lines:
///
/// ```
/// use std::borrow::Borrow;
/// use stampede_guard::{KeyRef, StampedeCache};
///
/// #[derive(Clone, PartialEq, Eq, Hash)]
/// struct UserId(u64);
///
/// impl Borrow<u64> for UserId {
///     fn borrow(&self) -> &u64 {
///         &self.0
///     }
/// }
///
/// impl KeyRef<UserId> for u64 {
///     fn to_key(&self) -> Option<UserId> {
///         Some(UserId(*self))
///     }
/// }
///
/// # fn main() -> Result<(), stampede_guard::ConfigError> {
/// let cache: StampedeCache<UserId, String> = StampedeCache::builder().build()?;
/// cache.invalidate(&7_u64);
/// # Ok(())
/// # }
/// ```
pub trait KeyRef<K> {
    /// The key; `None` if there is no way to make one. Other instances then hear nothing of it.
    fn to_key(&self) -> Option<K>;
}

impl<K: Clone> KeyRef<K> for K {
    fn to_key(&self) -> Option<K> {
        Some(self.clone())
    }
}

/// No reference that outlives the borrow can be made. Keys that are references are not shared.
impl<'a, T: ?Sized> KeyRef<&'a T> for T {
    fn to_key(&self) -> Option<&'a T> {
        None
    }
}

macro_rules! key_refs {
    ($($borrowed:ty => $($key:ty),*;)*) => {$($(
        impl KeyRef<$key> for $borrowed {
            fn to_key(&self) -> Option<$key> {
                Some(self.into())
            }
        }
    )*)*};
}

key_refs! {
    str => String, Box<str>, Arc<str>;
    std::path::Path => std::path::PathBuf, Box<std::path::Path>, Arc<std::path::Path>;
    std::ffi::OsStr => std::ffi::OsString, Box<std::ffi::OsStr>, Arc<std::ffi::OsStr>;
}

impl<T: Clone> KeyRef<Vec<T>> for [T] {
    fn to_key(&self) -> Option<Vec<T>> {
        Some(self.to_vec())
    }
}

impl<T: Clone> KeyRef<Box<[T]>> for [T] {
    fn to_key(&self) -> Option<Box<[T]>> {
        Some(self.into())
    }
}

impl<T: Clone> KeyRef<Arc<[T]>> for [T] {
    fn to_key(&self) -> Option<Arc<[T]>> {
        Some(self.into())
    }
}

impl<T: Clone, const N: usize> KeyRef<[T; N]> for [T] {
    fn to_key(&self) -> Option<[T; N]> {
        <&[T; N]>::try_from(self).ok().cloned()
    }
}

impl<T: Clone> KeyRef<Arc<T>> for T {
    fn to_key(&self) -> Option<Arc<T>> {
        Some(Arc::new(self.clone()))
    }
}

impl<'a, T: ToOwned + ?Sized> KeyRef<Cow<'a, T>> for T {
    fn to_key(&self) -> Option<Cow<'a, T>> {
        Some(Cow::Owned(self.to_owned()))
    }
}

/// The other instances' part of an invalidation.
///
/// This instance's part is done when the call returns, and the others' is under way: the handle may be dropped.
/// Awaited, it says whether the shared tier confirmed. A cache without one has confirmed already.
pub struct Invalidation(Option<Receiver<Result<(), Undelivered>>>);

impl Invalidation {
    /// There is nobody else to tell.
    pub(crate) fn done() -> Self {
        Self(None)
    }

    #[cfg(feature = "redis")]
    pub(crate) fn pending(answer: Receiver<Result<(), Undelivered>>) -> Self {
        Self(Some(answer))
    }
}

impl fmt::Debug for Invalidation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invalidation").finish_non_exhaustive()
    }
}

impl Future for Invalidation {
    type Output = Result<(), Undelivered>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            None => Poll::Ready(Ok(())),
            // A tier that is dropped takes its word along.
            Some(answer) => Pin::new(answer).poll(cx).map(|answer| answer.unwrap_or(Err(Undelivered(())))),
        }
    }
}

/// The shared tier did not confirm an invalidation in time. It is delivered as soon as the tier can be reached again,
/// before anything is read from it; until then other instances may serve what they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shared tier has not confirmed the invalidation yet; it is delivered when the tier is back")]
pub struct Undelivered(pub(crate) ());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cow_is_made_of_what_it_borrows() {
        let key: Option<Cow<'_, str>> = "shoes".to_key();
        assert_eq!(key.as_deref(), Some("shoes"));
    }
}
