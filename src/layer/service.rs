//! `GuardService`: what becomes of one request, up to where it has to wait.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response};
use http_body::Body;
use tower::{BoxError, Service};

use super::address::{Address, original_uri};
use super::asking::Asking;
use super::body::GuardBody;
use super::bounds::{Inner, ResponseBody};
use super::check::check;
use super::future::{Afterwards, Changes, Lifts, Outdates, ResponseFuture};
use super::guard::{Guarded, KeyExtra};
use super::load::PageLoad;
use super::look::{Found, look};
use super::page::{Page, Reply};
use super::refusal::Refusal;
use super::trip::Trip;
use crate::cache::Entry;
use crate::clock::Tick;
use crate::event::count_request;
use crate::flight::Owned;
use crate::http::cache_control::RequestDirectives;
use crate::http::cache_status::{CacheStatus, Forward};
use crate::http::conditional::{Conditionals, take_conditionals};
use crate::http::eligible::{Eligibility, PassReason, Present, classify, is_safe};
use crate::http::key::{Lines, MethodClass};
use crate::http::origin::target;
use crate::http::verdict::RequestFacts;
use crate::policy::Freshness;

/// The service that a [`StampedeGuard`](crate::StampedeGuard) puts in front of another.
///
/// `poll_ready` is always ready and never touches the inner service: each handler run drives a clone of it to
/// readiness inside its own future, then calls that clone. Load shedding therefore belongs inside the guard.
#[derive(Clone, Debug)]
pub struct GuardService<S> {
    inner: S,
    guard: Arc<Guarded>,
}

impl<S> GuardService<S> {
    pub(super) fn new(inner: S, guard: Arc<Guarded>) -> Self {
        Self { inner, guard }
    }

    #[cfg(feature = "grpc")]
    pub(super) fn guard(&self) -> &Arc<Guarded> {
        &self.guard
    }

    /// The same service behind another guard.
    #[cfg(feature = "grpc")]
    pub(super) fn with_guard(&self, guard: Arc<Guarded>) -> Self
    where
        S: Clone,
    {
        Self { inner: self.inner.clone(), guard }
    }
}

impl<S, B, R> Service<Request<B>> for GuardService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<GuardBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B, R>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let guard = &self.guard;
        let (parts, body) = request.into_parts();
        // A body without data may still have trailers.
        let is_empty = body.is_end_stream();
        let bypassed = self.bypasses(&parts);
        let mut lines = Lines::new();
        match classify(&parts, is_empty, &guard.settings.rule, &mut lines) {
            (Eligibility::Take(class), present) if !bypassed => {
                lines.sort();
                let asked = self.ask(class, &parts, present, &lines, &[]);
                self.take(class, parts, body, present, asked)
            }
            (Eligibility::Pass(PassReason::Range), _) if !bypassed && parts.method == Method::GET => {
                self.take_part(parts, body)
            }
            (_, present) if !bypassed && wants_only_cached(present, &parts) => {
                let is_head = parts.method == Method::HEAD;
                let class = if is_head { MethodClass::Head } else { MethodClass::Get };
                ResponseFuture::ready(guard.refuse(Refusal::NotStored, class))
            }
            (eligibility, _) => self.pass(eligibility, parts, body),
        }
    }
}

/// Whether a client wants nothing but what is stored (RFC 9111 section 5.2.1.7).
fn wants_only_cached(present: Present, parts: &Parts) -> bool {
    present.directives && RequestDirectives::parse(&parts.headers).only_if_cached
}

impl<S> GuardService<S> {
    /// Whether the operator wants this request to go straight through.
    pub(super) fn bypasses(&self, parts: &Parts) -> bool {
        self.guard.settings.bypass.as_ref().is_some_and(|bypass| bypass(parts))
    }

    /// A request that never takes part.
    fn pass<B, R>(&self, why: Eligibility, parts: Parts, body: B) -> ResponseFuture<S, B, R>
    where
        S: Service<Request<B>, Response = Response<R>> + Clone,
    {
        let guard = &self.guard;
        guard.counters().passed.add();
        count_request("passed");
        if why == Eligibility::Pass(PassReason::Body) {
            guard.notice_body(&parts.headers);
        }
        let is_method = why == Eligibility::Pass(PassReason::Method);
        let why = if is_method { Forward::Method } else { Forward::Bypass };
        let changes = if is_safe(&parts.method) {
            Changes::Nothing
        } else {
            Changes::Outdates(Box::new(Outdates::new(guard, &parts)))
        };
        self.forward(parts, body, why, changes)
    }

