//! What every handle of a guard shares: settings, flights, the store and the counts.

use std::fmt;
use std::hash::BuildHasher;
use std::sync::{Arc, Once};
use std::time::Duration;

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderName};

use super::body::GuardBody;
use super::budget::Budget;
use super::load::{Failure, PageArrival};
use super::page::{Because, Page, PageKey, Reply, Signpost};
use super::refusal::Refusal;
use super::stats::Counters;
#[cfg(feature = "redis")]
use super::tier::{Tiered, group_of, group_of_mark};
use super::uniques::Uniques;
use super::writes::Writes;
use crate::cache::{Entry, Mark, Shelf, Storing, mark_of};
use crate::error::MAX_DURATION;
use crate::event::{count_request, count_stale};
use crate::flight::{FlightStats, Flights, Seat};
use crate::http::cache_status::{CacheName, CacheStatus, Forward, Ttl};
use crate::http::key::MethodClass;
use crate::http::origin::{Target, hash_target};
use crate::http::rule::KeyRule;
use crate::http::syntax::words;
use crate::http::vary::VarySpec;
use crate::http::verdict::{self, HttpPolicy, RequestFacts};
use crate::invalidation::Invalidation;
use crate::policy::Freshness;
use crate::sync::RandomState;

/// How long a key is known to be each client's own.
pub(super) const HIT_FOR_MISS: Duration = Duration::from_secs(10);
/// How long the headers in a response's `Vary` are remembered after the last response that named them all.
pub(super) const SIGNPOST_TTL: Duration = Duration::from_secs(3_600);

/// The place of a leader that has the head of its response.
pub(super) type PageSeat = Seat<PageKey, PageArrival, Failure, Shelf<PageKey, Reply>>;
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

/// What becomes of a request that has waited for another's handler run for `wait_timeout`, and for which nothing stale
/// may be served.
///
/// ```
/// use std::time::Duration;
/// use stampede_guard::{OnWaitTimeout, StampedeGuard};
///
/// let guard = StampedeGuard::builder()
///     .wait_timeout(Duration::from_secs(2))
///     .on_wait_timeout(OnWaitTimeout::PassThrough)
///     .build();
/// # assert!(guard.is_ok());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnWaitTimeout {
    /// It gets a 504.
    #[default]
    Refuse,
    /// It runs the handler for itself. A handler that hangs is then run by each request that waits for it.
    PassThrough,
}

/// What is one guard's own, where several share a store.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) rule: KeyRule,
    pub(super) policy: HttpPolicy,
    pub(super) load_timeout: Option<Duration>,
    pub(super) wait_timeout: Option<Duration>,
    pub(super) max_body_bytes: u64,
    pub(super) max_body_wait: Duration,
    pub(super) max_variants: usize,
    pub(super) on_wait_timeout: OnWaitTimeout,
    /// The share by which freshness is shortened at most, in place of the store's own.
    pub(super) jitter: Option<f64>,
    /// Whether the directives of requests count.
    pub(super) honors_clients: bool,
    /// The name in `Cache-Status`, if that is told.
    pub(super) cache_name: Option<CacheName>,
    /// The response field that names tags.
    pub(super) tag_header: Option<HeaderName>,
    pub(super) bypass: Option<Bypass>,
    pub(super) key_with: Option<KeyWith>,
}

/// The marks of a response's tags, for a guard outside of the one that took them out.
#[derive(Clone)]
pub(super) struct Tagged(pub(super) Arc<[Mark]>);

pub(super) struct Guarded {
    pub(super) settings: Settings,
    pub(super) shared: Shared,
}

/// What guards derived from one have in common.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) flights: Arc<PageFlights>,
    pub(super) counters: Arc<Counters>,
    pub(super) uniques: Arc<Uniques>,
    /// That a body does not tell its length is said once.
    pub(super) unknown_bodies: Arc<Once>,
    pub(super) budget: Arc<Budget>,
    pub(super) writes: Arc<Writes>,
    pub(super) hasher: RandomState,
    #[cfg(feature = "redis")]
    pub(super) tier: Option<Arc<Tiered>>,
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("flights", &self.shared.flights).finish_non_exhaustive()
    }
}

