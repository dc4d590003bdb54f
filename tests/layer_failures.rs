//! What each failure of a handler run becomes, for the client that started it and for those who waited.

mod support;

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response, StatusCode, header};
use axum::routing::get;
use futures_util::future::join_all;
use stampede_guard::StampedeGuard;
use support::{Runs, ask, clocked, request, settle, text};
use tower::{Layer, ServiceExt, service_fn};

/// Five requests of one URL at once, each in a task.
async fn five(app: &Router) -> Vec<Result<Response<Body>, tokio::task::JoinError>> {
    let ask = |_| {
        let app = app.clone();
        tokio::spawn(async move { ask(&app, request("/")).await })
    };
    join_all((0..5).map(ask).collect::<Vec<_>>()).await
}

fn statuses(answers: &[Result<Response<Body>, tokio::task::JoinError>]) -> Vec<u16> {
    let mut all: Vec<_> = answers.iter().flatten().map(|answer| answer.status().as_u16()).collect();
    all.sort_unstable();
    all
}

#[tokio::test]
async fn an_inner_error_reaches_its_own_client_unchanged_and_the_others_as_502() {
    #[derive(Debug, PartialEq)]
    struct OutOfStock;
    let guard = StampedeGuard::new();
    let runs = Arc::new(AtomicUsize::new(0));
    let service = guard.layer(service_fn({
        let runs = Arc::clone(&runs);
        let guard = guard.clone();
        move |_: Request<Body>| {
            runs.fetch_add(1, Ordering::SeqCst);
            let guard = guard.clone();
            async move {
                settle(|| guard.stats().flights.coalesced == 4).await;
                Err::<Response<Body>, _>(OutOfStock)
            }
        }
    }));
    let answers = join_all((0..5).map(|_| service.clone().oneshot(request("/")))).await;
    let errors = answers.iter().filter(|answer| matches!(answer, Err(OutOfStock))).count();
    let refused =
        answers.iter().flatten().filter(|answer| answer.status() == StatusCode::BAD_GATEWAY).count();
    assert_eq!((errors, refused, runs.load(Ordering::SeqCst)), (1, 4, 1));
}

