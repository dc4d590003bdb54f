//! A handler run that others may share: what the leader's request becomes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::CONTENT_LENGTH;
use http::{Request, Response};
use http_body::Body;
use tokio::sync::oneshot;
use tower::util::Oneshot;
use tracing::Instrument;

use super::address::Address;
use super::body::GuardBody;
use super::bounds::{Inner, ResponseBody};
use super::fill::{Fill, Keep};
use super::guard::{Guarded, HIT_FOR_MISS, SIGNPOST_TTL};
use super::page::{Page, PageKey, Reply, Signpost, respond_to_leader};
use super::recording::{End, Reader, Recording};
use crate::cache::{Arrival, Born, Destination, Entry, Storing};
use crate::error::{LoadError, TimedOut};
use crate::flight::{BoxLoad, Plan};
use crate::http::headers::strip_hop_by_hop;
use crate::http::key::MethodClass;
use crate::http::verdict::{self, Lifetime as VerdictLife, RequestFacts, Share, Verdict};
use crate::policy::Lifetime;

/// Why a handler run gave nothing to share. The leader learns more, from its own channel.
#[derive(Debug)]
pub(super) enum Failure {
    /// The inner service returned an error.
    Inner,
    /// The response is a server error, and a stale one may be served in its place.
    ServerError,
    /// The body broke off before anybody had its head.
    Broken,
}

type Landing = Result<PageArrival, LoadError<Failure>>;
pub(super) type PageArrival = Arrival<PageKey, Reply>;

/// The leader's own response, or its service's own error.
pub(super) type Own<R, X> = Result<Response<GuardBody<R>>, X>;

/// A request and the service to run it.
pub(super) struct PageLoad<S, B, R, X> {
    pub(super) guard: Arc<Guarded>,
    pub(super) inner: S,
    pub(super) request: Request<B>,
    pub(super) facts: RequestFacts,
    pub(super) address: Address,
    /// What the shelf had.
    pub(super) stale: Option<Entry<Reply>>,
    /// Where the leader waits; a background refresh has nobody.
    pub(super) leader: Option<oneshot::Sender<Own<R, X>>>,
}

impl<S, B, R> Plan<PageKey, PageArrival, Failure> for PageLoad<S, B, R, S::Error>
where
    S: Inner<B, R>,
    B: Send + 'static,
    R: ResponseBody,
{
    fn recheck(&mut self, key: &PageKey) -> Option<PageArrival> {
        let found = self.guard.shelf().find(key)?;
        if matches!(&found.value, Reply::Page(page, _) if !page.recording.is_sound()) {
            return None;
        }
        self.guard.shelf().spare_load(found, self.stale.as_ref())
    }

    fn load(self) -> BoxLoad<PageArrival, Failure> {
        let Self { guard, inner, request, facts, address, stale, leader } = self;
        let born = guard.shelf().generations.born();
        let asked = asked(&request);
        let lander = Lander { guard, facts, address, asked, stale, leader, born, cost: Duration::ZERO };
        let call = Oneshot::new(inner, request);
        Box::pin(lander.land(call).instrument(tracing::Span::current()))
    }
}

/// What of a request goes into keys, for a `Vary` that is not known yet.
fn asked<B>(request: &Request<B>) -> http::request::Parts {
    let mut asked = Request::new(()).into_parts().0;
    asked.uri = request.uri().clone();
    asked.headers = request.headers().clone();
    if let Some(original) = request.extensions().get::<axum::extract::OriginalUri>() {
        asked.extensions.insert(original.clone());
    }
    asked
}

/// `None` if the future was dropped because it took too long.
async fn limited<F: Future>(limit: Option<Duration>, future: F) -> Option<F::Output> {
    match limit {
        None => Some(future.await),
        Some(limit) => tokio::time::timeout(limit, future).await.ok(),
    }
}

/// Makes a landing of a response.
struct Lander<R, X> {
    guard: Arc<Guarded>,
    facts: RequestFacts,
    address: Address,
    asked: http::request::Parts,
    stale: Option<Entry<Reply>>,
    leader: Option<oneshot::Sender<Own<R, X>>>,
    born: Born,
    cost: Duration,
}