    /// A call of a method that is shared otherwise. It says nothing of what is stored.
    #[cfg(feature = "grpc")]
    pub(super) fn pass_call<B, R>(&self, parts: Parts, body: B) -> ResponseFuture<S, B, R>
    where
        S: Service<Request<B>, Response = Response<R>> + Clone,
    {
        self.guard.counters().passed.add();
        count_request("passed");
        self.forward(parts, body, Forward::Bypass, Changes::Nothing)
    }

    fn forward<B, R>(&self, parts: Parts, body: B, why: Forward, changes: Changes) -> ResponseFuture<S, B, R>
    where
        S: Service<Request<B>, Response = Response<R>> + Clone,
    {
        let guard = &self.guard;
        let is_watched = !matches!(changes, Changes::Nothing) || guard.touches_responses();
        let afterwards = is_watched.then(|| Afterwards { guard: Arc::clone(guard), why, changes });
        ResponseFuture::pass(self.inner.clone(), Request::from_parts(parts, body), afterwards)
    }

    /// A GET with `Range`, answered from a complete, fresh body if there is one; it starts no load.
    fn take_part<B, R>(&self, mut parts: Parts, body: B) -> ResponseFuture<S, B, R>
    where
        S: Service<Request<B>, Response = Response<R>> + Clone,
    {
        let guard = &self.guard;
        let directives = RequestDirectives::parse(&parts.headers);
        let conditionals = take_conditionals(&mut parts.headers);
        let extra = self.extra(&parts);
        let generation = guard.generation(|| target(&parts, original_uri(&parts)));
        let facts = self.facts(&parts, &directives);
        let lines = Lines::of(&guard.settings.rule, &parts.headers);
        let found = look(guard, &parts, &lines, MethodClass::Get, generation, &extra);
        let found = found.and_then(|found| found.entry);
        let instant = guard.shelf().timeline.instant();
        let now = guard.shelf().timeline.tick(instant);
        if let Some(entry) = found
            && let Reply::Page(page, _) = &entry.value
            && guard.may_have(facts, page)
            && guard.shelf().judge_at(&entry, instant) == Freshness::Fresh
            && self.suits(&entry, page, &directives, now)
            && let Some(mut response) = page.respond_in_part(&parts.headers, &conditionals, now)
        {
            self.count_served(&entry, Freshness::Fresh, response.headers_mut());
            return ResponseFuture::ready(response);
        }
        if directives.only_if_cached {
            return ResponseFuture::ready(guard.refuse(Refusal::NotStored, MethodClass::Get));
        }
        conditionals.restore(&mut parts.headers);
        self.pass(Eligibility::Pass(PassReason::Range), parts, body)
    }

    /// What the operator's function adds to the key.
    fn extra(&self, parts: &Parts) -> Vec<u8> {
        let mut extra = KeyExtra::default();
        if let Some(key_with) = &self.guard.settings.key_with {
            key_with(parts, &mut extra);
        }
        extra.0
    }

    fn facts(&self, parts: &Parts, directives: &RequestDirectives) -> RequestFacts {
        let rule = &self.guard.settings.rule;
        RequestFacts {
            no_store: directives.no_store,
            principal_in_key: rule.holds_principal(&parts.headers),
            authorized: rule.is_authorized(&parts.headers),
            demanding: self.guard.settings.honors_clients && directives.demand(),
        }
    }

    /// Whether the client's own directives, if they count, let it have an entry that is good enough for others.
    fn suits(&self, entry: &Entry<Reply>, page: &Page, directives: &RequestDirectives, now: Tick) -> bool {
        let guard = &self.guard;
        !guard.settings.honors_clients || directives.allow(page.age(now), guard.ttl(entry), page.revalidate)
    }

    /// Counts an answer from the store, and tells the client that it is one.
    fn count_served(&self, entry: &Entry<Reply>, freshness: Freshness, headers: &mut HeaderMap) {
        let guard = &self.guard;
        if matches!(freshness, Freshness::Fresh | Freshness::RefreshEarly) {
            guard.counters().hits.add();
            count_request("hit");
        } else {
            guard.count_stale(entry);
        }
        guard.tell(headers, || CacheStatus::hit(guard.ttl(entry)));
    }

    /// What a request that takes part asks for, and what the store has of it. Of what is not `present`, nothing is heard:
    /// to gRPC these headers are metadata, for the handler. `message` is what else of it belongs into its key. `None` if
    /// that is too long.
    pub(super) fn ask(
        &self,
        class: MethodClass,
        parts: &Parts,
        present: Present,
        lines: &Lines<'_>,
        message: &[u8],
    ) -> Option<(Asking, Option<Entry<Reply>>)> {
        let guard = &self.guard;
        let directives = if present.directives {
            RequestDirectives::parse(&parts.headers)
        } else {
            RequestDirectives::default()
        };
        let facts = self.facts(parts, &directives);
        let mut extra = self.extra(parts);
        extra.extend_from_slice(message);
        let generation = guard.generation(|| target(parts, original_uri(parts)));
        // A HEAD is answered from what a GET left, if there is anything.
        let Found { entry, spec } = look(guard, parts, lines, class.stored(), generation, &extra)?;
        let conditionals = Conditionals::default();
        Some((Asking { conditionals, directives, facts, extra, generation, spec }, entry))
    }

