//! What comes of a handler run that others may share: where its response goes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::CONTENT_LENGTH;
use http::response::Parts as Head;
use http::{HeaderMap, Response, StatusCode};
use http_body::Body;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::address::Address;
use super::body::GuardBody;
use super::bounds::ResponseBody;
use super::fill::Fill;
use super::guard::Guarded;
use super::load::{Failure, Landing, Own, PageArrival};
use super::page::{Because, Page, Reply, respond_to_leader};
use super::recording::{End, Outgrown, Reader, Recorded, Recording};
#[cfg(feature = "redis")]
use super::shared::ForAll;
use crate::cache::{Arrival, Born, Destination, Entry, Mark, Receipt};
use crate::clock::Tick;
use crate::error::{LoadError, TimedOut};
use crate::event::Running;
use crate::http::cache_status::{CacheStatus, Ttl};
use crate::http::headers::strip_hop_by_hop;
use crate::http::key::MethodClass;
use crate::http::validate;
use crate::http::vary::VarySpec;
use crate::http::verdict::{self, RequestFacts, Share, Verdict};
use crate::sync::Mutex;

/// Makes a landing of a response.
pub(super) struct Lander<R, X> {
    pub(super) guard: Arc<Guarded>,
    pub(super) facts: RequestFacts,
    pub(super) address: Address,
    asked: http::request::Parts,
    pub(super) stale: Option<Entry<Reply>>,
    /// Set off by a HEAD, see [`PageLoad`](super::load::PageLoad).
    pub(super) by_head: bool,
    /// What the request asks about, with conditions of the guard's own.
    asks_about: Option<Arc<Page>>,
    /// Where its leader waits, if one does.
    pub(super) leader: Option<oneshot::Sender<Own<R, X>>>,
    pub(super) born: Born,
    pub(super) cost: Duration,
    /// What it brings for all instances, if they have a part in it.
    #[cfg(feature = "redis")]
    pub(super) for_all: Option<Arc<ForAll>>,
}

/// `None` if the future was dropped because it took too long.
async fn limited<F: Future>(limit: Option<Duration>, future: F) -> Option<F::Output> {
    match limit {
        None => Some(future.await),
        Some(limit) => tokio::time::timeout(limit, future).await.ok(),
    }
}