impl<R, X> Lander<R, X>
where
    R: ResponseBody,
{
    async fn land(mut self, call: impl Future<Output = Result<Response<R>, X>>) -> Landing {
        let started = self.guard.shelf().timeline.now();
        let limit = self.guard.settings.load_timeout;
        let ended = limited(limit, call).await;
        self.cost = self.guard.shelf().timeline.now().since(started);
        crate::event::count_load(matches!(ended, Some(Ok(_))), self.cost);
        match ended {
            None => Err(LoadError::TimedOut(TimedOut { after: limit.unwrap_or_default() })),
            Some(Err(error)) => {
                self.tell_leader(Err(error));
                Err(LoadError::Failed(Arc::new(Failure::Inner)))
            }
            Some(Ok(response)) => self.share(response).await,
        }
    }

    /// A leader that has gone away takes its response with it.
    fn tell_leader(&mut self, own: Own<R, X>) {
        if let Some(leader) = self.leader.take() {
            let _ = leader.send(own);
        }
    }

    async fn share(mut self, response: Response<R>) -> Landing {
        let settings = &self.guard.settings;
        let (head, body) = response.into_parts();
        let now = SystemTime::now();
        let verdict = verdict::judge(self.facts, head.status, &head.headers, &settings.policy, now);
        if head.status.is_server_error() && self.may_serve_stale() {
            return Err(LoadError::Failed(Arc::new(Failure::ServerError)));
        }
        let length = length(&head.headers, &body);
        let fits = length.is_none_or(|length| length <= settings.max_body_bytes);
        let spec = self.address.spec.with(&verdict.vary.without_keyed(&settings.rule));
        let key = if spec == self.address.spec {
            Some(Arc::clone(&self.address.key))
        } else {
            self.address.under(&settings.rule, &self.asked, &spec)
        };
        let (Share::Yes, true, Some(key)) = (verdict.share, fits, key) else {
            self.tell_leader(Ok(Response::from_parts(head, GuardBody::own(body))));
            return Ok(self.private());
        };
        let mut headers = head.headers.clone();
        strip_hop_by_hop(&mut headers);
        let recording = Recording::new(length);
        let received = self.guard.shelf().timeline.now();
        let age = verdict.store.map_or(Duration::ZERO, |life| life.age);
        let place = (key, spec);
        let page = Page::new(head.status, headers, Arc::clone(&recording), received, age, place);
        let page = Arc::new(page);
        if self.address.class == MethodClass::Head {
            // Nobody reads it: what a HEAD brings answers HEADs.
            self.tell_leader(Ok(Response::from_parts(head, GuardBody::own(body))));
            return Ok(Arrival { value: Reply::Page(page, None), bound_for: Destination::Nowhere });
        }
        let stream = Stream { head, body, length, recording, page, verdict };
        self.record(stream).await
    }

    /// Records the body: what is ready at once here, the rest in a task.
    async fn record(mut self, stream: Stream<R>) -> Landing {
        let Stream { head, body, length, recording, page, verdict } = stream;
        let (max_bytes, max_wait, patience) = {
            let settings = &self.guard.settings;
            (settings.max_body_bytes, settings.max_body_wait, settings.load_timeout)
        };
        let is_refresh = self.leader.is_none();
        let (rest, elsewhere) = oneshot::channel();
        let mut fill = Fill::new(body, &recording, max_bytes).rest(rest);
        let leader_reads = respond_to_leader(head, &recording, Some(elsewhere));
        std::future::poll_fn(|cx| {
            let _ = fill.poll_fill(cx);
            std::task::Poll::Ready(())
        })
        .await;
        if let Some(end) = recording.end() {
            self.tell_leader(Ok(leader_reads));
            return self.at_end(&end, page, &verdict);
        }
        // Its body goes on for those who wait, as long as they do.
        let mut reader = Reader::new(&recording);
        let is_known = length.is_some();
        let keep = verdict
            .store
            .is_some()
            .then(|| if is_known { self.keep_growing(&page) } else { self.keep_complete(&page, &verdict) });
        let fill = fill.detach(keep, patience);
        self.tell_leader(Ok(leader_reads));
        crate::sync::spawn(fill.in_current_span());
        if is_known {
            return Ok(self.page(page, Some(Arc::new(reader)), &verdict));
        }
        let wait = if page.is_event_stream() { Duration::ZERO } else { max_wait };
        loop {
            if let Ok(end) = tokio::time::timeout(wait, reader.ended()).await {
                return match end {
                    // The store has it.
                    End::Complete if verdict.store.is_some() => {
                        Ok(Arrival { value: Reply::Page(page, None), bound_for: Destination::Nowhere })
                    }
                    end => self.at_end(&end, page, &verdict),
                };
            }
            // A refresh may take its time while nobody waits: what is stale is served meanwhile.
            let goes_on = is_refresh && !wait.is_zero() && self.guard.flights.waiters(&self.address.key) == 0;
            if !goes_on {
                return Ok(self.private());
            }
        }
    }

    fn at_end(&self, end: &End, page: Arc<Page>, verdict: &Verdict) -> Landing {
        match end {
            End::Complete => Ok(self.page(page, None, verdict)),
            End::Failed(_) => Err(LoadError::Failed(Arc::new(Failure::Broken))),
            End::Elsewhere => Ok(self.private()),
        }
    }

    /// A page that is stored while its body comes, and taken out if that breaks off.
    fn keep_growing(&self, page: &Arc<Page>) -> Keep {
        let guard = Arc::clone(&self.guard);
        let page = Arc::clone(page);
        let replaced = self.stale.clone().filter(|_| page.key == self.address.key);
        Keep::new(&self.guard, move |end| {
            if !matches!(end, End::Complete) {
                guard.drop_page(&page, replaced);
            }
        })
    }

    /// A page that is stored once its body is complete, unless something newer is there.
    fn keep_complete(&self, page: &Arc<Page>, verdict: &Verdict) -> Keep {
        let guard = Arc::clone(&self.guard);
        let places = self.places(page, verdict);
        Keep::new(&self.guard, move |end| {
            if !matches!(end, End::Complete) {
                return;
            }
            for (key, value, mut storing) in places {
                if let Reply::Page(page, _) = &value {
                    storing.life = aged(storing.life, page.time_since_head(&guard.shelf().timeline));
                    if is_over(&storing.life) {
                        continue;
                    }
                }
                let newer = guard.shelf().find(&key).is_some_and(|entry| match (&entry.value, &value) {
                    (Reply::Page(there, _), Reply::Page(page, _)) => there.is_newer_than(page),
                    _ => false,
                });
                if !newer {
                    guard.shelf().put(key, value, &storing);
                }
            }
        })
    }

    /// True while what the shelf had may be served if this load fails.
    fn may_serve_stale(&self) -> bool {
        self.stale.as_ref().is_some_and(|entry| self.guard.may_serve_stale(entry))
    }

    /// Each client runs its own request, and for a while nobody waits to find that out again.
    fn private(&self) -> PageArrival {
        let storing = self.storing(Lifetime::fresh_for(HIT_FOR_MISS));
        Arrival { value: Reply::Private, bound_for: Destination::Shelf(storing) }
    }

    fn page(&self, page: Arc<Page>, reader: Option<Arc<Reader>>, verdict: &Verdict) -> PageArrival {
        // What is not kept voids what was, unless it is a client that does not want it kept: that takes nothing from
        // the others.
        if verdict.store.is_none() && !self.facts.no_store {
            self.guard.shelf().remove(&page.key);
        }
        let places = self.places(&page, verdict);
        let bound_for =
            if places.is_empty() { Destination::Nowhere } else { Destination::Shelves(places.into()) };
        Arrival { value: Reply::Page(page, reader), bound_for }
    }

    /// Where the page goes: under its key, and if that has headers in it that only `Vary` names, a signpost under
    /// the key without them.
    fn places(&self, page: &Arc<Page>, verdict: &Verdict) -> Vec<(PageKey, Reply, Storing)> {
        let mut places = Vec::new();
        if !page.spec.is_empty() {
            let known = self.guard.shelf().find(&self.address.base).and_then(|entry| match entry.value {
                Reply::Varies(signpost) if signpost.spec == page.spec => Some(signpost),
                _ => None,
            });
            let signpost = known.unwrap_or_else(|| Arc::new(Signpost::new(page.spec.clone())));
            if verdict.store.is_some()
                && let Some(oldest) = signpost.admit(&page.key, self.guard.settings.max_variants)
            {
                self.guard.shelf().remove(&oldest);
            }
            let storing = self.storing(Lifetime::fresh_for(SIGNPOST_TTL));
            places.push((Arc::clone(&self.address.base), Reply::Varies(signpost), storing));
        }
        if let Some(life) = verdict.store {
            let VerdictLife { age, fresh_for, stale_while_revalidate, stale_if_error, .. } = life;
            let life = aged(Lifetime { ttl: fresh_for, stale_while_revalidate, stale_if_error }, age);
            places.push((Arc::clone(&page.key), Reply::Page(Arc::clone(page), None), self.storing(life)));
        }
        places
    }

    fn storing(&self, life: Lifetime) -> Storing {
        Storing::new(life, self.cost, self.born)
    }
}

