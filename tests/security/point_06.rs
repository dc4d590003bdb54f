//! Point 6: a background refresh carries nothing that is one client's own.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::Request;
use axum::routing::get as on_get;
use axum::{Extension, Router};
use stampede_guard::{ManualClock, StampedeGuard, StampedeGuardBuilder};
use tower::ServiceExt;

use crate::site::{Call, Site, all, answer, get, numbered, read, secs, until, with};

fn swr(builder: StampedeGuardBuilder) -> StampedeGuardBuilder {
    builder.stale_while_revalidate(secs(60))
}

/// A site with a page that `fresh` left, past its freshness.
async fn stale(site: &Site, fresh: Request<Body>) {
    assert_eq!(site.ask(fresh).await.body, "1");
    site.clock.advance(secs(6));
}

#[tokio::test]
async fn a_refresh_has_only_headers_that_the_answer_may_depend_on() {
    let site =
        Site::new(swr, numbered([("cache-control", "max-age=5"), ("vary", "Referer"), ("etag", "\"v\"")]));
    let of = || with(with(get("/p?q=1"), "x-api-key", "k"), "referer", "https://r.example/");
    stale(&site, of()).await;
    let private = [
        ("user-agent", "mine"),
        ("x-forwarded-for", "192.0.2.1"),
        ("x-real-ip", "192.0.2.1"),
        ("true-client-ip", "192.0.2.1"),
        ("if-none-match", "\"old\""),
        ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("if-range", "\"old\""),
        ("cache-control", "no-cache"),
        ("pragma", "no-cache"),
        ("traceparent", "00-1-2-3"),
        ("x-request-id", "mine"),
        ("sec-ch-ua", "mine"),
        ("te", "trailers"),
        ("connection", "keep-alive"),
        ("via", "1.1 mine"),
    ];
    let asked = private.iter().fold(of(), |request, (name, value)| with(request, name, value));
    assert_eq!(site.ask(asked).await.body, "1");
    site.settled(2).await;
    let seen = site.last_seen();
    let mut names: Vec<_> = seen.headers.keys().map(ToString::to_string).collect();
    names.sort();
    assert_eq!(names, ["host", "if-none-match", "referer", "x-api-key"]);
    assert_eq!(seen.headers["if-none-match"], "\"v\"", "the guard's own");
    assert_eq!((seen.method.as_str(), seen.uri.to_string().as_str()), ("GET", "/p?q=1"));
    assert_eq!(seen.headers["x-api-key"], "k");
    // And it is what the next client gets.
    assert_eq!(site.ask(of()).await.body, "2");
    assert_eq!(site.runs(), 2);
}

#[tokio::test]
async fn a_refresh_has_the_headers_of_key_headers_alone() {
    let site = Site::new(
        |builder| swr(builder).key_headers(["x-tenant"]),
        numbered([("cache-control", "max-age=5")]),
    );
    let of = || with(with(get("/"), "x-tenant", "t"), "accept", "text/html");
    stale(&site, of()).await;
    site.ask(with(of(), "x-api-key", "k")).await;
    site.settled(2).await;
    let seen = site.last_seen();
    let mut names: Vec<_> = seen.headers.keys().map(ToString::to_string).collect();
    names.sort();
    assert_eq!(names, ["host", "x-tenant"]);
}

#[tokio::test]
async fn a_refresh_has_no_ignored_cookies() {
    let site =
        Site::new(|builder| swr(builder).ignore_cookies(["_ga"]), numbered([("cache-control", "max-age=5")]));
    let of = || with(get("/"), "cookie", "_ga=mine");
    stale(&site, of()).await;
    site.ask(of()).await;
    site.settled(2).await;
    assert!(!site.last_seen().headers.contains_key("cookie"));
}

#[tokio::test]
async fn a_refresh_has_the_extensions_path_and_state_of_its_request() {
    let clock = ManualClock::new();
    let guard = StampedeGuard::builder().jitter(0.0).clock(clock.clone()).build().unwrap();
    let handler = |State(site): State<&'static str>, Path(id): Path<u8>, Extension(run): Extension<u8>| async move {
        format!("{site} {id} {run}")
    };
    let inner = Router::new().route("/{id}", on_get(handler)).layer(guard.clone());
    let app = Router::new().nest("/p", inner).with_state("shop");
    let ask = async |run: u8| {
        let mut request = get("/p/7");
        request.extensions_mut().insert(run);
        read(app.clone().oneshot(request).await.unwrap()).await.body
    };
    assert_eq!(ask(1).await, "shop 7 1");
    clock.advance(secs(1));
    assert_eq!(ask(2).await, "shop 7 1");
    until(|| guard.stats().flights.loads == 2).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(3).await, "shop 7 2");
}

