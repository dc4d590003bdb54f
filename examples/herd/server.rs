//! The service under test: one axum route over the database, and what may stand in front of it.

use std::collections::HashMap;
use std::future::IntoFuture;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http_body_util::BodyExt;
use serde_json::json;
use stampede_guard::StampedeGuard;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::database::{Counted, Database};

/// How long answers may be kept; the same `ttl` holds with and without the guard.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    pub(crate) ttl: Duration,
    /// Used by the guard only: a plain cache has no such thing.
    pub(crate) stale_while_revalidate: Duration,
    /// Used by the guard only.
    pub(crate) stale_if_error: Duration,
}

/// The guard spreads expiries over the last tenth of the ttl.
const JITTER: f64 = 0.1;

impl Times {
    /// The shortest time an entry stays fresh: two runs for one key that both succeed are at least this far
    /// apart. Nine tenths of the ttl, as `JITTER` is one tenth.
    pub(crate) fn shortest_fresh(&self) -> Duration {
        self.ttl * 9 / 10
    }
}

/// The application without any cache.
pub(crate) fn application(state: Arc<App>) -> Router {
    Router::new().route("/products/{id}", get(product)).with_state(state)
}

/// The application as it often is: a cache with a ttl in front of the handler. A request looks, misses, loads
/// and stores; that others load the same key at the same moment, it cannot know.
pub(crate) fn plainly_cached(router: Router, times: Times) -> Router {
    let answers = moka::sync::Cache::builder().max_capacity(1_000_000).time_to_live(times.ttl).build();
    router.layer(from_fn_with_state(answers, plain_cache))
}

/// The application behind the guard.
pub(crate) fn guarded(router: Router, times: Times) -> Result<Router, Box<dyn std::error::Error>> {
    let guard = StampedeGuard::builder()
        .ttl(times.ttl)
        .jitter(JITTER)
        .stale_while_revalidate(times.stale_while_revalidate)
        .stale_if_error(times.stale_if_error)
        .build()?;
    Ok(router.layer(guard))
}

async fn plain_cache(
    State(answers): State<moka::sync::Cache<String, Bytes>>,
    request: Request,
    next: Next,
) -> Response {
    let key = request.uri().path().to_owned();
    if let Some(body) = answers.get(&key) {
        return json_response(body);
    }
    let response = next.run(request).await;
    if response.status() != StatusCode::OK {
        return response;
    }
    match response.into_body().collect().await {
        Ok(body) => {
            let body = body.to_bytes();
            answers.insert(key, body.clone());
            json_response(body)
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn json_response(body: Bytes) -> Response {
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

/// What the handler works with.
pub(crate) struct App {
    pub(crate) database: Database,
    pub(crate) ledger: Ledger,
    /// Ages of answers are counted from here.
    pub(crate) epoch: Instant,
}

async fn product(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    let _run = app.ledger.start(&id);
    match app.database.product(&id).await {
        Ok(product) => Json(json!({
            "id": product.id,
            "price_cents": product.price_cents,
            "in_stock": product.in_stock,
            "read_at_micros": micros(product.read_at - app.epoch),
        }))
        .into_response(),
        Err(error) => {
            app.ledger.failed(&id);
            (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response()
        }
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What the handler did: exact counts for each key.
#[derive(Default)]
pub(crate) struct Ledger {
    running: AtomicU32,
    peak: AtomicU32,
    runs: Mutex<HashMap<String, Runs>>,
}

/// Handler runs for one key.
#[derive(Clone, Copy, Default)]
pub(crate) struct Runs {
    pub(crate) started: u32,
    pub(crate) failed: u32,
}

impl Ledger {
    /// A run is counted when it starts, so that one that is dropped half-way counts too.
    fn start(&self, id: &str) -> Counted<'_> {
        let run = Counted::new(&self.running);
        self.peak.fetch_max(self.running.load(Ordering::SeqCst), Ordering::SeqCst);
        self.update(id, |runs| runs.started += 1);
        run
    }

    fn failed(&self, id: &str) {
        self.update(id, |runs| runs.failed += 1);
    }

    fn update(&self, id: &str, change: impl FnOnce(&mut Runs)) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        change(runs.entry(id.to_owned()).or_default());
    }

    pub(crate) fn peak(&self) -> u32 {
        self.peak.load(Ordering::SeqCst)
    }

    pub(crate) fn runs(&self) -> HashMap<String, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A server on a free port of the loopback interface.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
}

impl Server {
    /// Starts to serve `router` on `runtime`. Not to be called from a task of a runtime.
    pub(crate) fn start(runtime: &Handle, router: Router) -> io::Result<Self> {
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let server = axum::serve(listener, router).with_graceful_shutdown(async {
            let _ = stopped.await;
        });
        let served = runtime.spawn(server.into_future());
        Ok(Self { address, stop, served })
    }

    /// Ends the server once its connections are closed.
    pub(crate) fn stop(self, runtime: &Handle) -> io::Result<()> {
        let _ = self.stop.send(());
        runtime.block_on(self.served).map_err(io::Error::other)?
    }
}
