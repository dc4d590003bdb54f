//! Tower layers that keep HTTP responses.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hitbox::concurrency::BroadcastConcurrencyManager;
use hitbox::policy::PolicyConfig;
use hitbox_http::extractors::path::PathExtractor;
use hitbox_http::extractors::query::QueryExtractor;
use hitbox_http::predicates::{NeutralRequestPredicate, NeutralResponsePredicate};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use stampede_guard::StampedeGuard;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt};
use tower_http_cache::backend::memory::InMemoryBackend;

use super::Peer;
use crate::load::{Failed, Load};

pub type Body = Full<Bytes>;

/// The reply of every origin: 1 KiB that may be kept for an hour.
pub fn reply() -> Response<Body> {
    static PAGE: [u8; 1_024] = [b'x'; 1_024];
    Response::builder()
        .header("content-type", "application/json")
        .header("cache-control", "public, max-age=3600")
        .header("etag", "\"33a64df551425fcc55e4d42a148795d9f25f89d4\"")
        .body(Full::new(Bytes::from_static(&PAGE)))
        .expect("a valid reply")
}

/// The service behind the layers.
#[derive(Clone)]
pub struct Origin<L>(pub L);

impl<L: Load, B> Service<Request<B>> for Origin<L> {
    type Response = Response<Body>;
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Failed>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        let run = self.0.clone().run(0);
        Box::pin(async move { run.await.map(|_| reply()) })
    }
}

type Boxed = BoxCloneSyncService<Request<Body>, (), String>;

/// One type for every stack, with the body read. Where nanoseconds count the stacks are called unboxed.
fn boxed<S, R>(stack: S) -> Boxed
where
    S: Service<Request<Body>, Response = Response<R>> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: std::fmt::Display,
    R: http_body::Body<Data: Send> + Send + 'static,
{
    BoxCloneSyncService::new(tower::service_fn(move |request| {
        let stack = stack.clone();
        async move {
            let reply = stack.oneshot(request).await.map_err(|error| error.to_string())?;
            if reply.status() != StatusCode::OK {
                return Err(format!("status {}", reply.status().as_u16()));
            }
            let body = http_body_util::BodyExt::collect(reply.into_body()).await;
            body.map(|_| ()).map_err(|_| "body broke off".into())
        }
    }))
}

fn get(key: u64) -> Request<Body> {
    Request::builder()
        .uri(format!("/products/{key}?view=full"))
        .body(Body::default())
        .expect("a valid request")
}

macro_rules! stack {
    ($name:ident, $title:literal, $layer:expr) => {
        pub struct $name(Boxed);

        impl<L: Load> Peer<L> for $name {
            const NAME: &'static str = $title;
            type Raw = Result<(), String>;

            fn new(load: L, _: usize) -> Self {
                Self(boxed($layer.layer(Origin(load))))
            }

            fn call(&self, key: u64) -> impl Future<Output = Self::Raw> + Send {
                self.0.clone().oneshot(get(key))
            }

            fn verdict(raw: Self::Raw) -> Result<u64, String> {
                raw.map(|()| 0)
            }
        }
    };
}

stack!(OurGuard, "stampede-guard StampedeGuard", StampedeGuard::new());
stack!(TowerHttpCache, "tower-http-cache", tower_http_cache_layer());
stack!(Hitbox, "hitbox-tower", hitbox_layer());

pub fn tower_http_cache_layer() -> tower_http_cache::CacheLayer<InMemoryBackend> {
    tower_http_cache::CacheLayer::builder(InMemoryBackend::new(10_000))
        .ttl(Duration::from_secs(3_600))
        .build()
}

/// With its protection against stampedes on, which is off by default, and its faster storage format.
pub fn hitbox_layer<S>() -> impl Layer<
    S,
    Service: Service<
        Request<Body>,
        Response = Response<hitbox_http::BufferedBody<Body>>,
        Error = Failed,
        Future: Send + 'static,
    > + Clone
                 + Send
                 + Sync
                 + 'static,
>
where
    S: Service<Request<hitbox_http::BufferedBody<Body>>, Response = Response<Body>, Error = Failed>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    let policy = PolicyConfig::builder().ttl(Duration::from_secs(3_600));
    let one = hitbox::policy::ConcurrencyLimit::new(1).expect("a valid limit");
    let config = hitbox::Config::builder()
        .request_predicate(NeutralRequestPredicate::new())
        .response_predicate(NeutralResponsePredicate::new())
        .extractor(hitbox_http::extractors::Method::new().path("/products/{id}").query("view".to_string()))
        .policy(policy.concurrency(one).build())
        .build();
    let backend = hitbox_moka::MokaBackend::builder()
        .max_entries(10_000)
        .value_format(hitbox_backend::format::BincodeFormat)
        .build();
    hitbox_tower::Cache::builder()
        .backend(backend)
        .config(config)
        .concurrency_manager(BroadcastConcurrencyManager::new())
        .build()
}
