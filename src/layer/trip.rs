//! The way of a request that has to wait: for its own handler run, or for another's.

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};
use tower::Service;
use tower::util::Oneshot;

use super::address::Address;
use super::body::GuardBody;
use super::bounds::{Inner, ResponseBody};
use super::check::check;
use super::guard::{Guarded, OnWaitTimeout, PageFlights};
use super::load::{Failure, Own, PageArrival, PageLoad};
use super::page::{Page, PageKey, Reply};
use super::refusal::Refusal;
use crate::cache::{Born, Destination, Entry, Shelf};
use crate::error::{LoadError, Overloaded, RemoteKind};
#[cfg(feature = "redis")]
use crate::event::StaleReason;
use crate::event::{Outcome, count_outcome, count_request, count_shed};
use crate::flight::{FirstPoll, Landed, Owned, Role, Run};
use crate::http::cache_status::{CacheStatus, Forward, Ttl};
use crate::http::conditional::Conditionals;
use crate::http::key::MethodClass;
use crate::http::vary::VarySpec;
use crate::http::verdict::RequestFacts;

/// A request changes its key at most this often before it goes for itself.
const TURNS: usize = 8;

/// A request on its way.
pub(super) struct Trip<S, B> {
    pub(super) guard: Arc<Guarded>,
    pub(super) inner: S,
    pub(super) request: Request<B>,
    pub(super) conditionals: Conditionals,
    pub(super) facts: RequestFacts,
    pub(super) address: Address,
    /// A flight to join, if it is under way, before the request takes one of its own.
    pub(super) joins: Option<PageKey>,
    /// Served if the load fails.
    pub(super) fallback: Option<Entry<Reply>>,
}

/// What a trip has left once its request has boarded a flight.
struct Waiting {
    guard: Arc<Guarded>,
    conditionals: Conditionals,
    facts: RequestFacts,
    address: Address,
    fallback: Option<Entry<Reply>>,
    /// When it boarded.
    born: Born,
}

type PageRun<S, B, R, X> = Run<
    Arc<PageFlights>,
    PageKey,
    PageArrival,
    Failure,
    Shelf<PageKey, Reply>,
    Owned<PageKey>,
    PageLoad<S, B, R, X>,
    Option<oneshot::Receiver<Own<R, X>>>,
>;
type PageLanded<S, B, R, X> = Landed<PageArrival, Failure, Owned<PageKey>, PageLoad<S, B, R, X>>;

/// A request that leads or follows a flight.
struct Wait<S, B, R, X> {
    waiting: Waiting,
    run: PageRun<S, B, R, X>,
    joins_only: bool,
}

// One at a time, and not for long.
#[allow(clippy::large_enum_variant)]
enum Waited<S, B, R, X> {
    /// The leader's own response.
    Own(Own<R, X>),
    Landed(PageLanded<S, B, R, X>),
    /// `wait_timeout`, with what it would have run.
    TooLong(Option<PageLoad<S, B, R, X>>),
}

/// The future of a trip. Many wait at a time, each for long, so it holds everything once, as an `async` block would not,
/// and what only few come to is behind a pointer.
pub(super) struct Flying<S, B, R, X> {
    stage: Stage<S, B, R, X>,
    turns: usize,
    /// Its `wait_timeout`, from when it first follows: one for all its turns.
    limit: Option<Pin<Box<Sleep>>>,
}

#[allow(clippy::large_enum_variant)]
enum Stage<S, B, R, X> {
    Waits(Wait<S, B, R, X>),
    /// It runs for itself.
    Apart(Apart<R, X>),
    Answered,
}

type Apart<R, X> = Pin<Box<dyn Future<Output = Own<R, X>> + Send>>;

/// A request that runs for itself, as it came.
struct Alone<S, B> {
    guard: Arc<Guarded>,
    inner: S,
    request: Request<B>,
    why: Forward,
}

impl<S, B> Alone<S, B> {
    async fn run<R>(self) -> Result<Response<GuardBody<R>>, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>>,
    {
        let Self { guard, inner, request, why } = self;
        guard.counters().unshared.add();
        count_request("unshared");
        let mut response = Oneshot::new(inner, request).await?;
        guard.finish(&mut response, why);
        Ok(response.map(GuardBody::own))
    }
}

impl<S, B> Trip<S, B> {
    fn alone(self) -> Alone<S, B> {
        let Self { guard, inner, mut request, conditionals, address, fallback, .. } = self;
        conditionals.restore(request.headers_mut());
        let why = guard.why(fallback.as_ref(), &address.spec);
        Alone { guard, inner, request, why }
    }
}

