//! Guards that share a tier: each has a connection of its own, as another process would.

mod attacks;
mod faults;
mod invalidation;
mod private;
mod sharing;
mod stale;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use stampede_guard::{RedisTier, StampedeGuard, StampedeGuardBuilder};
use tokio::sync::{Notify, Semaphore};

use crate::server::{Server, quick, soon, until};
use crate::support::{Runs, ask, request, text, with};

/// One instance of a service.
struct Instance {
    tier: RedisTier,
    guard: StampedeGuard,
    app: Router,
}

/// A guard without jitter on a connection of its own.
async fn tiered(server: &Server) -> (RedisTier, StampedeGuardBuilder) {
    let tier = RedisTier::connect(&server.url(), quick()).await.unwrap();
    let builder = StampedeGuard::builder().jitter(0.0).cache_status("g").redis(tier.clone());
    (tier, builder)
}

impl Instance {
    /// Behind a guard that `set` changes, `handler` answers everything.
    async fn new(
        server: &Server,
        handler: &Handler,
        set: impl FnOnce(StampedeGuardBuilder) -> StampedeGuardBuilder,
    ) -> Self {
        let (tier, builder) = tiered(server).await;
        let guard = set(builder).build().unwrap();
        let handler = handler.clone();
        let answer = move |request: Request<Body>| {
            let handler = handler.clone();
            async move { handler.answer(request).await }
        };
        let app = Router::new().fallback(answer).layer(guard.clone());
        Self { tier, guard, app }
    }

    async fn with_defaults(server: &Server, handler: &Handler) -> Self {
        Self::new(server, handler, |builder| builder).await
    }

    async fn ask(&self, request: Request<Body>) -> Response<Body> {
        soon(ask(&self.app, request)).await
    }

    async fn get(&self, uri: &str) -> String {
        soon(text(self.ask(request(uri)).await)).await
    }

    /// What follows on an old page, as soon as this instance has heard that it is one.
    async fn after(&self, old: &str, uri: &str) -> String {
        soon(async {
            loop {
                let answer = self.get(uri).await;
                if answer != old {
                    return answer;
                }
                // What comes out of the store keeps no task from going on.
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    /// Waits until so many pages are in Redis.
    async fn published(&self, pages: u64) {
        until("published", || self.tier.stats().published >= pages).await;
    }

    /// A request that runs beside the test.
    fn spawn(&self, request: Request<Body>) -> tokio::task::JoinHandle<String> {
        let app = self.app.clone();
        tokio::spawn(async move { soon(text(ask(&app, request).await)).await })
    }
}

type Make = dyn Fn(Request<Body>, usize) -> Response<Body> + Send + Sync;

/// What all instances run. Its first `held` runs wait before their heads.
#[derive(Clone)]
struct Handler {
    runs: Runs,
    make: Arc<Make>,
    started: Arc<Notify>,
    go: Arc<Semaphore>,
    held: usize,
}

impl Handler {
    fn new(make: impl Fn(Request<Body>, usize) -> Response<Body> + Send + Sync + 'static) -> Self {
        let (started, go) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
        Self { runs: Runs::default(), make: Arc::new(make), started, go, held: 0 }
    }

    /// Says which run it is.
    fn counting(cache_control: &'static str) -> Self {
        Self::new(move |_, run| numbered(run, &[("cache-control", cache_control)]))
    }

    fn held(self, held: usize) -> Self {
        Self { held, ..self }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let run = self.runs.add();
        self.started.notify_one();
        if run <= self.held {
            self.go.acquire().await.unwrap().forget();
        }
        (self.make)(request, run)
    }
}

fn numbered(run: usize, headers: &[(&str, &str)]) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("run {run}")));
    for (name, value) in headers {
        let name = axum::http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        response.headers_mut().append(name, value.parse().unwrap());
    }
    response
}

fn header_of(response: &Response<Body>, name: &str) -> String {
    let line = response.headers().get(name);
    line.map_or_else(String::new, |line| line.to_str().unwrap().to_string())
}

/// The names of the values that Redis has.
fn values(server: &Server) -> Vec<String> {
    server.keys().into_iter().filter(|key| key.ends_with(":v")).collect()
}

/// A second connection, to look at what is there and to tamper with it.
fn connection(server: &Server) -> redis::Connection {
    redis::Client::open(server.url()).unwrap().get_connection().unwrap()
}