    /// A request that takes part, and what it [asks](Self::ask).
    pub(super) fn take<B, R>(
        &self,
        class: MethodClass,
        mut parts: Parts,
        body: B,
        present: Present,
        asked: Option<(Asking, Option<Entry<Reply>>)>,
    ) -> ResponseFuture<S, B, R>
    where
        S: Inner<B, R>,
        B: Body + Send + 'static,
        R: ResponseBody,
    {
        let guard = &self.guard;
        let conditionals =
            if present.conditions { take_conditionals(&mut parts.headers) } else { Conditionals::default() };
        let Some((asking, entry)) = asked else {
            if wants_only_cached(present, &parts) {
                return ResponseFuture::ready(guard.refuse(Refusal::NotStored, class));
            }
            return self.pass_alone(parts, body, conditionals, Changes::Nothing);
        };
        let asking = Asking { conditionals, ..asking };
        let only_if_cached = asking.directives.only_if_cached;
        let is_closed =
            |entry: &Entry<Reply>| entry.value.page().is_some_and(|page| !guard.may_have(asking.facts, page));
        if entry.as_ref().is_some_and(is_closed) {
            if only_if_cached {
                return ResponseFuture::ready(guard.refuse(Refusal::NotStored, class));
            }
            return self.pass_alone(parts, body, asking.conditionals, Changes::Nothing);
        }
        let mut fallback = None;
        if let Some(entry) = entry {
            match &entry.value {
                // `only-if-cached` gets its refusal below.
                Reply::Private(_) | Reply::Checked(_)
                    if !only_if_cached && !matches!(guard.shelf().judge(&entry), Freshness::Dead) =>
                {
                    return self.unshared(class, parts, body, asking, entry);
                }
                Reply::Checked(_) => fallback = Some(entry),
                Reply::Page(page, _) => {
                    if let Some(_held) = page.recording.hold() {
                        match self.serve(class, &parts, entry, &asking) {
                            Served::Answer(response, due) => {
                                if let Some(stale) = due {
                                    self.refresh(class, parts, body, &asking, stale);
                                }
                                return ResponseFuture::ready(response);
                            }
                            Served::Asks(entry) => fallback = entry,
                        }
                    }
                }
                Reply::Private(_) | Reply::Varies(_) => {}
            }
        }
        if only_if_cached {
            return ResponseFuture::ready(guard.refuse(Refusal::NotStored, class));
        }
        self.board(class, parts, body, asking, fallback)
    }

    /// A request whose answer has to be waited for.
    fn board<B, R>(
        &self,
        class: MethodClass,
        parts: Parts,
        body: B,
        asking: Asking,
        fallback: Option<Entry<Reply>>,
    ) -> ResponseFuture<S, B, R>
    where
        S: Inner<B, R>,
        B: Body + Send + 'static,
        R: ResponseBody,
    {
        let guard = &self.guard;
        guard.shared.uniques.miss(&guard.settings.rule, &parts.headers);
        let Some(address) = asking.address(guard, &parts, class) else {
            return ResponseFuture::ready(guard.refuse(Refusal::NoKey, class));
        };
        // A GET under way answers a HEAD as well.
        let joins = match class {
            MethodClass::Get | MethodClass::Unary => None,
            MethodClass::Head => asking.address(guard, &parts, MethodClass::Get).map(|address| address.key),
        };
        let Asking { conditionals, facts, .. } = asking;
        let (guard, inner) = (Arc::clone(guard), self.inner.clone());
        let request = Request::from_parts(parts, body);
        let trip = Trip { guard, inner, request, conditionals, facts, address, joins, fallback };
        ResponseFuture::fly(trip.fly())
    }

    /// The request as it came, for its own client alone. Its response may show that others could have had it.
    fn pass_alone<B, R>(
        &self,
        mut parts: Parts,
        body: B,
        conditionals: Conditionals,
        changes: Changes,
    ) -> ResponseFuture<S, B, R>
    where
        S: Service<Request<B>, Response = Response<R>> + Clone,
    {
        conditionals.restore(&mut parts.headers);
        self.forward(parts, body, Forward::UriMiss, changes)
    }