#[tokio::test]
async fn a_panic_reaches_its_own_client_and_the_others_get_500() {
    let guard = StampedeGuard::new();
    let runs = Runs::default();
    let handler = {
        let guard = guard.clone();
        |State(runs): State<Runs>| async move {
            runs.add();
            settle(|| guard.stats().flights.coalesced == 4).await;
            assert_eq!(runs.get(), 0, "out of paper");
        }
    };
    let app = Router::new().route("/", get(handler)).layer(guard).with_state(runs.clone());
    let answers = five(&app).await;
    assert_eq!(statuses(&answers), [500; 4]);
    let panic = answers.into_iter().find_map(Result::err).unwrap().into_panic();
    assert!(panic.downcast_ref::<String>().unwrap().contains("out of paper"));
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_outlasts_load_timeout_is_a_504_for_everyone_and_dropped() {
    let guard = StampedeGuard::builder().load_timeout(Duration::from_secs(5)).build().unwrap();
    let alive = Arc::new(());
    let handler = {
        let alive = Arc::clone(&alive);
        move || {
            let alive = Arc::clone(&alive);
            async move {
                pending::<()>().await;
                drop(alive);
            }
        }
    };
    let app = Router::new().route("/", get(handler)).layer(guard.clone());
    assert_eq!(statuses(&five(&app).await), [504; 5]);
    drop(app);
    assert_eq!((Arc::strong_count(&alive), guard.stats().flights.timed_out), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn wait_timeout_bounds_the_wait_for_anothers_run_alone() {
    let guard = StampedeGuard::builder().wait_timeout(Duration::from_secs(1)).build().unwrap();
    let runs = Runs::default();
    let handler = |State(runs): State<Runs>| async move {
        runs.add();
        tokio::time::sleep(Duration::from_secs(3)).await;
    };
    let app = Router::new().route("/", get(handler)).layer(guard).with_state(runs.clone());
    assert_eq!(statuses(&five(&app).await), [200, 504, 504, 504, 504]);
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn a_failing_origin_is_hidden_by_a_stale_page_and_asked_less_and_less() {
    let (clock, builder) = clocked();
    let guard = builder
        .stale_while_revalidate(Duration::ZERO)
        .stale_if_error(Duration::from_secs(600))
        .build()
        .unwrap();
    let runs = Runs::default();
    let handler = |State(runs): State<Runs>| async move {
        let run = runs.add();
        tokio::task::yield_now().await;
        if run == 1 { Ok("page") } else { Err(StatusCode::INTERNAL_SERVER_ERROR) }
    };
    let app = Router::new().route("/", get(handler)).layer(guard.clone()).with_state(runs.clone());
    ask(&app, request("/")).await;
    clock.advance(Duration::from_secs(2));
    for answer in join_all((0..200).map(|_| ask(&app, request("/")))).await {
        assert_eq!((answer.status(), text(answer).await.as_str()), (StatusCode::OK, "page"));
    }
    assert_eq!(runs.get(), 2, "one run for all of them");
    ask(&app, request("/")).await;
    assert_eq!(runs.get(), 2, "the next one is not due");
    for _ in 0..100 {
        clock.advance(Duration::from_millis(100));
        assert_eq!(ask(&app, request("/")).await.status(), StatusCode::OK);
    }
    assert!(runs.get() < 12, "{} runs in ten seconds", runs.get());
    clock.advance(Duration::from_secs(600));
    assert_eq!(ask(&app, request("/")).await.status(), StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn a_runtime_that_shuts_down_ends_waits_with_503() {
    let guard = StampedeGuard::new();
    let app: Router = Router::new().route("/", get(pending::<()>)).layer(guard.clone());
    let elsewhere =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let leader = elsewhere.spawn({
        let app = app.clone();
        async move { ask(&app, request("/")).await }
    });
    settle(|| guard.stats().in_flight == 1).await;
    let follower = tokio::spawn(async move { ask(&app, request("/")).await });
    settle(|| guard.stats().flights.coalesced == 1).await;
    elsewhere.shutdown_background();
    assert_eq!(follower.await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(leader.await.is_err());
    assert_eq!(guard.stats().in_flight, 0);
}

#[tokio::test]
async fn one_guard_at_two_depths_of_an_app_does_not_wait_for_itself() {
    let guard = StampedeGuard::new();
    let runs = Runs::default();
    let handler = |State(runs): State<Runs>| async move { runs.add().to_string() };
    let app = Router::new()
        .route("/", get(handler))
        .layer(guard.clone())
        .layer(guard.clone())
        .with_state(runs.clone());
    assert_eq!(text(ask(&app, request("/")).await).await, "1");
    assert_eq!(guard.stats().flights.reentrant, 1);
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_stop_the_run() {
    let guard = StampedeGuard::new();
    let release = Arc::new(tokio::sync::Notify::new());
    let runs = Runs::default();
    let handler = {
        let release = Arc::clone(&release);
        move |State(runs): State<Runs>| async move {
            runs.add();
            release.notified().await;
            "page"
        }
    };
    let app = Router::new().route("/", get(handler)).layer(guard.clone()).with_state(runs.clone());
    let client = tokio::spawn({
        let app = app.clone();
        async move { ask(&app, request("/")).await }
    });
    settle(|| runs.get() == 1).await;
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    release.notify_one();
    settle(|| guard.stats().in_flight == 0).await;
    let hit = ask(&app, request("/")).await;
    assert!(hit.headers().contains_key(header::AGE));
    assert_eq!((text(hit).await.as_str(), runs.get()), ("page", 1));
}

#[tokio::test]
async fn the_inner_service_is_not_touched_until_it_is_called() {
    #[derive(Clone)]
    struct Untouchable;
    impl tower::Service<Request<Body>> for Untouchable {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
            panic!("polled without a call");
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            panic!("called");
        }
    }
    let mut service = StampedeGuard::new().layer(Untouchable);
    for _ in 0..3 {
        assert!(service.ready().await.is_ok());
    }
}