/// What the end of a wait means for its request.
#[allow(clippy::large_enum_variant)]
enum Turn<S, B, R, X> {
    Answer(Own<R, X>),
    /// Asks for itself whether what is stored still holds.
    Check(PageLoad<S, B, R, X>, Conditionals),
    /// Runs for itself.
    Alone(Alone<S, B>),
    /// Boards again, under another key.
    Again(Trip<S, B>),
}

impl<S, B> Trip<S, B> {
    /// Leads or joins the flight under its key once it is polled.
    fn board<R, X>(self) -> Wait<S, B, R, X> {
        let Self { guard, inner, request, conditionals, facts, address, joins, fallback } = self;
        let joins_only = joins.is_some();
        let first_poll = if joins_only { FirstPoll::Never } else { FirstPoll::Spawned };
        let key = joins.unwrap_or_else(|| Arc::clone(&address.key));
        let load = PageLoad {
            guard: Arc::clone(&guard),
            inner,
            request,
            facts,
            address: address.clone(),
            stale: fallback.clone(),
            attended: true,
            by_head: false,
            leader: None,
        };
        let run = Run::new(Arc::clone(guard.flights()), Owned(key), load, first_poll);
        let born = guard.shelf().generations.born();
        let waiting = Waiting { guard, conditionals, facts, address, fallback, born };
        Wait { waiting, run, joins_only }
    }

    pub(super) fn fly<R, X>(self) -> Flying<S, B, R, X> {
        Flying { stage: Stage::Waits(self.board()), turns: 1, limit: None }
    }
}

impl<S, B, R> Future for Flying<S, B, R, S::Error>
where
    S: Inner<B, R> + Service<Request<B>, Response = Response<R>>,
    B: Body + Send + 'static,
    R: ResponseBody,
{
    type Output = Own<R, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let waited = match &mut this.stage {
                Stage::Waits(wait) => ready!(wait.poll(&mut this.limit, cx)),
                Stage::Apart(apart) => return apart.as_mut().poll(cx),
                Stage::Answered => panic!("a future is not polled after it was ready"),
            };
            let Stage::Waits(wait) = mem::replace(&mut this.stage, Stage::Answered) else { continue };
            this.stage = match wait.turn(waited) {
                Turn::Answer(answer) => return Poll::Ready(answer),
                Turn::Check(load, conditionals) => Stage::Apart(Box::pin(check(load, conditionals))),
                Turn::Alone(alone) => Stage::Apart(Box::pin(alone.run())),
                Turn::Again(trip) if this.turns < TURNS => {
                    this.turns += 1;
                    Stage::Waits(trip.board())
                }
                Turn::Again(trip) => Stage::Apart(Box::pin(trip.alone().run())),
            }
        }
    }
}

impl<S, B, R> Wait<S, B, R, S::Error>
where
    S: Inner<B, R>,
    B: Send + 'static,
    R: ResponseBody,
{
    /// Ready at the first of: the leader's own response, the landing, a follower's `wait_timeout`.
    fn poll(
        &mut self,
        limit: &mut Option<Pin<Box<Sleep>>>,
        cx: &mut Context<'_>,
    ) -> Poll<Waited<S, B, R, S::Error>> {
        let landed = Pin::new(&mut self.run).poll(cx);
        let own = self.run.kept();
        // The leader's own response is sent before its flight lands.
        if let Some(receiver) = own
            && let Poll::Ready(sent) = Pin::new(receiver).poll(cx)
        {
            *own = None;
            if let Ok(response) = sent {
                return Poll::Ready(Waited::Own(response));
            }
        }
        if let Poll::Ready(landed) = landed {
            // A task that has used up its budget has not been given what is there.
            let sent = own.as_mut().and_then(|own| own.try_recv().ok());
            return Poll::Ready(sent.map_or(Waited::Landed(landed), Waited::Own));
        }
        if self.run.role() == Some(Role::Follower)
            && let Some(wait_timeout) = self.waiting.guard.settings.wait_timeout
        {
            let timer = limit.get_or_insert_with(|| Box::pin(sleep(wait_timeout)));
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Waited::TooLong(self.run.unused().map(|(_, load)| load)));
            }
        }
        Poll::Pending
    }
}

impl<S, B, R, X> Wait<S, B, R, X> {
    fn turn(self, waited: Waited<S, B, R, X>) -> Turn<S, B, R, X> {
        let Self { waiting, joins_only, run } = self;
        match waited {
            Waited::Own(own) => Turn::Answer(waiting.own(own).map(|mut response| {
                response.body_mut().hold(|| run.into_seat());
                response
            })),
            Waited::Landed(landed) => waiting.turn(landed, joins_only),
            Waited::TooLong(load) => waiting.too_long(load),
        }
    }
}

