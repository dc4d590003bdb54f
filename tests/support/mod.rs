//! What the tests of the layer share.
#![allow(dead_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderName, Request, Response, header};
use http_body_util::BodyExt;
use stampede_guard::{ManualClock, StampedeGuard, StampedeGuardBuilder};
use tower::ServiceExt;

/// A GET of one host.
pub(crate) fn request(uri: &str) -> Request<Body> {
    Request::get(uri).header(header::HOST, "shop.example").body(Body::empty()).unwrap()
}

/// The same request with one header set.
pub(crate) fn with(mut request: Request<Body>, name: &str, value: &str) -> Request<Body> {
    let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

pub(crate) async fn ask(app: &Router, request: Request<Body>) -> Response<Body> {
    app.clone().oneshot(request).await.unwrap()
}

pub(crate) async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// A builder without jitter, on a clock that stands still.
pub(crate) fn clocked() -> (ManualClock, StampedeGuardBuilder) {
    let clock = ManualClock::new();
    (clock.clone(), StampedeGuard::builder().jitter(0.0).clock(clock))
}

/// Lets other tasks run until `done`.
pub(crate) async fn settle(done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(120), "waited in vain");
        tokio::task::yield_now().await;
    }
}

/// How often a handler ran.
#[derive(Clone, Default)]
pub(crate) struct Runs(Arc<AtomicUsize>);

impl Runs {
    /// Counts one run and gives its number, from 1.
    pub(crate) fn add(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}
