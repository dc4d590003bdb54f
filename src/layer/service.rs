//! `GuardService`: what becomes of one request, up to where it has to wait.

use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body::Body;
use tower::{BoxError, Service};

use super::address::{Address, original_uri};
use super::body::GuardBody;
use super::bounds::{Inner, ResponseBody};
use super::future::{Afterwards, Lifts, Outdates, ResponseFuture};
use super::guard::{Guarded, KeyExtra};
use super::load::PageLoad;
use super::page::{Page, Reply, refusal};
use super::trip::Trip;
use crate::cache::Entry;
use crate::event::count_request;
use crate::flight::Owned;
use crate::http::cache_control::RequestDirectives;
use crate::http::conditional::{Conditionals, take_conditionals};
use crate::http::eligible::{Eligibility, classify, is_safe};
use crate::http::key::{KeyInput, MethodClass};
use crate::http::origin::target;
use crate::http::vary::VarySpec;
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
        let bypassed = guard.settings.bypass.as_ref().is_some_and(|bypass| bypass(&parts));
        match classify(&parts, is_empty, &guard.settings.rule) {
            Eligibility::Take(class) if !bypassed => self.take(class, parts, body),
            _ => {
                guard.counters.passed.add();
                count_request("passed");
                let outdates = || Afterwards::Outdates(Box::new(Outdates::new(guard, &parts)));
                let afterwards = (!is_safe(&parts.method)).then(outdates);
                ResponseFuture::pass(self.inner.clone(), Request::from_parts(parts, body), afterwards)
            }
        }
    }
}

/// What the store has for a request.
struct Found {
    entry: Option<Entry<Reply>>,
    /// The headers beyond the rule that its key has.
    spec: VarySpec,
}

