//! What may be done with a response: give it to those who wait for the same key, and keep it for how long.
//!
//! A response is given away only if nothing in its head ties it to the request that caused it, and kept only if
//! its own word or the operator's lets it.

use std::time::{Duration, SystemTime};

use http::header::{
    CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, PRAGMA, PROXY_AUTHENTICATE, SET_COOKIE, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::http::cache_control::ResponseDirectives;
use crate::http::freshness::{MAX_LIFETIME, apparent_age, explicit_lifetime, heuristic_lifetime};
use crate::http::syntax::members;
use crate::http::targeted;
use crate::http::validate::Validators;
use crate::http::vary::{Vary, VarySpec};

/// The operator's word on times.
#[derive(Debug, Clone, Default)]
pub(crate) struct HttpPolicy {
    /// How long a 200 is fresh that says nothing about freshness. `None` keeps nothing beyond the response's own word.
    pub(crate) default_ttl: Option<Duration>,
    /// The stale-while-revalidate window of what is kept by [`default_ttl`](Self::default_ttl).
    pub(crate) default_swr: Duration,
    /// The same window for a response that states how long it is fresh and no window of its own. Zero unless the
    /// operator asks for it: a response that says 60 seconds is not served after 61 (RFC 9111 section 4.2.4).
    pub(crate) granted_swr: Duration,
    /// The stale-if-error window of a response that states none of its own.
    pub(crate) stale_if_error: Duration,
    /// The most that stale-while-revalidate may be, whoever states it.
    pub(crate) max_swr: Option<Duration>,
    /// The most that stale-if-error may be, whoever states it.
    pub(crate) max_sie: Option<Duration>,
    /// The share of the time since `Last-Modified` for which a response that says nothing about freshness is fresh.
    pub(crate) heuristic: Option<f64>,
    /// The fields whose directives stand in for those of `Cache-Control`, the first that a response has.
    pub(crate) targeted: Vec<HeaderName>,
}

/// What of the request matters to the verdict.
#[derive(Debug, Clone, Copy, Default)]
#[allow(clippy::struct_excessive_bools)] // each a fact by itself
pub(crate) struct RequestFacts {
    /// It says `no-store`: the response goes to those waiting and is not kept (RFC 9111 section 5.2.1.5).
    pub(crate) no_store: bool,
    /// Its key holds credentials, see [`KeyRule::holds_principal`](crate::http::rule::KeyRule::holds_principal).
    pub(crate) principal_in_key: bool,
    /// Its client has a say and does not take whatever is stored.
    pub(crate) demanding: bool,
    /// It carries `Authorization`, and the key does not hold it: see
    /// [`KeyRule::is_authorized`](crate::http::rule::KeyRule::is_authorized).
    pub(crate) authorized: bool,
}

/// What may be done with a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Whether those waiting may have it.
    pub(crate) share: Share,
    /// Whether and how long it may be kept. Never without `share`. The answer to a HEAD is never kept, whatever
    /// stands here.
    pub(crate) store: Option<Lifetime>,
    /// Although those waiting may not have it, it may be kept: each use needs the origin's word that it still holds
    /// (`no-cache`, RFC 9111 section 5.2.2.4), and it has a validator to ask with.
    pub(crate) check: bool,
    /// The request headers it depends on beyond the key. Empty for `Vary: *`, which is not shared.
    pub(crate) vary: VarySpec,
    /// How old it is on arrival.
    pub(crate) age: Duration,
}

/// Whether those waiting may have a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Share {
    /// They may.
    Yes,
    /// Each runs its own request.
    No(NotShared),
}