/// How a page came from the tier that instances share, if it did.
#[cfg_attr(not(feature = "redis"), allow(unused_variables))]
fn from_tier(bound_for: &Destination<PageKey, Reply>) -> Option<Outcome> {
    #[cfg(feature = "redis")]
    match bound_for {
        Destination::Landed(receipt) => return receipt.outcome,
        Destination::BackingOff { age, .. } => {
            return Some(Outcome::Stale { age: *age, reason: StaleReason::LoadFailed });
        }
        _ => {}
    }
    None
}

impl Waiting {
    /// The leader's own response. Its conditions were not sent to the handler.
    fn own<R, X>(self, own: Own<R, X>) -> Own<R, X> {
        self.guard.counters().led.add();
        count_request("loaded");
        let mut response = own?;
        self.conditionals.apply(&mut response, GuardBody::left_out);
        Ok(response)
    }

    /// After `wait_timeout`.
    fn too_long<S, B, R, X>(self, load: Option<PageLoad<S, B, R, X>>) -> Turn<S, B, R, X> {
        let passes = self.guard.settings.on_wait_timeout == OnWaitTimeout::PassThrough;
        match (self.stale(Some(Role::Follower)), load) {
            (Some(response), _) => Turn::Answer(Ok(response)),
            (None, Some(load)) if passes => Turn::Alone(self.back(load).alone()),
            (None, _) => Turn::Answer(Ok(self.refused(Refusal::TooSlow))),
        }
    }

    fn stale_or<R>(&self, forwarded: Option<Role>, why: Refusal) -> Response<GuardBody<R>> {
        self.stale(forwarded).unwrap_or_else(|| self.refused(why))
    }

    /// What is stored, in place of an answer. `forwarded` tells as what the request went to the handler, if it did.
    fn stale<R>(&self, forwarded: Option<Role>) -> Option<Response<GuardBody<R>>> {
        let Self { guard, fallback, .. } = self;
        let entry = fallback.as_ref().filter(|entry| guard.may_stand_in(self.facts, entry))?;
        let page = entry.value.page()?;
        guard.count_stale(entry);
        let mut response = page.respond(self.address.class, &self.conditionals, guard.shelf().timeline.now());
        guard.tell(response.headers_mut(), || {
            let hit = CacheStatus::hit(guard.ttl(entry));
            match forwarded {
                None => hit,
                Some(role) => hit.after(Forward::Stale, role == Role::Follower),
            }
        });
        Some(response)
    }

    fn refused<R>(&self, why: Refusal) -> Response<GuardBody<R>> {
        self.guard.refuse(why, self.address.class)
    }

    fn turn<S, B, R, X>(self, landed: PageLanded<S, B, R, X>, joined_only: bool) -> Turn<S, B, R, X> {
        let load = landed.unused.map(|(_, load)| load).or(landed.spared);
        match (landed.result, load) {
            // Whoever comes after an invalidation is not served what began before it.
            (Ok(arrival), Some(load)) if self.guard.shelf().is_void_for(self.born, &arrival) => {
                Turn::Again(self.back(load))
            }
            (Ok(arrival), Some(load)) => match arrival.value {
                // What another's request brought is good for its own client alone.
                Reply::Page(page, _) | Reply::Checked(page) if !self.guard.may_have(self.facts, &page) => {
                    Turn::Alone(self.back(load).alone())
                }
                Reply::Page(page, _reader) => self.page(&page, load, joined_only),
                Reply::Varies(signpost) => self.again(load, &signpost.spec),
                Reply::Checked(page) if !joined_only && page.key == self.address.key => {
                    self.check(&page, load)
                }
                Reply::Private(_) | Reply::Checked(_) => Turn::Alone(self.back(load).alone()),
            },
            // A leader whose own run another instance's spared, or whose own response was lost on the way: its page
            // serves.
            (Ok(PageArrival { value: Reply::Page(page, _reader), bound_for }), None) => {
                Turn::Answer(Ok(self.answer(&page, from_tier(&bound_for))))
            }
            (Ok(_), None) => Turn::Answer(Ok(self.stale_or(Some(landed.role), Refusal::Failed))),
            (Err(error), load) => self.failed(error, landed.role, load, joined_only),
        }
    }