impl Guarded {
    pub(super) fn shelf(&self) -> &Shelf<PageKey, Reply> {
        &self.shared.flights.hook
    }

    pub(super) fn flights(&self) -> &Arc<PageFlights> {
        &self.shared.flights
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// The hashes of a target: on whatever host, and on its own.
    fn hashes(&self, target: &Target<'_>) -> (u64, u64) {
        let hasher = self.shared.hasher.build_hasher();
        hash_target(target.host, target.path_and_query.as_bytes(), hasher)
    }

    /// The number of the last invalidation of a request's target. It is part of the key, so that nobody finds or joins
    /// what is from before. The target is looked for only once anything has been invalidated.
    pub(super) fn generation<'a>(&self, target: impl Fn() -> Target<'a>) -> u64 {
        let writes = &self.shared.writes;
        let own = if writes.are_any() {
            let (anywhere, there) = self.hashes(&target());
            writes.last(anywhere).max(writes.last(there))
        } else {
            0
        };
        #[cfg(feature = "redis")]
        if let Some(tier) = &self.shared.tier {
            // Neither ever falls, so no sum comes twice.
            return own + tier.voided(&target());
        }
        own
    }

    /// Voids what is stored of a target, and what is under way. Without a host, on every host.
    pub(super) fn invalidate(&self, target: &Target<'_>) -> Invalidation {
        let (anywhere, there) = self.hashes(target);
        self.shared.writes.note(if target.host.is_empty() { anywhere } else { there });
        #[cfg(feature = "redis")]
        if let Some(tier) = &self.shared.tier {
            return tier.member.invalidate_group(group_of(target));
        }
        Invalidation::done()
    }

    /// Voids what is stored with a tag.
    pub(super) fn invalidate_tag(&self, tag: &[u8]) -> Invalidation {
        let mark = mark_of(tag);
        self.shelf().generations.invalidate(mark);
        #[cfg(feature = "redis")]
        if let Some(tier) = &self.shared.tier {
            return tier.member.invalidate_group(group_of_mark(mark));
        }
        Invalidation::done()
    }

    /// Voids all that is stored, and what is under way.
    pub(super) fn invalidate_all(&self) -> Invalidation {
        self.shelf().clear();
        self.flights().forget_all();
        #[cfg(feature = "redis")]
        if let Some(tier) = &self.shared.tier {
            return tier.member.invalidate_all();
        }
        Invalidation::done()
    }

    /// Leaves a request that the handler answers for several with the headers that the answer may depend on.
    pub(super) fn carry_common(&self, headers: &mut HeaderMap, spec: &VarySpec) {
        let rule = &self.settings.rule;
        let others: Vec<_> = headers.keys().cloned().collect();
        for name in others {
            if !rule.carries(&name) && !spec.names().contains(&name) {
                headers.remove(&name);
            }
        }
    }

    /// The way to the variants of a base key; true if it is a new one.
    pub(super) fn signpost(&self, base: &PageKey, spec: &VarySpec) -> (Arc<Signpost>, bool) {
        let there = self.shelf().find(base).filter(|entry| self.still_points(Some(entry)));
        let known = there.and_then(|entry| match entry.value {
            Reply::Varies(signpost) if signpost.spec == *spec => Some(signpost),
            _ => None,
        });
        let is_new = known.is_none();
        (known.unwrap_or_else(|| Arc::new(Signpost::new(spec.clone()))), is_new)
    }

