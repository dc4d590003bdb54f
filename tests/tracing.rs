//! The spans of loads: where a load runs, and what those who wait for it are linked to.
#![cfg(all(feature = "layer", not(any(stampede_loom, stampede_shuttle))))]

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use futures_util::FutureExt;
use http::Request;
use stampede_guard::{SingleFlight, StampedeCache, StampedeGuard};
use tokio::sync::oneshot;
use tower::ServiceExt;
use tracing::span::{Attributes, Id};
use tracing::{Instrument, Level, Metadata, Span, Subscriber, info_span};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

/// What became of spans, by their names.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    fn listen(&self, level: Level) -> tracing::subscriber::DefaultGuard {
        let guard = tracing::subscriber::set_default(Registry::default().with(Listener(self.clone(), level)));
        tracing::callsite::rebuild_interest_cache();
        guard
    }
}

struct Listener(Seen, Level);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Listener {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= self.1
    }

    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let parent = span.parent().map_or("nothing", |parent| parent.name());
        self.0.0.lock().unwrap().push(format!("{} in {parent}", span.name()));
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, context: Context<'_, S>) {
        let name = |id| context.span(id).expect("open").name();
        self.0.0.lock().unwrap().push(format!("{} after {}", name(id), name(follows)));
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let name = context.span(&id).unwrap().name();
        self.0.0.lock().unwrap().push(format!("{name} closed"));
    }
}

fn current() -> &'static str {
    Span::current().metadata().map_or("nothing", Metadata::name)
}

#[tokio::test]
async fn a_caller_that_waits_follows_from_the_load() {
    let seen = Seen::default();
    let _listens = seen.listen(Level::DEBUG);
    let flights: SingleFlight<u64, &str> = SingleFlight::new();
    let (go, gone) = oneshot::channel::<()>();
    let load = move || async move {
        let first = current();
        let _ = gone.await;
        assert_eq!(current(), first, "a poll in its own task is one of the load, too");
        Ok(first)
    };
    let mut first = Box::pin(flights.run(1, load).instrument(info_span!("first")));
    let mut second = Box::pin(flights.run(1, || async { Ok("") }).instrument(info_span!("second")));
    assert!(first.as_mut().now_or_never().is_none());
    assert_eq!(seen.take(), ["first in nothing", "second in nothing", "load in first"]);
    assert!(second.as_mut().now_or_never().is_none());
    assert_eq!(seen.take(), ["second after load"]);

    go.send(()).unwrap();
    assert_eq!(second.await.unwrap(), "load");
    assert_eq!(first.await.unwrap(), "load");
    let mut closed = seen.take();
    closed.sort();
    assert_eq!(closed, ["first closed", "load closed", "second closed"]);
}

#[tokio::test]
async fn a_caller_that_stays_away_keeps_no_load_open() {
    let seen = Seen::default();
    let _listens = seen.listen(Level::DEBUG);
    let cache: StampedeCache<u64, u64> = StampedeCache::builder().build().unwrap();
    let (go, gone) = oneshot::channel::<()>();
    let mut first = Box::pin(cache.get_or_load(1, move || async move {
        let _ = gone.await;
        Ok(1)
    }));
    let mut parked = Box::pin(cache.get_or_load(1, || async { Ok(2) }));
    assert!(first.as_mut().now_or_never().is_none());
    assert!(parked.as_mut().now_or_never().is_none());
    go.send(()).unwrap();
    assert_eq!(first.await.unwrap(), 1);
    tokio::task::yield_now().await;
    assert_eq!(seen.take(), ["load in nothing", "load closed"]);
    assert_eq!(parked.await.unwrap(), 1);
}

#[tokio::test]
async fn a_load_is_part_of_its_callers_span_where_the_level_leaves_no_own() {
    let seen = Seen::default();
    let _listens = seen.listen(Level::INFO);
    let flights: SingleFlight<u64, &str> = SingleFlight::new();
    let load = || async {
        tokio::task::yield_now().await;
        Ok(current())
    };
    let mut first = Box::pin(flights.run(1, load).instrument(info_span!("first")));
    let mut second = Box::pin(flights.run(1, || async { Ok("") }).instrument(info_span!("second")));
    assert!(first.as_mut().now_or_never().is_none());
    assert!(second.as_mut().now_or_never().is_none());
    assert_eq!(seen.take(), ["first in nothing", "second in nothing", "second after first"]);
    assert_eq!(second.await.unwrap(), "first");
    assert_eq!(first.await.unwrap(), "first");
}

#[tokio::test]
async fn a_handler_runs_within_the_span_of_its_request_and_others_follow_from_it() {
    let seen = Seen::default();
    let _listens = seen.listen(Level::DEBUG);
    let (go, gone) = oneshot::channel::<()>();
    let gone = Arc::new(Mutex::new(Some(gone)));
    let handler = move || async move {
        let gone = gone.lock().unwrap().take();
        let _ = gone.expect("one run").await;
        current()
    };
    let app = Router::new().route("/", get(handler)).layer(StampedeGuard::new());
    let ask = |span| {
        let request = Request::get("/").body(Body::empty()).unwrap();
        Box::pin(app.clone().oneshot(request).instrument(span))
    };
    let (mut first, mut second) = (ask(info_span!("first")), ask(info_span!("second")));
    assert!(first.as_mut().now_or_never().is_none());
    assert!(second.as_mut().now_or_never().is_none());
    tokio::task::yield_now().await;
    assert_eq!(seen.take(), ["first in nothing", "second in nothing", "load in first", "second after load"]);
    go.send(()).unwrap();
    let body = axum::body::to_bytes(second.await.unwrap().into_body(), 100).await.unwrap();
    assert_eq!(body, "load");
    assert_eq!(first.await.unwrap().status(), 200);
}

#[tokio::test]
async fn the_load_of_a_batch_runs_within_a_span_in_that_of_its_caller() {
    let seen = Seen::default();
    let listens = seen.listen(Level::INFO);
    let cache: StampedeCache<u64, &str> = StampedeCache::builder().build().unwrap();
    let load = |keys: Vec<u64>| {
        let called_in = current();
        async move {
            tokio::task::yield_now().await;
            assert_eq!(current(), called_in);
            Ok(keys.into_iter().map(|key| (key, current())).collect())
        }
    };
    let answers = cache.get_or_load_many([1, 2], load).instrument(info_span!("page")).await;
    assert!(answers.values().all(|answer| matches!(answer, Ok("page"))), "{answers:?}");
    drop(listens);
    let _listens = seen.listen(Level::DEBUG);
    let answers = cache.get_or_load_many([3], load).instrument(info_span!("page")).await;
    assert!(matches!(answers[&3], Ok("load")), "{answers:?}");
}
