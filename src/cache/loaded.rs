//! What a loader is given and what it may say about its value.

use std::time::Duration;

/// What a loader learns about its key, in [`get_or_load_with`](crate::StampedeCache::get_or_load_with).
#[derive(Clone, Debug)]
pub struct LoadContext<V> {
    stale: Option<V>,
}

impl<V> LoadContext<V> {
    pub(crate) fn new(stale: Option<V>) -> Self {
        Self { stale }
    }

    /// The value that was in the cache and is no longer fresh, for a conditional load: send its version along,
    /// and answer [`Loaded::not_modified`] if it is still current.
    #[must_use]
    pub fn stale(&self) -> Option<&V> {
        self.stale.as_ref()
    }
}

/// A loader's value and how long it holds, for
/// [`get_or_load_with`](crate::StampedeCache::get_or_load_with).
///
/// What is not said is as the cache was built.
///
/// ```
/// use std::time::Duration;
/// use stampede_guard::{Loaded, StampedeCache};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cache: StampedeCache<u64, Option<String>> = StampedeCache::builder().build()?;
/// let user = cache
///     .get_or_load_with(7, |_| async {
///         // Nobody has this id. Remember that, but not for long.
///         Ok(Loaded::new(None).ttl(Duration::from_secs(2)))
///     })
///     .await?;
/// assert_eq!(user.value, None);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Loaded<V> {
    /// `None`: the stale value holds on.
    pub(crate) value: Option<V>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) stale_while_revalidate: Option<Duration>,
    pub(crate) stale_if_error: Option<Duration>,
    pub(crate) tags: Vec<String>,
    pub(crate) uncacheable: bool,
}

impl<V> Loaded<V> {
    /// A value.
    pub fn new(value: V) -> Self {
        Self { value: Some(value), ..Self::not_modified() }
    }

    /// The stale value of the [`LoadContext`] is still current: it is kept, with its tags, and is fresh again.
    ///
    /// Without a stale value there is nothing to keep; everyone who waits gets
    /// [`LoadError::Panicked`](crate::LoadError::Panicked), which says so.
    pub fn not_modified() -> Self {
        Self {
            value: None,
            ttl: None,
            stale_while_revalidate: None,
            stale_if_error: None,
            tags: Vec::new(),
            uncacheable: false,
        }
    }

    /// Whether it is a value and no more.
    pub(crate) fn is_plain(&self) -> bool {
        let Self { value, ttl, stale_while_revalidate, stale_if_error, tags, uncacheable } = self;
        let says_when = ttl.or(*stale_while_revalidate).or(*stale_if_error).is_some();
        value.is_some() && !says_when && tags.is_empty() && !uncacheable
    }

    /// How long this value is fresh, before jitter. Zero is [`uncacheable`](Self::uncacheable); 100 years or
    /// more are for ever.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// How long after its freshness it is served while a background load replaces it.
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.stale_while_revalidate = Some(window);
        self
    }

    /// How long after its freshness it is served if a load fails.
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.stale_if_error = Some(window);
        self
    }

    /// Names for [`invalidate_tag`](crate::StampedeCache::invalidate_tag).
    pub fn tags<I>(mut self, tags: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// Everyone who waits gets the value; the cache keeps neither it nor the value it replaces.
    pub fn uncacheable(mut self) -> Self {
        self.uncacheable = true;
        self
    }
}

impl<V> From<V> for Loaded<V> {
    fn from(value: V) -> Self {
        Self::new(value)
    }
}
