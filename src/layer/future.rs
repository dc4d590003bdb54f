//! `ResponseFuture`, and what follows a response that went straight through.

use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use pin_project::pin_project;
use tower::Service;
use tower::util::Oneshot;

use super::address::original_uri;
use super::body::GuardBody;
use super::guard::Guarded;
use super::land::length;
use super::page::PageKey;
use crate::http::cache_status::Forward;
use crate::http::origin::{Target, same_origin_targets, target};
use crate::http::verdict::{self, RequestFacts, Share, is_event_stream};

type Flying<R, X> = Pin<Box<dyn Future<Output = Result<Response<GuardBody<R>>, X>> + Send>>;

/// The future of a [`GuardService`](super::GuardService).
///
/// Dropped, it leaves the handler run that it waits for to the others who do; a run that nobody waits for goes on
/// as `max_abandoned` says.
#[pin_project]
pub struct ResponseFuture<S, B, R>(#[pin] Kind<S, B, R>)
where
    S: Service<Request<B>, Response = Response<R>>;

#[pin_project(project = KindProjection)]
enum Kind<S, B, R>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    Ready(Option<Response<GuardBody<R>>>),
    Pass {
        #[pin]
        call: Oneshot<S, Request<B>>,
        afterwards: Option<Afterwards>,
        of: PhantomData<fn() -> R>,
    },
    Fly(Flying<R, S::Error>),
}

impl<S, B, R> std::fmt::Debug for ResponseFuture<S, B, R>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<S, B, R> ResponseFuture<S, B, R>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    pub(super) fn ready(response: Response<GuardBody<R>>) -> Self {
        Self(Kind::Ready(Some(response)))
    }

    pub(super) fn pass(inner: S, request: Request<B>, afterwards: Option<Afterwards>) -> Self {
        Self(Kind::Pass { call: Oneshot::new(inner, request), afterwards, of: PhantomData })
    }

    pub(super) fn fly(
        trip: impl Future<Output = Result<Response<GuardBody<R>>, S::Error>> + Send + 'static,
    ) -> Self {
        Self(Kind::Fly(Box::pin(trip)))
    }
}

impl<S, B, R> Future for ResponseFuture<S, B, R>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body,
{
    type Output = Result<Response<GuardBody<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().0.project() {
            KindProjection::Ready(response) => {
                Poll::Ready(Ok(response.take().expect("polled after it was ready")))
            }
            KindProjection::Pass { call, afterwards, .. } => {
                let response = ready!(call.poll(cx));
                let afterwards = afterwards.take();
                let mut response = response?;
                if let Some(afterwards) = afterwards {
                    afterwards.after(&mut response);
                }
                Poll::Ready(Ok(response.map(GuardBody::own)))
            }
            KindProjection::Fly(trip) => trip.as_mut().poll(cx),
        }
    }
}

/// What follows the response to a request that went straight through.
pub(super) struct Afterwards {
    pub(super) guard: Arc<Guarded>,
    pub(super) why: Forward,
    pub(super) changes: Changes,
}

/// What such a response may change.
pub(super) enum Changes {
    Nothing,
    Outdates(Box<Outdates>),
    Lifts(Lifts),
}

impl Afterwards {
    fn after<R: Body>(self, response: &mut Response<R>) {
        match self.changes {
            Changes::Nothing => {}
            Changes::Outdates(outdates) => outdates.after(response),
            Changes::Lifts(lifts) => lifts.after(&self.guard, response),
        }
        self.guard.finish(response, self.why);
    }
}

/// The marker because of which a request ran for its own client alone. One client's response put it there; another's
/// that may be shared takes it away, or a single client could keep all others from sharing.
pub(super) struct Lifts {
    pub(super) key: PageKey,
    pub(super) facts: RequestFacts,
}

impl Lifts {
    /// Only a length that fits shows that nobody would wait for the body in vain, if one has been waited for.
    fn after<R: Body>(self, guard: &Guarded, response: &Response<R>) {
        let settings = &guard.settings;
        let (status, headers) = (response.status(), response.headers());
        let verdict = verdict::judge(self.facts, status, headers, &settings.policy, SystemTime::now());
        let length = length(headers, response.body());
        let fits = length.is_none_or(|length| length <= guard.max_body_bytes());
        if verdict.share == Share::Yes && fits && !is_event_stream(headers) {
            guard.lift(&self.key, length.is_some());
        }
    }
}

/// The target of an unsafe request: what is stored of it is out of date once it succeeds (RFC 9111 section 4.4), and
/// if nobody learns whether it did: its client went away, or the service failed.
pub(super) struct Outdates {
    guard: Arc<Guarded>,
    is_answered: bool,
    scheme: Option<String>,
    host: Vec<u8>,
    path_and_query: String,
}

impl Outdates {
    pub(super) fn new(guard: &Arc<Guarded>, parts: &Parts) -> Self {
        let target = target(parts, original_uri(parts));
        Self {
            guard: Arc::clone(guard),
            is_answered: false,
            scheme: target.scheme.map(str::to_owned),
            host: target.host.to_vec(),
            path_and_query: target.path_and_query.to_owned(),
        }
    }

    /// Before anybody sees the response: who has seen it finds nothing from before.
    fn after<R>(mut self, response: &Response<R>) {
        self.is_answered = true;
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return;
        }
        let asked = self.target();
        drop(self.guard.invalidate(&asked));
        for path_and_query in same_origin_targets(&asked, response.headers()) {
            drop(self.guard.invalidate(&Target { path_and_query: &path_and_query, ..asked }));
        }
    }

    fn target(&self) -> Target<'_> {
        Target { scheme: self.scheme.as_deref(), host: &self.host, path_and_query: &self.path_and_query }
    }
}

impl Drop for Outdates {
    fn drop(&mut self) {
        if !self.is_answered {
            drop(self.guard.invalidate(&self.target()));
        }
    }
}