impl<R, X> Lander<R, X>
where
    R: ResponseBody,
{
    pub(super) fn new(
        guard: Arc<Guarded>,
        facts: RequestFacts,
        address: Address,
        asked: http::request::Parts,
        stale: Option<Entry<Reply>>,
        asks_about: Option<Arc<Page>>,
        born: Born,
    ) -> Self {
        Self {
            guard,
            facts,
            address,
            asked,
            stale,
            by_head: false,
            asks_about,
            leader: None,
            born,
            cost: Duration::ZERO,
            #[cfg(feature = "redis")]
            for_all: None,
        }
    }

    pub(super) async fn land(mut self, call: impl Future<Output = Result<Response<R>, X>>) -> Landing {
        let guard = Arc::clone(&self.guard);
        let running = Running::new(&guard.shelf().timeline, true, true);
        let limit = guard.settings.load_timeout;
        let ended = limited(limit, call).await;
        self.cost = running.took();
        match &ended {
            Some(answer) => {
                let is_ok = answer.as_ref().is_ok_and(|response| !response.status().is_server_error());
                running.end(is_ok, self.cost);
            }
            None => drop(running),
        }
        match ended {
            None => Err(LoadError::TimedOut(TimedOut { after: limit.unwrap_or_default() })),
            Some(Err(error)) => {
                self.tell_leader(Err(error));
                Err(LoadError::Failed(Arc::new(Failure::Inner)))
            }
            #[cfg(feature = "grpc")]
            Some(Ok(response)) if self.address.class == MethodClass::Unary => self.share_call(response).await,
            Some(Ok(response)) => self.share(response).await,
        }
    }

    /// A leader that has gone away takes its response with it.
    pub(super) fn tell_leader(&mut self, own: Own<R, X>) {
        if let Some(leader) = self.leader.take() {
            let _ = leader.send(own);
        }
    }

    async fn share(mut self, response: Response<R>) -> Landing {
        let (mut head, body) = response.into_parts();
        let tags = self.guard.take_tags(&mut head.headers, &mut head.extensions);
        if head.status == StatusCode::NOT_MODIFIED
            && let Some(page) = self.asks_about.take()
        {
            return Ok(self.confirmed(&page, head, tags));
        }
        let now = SystemTime::now();
        let policy = &self.guard.settings.policy;
        let verdict = verdict::judge(self.facts, head.status, &head.headers, policy, now);
        if head.status.is_server_error() && self.may_serve_stale() {
            return Err(LoadError::Failed(Arc::new(Failure::ServerError)));
        }
        let length = length(&head.headers, &body);
        let mut headers = head.headers.clone();
        strip_hop_by_hop(&mut headers);
        validate::date(&mut headers, now);
        if self.address.class == MethodClass::Head {
            self.heard_of_stored(head.status, &headers, tags.clone(), now);
        }
        let recording = Recording::new(length);
        let given = verdict.share == Share::Yes || verdict.check;
        // A HEAD has no body, whatever length its answer tells.
        let takes = if self.address.class == MethodClass::Head { Some(0) } else { length };
        let page = self.page_of(head.status, headers, &recording, &verdict, tags);
        let page = self.place_of(page, given, takes, &verdict);
        self.guard.tell(&mut head.headers, || self.status(head.status, &verdict, page.is_ok()));
        let page = match page {
            Ok(page) => page,
            Err(elsewhere) => {
                self.tell_leader(Ok(Response::from_parts(head, GuardBody::own(body))));
                return Ok(elsewhere);
            }
        };
        if self.address.class == MethodClass::Head {
            // Nobody reads it: what a HEAD brings answers HEADs.
            self.tell_leader(Ok(Response::from_parts(head, GuardBody::own(body))));
            let is_shared = verdict.share == Share::Yes;
            return Ok(if is_shared { self.for_waiters(page) } else { self.private(Because::Head) });
        }
        let stream = Stream { head, body, is_known: length.is_some(), recording, page, verdict };
        self.record(stream).await
    }

    /// A page that is `given` to others, with room for its body of this `length`, or of one that is not known yet. Else,
    /// what they get in its place.
    pub(super) fn place_of(
        &self,
        page: Result<Arc<Page>, VarySpec>,
        given: bool,
        length: Option<u64>,
        verdict: &Verdict,
    ) -> Result<Arc<Page>, PageArrival> {
        // What is not known yet is something.
        let length = length.unwrap_or(1);
        if !given {
            return Err(self.private(Because::Head));
        }
        if length > self.guard.max_body_bytes() {
            return Err(self.private(Because::Body));
        }
        let page = page.map_err(|spec| self.sends_on(&spec, verdict))?;
        let mut room = self.guard.shared.budget.open();
        if !room.grow_to(length) {
            return Err(self.apart());
        }
        page.recording.in_room(room);
        Ok(page)
    }

    /// What others get of a response with these headers. If the key under which they would get it is too long, the
    /// headers in it.
    pub(super) fn page_of(
        &self,
        status: StatusCode,
        headers: HeaderMap,
        recording: &Arc<Recording>,
        verdict: &Verdict,
        tags: Option<Arc<[Mark]>>,
    ) -> Result<Arc<Page>, VarySpec> {
        let rule = &self.guard.settings.rule;
        let spec = self.address.spec.with(&verdict.vary.without_keyed(rule));
        let key = if spec == self.address.spec {
            Arc::clone(&self.address.key)
        } else {
            match self.address.under(rule, &self.asked, &spec) {
                Some(key) => key,
                None => return Err(spec),
            }
        };
        let page = Page {
            status,
            headers,
            recording: Recorded::new(recording),
            received: self.guard.shelf().timeline.now(),
            age: verdict.age,
            revalidate: verdict.store.is_some_and(|life| life.revalidate),
            tags,
            key,
            spec,
        };
        Ok(if self.address.class == MethodClass::Unary { Arc::new(page) } else { page.with_age() })
    }

    /// What became of the leader's request.
    pub(super) fn status(&self, status: StatusCode, verdict: &Verdict, is_kept: bool) -> CacheStatus {
        let why = self.guard.why(self.stale.as_ref(), &self.address.spec);
        let is_head = self.address.class == MethodClass::Head;
        let ttl = verdict.store.map(|life| match life.fresh_for.checked_sub(life.age) {
            Some(left) => Ttl::Left(left),
            None => Ttl::Over(life.age.saturating_sub(life.fresh_for)),
        });
        let stored = is_kept && (verdict.store.is_some() || verdict.check) && !is_head;
        CacheStatus { stored, ttl, ..CacheStatus::forwarded(why, status) }
    }

    /// Records the body: what is ready at once here, the rest in a task.
    pub(super) async fn record(mut self, stream: Stream<R>) -> Landing {
        let Stream { head, body, is_known, recording, page, verdict } = stream;
        let (max_bytes, max_wait, patience) = {
            let settings = &self.guard.settings;
            (self.guard.max_body_bytes(), settings.max_body_wait, settings.load_timeout)
        };
        let is_refresh = self.leader.is_none();
        let is_shared = verdict.share == Share::Yes;
        let (rest, elsewhere) = oneshot::channel();
        let mut fill = Fill::new(body, &recording, max_bytes).rest(rest);
        let leader_reads = respond_to_leader(head, &recording, Some(elsewhere));
        std::future::poll_fn(|cx| {
            let _ = fill.poll_fill(cx);
            std::task::Poll::Ready(())
        })
        .await;
        if let Some(end) = recording.end() {
            #[cfg(feature = "grpc")]
            if self.address.class == MethodClass::Unary && self.gives_way(&page) {
                return Err(LoadError::Failed(Arc::new(Failure::ServerError)));
            }
            self.tell_leader(Ok(leader_reads));
            return self.at_end(&end, page, &verdict);
        }
        // Its body goes on for those who wait, as long as they do.
        let mut reader = Reader::new(&recording);
        let is_stored = Arc::new(Mutex::new(false));
        let keep = match verdict.store {
            // Whether it is kept, its end will tell.
            _ if self.address.class == MethodClass::Unary => None,
            _ if self.by_head && !is_known => None,
            Some(_) if is_known => Some(self.keep_growing(&page)),
            Some(_) => Some(self.keep_complete(&page, &verdict, &is_stored)),
            None if verdict.check => Some(self.keep_complete(&page, &verdict, &is_stored)),
            None => None,
        };
        let is_the_stores = keep.is_some();
        let fill = fill.detach(keep, patience);
        self.tell_leader(Ok(leader_reads));
        crate::sync::spawn(fill.in_current_span());
        if !is_shared {
            return Ok(self.private(Because::Head));
        }
        if is_known {
            return Ok(self.kept(page, Some(Arc::new(reader)), &verdict));
        }
        let wait = if page.is_event_stream() { Duration::ZERO } else { max_wait };
        loop {
            if let Ok(end) = tokio::time::timeout(wait, reader.ended()).await {
                return match end {
                    // The store has it.
                    End::Complete if is_the_stores => Ok(self.for_waiters(page)),
                    end => self.at_end(&end, page, &verdict),
                };
            }
            // A refresh may take its time while nobody waits: what is stale is served meanwhile.
            let nobody_waits = self.guard.flights().waiters(&self.address.key) == 0;
            if !(is_refresh && !wait.is_zero() && nobody_waits) {
                return Ok(self.waited(page, &is_stored));
            }
        }
    }

    fn at_end(&self, end: &End, page: Arc<Page>, verdict: &Verdict) -> Landing {
        match end {
            #[cfg(feature = "grpc")]
            End::Complete if self.address.class == MethodClass::Unary => self.call_ended(page, verdict),
            End::Complete if self.by_head && page.recording.recorded() == 0 && self.had_body(page.status) => {
                Err(LoadError::Failed(Arc::new(Failure::Bodiless)))
            }
            End::Complete => Ok(self.kept(page, None, verdict)),
            End::Failed(_) => Err(LoadError::Failed(Arc::new(Failure::Broken))),
            End::Elsewhere(Outgrown::Limit) => Ok(self.private(Because::Body)),
            End::Elsewhere(Outgrown::Budget) => Ok(self.apart()),
        }
    }

    /// Whether there was a page of this status, with a body.
    fn had_body(&self, status: StatusCode) -> bool {
        let page = self.stale.as_ref().and_then(|entry| entry.value.page());
        page.is_some_and(|page| page.status == status && page.recording.recorded() > 0)
    }

    /// True while what the shelf had may be served if this load fails.
    pub(super) fn may_serve_stale(&self) -> bool {
        self.stale.as_ref().is_some_and(|entry| self.guard.may_stand_in(self.facts, entry))
    }

    pub(super) fn now(&self) -> Tick {
        self.guard.shelf().timeline.now()
    }

    /// What those who wait are told of a response with these tags.
    pub(super) fn receipt(&self, tags: Option<Arc<[Mark]>>) -> Receipt {
        Receipt::new(self.born, tags)
    }

    /// A page that those who wait get, and that is on the shelf already or nobody's to keep.
    pub(super) fn for_waiters(&self, page: Arc<Page>) -> PageArrival {
        let bound_for = Destination::Nowhere(self.receipt(page.tags.clone()));
        Arrival { value: Reply::Page(page, None), bound_for }
    }
}

/// A response that may be kept, its body unread.
pub(super) struct Stream<R> {
    pub(super) head: Head,
    pub(super) body: R,
    pub(super) is_known: bool,
    pub(super) recording: Arc<Recording>,
    pub(super) page: Arc<Page>,
    pub(super) verdict: Verdict,
}

/// The body's length, if head or body tell. A length that cannot be read is none.
pub(super) fn length(headers: &http::HeaderMap, body: &impl Body) -> Option<u64> {
    let said = headers.get(CONTENT_LENGTH).and_then(|said| said.to_str().ok()?.parse().ok());
    said.or_else(|| body.size_hint().exact())
}