thread_local! {
    /// Where keys are written before they are looked up: a hit needs no key of its own.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Looks under the key without the headers that only `Vary` names, and from there where a signpost points.
/// `None` if the key is too long.
fn look(guard: &Guarded, parts: &Parts, class: MethodClass, generation: u64, extra: &[u8]) -> Option<Found> {
    SCRATCH.with_borrow_mut(|scratch| {
        let original = original_uri(parts);
        let mut spec = VarySpec::default();
        loop {
            let input = KeyInput { class, parts, original, generation, vary: &spec, extra };
            input.write(&guard.settings.rule, scratch).ok()?;
            let entry = guard.shelf().find(scratch.as_slice());
            match entry.as_ref().map(|entry| &entry.value) {
                Some(Reply::Varies(signpost)) if spec.is_empty() => spec = signpost.spec.clone(),
                _ => return Some(Found { entry, spec }),
            }
        }
    })
}

impl<S> GuardService<S> {
    fn take<B, R>(&self, class: MethodClass, mut parts: Parts, body: B) -> ResponseFuture<S, B, R>
    where
        S: Inner<B, R>,
        B: Body + Send + 'static,
        R: ResponseBody,
    {
        let guard = &self.guard;
        let directives = RequestDirectives::parse(&parts.headers);
        let facts = RequestFacts {
            no_store: directives.no_store,
            principal_in_key: guard.settings.rule.holds_principal(&parts.headers),
        };
        let conditionals = take_conditionals(&mut parts.headers);
        let extra = guard.settings.key_with.as_ref().map(|key_with| {
            let mut extra = KeyExtra::default();
            key_with(&parts, &mut extra);
            extra.0
        });
        let extra = extra.unwrap_or_default();
        let mark = guard.mark(&target(&parts, original_uri(&parts)));
        let generation = guard.shelf().generations.of(mark);
        // A HEAD is answered from what a GET left, if there is anything.
        let Some(found) = look(guard, &parts, MethodClass::Get, generation, &extra) else {
            return self.pass_alone(parts, body, conditionals, None);
        };
        let mut asking = Asking { parts, body, conditionals, facts, extra, generation, spec: found.spec };
        let mut fallback = None;
        if let Some(entry) = found.entry {
            match &entry.value {
                // `only-if-cached` gets its refusal below.
                Reply::Private
                    if !directives.only_if_cached
                        && !matches!(guard.shelf().judge(&entry), Freshness::Dead) =>
                {
                    guard.counters.unshared.add();
                    count_request("unshared");
                    let marked = if class == MethodClass::Get { asking.address(guard, class) } else { None };
                    let Asking { parts, body, conditionals, facts, .. } = asking;
                    let lifts = marked.map(|marked| Lifts::new(guard, marked.key, facts));
                    return self.pass_alone(parts, body, conditionals, lifts);
                }
                Reply::Page(page, _) if page.recording.is_sound() => {
                    let page = Arc::clone(page);
                    match self.serve(class, &page, entry, asking) {
                        Served::Answer(response) => return ResponseFuture::ready(response),
                        Served::Asks(again, entry) => (asking, fallback) = (again, entry),
                    }
                }
                _ => {}
            }
        }
        if directives.only_if_cached {
            return ResponseFuture::ready(refusal(StatusCode::GATEWAY_TIMEOUT));
        }
        guard.uniques.miss(&guard.settings.rule, &asking.parts.headers);
        let Some(trip) = asking.trip(guard, self.inner.clone(), class, fallback) else {
            return ResponseFuture::ready(refusal(StatusCode::INTERNAL_SERVER_ERROR));
        };
        ResponseFuture::fly(trip.fly())
    }

    /// The request as it came, for its own client alone. Its response may show that others could have had it.
    fn pass_alone<B, R>(
        &self,
        mut parts: Parts,
        body: B,
        conditionals: Conditionals,
        lifts: Option<Lifts>,
    ) -> ResponseFuture<S, B, R>
    where
        S: Service<Request<B>, Response = Response<R>> + Clone,
    {
        conditionals.restore(&mut parts.headers);
        let request = Request::from_parts(parts, body);
        let afterwards = lifts.map(|lifts| Afterwards::Lifts(Box::new(lifts)));
        ResponseFuture::pass(self.inner.clone(), request, afterwards)
    }

    /// Serves what the store has, if it is good enough.
    fn serve<B, R>(
        &self,
        class: MethodClass,
        page: &Page,
        entry: Entry<Reply>,
        asking: Asking<B>,
    ) -> Served<B, R>
    where
        S: Inner<B, R>,
        B: Body + Send + 'static,
        R: ResponseBody,
    {
        let guard = &self.guard;
        let freshness = guard.shelf().judge(&entry);
        match freshness {
            // What a run is to replace does not answer its own request, at another depth of the app.
            Freshness::Stale { .. } | Freshness::IfError { load: false }
                if guard.flights.is_own(|| asking.address(guard, MethodClass::Get).map(|own| own.key)) =>
            {
                return Served::Asks(asking, None);
            }
            Freshness::Dead => return Served::Asks(asking, None),
            Freshness::IfError { load: true } => return Served::Asks(asking, Some(entry)),
            Freshness::Fresh | Freshness::RefreshEarly => {
                guard.counters.hits.add();
                count_request("hit");
            }
            Freshness::Stale { .. } | Freshness::IfError { .. } => {
                guard.counters.stale.add();
                count_request("stale");
            }
        }
        let response = page.respond(class, &asking.conditionals, &guard.shelf().timeline);
        let due = matches!(freshness, Freshness::RefreshEarly | Freshness::Stale { refresh: true });
        if due && class == MethodClass::Get && !asking.facts.principal_in_key {
            self.refresh(asking, entry);
        }
        Served::Answer(response)
    }

    /// Sends the request whose caller has its answer once more, in the background: what the handler needs of it,
    /// and of its headers only those that the answer may depend on.
    fn refresh<B, R>(&self, mut asking: Asking<B>, stale: Entry<Reply>)
    where
        S: Inner<B, R>,
        B: Body + Send + 'static,
        R: ResponseBody,
    {
        let guard = &self.guard;
        let Some(address) = asking.address(guard, MethodClass::Get) else { return };
        let rule = &guard.settings.rule;
        let others: Vec<_> = asking.parts.headers.keys().cloned().collect();
        for name in others {
            if !rule.keys(&name) && !asking.spec.names().contains(&name) {
                asking.parts.headers.remove(&name);
            }
        }
        let key = Arc::clone(&address.key);
        let load = PageLoad {
            guard: Arc::clone(guard),
            inner: self.inner.clone(),
            request: Request::from_parts(asking.parts, asking.body),
            // The client had its answer; its `no-store` does not reach the handler.
            facts: RequestFacts { no_store: false, ..asking.facts },
            address,
            stale: Some(stale),
            leader: None,
        };
        if guard.flights.launch(Owned(key), load) {
            guard.counters.refreshes.add();
            crate::event::count_refresh();
        }
    }
}

// Made and taken apart in one call.
#[allow(clippy::large_enum_variant)]
enum Served<B, R> {
    Answer(Response<GuardBody<R>>),
    /// A load is due; the entry may be served if it fails.
    Asks(Asking<B>, Option<Entry<Reply>>),
}

/// A request that takes part, taken apart.
struct Asking<B> {
    parts: Parts,
    body: B,
    conditionals: Conditionals,
    facts: RequestFacts,
    extra: Vec<u8>,
    generation: u64,
    spec: VarySpec,
}

impl<B> Asking<B> {
    fn address(&self, guard: &Guarded, class: MethodClass) -> Option<Address> {
        Address::of(guard, &self.parts, class, self.generation, &self.extra, &self.spec)
    }

    fn trip<S>(
        self,
        guard: &Arc<Guarded>,
        inner: S,
        class: MethodClass,
        fallback: Option<Entry<Reply>>,
    ) -> Option<Trip<S, B>> {
        let address = self.address(guard, class)?;
        // A GET under way answers a HEAD as well.
        let joins = match class {
            MethodClass::Get => None,
            MethodClass::Head => self.address(guard, MethodClass::Get).map(|address| address.key),
        };
        Some(Trip {
            guard: Arc::clone(guard),
            inner,
            request: Request::from_parts(self.parts, self.body),
            conditionals: self.conditionals,
            facts: self.facts,
            address,
            joins,
            fallback,
        })
    }
}
