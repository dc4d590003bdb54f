//! `ResponseFuture`, and what follows a request that changes something.

use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::request::Parts;
use http::{Request, Response};
use pin_project::pin_project;
use tower::Service;
use tower::util::Oneshot;

use super::address::original_uri;
use super::body::GuardBody;
use super::guard::Guarded;
use crate::http::origin::{Target, same_origin_targets, target};

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
        outdates: Option<Box<Outdates>>,
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

    pub(super) fn pass(inner: S, request: Request<B>, outdates: Option<Box<Outdates>>) -> Self {
        Self(Kind::Pass { call: Oneshot::new(inner, request), outdates, of: PhantomData })
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
{
    type Output = Result<Response<GuardBody<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().0.project() {
            KindProjection::Ready(response) => {
                Poll::Ready(Ok(response.take().expect("polled after it was ready")))
            }
            KindProjection::Pass { call, outdates, .. } => {
                let response = ready!(call.poll(cx))?;
                if let Some(outdates) = outdates.take() {
                    outdates.after(&response);
                }
                Poll::Ready(Ok(response.map(GuardBody::own)))
            }
            KindProjection::Fly(trip) => trip.as_mut().poll(cx),
        }
    }
}

/// The target of an unsafe request: what is stored of it is out of date once it succeeds (RFC 9111 section 4.4).
pub(super) struct Outdates {
    guard: Arc<Guarded>,
    scheme: Option<String>,
    host: Vec<u8>,
    path_and_query: String,
}

impl Outdates {
    pub(super) fn new(guard: &Arc<Guarded>, parts: &Parts) -> Self {
        let target = target(parts, original_uri(parts));
        Self {
            guard: Arc::clone(guard),
            scheme: target.scheme.map(str::to_owned),
            host: target.host.to_vec(),
            path_and_query: target.path_and_query.to_owned(),
        }
    }

    /// Before anybody sees the response: who has seen it finds nothing from before.
    fn after<R>(self, response: &Response<R>) {
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return;
        }
        let asked =
            Target { scheme: self.scheme.as_deref(), host: &self.host, path_and_query: &self.path_and_query };
        let generations = &self.guard.shelf().generations;
        generations.invalidate(self.guard.mark(&asked));
        for path_and_query in same_origin_targets(&asked, response.headers()) {
            let named = Target { path_and_query: &path_and_query, ..asked };
            generations.invalidate(self.guard.mark(&named));
        }
    }
}