/// Why a response is one client's alone. When several reasons apply, the first in this order is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum NotShared {
    /// 1xx: not the final word, or another protocol.
    Informational,
    /// 206, or `Content-Range` in bytes: not the whole. On other statuses than 206 and 416 that field means nothing (RFC
    /// 9110 section 14.4), but a handler that cut a range out may have forgotten the status.
    Partial,
    /// 304: without the client's own conditions it answers nobody.
    NotModified,
    /// `Set-Cookie`.
    SetCookie,
    /// `Clear-Site-Data`, which acts on the data that one client keeps, and no word that the response is fresh.
    ClearSiteData,
    /// `private`, with field names or without.
    Private,
    /// The request carries `Authorization`, and nothing says that others may have what it brought.
    Authorized,
    /// `no-store`, or a `Cache-Control` that cannot be read to its end.
    NoStore,
    /// `no-cache`, with field names or without; `Pragma: no-cache` where there is no `Cache-Control`.
    NoCache,
    /// `Vary: *`.
    VaryAny,
    /// `WWW-Authenticate`; on a 407, `Proxy-Authenticate`. Elsewhere that field is the next proxy's, as
    /// `Proxy-Authentication-Info` always is: both go no further, and the response does (RFC 9111 section 3.1).
    Challenge,
    /// `Authentication-Info`.
    AuthenticationInfo,
    /// A status that blames the one client, and no word that it is fresh.
    ClientFault,
    /// `text/event-stream`, and no word that it is fresh.
    EventStream,
}

/// How long a response may be kept. Times count from its generation, `age` before it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifetime {
    /// How old it is on arrival.
    pub(crate) age: Duration,
    /// The total freshness lifetime. Not above `age` for a response that is kept for its stale windows alone.
    pub(crate) fresh_for: Duration,
    /// How long after the end of freshness it may be served while it is refreshed.
    pub(crate) stale_while_revalidate: Duration,
    /// How long after the end of freshness it may be served because a load fails.
    pub(crate) stale_if_error: Duration,
    /// It must not be served stale on any ground, a waiter's time-out included; both windows are zero.
    pub(crate) revalidate: bool,
}

impl Lifetime {
    /// Whether there is nothing left: neither freshness nor a stale window, already on arrival.
    pub(crate) fn is_over(&self) -> bool {
        self.age >= self.fresh_for + self.stale_while_revalidate.max(self.stale_if_error)
    }
}

/// What a response says, to a shared cache like this.
struct Word {
    directives: ResponseDirectives,
    /// In a field meant for this cache: `Cache-Control`, `Expires` and `Pragma` have no say.
    is_targeted: bool,
}

impl Word {
    fn of(headers: &HeaderMap, policy: &HttpPolicy) -> Self {
        let targeted =
            if policy.targeted.is_empty() { None } else { targeted::directives(headers, &policy.targeted) };
        let is_targeted = targeted.is_some();
        let directives = targeted.unwrap_or_else(|| ResponseDirectives::parse(headers));
        Self { directives, is_targeted }
    }

    fn lifetime(&self, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
        let Self { directives, is_targeted } = self;
        let stated = directives.s_maxage.or(directives.max_age);
        if *is_targeted { stated } else { explicit_lifetime(headers, directives, now) }
    }
}

/// Judges the head of a response that arrived at `now`.
///
/// A response that is kept may be over already: the next load asks with its validators whether it still holds.
pub(crate) fn judge(
    request: RequestFacts,
    status: StatusCode,
    headers: &HeaderMap,
    policy: &HttpPolicy,
    now: SystemTime,
) -> Verdict {
    let word = Word::of(headers, policy);
    let directives = &word.directives;
    let age = apparent_age(headers, now);
    let explicit = word.lifetime(headers, now);
    let is_fresh = explicit.is_some_and(|lifetime| lifetime > age);
    let vary = match VarySpec::parse(headers) {
        Vary::Any => None,
        Vary::Names(names) => Some(names),
    };
    let is_closed = request.authorized && !for_authorized(directives);
    let share = match not_shared(status, headers, &word, vary.is_none(), is_closed, is_fresh) {
        Some(reason) => Share::No(reason),
        None => Share::Yes,
    };
    let may_keep = !request.no_store && may_keep(status, directives);
    let can_ask = || Validators::of(status, headers).is_some();
    let store = if share == Share::Yes && may_keep {
        let stated = explicit.or_else(|| guess(status, headers, directives, policy, now));
        let lifetime = lifetime(request, status, directives, age, stated, policy);
        lifetime.filter(|lifetime| !lifetime.is_over() || can_ask())
    } else {
        None
    };
    // Nothing that comes before `no-cache` is against it, and of what comes after it `Vary`, credentials and streams are.
    let check = share == Share::No(NotShared::NoCache)
        && may_keep
        && vary.is_some()
        && !is_personal(status, headers)
        && !is_event_stream(headers)
        && !request.principal_in_key
        && can_ask();
    Verdict { share, store, check, vary: vary.unwrap_or_default(), age }
}

