//! `GrpcGuardService`: what becomes of one request, up to where it is like any other.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;
use tokio::time::{Instant, timeout_at};
use tower::{BoxError, Service};

use super::body::RequestBody;
use super::methods::Methods;
use super::read::read;
use crate::cache::Entry;
use crate::http::conditional::Conditionals;
use crate::http::eligible::Present;
use crate::http::grpc::{is_grpc, metadata, takes_part, timeout};
use crate::http::key::{Lines, MethodClass};
use crate::http::verdict::RequestFacts;
use crate::http::writer::MAX_KEY_BYTES;
use crate::layer::body::GuardBody;
use crate::layer::bounds::{Inner, ResponseBody};
use crate::layer::future::ResponseFuture;
use crate::layer::guard::{Guarded, KeyExtra};
use crate::layer::page::Reply;
use crate::layer::refusal::Refusal;
use crate::layer::service::GuardService;

/// The service that a [`GrpcStampedeGuard`](crate::GrpcStampedeGuard) puts in front of another.
///
/// `poll_ready` is always ready and never touches the inner service, as with
/// [`GuardService`](crate::GuardService).
#[derive(Clone, Debug)]
pub struct GrpcGuardService<S> {
    http: GuardService<S>,
    methods: Arc<Methods>,
}

impl<S> GrpcGuardService<S> {
    pub(super) fn new(http: GuardService<S>, methods: Arc<Methods>) -> Self {
        Self { http, methods }
    }
}

impl<S, B, R> Service<Request<B>> for GrpcGuardService<S>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<GuardBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, RequestBody<B>, R>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let is_call = is_grpc(request.headers());
        // In other words, such as gRPC-Web or JSON, the method is still one that changes nothing.
        let may_be_called = is_call || request.method() == Method::POST;
        let method = if may_be_called { self.methods.find(request.uri().path()) } else { None };
        if is_call {
            self.methods.count();
        }
        let Some(guard) = method else { return self.http.call(request.map(RequestBody::untouched)) };
        let (parts, body) = request.into_parts();
        let service = self.http.with_guard(Arc::clone(guard));
        if !service.bypasses(&parts) && takes_part(&parts, &service.guard().settings.rule) {
            ResponseFuture::fly(call(service, parts, body))
        } else {
            service.pass_call(parts, RequestBody::untouched(body))
        }
    }
}

/// A call that takes part if it is one message.
async fn call<S, B, R>(
    service: GuardService<S>,
    parts: http::request::Parts,
    body: B,
) -> Result<Response<GuardBody<R>>, S::Error>
where
    S: Inner<RequestBody<B>, R>,
    B: Body<Data = Bytes, Error: Send> + Send + 'static,
    R: ResponseBody,
{
    let deadline =
        timeout::patience(&parts.headers).and_then(|patience| Instant::now().checked_add(patience));
    let guard = Arc::clone(service.guard());
    let read = match deadline {
        None => read(body, MAX_KEY_BYTES as u64).await,
        Some(deadline) => match timeout_at(deadline, read(body, MAX_KEY_BYTES as u64)).await {
            Ok(read) => read,
            Err(_) => return Ok(too_late(&guard, None)),
        },
    };
    let message = match read {
        Ok(message) => message,
        Err(rest) => return service.pass_call(parts, RequestBody::replayed(rest)).await,
    };
    let mut key = KeyExtra::default();
    key.push(metadata::accepted(&parts.headers));
    key.push(&message);
    let present = Present::default();
    let asked = {
        let lines = Lines::of(&guard.settings.rule, &parts.headers);
        service.ask(MethodClass::Unary, &parts, present, &lines, &key.0)
    };
    let fallback = asked.as_ref().filter(|_| deadline.is_some()).and_then(|(asking, entry)| {
        let may_have =
            |entry: &&Entry<Reply>| entry.value.page().is_some_and(|page| guard.may_have(asking.facts, page));
        entry.as_ref().filter(may_have).cloned()
    });
    let answered = service.take(MethodClass::Unary, parts, RequestBody::message(message), present, asked);
    match deadline {
        None => answered.await,
        // The call itself goes on for those who wait longer.
        Some(deadline) => {
            timeout_at(deadline, answered).await.unwrap_or_else(|_| Ok(too_late(&guard, fallback)))
        }
    }
}

/// The answer to a caller that waits no longer.
fn too_late<R>(guard: &Guarded, fallback: Option<Entry<Reply>>) -> Response<GuardBody<R>> {
    if let Some(entry) = fallback.filter(|entry| guard.may_stand_in(RequestFacts::default(), entry))
        && let Some(page) = entry.value.page()
    {
        guard.count_stale(&entry);
        let now = guard.shelf().timeline.now();
        return page.respond(MethodClass::Unary, &Conditionals::default(), now);
    }
    guard.refuse(Refusal::TooSlow, MethodClass::Unary)
}