    /// A request whose key is known for responses that are each client's own: by itself, and if there is one that may
    /// still hold, with the question whether it does.
    fn unshared<B, R>(
        &self,
        class: MethodClass,
        parts: Parts,
        body: B,
        asking: Asking,
        entry: Entry<Reply>,
    ) -> ResponseFuture<S, B, R>
    where
        S: Inner<B, R>,
        B: Body + Send + 'static,
        R: ResponseBody,
    {
        let guard = &self.guard;
        guard.counters().unshared.add();
        count_request("unshared");
        let address = if class == MethodClass::Head { None } else { asking.address(guard, &parts, class) };
        let Asking { conditionals, facts, .. } = asking;
        match (address, &entry.value) {
            (Some(address), Reply::Checked(_)) => {
                let load = PageLoad {
                    guard: Arc::clone(guard),
                    inner: self.inner.clone(),
                    request: Request::from_parts(parts, body),
                    facts,
                    address,
                    stale: Some(entry),
                    attended: true,
                    by_head: false,
                    leader: None,
                };
                ResponseFuture::fly(check(load, conditionals))
            }
            (Some(Address { key, .. }), _) => {
                self.pass_alone(parts, body, conditionals, Changes::Lifts(Lifts { key, facts }))
            }
            (None, _) => self.pass_alone(parts, body, conditionals, Changes::Nothing),
        }
    }

    /// Serves what the store has, if it is good enough.
    fn serve<B, R>(
        &self,
        class: MethodClass,
        parts: &Parts,
        entry: Entry<Reply>,
        asking: &Asking,
    ) -> Served<R>
    where
        S: Inner<B, R>,
        B: Body + Send + 'static,
        R: ResponseBody,
    {
        let guard = &self.guard;
        let Some(page) = entry.value.page() else { return Served::Asks(None) };
        // Read once for all: what is judged fresh is no older than it says.
        let instant = guard.shelf().timeline.instant();
        let now = guard.shelf().timeline.tick(instant);
        let freshness = guard.shelf().judge_at(&entry, instant);
        if !self.suits(&entry, page, &asking.directives, now) {
            return Served::Asks(Some(entry));
        }
        match freshness {
            // What a run is to replace does not answer its own request, at another depth of the app.
            Freshness::Stale { .. } | Freshness::IfError { load: false }
                if guard
                    .flights()
                    .is_own(|| asking.address(guard, parts, class.stored()).map(|own| own.key)) =>
            {
                return Served::Asks(None);
            }
            // The client may take what is older than others would.
            Freshness::Dead | Freshness::IfError { load: true }
                if !self.may_be_stale(&entry, page, asking) =>
            {
                return Served::Asks(Some(entry));
            }
            _ => {}
        }
        let mut response = page.respond(class, &asking.conditionals, now);
        self.count_served(&entry, freshness, response.headers_mut());
        let due = matches!(freshness, Freshness::RefreshEarly | Freshness::Stale { refresh: true });
        Served::Answer(response, (due && !asking.facts.principal_in_key).then_some(entry))
    }

    /// Whether the client takes what nobody else would get any more.
    fn may_be_stale(&self, entry: &Entry<Reply>, page: &Page, asking: &Asking) -> bool {
        let guard = &self.guard;
        guard.settings.honors_clients && !page.revalidate && asking.directives.takes_stale(guard.ttl(entry))
    }

    /// Sends the request whose caller has its answer once more, in the background: what the handler needs of it,
    /// and of its headers only those that the answer may depend on. Of a HEAD becomes the GET that what is stored is of.
    fn refresh<B, R>(
        &self,
        class: MethodClass,
        mut parts: Parts,
        body: B,
        asking: &Asking,
        stale: Entry<Reply>,
    ) where
        S: Inner<B, R>,
        B: Body + Send + 'static,
        R: ResponseBody,
    {
        let guard = &self.guard;
        let by_head = class == MethodClass::Head;
        let class = class.stored();
        if class == MethodClass::Get {
            parts.method = Method::GET;
        }
        let Some(address) = asking.address(guard, &parts, class) else { return };
        guard.carry_common(&mut parts.headers, &asking.spec);
        let key = Arc::clone(&address.key);
        let load = PageLoad {
            guard: Arc::clone(guard),
            inner: self.inner.clone(),
            request: Request::from_parts(parts, body),
            // The client had its answer; its `no-store` does not reach the handler.
            facts: RequestFacts { no_store: false, ..asking.facts },
            address,
            stale: Some(stale),
            attended: false,
            by_head,
            leader: None,
        };
        if guard.flights().launch(Owned(key), load) {
            guard.counters().refreshes.add();
            crate::event::count_refresh();
        }
    }
}

// Made and taken apart in one call.
#[allow(clippy::large_enum_variant)]
enum Served<R> {
    /// With the entry, if it is to be refreshed.
    Answer(Response<GuardBody<R>>, Option<Entry<Reply>>),
    /// A load is due; the entry may be served if it fails.
    Asks(Option<Entry<Reply>>),
}