/// Whether nothing in a head ties the response to one client. What came from elsewhere is asked once more.
#[cfg(feature = "redis")]
pub(crate) fn is_anyones(status: StatusCode, headers: &HeaderMap, policy: &HttpPolicy) -> bool {
    let varies_on_anything = VarySpec::parse(headers) == Vary::Any;
    not_shared(status, headers, &Word::of(headers, policy), varies_on_anything, false, true).is_none()
}

/// Whether a request like this may have a response that another brought and that is there under its key.
pub(crate) fn may_have(request: RequestFacts, headers: &HeaderMap, policy: &HttpPolicy) -> bool {
    !request.authorized || for_authorized(&Word::of(headers, policy).directives)
}

/// Whether a response may be shared although requests for it carry `Authorization` (RFC 9111 section 3.5).
fn for_authorized(directives: &ResponseDirectives) -> bool {
    directives.public || directives.s_maxage.is_some() || directives.must_revalidate
}

/// A lifetime by heuristics, where the operator asks for it: for statuses that allow it, or by the response's `public`
/// (RFC 9111 section 4.2.2).
fn guess(
    status: StatusCode,
    headers: &HeaderMap,
    directives: &ResponseDirectives,
    policy: &HttpPolicy,
    now: SystemTime,
) -> Option<Duration> {
    let share = policy.heuristic?;
    let is_allowed = directives.public || is_heuristically_fresh(status);
    if is_allowed { heuristic_lifetime(headers, share, now) } else { None }
}

fn not_shared(
    status: StatusCode,
    headers: &HeaderMap,
    word: &Word,
    varies_on_anything: bool,
    is_closed: bool,
    is_fresh: bool,
) -> Option<NotShared> {
    let directives = &word.directives;
    let reason = if status.is_informational() {
        NotShared::Informational
    } else if is_part(status, headers) {
        NotShared::Partial
    } else if status == StatusCode::NOT_MODIFIED {
        NotShared::NotModified
    } else if headers.contains_key(SET_COOKIE) {
        NotShared::SetCookie
    } else if headers.contains_key("clear-site-data") && !is_fresh {
        NotShared::ClearSiteData
    } else if directives.private {
        // Even where the key holds the principal: `private` may mean one device, or one moment, of a user.
        NotShared::Private
    } else if is_closed {
        NotShared::Authorized
    } else if forbids_storing(status, directives) {
        NotShared::NoStore
    } else if directives.no_cache || (!word.is_targeted && pragma_no_cache(headers)) {
        NotShared::NoCache
    } else if varies_on_anything {
        NotShared::VaryAny
    } else if has_challenge(status, headers) {
        NotShared::Challenge
    } else if has_authentication_info(headers) {
        NotShared::AuthenticationInfo
    } else if is_client_fault(status) && !is_fresh {
        NotShared::ClientFault
    } else if is_event_stream(headers) && !is_fresh {
        NotShared::EventStream
    } else {
        return None;
    };
    Some(reason)
}

fn is_part(status: StatusCode, headers: &HeaderMap) -> bool {
    let is_in_bytes = |line: &HeaderValue| {
        line.as_bytes().split_at_checked(6).is_some_and(|(unit, _)| unit.eq_ignore_ascii_case(b"bytes "))
    };
    status == StatusCode::PARTIAL_CONTENT || headers.get_all(CONTENT_RANGE).iter().any(is_in_bytes)
}

fn has_challenge(status: StatusCode, headers: &HeaderMap) -> bool {
    headers.contains_key(WWW_AUTHENTICATE)
        || (status == StatusCode::PROXY_AUTHENTICATION_REQUIRED && headers.contains_key(PROXY_AUTHENTICATE))
}