#[tokio::test]
async fn many_stale_hits_are_one_refresh() {
    let site = Site::new(swr, |call: Call| async move {
        if call.run > 1 {
            call.gate().await;
        }
        answer(200, &[("cache-control", "max-age=5")], call.run.to_string())
    });
    stale(&site, get("/")).await;
    let got = all((0..50).map(|_| site.start(get("/"))).collect()).await;
    assert!(got.iter().all(|got| got.body == "1"));
    site.open(50);
    site.settled(2).await;
    assert_eq!((site.runs(), site.guard.stats().refreshes), (2, 1));
}

async fn is_not_refreshed(opt: impl FnOnce(StampedeGuardBuilder) -> StampedeGuardBuilder, name: &str) {
    let site = Site::new(
        |builder| opt(swr(builder)),
        numbered([("cache-control", "max-age=5, stale-while-revalidate=60")]),
    );
    let of = || with(get("/"), name, "session=1");
    stale(&site, of()).await;
    // Its own request, and not what is stale.
    assert_eq!(site.ask(with(of(), "x-request-id", "mine")).await.body, "2");
    assert!(site.last_seen().headers.contains_key("x-request-id"));
    assert_eq!(site.guard.stats().refreshes, 0);
}

#[tokio::test]
async fn keys_that_hold_a_principal_are_not_refreshed() {
    is_not_refreshed(StampedeGuardBuilder::key_authorization, "authorization").await;
    is_not_refreshed(StampedeGuardBuilder::key_authorization, "proxy-authorization").await;
    is_not_refreshed(|builder| builder.key_cookies(["session"]), "cookie").await;
    is_not_refreshed(|builder| builder.key_headers(["cookie"]), "cookie").await;
    is_not_refreshed(|builder| builder.key_headers(["authorization"]), "authorization").await;
}

#[tokio::test]
async fn a_refresh_whose_answer_is_unshareable_deletes_the_stale_page() {
    for own in ["private", "no-store", "no-cache"] {
        let site = Site::new(swr, move |call: Call| async move {
            let control = if call.run == 1 { "max-age=5" } else { own };
            answer(200, &[("cache-control", control)], call.run.to_string())
        });
        stale(&site, get("/")).await;
        assert_eq!(site.ask(get("/")).await.body, "1");
        site.settled(2).await;
        assert_eq!(site.ask(get("/")).await.body, "3", "{own}");
        assert_eq!(site.ask(get("/")).await.body, "4", "{own}");
    }
}

#[tokio::test]
async fn a_refresh_whose_answer_is_not_kept_deletes_the_stale_page_of_its_variant() {
    for vary in ["accept", "user-agent"] {
        let site = Site::new(swr, move |call: Call| async move {
            match call.run {
                1 => answer(200, &[("cache-control", "max-age=5"), ("vary", vary)], "1"),
                run => answer(404, &[("vary", vary)], run.to_string()),
            }
        });
        let of = || with(get("/"), "user-agent", "a");
        stale(&site, of()).await;
        assert_eq!(site.ask(of()).await.body, "1");
        site.settled(2).await;
        assert_eq!(site.ask(of()).await.body, "3", "{vary}");
    }
}

#[tokio::test]
async fn a_refresh_that_fails_keeps_the_stale_page() {
    let site = Site::new(swr, |call: Call| async move {
        match call.run {
            1 => answer(200, &[("cache-control", "max-age=5")], "1"),
            2 => answer(500, &[("set-cookie", "error=1")], "down"),
            3 => panic!("down"),
            run => answer(200, &[("cache-control", "max-age=5")], run.to_string()),
        }
    });
    stale(&site, get("/")).await;
    for load in 2..=4 {
        let got = site.ask(get("/")).await;
        assert_eq!((got.body.as_str(), got.header("set-cookie")), ("1", None));
        site.settled(load).await;
        site.clock.advance(secs(1));
    }
    assert_eq!(site.ask(get("/")).await.body, "4");
}

#[tokio::test]
async fn a_refresh_from_before_a_write_does_not_publish_after_it() {
    let site = Site::new(swr, |call: Call| async move {
        if call.parts.method == "GET" && call.run == 2 {
            call.gate().await;
        }
        answer(200, &[("cache-control", "max-age=5")], call.run.to_string())
    });
    stale(&site, get("/")).await;
    site.ask(get("/")).await;
    until(|| site.runs() == 2).await;
    site.ask(crate::site::request("POST", "/")).await;
    site.open(1);
    site.settled(2).await;
    assert_eq!(site.ask(get("/")).await.body, "4");
}
