//! The layer on an axum app, by the promises it makes.

mod support;

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::get;
use axum::{Extension, Router};
use stampede_guard::{ManualClock, StampedeGuard, StampedeGuardBuilder};
use support::{Runs, ask, request, settle, text};

#[tokio::test]
async fn concurrent_requests_share_one_run_and_later_ones_its_response() {
    let runs = Runs::default();
    let handler = |State(runs): State<Runs>, Path(id): Path<u64>| async move {
        let run = runs.add();
        tokio::task::yield_now().await;
        format!("{id}:{run}")
    };
    let app =
        Router::new().route("/p/{id}", get(handler)).layer(StampedeGuard::new()).with_state(runs.clone());
    let all = futures_util::future::join_all((0..100).map(|_| ask(&app, request("/p/7")))).await;
    for response in all {
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(text(response).await, "7:1");
    }
    let response = ask(&app, request("/p/7")).await;
    assert_eq!(response.headers()[header::AGE], "0");
    assert_eq!(text(response).await, "7:1");
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn a_stale_response_is_refreshed_with_everything_the_handler_extracts() {
    let clock = ManualClock::new();
    let runs = Runs::default();
    let handler = |State(runs): State<Runs>,
                   Path(id): Path<u64>,
                   Extension(name): Extension<&'static str>| async move {
        format!("{name} {id}:{}", runs.add())
    };
    let guard = StampedeGuard::builder().jitter(0.0).clock(clock.clone()).build().unwrap();
    let app = Router::new()
        .route("/p/{id}", get(handler))
        .layer(guard.clone())
        .layer(Extension("shop"))
        .with_state(runs.clone());
    assert_eq!(text(ask(&app, request("/p/7")).await).await, "shop 7:1");
    clock.advance(Duration::from_millis(1_500));
    let stale = ask(&app, request("/p/7")).await;
    assert_eq!(stale.headers()[header::AGE], "1");
    assert_eq!(text(stale).await, "shop 7:1");
    settle(|| runs.get() == 2 && guard.stats().in_flight == 0).await;
    assert_eq!(text(ask(&app, request("/p/7")).await).await, "shop 7:2");
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn variants_group_on_a_cold_key() {
    let runs = Runs::default();
    let handler = |State(runs): State<Runs>, headers: HeaderMap| async move {
        runs.add();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let agent = headers[header::USER_AGENT].to_str().unwrap().to_owned();
        ([(header::VARY, "User-Agent")], agent)
    };
    let app = Router::new().route("/", get(handler)).layer(StampedeGuard::new()).with_state(runs.clone());
    let ask_as = |agent: usize| {
        let app = app.clone();
        async move {
            let mut request = request("/");
            request.headers_mut().insert(header::USER_AGENT, format!("agent {agent}").parse().unwrap());
            assert_eq!(text(ask(&app, request).await).await, format!("agent {agent}"));
        }
    };
    futures_util::future::join_all((0..90).map(|client| ask_as(client % 3))).await;
    assert_eq!(runs.get(), 3);
    futures_util::future::join_all((0..90).map(|client| ask_as(client % 3))).await;
    assert_eq!(runs.get(), 3);
}

#[tokio::test]
async fn head_is_answered_from_a_get_and_never_answers_one() {
    let runs = Runs::default();
    let handler = |State(runs): State<Runs>| async move { format!("run {}", runs.add()) };
    let app = Router::new().route("/", get(handler)).layer(StampedeGuard::new()).with_state(runs.clone());
    let head = || {
        let mut request = request("/");
        *request.method_mut() = axum::http::Method::HEAD;
        request
    };
    let first = ask(&app, head()).await;
    assert_eq!(first.headers()[header::CONTENT_LENGTH], "5");
    assert_eq!(text(first).await, "");
    assert_eq!(text(ask(&app, request("/")).await).await, "run 2");
    let second = ask(&app, head()).await;
    assert_eq!(second.headers()[header::CONTENT_LENGTH], "5");
    assert_eq!(text(second).await, "");
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn an_unshareable_response_reaches_one_client_and_the_others_run_side_by_side() {
    let runs = Runs::default();
    let handler = |State(runs): State<Runs>| async move {
        let run = runs.add();
        tokio::time::sleep(Duration::from_millis(50)).await;
        ([(header::SET_COOKIE, format!("session={run}"))], run.to_string())
    };
    let app = Router::new().route("/", get(handler)).layer(StampedeGuard::new()).with_state(runs.clone());
    let all = futures_util::future::join_all((0..50).map(|_| ask(&app, request("/")))).await;
    let mut seen = std::collections::HashSet::new();
    for response in all {
        assert!(seen.insert(response.headers()[header::SET_COOKIE].clone()));
    }
    assert_eq!(runs.get(), 50);
}

#[tokio::test]
async fn a_write_outdates_what_was_read_before() {
    let runs = Runs::default();
    let read = |State(runs): State<Runs>| async move { runs.add().to_string() };
    let app = Router::new()
        .route("/", get(read).post(|| async { StatusCode::NO_CONTENT }))
        .layer(StampedeGuard::new())
        .with_state(runs.clone());
    assert_eq!(text(ask(&app, request("/")).await).await, "1");
    assert_eq!(text(ask(&app, request("/")).await).await, "1");
    let mut post = request("/");
    *post.method_mut() = axum::http::Method::POST;
    ask(&app, post).await;
    assert_eq!(text(ask(&app, request("/")).await).await, "2");
}

#[test]
fn a_time_out_of_its_range_is_named_with_the_range_and_nothing_panics() {
    let refused = |builder: StampedeGuardBuilder| {
        let refused = builder.build().unwrap_err();
        assert!(refused.to_string().contains(refused.allowed()), "{refused}");
        refused.field()
    };
    let guard = StampedeGuard::builder;
    assert_eq!(refused(guard().ttl(Duration::ZERO)), "ttl");
    assert_eq!(refused(guard().load_timeout(Duration::ZERO)), "load_timeout");
    assert_eq!(refused(guard().wait_timeout(Duration::ZERO)), "wait_timeout");
    for share in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        assert_eq!(refused(guard().jitter(share)), "jitter");
    }
    assert!(guard().load_timeout(None).wait_timeout(None).max_abandoned(0).build().is_ok());
}

#[tokio::test]
async fn for_ever_is_a_time_like_any_other() {
    let ever = Duration::MAX;
    let guard = StampedeGuard::builder()
        .ttl(ever)
        .jitter(1.0)
        .stale_while_revalidate(ever)
        .stale_if_error(ever)
        .max_stale_while_revalidate(ever)
        .max_stale_if_error(ever)
        .load_timeout(ever)
        .wait_timeout(ever)
        .max_body_wait(ever);
    let app = Router::new().route("/", get(async || "page")).layer(guard.build().unwrap());
    let all = futures_util::future::join_all((0..3).map(|_| ask(&app, request("/")))).await;
    for response in all {
        assert_eq!(text(response).await, "page");
    }
}
