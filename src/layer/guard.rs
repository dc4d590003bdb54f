//! What every handle of a guard shares: settings, flights, the store and the counts.

use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;

use super::load::{Failure, PageArrival};
use super::page::{Page, PageKey, Reply};
use super::stats::Counters;
use super::uniques::Uniques;
use crate::cache::{Entry, Mark, Shelf};
use crate::flight::Flights;
use crate::http::origin::{Target, hash_target};
use crate::http::rule::KeyRule;
use crate::http::verdict::HttpPolicy;
use crate::policy::Freshness;
use crate::sync::RandomState;

/// How long a key is known to be each client's own.
pub(super) const HIT_FOR_MISS: Duration = Duration::from_secs(10);
/// How long the headers in a response's `Vary` are remembered after the last response that named them.
pub(super) const SIGNPOST_TTL: Duration = Duration::from_secs(3_600);

pub(super) type PageFlights = Flights<PageKey, PageArrival, Failure, Shelf<PageKey, Reply>>;

pub(super) type Bypass = Arc<dyn Fn(&Parts) -> bool + Send + Sync>;
pub(super) type KeyWith = Arc<dyn Fn(&Parts, &mut KeyExtra) + Send + Sync>;

/// What an operator's function adds to a key: any number of parts, kept apart.
///
/// ```
/// use stampede_guard::StampedeGuard;
///
/// #[derive(Clone)]
/// struct Tenant(String);
///
/// let guard = StampedeGuard::builder()
///     .key_with(|parts, key| {
///         if let Some(Tenant(name)) = parts.extensions.get() {
///             key.push(name);
///         }
///     })
///     .build();
/// # assert!(guard.is_ok());
/// ```
#[derive(Debug, Default)]
pub struct KeyExtra(pub(super) Vec<u8>);

impl KeyExtra {
    /// Adds one part.
    pub fn push(&mut self, part: impl AsRef<[u8]>) {
        let part = part.as_ref();
        self.0.extend_from_slice(&(part.len() as u64).to_be_bytes());
        self.0.extend_from_slice(part);
    }
}

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) rule: KeyRule,
    pub(super) policy: HttpPolicy,
    pub(super) load_timeout: Option<Duration>,
    pub(super) wait_timeout: Option<Duration>,
    pub(super) max_body_bytes: u64,
    pub(super) max_body_wait: Duration,
    pub(super) max_variants: usize,
    pub(super) bypass: Option<Bypass>,
    pub(super) key_with: Option<KeyWith>,
}

pub(super) struct Guarded {
    pub(super) settings: Settings,
    pub(super) flights: Arc<PageFlights>,
    pub(super) counters: Counters,
    pub(super) uniques: Uniques,
    pub(super) hasher: RandomState,
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("flights", &self.flights).finish_non_exhaustive()
    }
}

impl Guarded {
    pub(super) fn shelf(&self) -> &Shelf<PageKey, Reply> {
        &self.flights.hook
    }

    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The mark of a request's target, which unsafe requests that succeed invalidate.
    pub(super) fn mark(&self, target: &Target<'_>) -> Mark {
        let mut hasher = self.hasher.build_hasher();
        hash_target(target.host, target.path_and_query.as_bytes(), &mut hasher);
        self.shelf().generations.mark_of(std::hash::Hasher::finish(&hasher))
    }

    /// True if a page that is not fresh may be served in place of an error.
    pub(super) fn may_serve_stale(&self, entry: &Entry<Reply>) -> bool {
        matches!(&entry.value, Reply::Page(page, _) if page.recording.is_sound())
            && !matches!(self.shelf().judge(entry), Freshness::Dead)
    }

    /// Takes a page whose body broke off out of the store. What it took the place of, if anything, comes back.
    pub(super) fn drop_page(&self, broken: &Arc<Page>, replaced: Option<Entry<Reply>>) {
        let there = self.shelf().find(&broken.key);
        if let Some(Reply::Page(page, _)) = there.map(|entry| entry.value)
            && Arc::ptr_eq(&page, broken)
        {
            match replaced {
                Some(entry) => self.shelf().put_back(Arc::clone(&broken.key), entry),
                None => self.shelf().remove(&broken.key),
            }
        }
    }
}