    /// Counts a variant in that is kept, at the signpost under this key. One may have to leave for it.
    pub(super) fn admit(&self, base: &PageKey, signpost: &Arc<Signpost>, variant: &PageKey) {
        let before = signpost.weight();
        if let Some(oldest) = signpost.admit(variant, self.settings.max_variants) {
            self.shelf().remove(&oldest);
        }
        if signpost.weight() > before {
            let is_it = |there: &Reply| matches!(there, Reply::Varies(there) if Arc::ptr_eq(there, signpost));
            self.shelf().reweigh(Arc::clone(base), is_it);
        }
    }

    /// What its flights did. Those that another instance's run answered are no loads of this one.
    pub(super) fn flight_stats(&self) -> FlightStats {
        let flights = self.flights().stats();
        #[cfg(feature = "redis")]
        let flights =
            FlightStats { loads: flights.loads.saturating_sub(self.counters().spared.get()), ..flights };
        flights
    }

    /// How an instance keeps a page that it does not share: for no longer than it may miss what others void.
    #[cfg_attr(not(feature = "redis"), allow(clippy::unused_self))]
    pub(super) fn unshared(&self, storing: Storing) -> Storing {
        #[cfg(feature = "redis")]
        if let Some(tier) = &self.shared.tier {
            let life = crate::cache::capped(storing.life, tier.member.local_ttl_cap());
            return Storing { life, ..storing };
        }
        storing
    }

    /// The largest body that may be shared or stored, in bytes.
    pub(super) fn max_body_bytes(&self) -> u64 {
        self.settings.max_body_bytes.min(self.shared.budget.max())
    }

    /// Counts an answer that is past its freshness.
    pub(super) fn count_stale(&self, entry: &Entry<Reply>) {
        self.counters().stale.add();
        let now = self.shelf().timeline.now();
        count_stale(entry.age(now));
    }

    /// Whether a request may have what another brought, given that it has the key.
    pub(super) fn may_have(&self, facts: RequestFacts, page: &Page) -> bool {
        verdict::may_have(facts, &page.headers, &self.settings.policy)
    }