/// A response that may be shared, its body unread.
struct Stream<R> {
    head: http::response::Parts,
    body: R,
    length: Option<u64>,
    recording: Arc<Recording>,
    page: Arc<Page>,
    verdict: Verdict,
}

/// What is left of a lifetime. It may be past its freshness already, and its windows have begun.
fn aged(life: Lifetime, age: Duration) -> Lifetime {
    let overdue = age.saturating_sub(life.ttl);
    Lifetime {
        ttl: life.ttl.saturating_sub(age),
        stale_while_revalidate: life.stale_while_revalidate.saturating_sub(overdue),
        stale_if_error: life.stale_if_error.saturating_sub(overdue),
    }
}

fn is_over(life: &Lifetime) -> bool {
    (life.ttl + life.stale_while_revalidate + life.stale_if_error).is_zero()
}

/// The body's length, if head or body tell. A length that cannot be read is none.
pub(super) fn length(headers: &http::HeaderMap, body: &impl Body) -> Option<u64> {
    let said = headers.get(CONTENT_LENGTH).and_then(|said| said.to_str().ok()?.parse().ok());
    said.or_else(|| body.size_hint().exact())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::vary::VarySpec;
    use crate::layer::builder::StampedeGuardBuilder;
    use crate::layer::recording::BrokenBody;
    use std::convert::Infallible;

    type Text = axum::body::Body;

    /// What a new leader finds once `end` has come to a page that is stored all the same.
    fn found_after(end: End) -> bool {
        let guard = Arc::new(StampedeGuardBuilder::new().defaults());
        let request = Request::new(Text::empty());
        let (parts, body) = request.into_parts();
        let address = Address::of(&guard, &parts, MethodClass::Get, 0, &[], &VarySpec::default()).unwrap();
        let key = Arc::clone(&address.key);
        let recording = Recording::new(None);
        let place = (Arc::clone(&key), VarySpec::default());
        let page = Page::new(
            http::StatusCode::OK,
            http::HeaderMap::new(),
            Arc::clone(&recording),
            guard.shelf().timeline.now(),
            Duration::ZERO,
            place,
        );
        let minute = Duration::from_secs(60);
        let life = Lifetime { ttl: minute, stale_while_revalidate: minute, stale_if_error: minute };
        let storing = Storing::new(life, Duration::ZERO, guard.shelf().generations.born());
        guard.shelf().put(Arc::clone(&key), Reply::Page(Arc::new(page), None), &storing);
        recording.finish(end, None);
        let inner = tower::service_fn(|_: Request<Text>| {
            std::future::pending::<Result<Response<Text>, Infallible>>()
        });
        let mut load: PageLoad<_, Text, Text, Infallible> = PageLoad {
            guard,
            inner,
            request: Request::from_parts(parts, body),
            facts: RequestFacts::default(),
            address,
            stale: None,
            leader: None,
        };
        load.recheck(&key).is_some()
    }

    #[test]
    fn a_page_whose_body_broke_off_before_it_was_stored_spares_no_load() {
        assert!(found_after(End::Complete));
        assert!(!found_after(End::Failed(BrokenBody::unexplained())));
        assert!(!found_after(End::Elsewhere));
    }
}