    fn failed<S, B, R, X>(
        self,
        error: LoadError<Failure>,
        role: Role,
        load: Option<PageLoad<S, B, R, X>>,
        joined_only: bool,
    ) -> Turn<S, B, R, X> {
        if let LoadError::Overloaded(cap) = &error {
            count_shed(*cap);
        }
        let is_forwarded = !matches!(error, LoadError::Overloaded(_) | LoadError::Cancelled);
        let forwarded = is_forwarded.then_some(role);
        let why = match (error, load) {
            // There was no GET to join.
            (LoadError::Cancelled, Some(load)) if joined_only => return Turn::Again(self.back(load)),
            (LoadError::Reentrant | LoadError::Overloaded(Overloaded::InFlight { .. }), Some(load)) => {
                return Turn::Alone(self.back(load).alone());
            }
            // A GET of its own may bring more.
            (LoadError::Failed(failure), Some(load)) if matches!(*failure, Failure::Bodiless) => {
                return Turn::Alone(self.back(load).alone());
            }
            (LoadError::Panicked(panic), _) if role == Role::Leader => {
                let message = || Box::new(panic.to_string()) as Box<dyn std::any::Any + Send>;
                std::panic::resume_unwind(panic.take_payload().unwrap_or_else(message));
            }
            (LoadError::Panicked(_) | LoadError::Remote { kind: RemoteKind::Panicked }, _) => {
                Refusal::Panicked
            }
            (LoadError::TimedOut(_) | LoadError::Remote { kind: RemoteKind::TimedOut }, _) => {
                Refusal::TooSlow
            }
            (LoadError::Failed(_) | LoadError::Remote { kind: RemoteKind::Failed }, _) => Refusal::Failed,
            (LoadError::Overloaded(_), _) => Refusal::Busy,
            _ => Refusal::Gone,
        };
        Turn::Answer(Ok(self.stale_or(forwarded, why)))
    }

    /// The answer with what another request's run brought, in this instance or, if `from` tells how, in another.
    fn answer<R>(&self, page: &Page, from: Option<Outcome>) -> Response<GuardBody<R>> {
        let Self { guard, fallback, address, .. } = self;
        let counters = guard.counters();
        let (count, outcome) = match from {
            None => (&counters.coalesced, Outcome::Coalesced),
            Some(outcome @ Outcome::Stale { .. }) => (&counters.stale, outcome),
            Some(outcome) => (&counters.shared, outcome),
        };
        count.add();
        count_outcome(outcome);
        let mut response = page.respond(address.class, &self.conditionals, guard.shelf().timeline.now());
        guard.tell(response.headers_mut(), || {
            if from.is_some() {
                let entry = guard.shelf().find(&page.key);
                return CacheStatus::hit(entry.map_or(Ttl::Left(Duration::ZERO), |entry| guard.ttl(&entry)));
            }
            let why = guard.why(fallback.as_ref(), &address.spec);
            CacheStatus { collapsed: true, ..CacheStatus::forwarded(why, page.status) }
        });
        response
    }

    /// The page, if this request may have it: what its `Vary` names may not be in the key yet.
    fn page<S, B, R, X>(
        self,
        page: &Page,
        load: PageLoad<S, B, R, X>,
        joined_only: bool,
    ) -> Turn<S, B, R, X> {
        if page.spec == self.address.spec {
            return Turn::Answer(Ok(self.answer(page, None)));
        }
        let (parts, body) = load.request.into_parts();
        let class = if joined_only { MethodClass::Get } else { self.address.class };
        let asked = Address { class, ..self.address.clone() };
        let key = asked.under(&self.guard.settings.rule, &parts, &page.spec);
        let load = PageLoad { request: Request::from_parts(parts, body), ..load };
        if key.as_ref() == Some(&page.key) {
            return Turn::Answer(Ok(self.answer(page, None)));
        }
        self.again(load, &page.spec)
    }

    /// The request by itself, about the page that is stored under its key if it is that one still.
    fn check<S, B, R, X>(self, page: &Page, load: PageLoad<S, B, R, X>) -> Turn<S, B, R, X> {
        self.guard.counters().unshared.add();
        count_request("unshared");
        let stale = self.guard.shelf().find(&page.key);
        Turn::Check(PageLoad { stale, ..load }, self.conditionals)
    }

    /// Another turn, under the key with the headers of `spec` in it.
    fn again<S, B, R, X>(mut self, load: PageLoad<S, B, R, X>, spec: &VarySpec) -> Turn<S, B, R, X> {
        let (parts, body) = load.request.into_parts();
        let key = self.address.under(&self.guard.settings.rule, &parts, spec);
        let load = PageLoad { request: Request::from_parts(parts, body), ..load };
        let Some(key) = key else { return Turn::Alone(self.back(load).alone()) };
        self.address.key = key;
        self.address.spec = spec.clone();
        Turn::Again(self.back(load))
    }

    fn back<S, B, R, X>(self, load: PageLoad<S, B, R, X>) -> Trip<S, B> {
        let Self { guard, conditionals, facts, address, fallback, .. } = self;
        let PageLoad { inner, request, .. } = load;
        Trip { guard, inner, request, conditionals, facts, address, joins: None, fallback }
    }
}