    /// Says, once, that a request's body does not tell whether it is empty, of which the head tells nothing either:
    /// mostly a layer outside hides it, and then nothing at all is shared.
    pub(super) fn notice_body(&self, headers: &HeaderMap) {
        if headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING) {
            return;
        }
        self.shared.unknown_bodies.call_once(|| {
            tracing::warn!(
                "a GET or HEAD passed through because its body does not tell that it is empty: a layer that wraps \
                 request bodies, such as a time-out or decompression of them, belongs inside the guard"
            );
        });
    }

    /// Takes the tags out of a response, and gives their marks: those that a guard inside took out, too. They stay with the
    /// response for a guard outside.
    pub(super) fn take_tags(
        &self,
        headers: &mut HeaderMap,
        extensions: &mut Extensions,
    ) -> Option<Arc<[Mark]>> {
        let inner = extensions.get::<Tagged>().map(|tagged| Arc::clone(&tagged.0));
        let Some(name) = &self.settings.tag_header else { return inner };
        if !headers.contains_key(name) {
            return inner;
        }
        let own = words(headers, name).map(mark_of);
        let marks: Arc<[Mark]> = own.chain(inner.iter().flat_map(|marks| marks.iter().copied())).collect();
        headers.remove(name);
        if marks.is_empty() {
            return None;
        }
        extensions.insert(Tagged(Arc::clone(&marks)));
        Some(marks)
    }

    /// Whether a response has to be looked at before it leaves, though nobody else gets it.
    pub(super) fn touches_responses(&self) -> bool {
        self.settings.tag_header.is_some() || self.settings.cache_name.is_some()
    }

    /// Tells the client what became of its request, if it is to know.
    pub(super) fn tell(&self, headers: &mut HeaderMap, status: impl FnOnce() -> CacheStatus) {
        if let Some(name) = &self.settings.cache_name {
            status().add_to(headers, name);
        }
    }

    /// The guard's own answer.
    pub(super) fn refuse<R>(&self, why: Refusal, class: MethodClass) -> http::Response<GuardBody<R>> {
        self.counters().refused.add();
        count_request("refused");
        let mut response = why.respond(class);
        self.tell(response.headers_mut(), || CacheStatus::refused(why.detail()));
        response
    }

    /// Takes from a response that is one client's own what is not for clients, and tells what became of the request.
    pub(super) fn finish<B>(&self, response: &mut http::Response<B>, why: Forward) {
        let status = response.status();
        let mut extensions = std::mem::take(response.extensions_mut());
        self.take_tags(response.headers_mut(), &mut extensions);
        *response.extensions_mut() = extensions;
        self.tell(response.headers_mut(), || CacheStatus::forwarded(why, status));
    }

    /// What is left of an entry's freshness.
    pub(super) fn ttl(&self, entry: &Entry<Reply>) -> Ttl {
        let Some(end) = entry.fresh_until() else { return Ttl::Left(MAX_DURATION) };
        let now = self.shelf().timeline.instant();
        if now < end {
            Ttl::Left(end.saturating_duration_since(now))
        } else {
            Ttl::Over(now.saturating_duration_since(end))
        }
    }

    /// Why a request goes on to the handler whose key has these headers in it, and for which this was found.
    pub(super) fn why(&self, found: Option<&Entry<Reply>>, spec: &VarySpec) -> Forward {
        match found {
            Some(entry @ Entry { value: Reply::Page(..), .. }) if matches!(self.ttl(entry), Ttl::Left(_)) => {
                Forward::Request
            }
            Some(_) => Forward::Stale,
            None if spec.is_empty() => Forward::UriMiss,
            None => Forward::VaryMiss,
        }
    }

    /// True if a page may be served in place of an error. It may have been voided since it was found. A client that asked
    /// for a newer one than a fresh page has to know that there is none.
    pub(super) fn may_stand_in(&self, facts: RequestFacts, entry: &Entry<Reply>) -> bool {
        let is_within = || match self.shelf().judge(entry) {
            Freshness::Dead => false,
            Freshness::Fresh | Freshness::RefreshEarly => !facts.demanding,
            Freshness::Stale { .. } | Freshness::IfError { .. } => true,
        };
        matches!(&entry.value, Reply::Page(page, _) if page.recording.is_sound())
            && self.shelf().is_valid(entry)
            && is_within()
    }

    /// Whether what `entry` says about where to look is not too old to be believed.
    pub(super) fn still_points(&self, entry: Option<&Entry<Reply>>) -> bool {
        entry.is_some_and(|entry| self.shelf().judge(entry) != Freshness::Dead)
    }

    /// Puts off the next load of a page that a load elsewhere failed to replace, if it is there still.
    pub(super) fn put_off(&self, seen: &Entry<Reply>) {
        let Some(page) = seen.value.page() else { return };
        if let Some(there) = self.shelf().find(&page.key)
            && there.value.page().is_some_and(|found| Arc::ptr_eq(found, page))
            && self.shelf().judge(&there) != Freshness::Dead
        {
            self.shelf().put_back(Arc::clone(&page.key), there);
        }
    }

    /// Takes the marker under `key` away, if there is one that the head of a response shows to be wrong; with the length
    /// of its body, whatever the marker is there for.
    pub(super) fn lift(&self, key: &PageKey, tells_length: bool) {
        match self.shelf().find(key).map(|entry| entry.value) {
            Some(Reply::Private(because)) if tells_length || because == Because::Head => {
                self.shelf().remove(key);
            }
            Some(Reply::Checked(_)) if tells_length => self.shelf().remove(key),
            _ => {}
        }
    }

    /// Weighs a page anew that has come to its end.
    pub(super) fn reweigh(&self, grown: &Arc<Page>) {
        let is_it = |there: &Reply| there.page().is_some_and(|there| Arc::ptr_eq(there, grown));
        self.shelf().reweigh(Arc::clone(&grown.key), is_it);
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