fn has_authentication_info(headers: &HeaderMap) -> bool {
    headers.contains_key("authentication-info")
}

fn is_personal(status: StatusCode, headers: &HeaderMap) -> bool {
    has_challenge(status, headers) || has_authentication_info(headers)
}

/// `no-store`, unless `must-understand` stands beside it and the status is understood (RFC 9111 section 5.2.2.3).
fn forbids_storing(status: StatusCode, directives: &ResponseDirectives) -> bool {
    directives.no_store && !(directives.must_understand && is_understood(status))
}

/// Whether the status lets a response be kept at all (RFC 9111 section 3). 1xx, 206 and 304 are not shared, and so
/// never get here.
fn may_keep(status: StatusCode, directives: &ResponseDirectives) -> bool {
    // Above 599 there are no statuses (RFC 9110 section 15).
    status.as_u16() < 600 && (!directives.must_understand || is_understood(status))
}

/// Statuses whose demands on caches are those of every whole response (RFC 9110 section 15.1).
fn is_understood(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 302 | 307 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Statuses that are heuristically cacheable (RFC 9110 section 15.1).
fn is_heuristically_fresh(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Statuses that may be due to what only this client did or is.
fn is_client_fault(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 401 | 403 | 407 | 408 | 413 | 421 | 425 | 426 | 429 | 431 | 451)
}

/// HTTP/1.0 frameworks say so, and mean `Cache-Control: no-cache` (RFC 9111 section 5.4 defines it for requests).
fn pragma_no_cache(headers: &HeaderMap) -> bool {
    !headers.contains_key(CACHE_CONTROL)
        && members(headers, &PRAGMA).any(|member| member.eq_ignore_ascii_case(b"no-cache"))
}

/// Whether the body is a stream of events without an end (HTML Living Standard, section 9.2).
pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_TYPE).iter().any(|line| {
        let media_type = line.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        media_type.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
    })
}

/// How long a response that is shared and may be kept may be kept; perhaps over already.
///
/// Where `Authorization` is part of the key, a response needs no word that it may be shared (RFC 9111 section 3.5): only
/// who sends the same credentials gets it.
fn lifetime(
    request: RequestFacts,
    status: StatusCode,
    directives: &ResponseDirectives,
    age: Duration,
    explicit: Option<Duration>,
    policy: &HttpPolicy,
) -> Option<Lifetime> {
    let (fresh_for, granted_swr, granted_sie) = match explicit {
        // Said to be stale on arrival: only the response itself may open a window then.
        Some(fresh_for) if fresh_for <= age => (fresh_for, Duration::ZERO, Duration::ZERO),
        Some(fresh_for) => (fresh_for, policy.granted_swr, policy.stale_if_error),
        None if status == StatusCode::OK => (policy.default_ttl?, policy.default_swr, policy.stale_if_error),
        None => return None,
    };
    let states_window = directives.stale_while_revalidate.is_some() || directives.stale_if_error.is_some();
    // RFC 9111 section 5.2.2.10: `s-maxage` implies `proxy-revalidate`. A window stated beside it is meant for us.
    let by_s_maxage = directives.s_maxage.is_some();
    let revalidate =
        directives.must_revalidate || directives.proxy_revalidate || (by_s_maxage && !states_window);
    let window = |stated: Option<Duration>, granted: Duration, most: Option<Duration>| {
        let granted = if by_s_maxage { Duration::ZERO } else { granted };
        let window = stated.unwrap_or(granted).min(most.unwrap_or(MAX_LIFETIME)).min(MAX_LIFETIME);
        if revalidate { Duration::ZERO } else { window }
    };
    // What holds a principal is not refreshed in the background, so it has no such window.
    let swr = if request.principal_in_key {
        Duration::ZERO
    } else {
        window(directives.stale_while_revalidate, granted_swr, policy.max_swr)
    };
    Some(Lifetime {
        age,
        fresh_for: fresh_for.min(MAX_LIFETIME),
        stale_while_revalidate: swr,
        stale_if_error: window(directives.stale_if_error, granted_sie, policy.max_sie),
        revalidate,
    })
}

#[cfg(test)]
mod tests;
