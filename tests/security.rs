//! What must never reach the wrong client: one test for each point of the rules of sharing here, one for each clause
//! of each point in the modules, then what failures become, and attacks that no clause names.

#[path = "security/attacks.rs"]
mod attacks;
#[path = "security/authorized.rs"]
mod authorized;
#[path = "support/everything.rs"]
mod everything;
#[path = "security/failures.rs"]
mod failures;
#[path = "security/point_01.rs"]
mod point_01;
#[path = "security/point_02.rs"]
mod point_02;
#[path = "security/point_03.rs"]
mod point_03;
#[path = "security/point_04.rs"]
mod point_04;
#[path = "security/point_05.rs"]
mod point_05;
#[path = "security/point_06.rs"]
mod point_06;
#[path = "security/point_07.rs"]
mod point_07;
#[path = "security/point_08.rs"]
mod point_08;
#[path = "security/point_09.rs"]
mod point_09;
#[path = "security/point_10.rs"]
mod point_10;
#[path = "security/point_11.rs"]
mod point_11;
#[path = "security/site.rs"]
mod site;
mod support;

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{any, get};
use axum::{Extension, Router};
use futures_util::future::join_all;
use stampede_guard::{StampedeGuard, StampedeGuardBuilder};
use support::{Runs, ask, clocked, request, settle, text, with};

/// A handler that answers with the number of its run.
async fn count(State(runs): State<Runs>) -> String {
    runs.add().to_string()
}

fn counting(guard: StampedeGuard) -> (Router, Runs) {
    let runs = Runs::default();
    (Router::new().fallback(any(count)).layer(guard).with_state(runs.clone()), runs)
}

/// An app whose every answer has these headers, and takes as many requests at once as it gets.
fn answering(guard: StampedeGuard, status: StatusCode, headers: &'static [(&str, &str)]) -> (Router, Runs) {
    let runs = Runs::default();
    let handler = move |State(runs): State<Runs>| async move {
        let run = runs.add();
        tokio::task::yield_now().await;
        let mut answer = (status, run.to_string()).into_response();
        for (name, value) in headers {
            answer.headers_mut().append(*name, value.parse().unwrap());
        }
        answer
    };
    (Router::new().route("/", get(handler)).layer(guard).with_state(runs.clone()), runs)
}

/// How often the handler runs for these requests, one after the other.
async fn runs_for(requests: impl IntoIterator<Item = Request<Body>>) -> usize {
    let (app, runs) = counting(StampedeGuard::new());
    for request in requests {
        ask(&app, request).await;
    }
    runs.get()
}

fn method(method: &str) -> Request<Body> {
    let mut request = request("/");
    *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
    request
}

#[tokio::test]
async fn point_01_only_get_and_head_take_part() {
    for name in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "PROPFIND"] {
        assert_eq!(runs_for([method(name), method(name)]).await, 2, "{name}");
    }
    let upgrade = || with(with(request("/"), "connection", "upgrade"), "upgrade", "websocket");
    assert_eq!(runs_for([upgrade(), upgrade()]).await, 2);
    assert_eq!(runs_for([method("GET"), method("GET"), method("HEAD")]).await, 1);
}

#[tokio::test]
async fn point_01_head_never_answers_get() {
    let (app, runs) = counting(StampedeGuard::new());
    assert_eq!(text(ask(&app, method("HEAD")).await).await, "");
    assert_eq!(text(ask(&app, request("/")).await).await, "2");
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn point_02_everything_that_may_tell_requests_apart_is_in_the_key() {
    for (name, one, other) in [
        ("host", "a.example", "b.example"),
        ("x-api-key", "1", "2"),
        ("x-tenant", "1", "2"),
        ("accept", "text/html", "application/json"),
        ("accept-language", "de", "en"),
        ("accept-encoding", "gzip", "br"),
        ("origin", "https://a.example", "https://b.example"),
        ("sec-fetch-mode", "cors", "navigate"),
        ("x-forwarded-host", "a", "b"),
        ("x-forwarded-proto", "http", "https"),
        ("x-forwarded-user", "ada", "bob"),
        ("x-forwarded-client-cert", "a", "b"),
        ("forwarded", "for=1", "for=2"),
        ("baggage", "user=1", "user=2"),
        ("x-nobody-has-heard-of", "1", "2"),
    ] {
        let of = |value| with(request("/"), name, value);
        assert_eq!(runs_for([of(one), of(other)]).await, 2, "{name} splits");
        assert_eq!(runs_for([of(one), of(one)]).await, 1, "{name} is shared with itself");
        if name != "host" {
            assert_eq!(runs_for([of(one), request("/")]).await, 2, "{name} is not absent");
            assert_eq!(runs_for([of(""), request("/")]).await, 2, "an empty {name} is not absent");
        }
    }
    for (one, other) in
        [("/a", "/b"), ("/?a", "/?b"), ("/?", "/"), ("/%61", "/a"), ("/a/", "/a"), ("http://x/", "http://y/")]
    {
        assert_eq!(runs_for([request(one), request(other)]).await, 2, "{one} {other}");
    }
}

#[tokio::test]
async fn point_02_what_never_tells_requests_apart_is_not_in_the_key() {
    for name in ["user-agent", "referer", "traceparent", "x-request-id", "x-forwarded-for", "x-real-ip"] {
        let of = |value| with(request("/"), name, value);
        assert_eq!(runs_for([of("1"), of("2"), request("/")]).await, 1, "{name}");
    }
}

#[tokio::test]
async fn point_02_two_nests_with_one_inner_path_do_not_mix() {
    async fn whose(Extension(name): Extension<&'static str>) -> &'static str {
        name
    }
    let inner = Router::new().route("/item", get(whose)).layer(StampedeGuard::new());
    let app =
        Router::new().nest("/a", inner.clone().layer(Extension("a"))).nest("/b", inner.layer(Extension("b")));
    assert_eq!(text(ask(&app, request("/a/item")).await).await, "a");
    assert_eq!(text(ask(&app, request("/b/item")).await).await, "b");
}

#[tokio::test]
async fn point_02_operators_widen_and_narrow_the_key() {
    let runs = |guard: StampedeGuardBuilder, first, second| async move {
        let (app, runs) = counting(guard.build().unwrap());
        ask(&app, first).await;
        ask(&app, second).await;
        runs.get()
    };
    let of = |name: &str, value: &str| with(request("/"), name, value);
    let builder = StampedeGuard::builder;
    assert_eq!(runs(builder().ignore_header("x-a"), of("x-a", "1"), of("x-a", "2")).await, 1);
    assert_eq!(runs(builder().key_headers([]), of("x-a", "1"), of("x-a", "2")).await, 1);
    assert_eq!(runs(builder().key_headers([]), of("host", "a"), of("host", "b")).await, 2);
    assert_eq!(runs(builder().key_headers(["x-a"]), of("x-a", "1"), of("x-a", "2")).await, 2);
    let by_length = || builder().key_with(|parts, key| key.push(parts.uri.path().len().to_string()));
    assert_eq!(runs(by_length(), request("/a"), request("/a")).await, 1);
    let bypass = || builder().bypass_if(|parts| parts.headers.contains_key("x-a"));
    assert_eq!(runs(bypass(), of("x-a", "1"), of("x-a", "1")).await, 2);
}

#[tokio::test]
async fn point_02_a_header_that_makes_every_key_unique_is_named() {
    let guard = StampedeGuard::new();
    let (app, _) = counting(guard.clone());
    for request_number in 0..600 {
        ask(&app, with(request("/"), "x-nonce", &request_number.to_string())).await;
    }
    assert_eq!(guard.stats().unique_headers, ["x-nonce"]);
}

#[tokio::test]
async fn point_02_a_key_over_8_kib_passes_through() {
    let long = format!("/{}", "a".repeat(9_000));
    assert_eq!(runs_for([request(&long), request(&long)]).await, 2);
}

#[tokio::test]
async fn point_03_credentials_and_conditions_on_the_origin_go_straight_through() {
    for (name, value) in [
        ("authorization", "Bearer a"),
        ("proxy-authorization", "Basic a"),
        ("cookie", "session=a"),
        ("if-match", "\"a\""),
        ("if-unmodified-since", "Sun, 22 Nov 2026 00:00:00 GMT"),
        ("expect", "100-continue"),
        ("range", "bytes=0-1"),
        ("content-length", "3"),
        ("transfer-encoding", "chunked"),
    ] {
        let of = || with(request("/"), name, value);
        assert_eq!(runs_for([of(), of()]).await, 2, "{name}");
        assert_eq!(runs_for([of(), request("/")]).await, 2, "{name} leaves nothing behind");
    }
    let body = || Request::get("/").body(Body::from("body")).unwrap();
    assert_eq!(runs_for([body(), body()]).await, 2);
}

#[tokio::test]
async fn point_03_a_stored_page_is_not_given_to_a_request_with_credentials() {
    assert_eq!(runs_for([request("/"), with(request("/"), "cookie", "session=a")]).await, 2);
    assert_eq!(runs_for([request("/"), with(request("/"), "authorization", "Bearer a")]).await, 2);
}

#[tokio::test]
async fn point_03_principals_in_the_key_share_with_themselves_alone() {
    let (app, runs) = counting(StampedeGuard::builder().key_authorization().build().unwrap());
    for (token, run) in [("a", "1"), ("b", "2"), ("a", "1"), ("b", "2")] {
        assert_eq!(text(ask(&app, with(request("/"), "authorization", token)).await).await, run);
    }
    assert_eq!(runs.get(), 2);
    let guard = StampedeGuard::builder().key_cookies(["session"]).ignore_cookies(["_ga"]).build().unwrap();
    let (app, runs) = counting(guard);
    for (cookies, run) in
        [("session=a; _ga=1", "1"), ("session=b; _ga=1", "2"), ("session=a; _ga=2", "1"), ("other=1", "3")]
    {
        assert_eq!(text(ask(&app, with(request("/"), "cookie", cookies)).await).await, run, "{cookies}");
    }
    assert_eq!(text(ask(&app, with(request("/"), "cookie", "other=1")).await).await, "4");
    assert_eq!(runs.get(), 4);
}

/// Responses that are one client's alone.
const PRIVATE: [(StatusCode, &[(&str, &str)]); 16] = [
    (StatusCode::OK, &[("set-cookie", "session=1")]),
    (StatusCode::OK, &[("cache-control", "private, max-age=60")]),
    (StatusCode::OK, &[("cache-control", "max-age=60, private=\"x\"")]),
    (StatusCode::OK, &[("cache-control", "no-store")]),
    (StatusCode::OK, &[("cache-control", "No-Cache")]),
    (StatusCode::OK, &[("cache-control", "max-age=60"), ("cache-control", "no-cache=\"a\"")]),
    (StatusCode::OK, &[("vary", "accept, *"), ("cache-control", "max-age=60")]),
    (StatusCode::OK, &[("www-authenticate", "Basic"), ("cache-control", "max-age=60")]),
    (StatusCode::OK, &[("authentication-info", "a"), ("cache-control", "max-age=60")]),
    (StatusCode::OK, &[("clear-site-data", "\"cookies\"")]),
    (StatusCode::PARTIAL_CONTENT, &[("content-range", "bytes 0-0/2")]),
    (StatusCode::UNAUTHORIZED, &[]),
    (StatusCode::FORBIDDEN, &[]),
    (StatusCode::BAD_REQUEST, &[]),
    (StatusCode::TOO_MANY_REQUESTS, &[]),
    (StatusCode::MISDIRECTED_REQUEST, &[]),
];

#[tokio::test]
async fn point_04_a_private_response_reaches_its_own_client_alone() {
    for (status, headers) in PRIVATE {
        let (app, runs) = answering(StampedeGuard::new(), status, headers);
        let answers = join_all((0..10).map(|_| ask(&app, request("/")))).await;
        let mut seen = Vec::new();
        for answer in answers {
            assert_eq!(answer.status(), status);
            seen.push(text(answer).await);
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!((seen.len(), runs.get()), (10, 10), "{status} {headers:?}");
        ask(&app, request("/")).await;
        assert_eq!(runs.get(), 11, "nothing was stored: {status} {headers:?}");
    }
}

#[tokio::test]
async fn point_04_one_clients_fault_is_shared_only_with_explicit_freshness() {
    let (app, runs) =
        answering(StampedeGuard::new(), StatusCode::FORBIDDEN, &[("cache-control", "max-age=60")]);
    join_all((0..10).map(|_| ask(&app, request("/")))).await;
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn point_04_nobody_queues_behind_an_unshareable_key_until_its_marker_expires() {
    let (clock, builder) = clocked();
    let guard = builder.build().unwrap();
    let runs = Runs::default();
    let together = std::sync::Arc::new(tokio::sync::Barrier::new(50));
    let handler = {
        let together = together.clone();
        move |State(runs): State<Runs>| async move {
            if (2..=51).contains(&runs.add()) {
                together.wait().await;
            }
            [(header::CACHE_CONTROL, "no-store")]
        }
    };
    let app = Router::new().route("/", get(handler)).layer(guard.clone()).with_state(runs.clone());
    ask(&app, request("/")).await;
    // The barrier opens only if all fifty handlers run at the same time.
    join_all((0..50).map(|_| ask(&app, request("/")))).await;
    assert_eq!((runs.get(), guard.stats().unshared), (51, 50));
    clock.advance(Duration::from_secs(11));
    let loads = guard.stats().flights.loads;
    join_all((0..50).map(|_| ask(&app, request("/")))).await;
    assert_eq!(guard.stats().flights.loads, loads + 1, "after ten seconds the key is tried again");
}

#[tokio::test]
async fn point_04_a_variant_is_given_to_those_who_asked_for_it() {
    let runs = Runs::default();
    let handler = |State(runs): State<Runs>, headers: HeaderMap| async move {
        runs.add();
        let agent = headers.get(header::USER_AGENT).map_or("none", |agent| agent.to_str().unwrap());
        ([(header::VARY, "User-Agent")], agent.to_owned())
    };
    let app = Router::new().route("/", get(handler)).layer(StampedeGuard::new()).with_state(runs.clone());
    for _ in 0..2 {
        for agent in ["a", "b", ""] {
            let answer = ask(&app, with(request("/"), "user-agent", agent)).await;
            assert_eq!(text(answer).await, agent);
        }
        assert_eq!(text(ask(&app, request("/")).await).await, "none");
    }
    assert_eq!(runs.get(), 4);
}

#[tokio::test]
async fn point_05_what_forbids_stale_is_not_served_stale() {
    for (cache_control, stale) in [
        ("max-age=1", true),
        ("max-age=1, must-revalidate", false),
        ("max-age=1, proxy-revalidate", false),
        ("s-maxage=1", false),
        ("s-maxage=1, stale-while-revalidate=5", true),
    ] {
        let (clock, builder) = clocked();
        let guard = builder.stale_while_revalidate(Duration::from_secs(60)).build().unwrap();
        let runs = Runs::default();
        let handler = move |State(runs): State<Runs>| async move {
            ([(header::CACHE_CONTROL, cache_control)], runs.add().to_string())
        };
        let app = Router::new().route("/", get(handler)).layer(guard).with_state(runs);
        ask(&app, request("/")).await;
        clock.advance(Duration::from_millis(1_500));
        let answer = text(ask(&app, request("/")).await).await;
        assert_eq!(answer == "1", stale, "{cache_control}");
    }
}

#[tokio::test]
async fn point_05_client_directives_neither_widen_nor_force() {
    for directive in ["no-cache", "max-age=0", "no-store", "max-stale=1000"] {
        let of = || with(request("/"), "cache-control", directive);
        assert_eq!(runs_for([request("/"), of()]).await, 1, "{directive}");
    }
    assert_eq!(runs_for([with(request("/"), "cache-control", "no-store"), request("/")]).await, 2);
    let (app, runs) = counting(StampedeGuard::new());
    let answer = ask(&app, with(request("/"), "cache-control", "only-if-cached")).await;
    assert_eq!((answer.status(), runs.get()), (StatusCode::GATEWAY_TIMEOUT, 0));
    let (app, runs) = answering(StampedeGuard::new(), StatusCode::OK, &[("cache-control", "no-store")]);
    ask(&app, request("/")).await;
    let answer = ask(&app, with(request("/"), "cache-control", "only-if-cached")).await;
    assert_eq!((answer.status(), runs.get()), (StatusCode::GATEWAY_TIMEOUT, 1), "under a marker, too");
}

#[tokio::test]
async fn point_06_a_refresh_carries_what_the_answer_depends_on_and_nothing_else() {
    let (clock, builder) = clocked();
    let guard = builder.build().unwrap();
    let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |request: Request<Body>| async move {
        let extension = request.extensions().get::<&'static str>().copied();
        sender.send((request.uri().clone(), request.headers().clone(), extension)).unwrap();
        ([(header::VARY, "user-agent")], "page")
    };
    let app = Router::new().route("/p", get(handler)).layer(guard.clone()).layer(Extension("from outside"));
    let visitor = || {
        let visitor = with(with(request("/p?q=1"), "user-agent", "browser"), "referer", "http://elsewhere/");
        with(with(visitor, "accept", "text/html"), "if-none-match", "\"old\"")
    };
    ask(&app, visitor()).await;
    let (_, first, _) = seen.recv().await.unwrap();
    assert!(!first.contains_key("if-none-match"), "a load never carries a client's conditions");
    assert!(first.contains_key("referer"), "the leader's own request is otherwise whole");
    clock.advance(Duration::from_millis(1_500));
    ask(&app, visitor()).await;
    let (uri, headers, extension) = seen.recv().await.unwrap();
    assert_eq!((uri.to_string().as_str(), extension), ("/p?q=1", Some("from outside")));
    let mut names: Vec<_> = headers.keys().map(axum::http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "host", "user-agent"]);
}

#[tokio::test]
async fn point_06_a_key_with_a_principal_is_not_refreshed_in_the_background() {
    let (clock, builder) = clocked();
    let guard = builder.key_authorization().build().unwrap();
    let (app, runs) = counting(guard.clone());
    let of = || with(request("/"), "authorization", "Bearer a");
    ask(&app, of()).await;
    clock.advance(Duration::from_millis(1_500));
    assert_eq!(text(ask(&app, of()).await).await, "2", "loaded in the caller's own time");
    assert_eq!((runs.get(), guard.stats().refreshes), (2, 0));
}

#[tokio::test]
async fn point_06_a_refresh_whose_answer_is_unshareable_deletes_the_stale_page() {
    let (clock, builder) = clocked();
    let guard = builder.stale_while_revalidate(Duration::from_secs(60)).build().unwrap();
    let runs = Runs::default();
    let handler = |State(runs): State<Runs>| async move {
        let run = runs.add();
        let control = if run == 1 { "max-age=1" } else { "private" };
        ([(header::CACHE_CONTROL, control)], run.to_string())
    };
    let app = Router::new().route("/", get(handler)).layer(guard.clone()).with_state(runs.clone());
    ask(&app, request("/")).await;
    clock.advance(Duration::from_millis(1_500));
    assert_eq!(text(ask(&app, request("/")).await).await, "1");
    settle(|| runs.get() == 2 && guard.stats().flights.loads == 2).await;
    settle_flights(&guard).await;
    assert_eq!(text(ask(&app, request("/")).await).await, "3");
}

/// Waits until no handler run is under way: what it leaves is stored.
async fn settle_flights(guard: &StampedeGuard) {
    settle(|| guard.stats().in_flight == 0).await;
}

#[tokio::test]
async fn point_07_hop_by_hop_fields_are_not_replayed() {
    let headers: &[(&str, &str)] = &[
        ("connection", "x-internal, close"),
        ("x-internal", "secret"),
        ("keep-alive", "timeout=5"),
        ("x-kept", "yes"),
    ];
    let (app, _) = answering(StampedeGuard::new(), StatusCode::OK, headers);
    ask(&app, request("/")).await;
    let hit = ask(&app, request("/")).await;
    for name in ["connection", "x-internal", "keep-alive"] {
        assert!(!hit.headers().contains_key(name), "{name}");
    }
    assert_eq!(
        (&hit.headers()["x-kept"], &hit.headers()["age"]),
        (&"yes".parse().unwrap(), &"0".parse().unwrap())
    );
}

#[tokio::test]
async fn point_09_what_is_stored_is_bounded_in_bytes() {
    let guard = StampedeGuard::builder().max_stored_bytes(1_000_000).build().unwrap();
    let handler = || async {
        [(header::CACHE_CONTROL, "max-age=60")].into_response().map(|_| Body::from(vec![0; 100_000]))
    };
    let app = Router::new().fallback(get(handler)).layer(guard.clone());
    for page in 0..100 {
        ask(&app, request(&format!("/{page}"))).await;
    }
    let stats = guard.stats();
    assert!(stats.bytes <= 1_000_000 && stats.entries <= 10, "{stats:?}");
    assert!(stats.entries > 0, "{stats:?}");
}

#[tokio::test]
async fn point_09_waiters_beyond_the_cap_get_503_and_keys_beyond_it_pass() {
    let guard = StampedeGuard::builder().max_waiters_per_key(2).max_in_flight(1).build().unwrap();
    let release = std::sync::Arc::new(tokio::sync::Notify::new());
    let runs = Runs::default();
    let handler = {
        let release = release.clone();
        move |State(runs): State<Runs>, request: Request<Body>| async move {
            runs.add();
            if request.uri().path() == "/slow" {
                release.notified().await;
            }
            "page"
        }
    };
    let app = Router::new().fallback(get(handler)).layer(guard.clone()).with_state(runs.clone());
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let app = app.clone();
            tokio::spawn(async move { ask(&app, request("/slow")).await })
        })
        .collect();
    settle(|| runs.get() == 1 && guard.stats().flights.coalesced == 1).await;
    let refused = ask(&app, request("/slow")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key(header::RETRY_AFTER));
    assert_eq!(ask(&app, request("/other")).await.status(), StatusCode::OK);
    assert_eq!(runs.get(), 2);
    release.notify_waiters();
    for answer in waiting {
        assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn point_09_a_url_keeps_so_many_variants() {
    let guard = StampedeGuard::builder().max_variants(3).build().unwrap();
    let runs = Runs::default();
    let handler = |State(runs): State<Runs>| async move {
        runs.add();
        ([(header::VARY, "user-agent"), (header::CACHE_CONTROL, "max-age=60")], "")
    };
    let app = Router::new().route("/", get(handler)).layer(guard.clone()).with_state(runs.clone());
    for agent in 0..10 {
        ask(&app, with(request("/"), "user-agent", &agent.to_string())).await;
    }
    // Three variants and the signpost to them.
    assert_eq!((runs.get(), guard.stats().entries), (10, 4));
    ask(&app, with(request("/"), "user-agent", "9")).await;
    assert_eq!(runs.get(), 10, "the latest are kept: made-up variants shut nobody out");
    ask(&app, with(request("/"), "user-agent", "0")).await;
    assert_eq!((runs.get(), guard.stats().entries), (11, 4));
}

#[tokio::test]
async fn point_10_a_write_that_succeeds_outdates_its_uri_and_those_it_names() {
    let runs = Runs::default();
    let write = |headers: HeaderMap| async move {
        let status = headers["x-status"].to_str().unwrap().parse().unwrap();
        (
            StatusCode::from_u16(status).unwrap(),
            [(header::LOCATION, "/named"), (header::CONTENT_LOCATION, "http://shop.example/too")],
        )
    };
    let routes = get(count).post(write).put(write);
    let app = Router::new().fallback(routes).layer(StampedeGuard::new()).with_state(runs.clone());
    let all = ["/", "/named", "/too", "/other"];
    let reads = || async {
        let before = runs.get();
        for path in all {
            ask(&app, request(path)).await;
        }
        runs.get() - before
    };
    assert_eq!(reads().await, 4);
    for (name, status, read_anew) in
        [("POST", "201", 3), ("PUT", "303", 3), ("POST", "404", 0), ("POST", "500", 0)]
    {
        ask(&app, with(method(name), "x-status", status)).await;
        assert_eq!(reads().await, read_anew, "{name} {status}");
    }
}

#[tokio::test]
async fn point_10_a_read_from_before_a_write_is_not_seen_after_it() {
    let release = std::sync::Arc::new(tokio::sync::Notify::new());
    let runs = Runs::default();
    let read = {
        let release = release.clone();
        move |State(runs): State<Runs>| async move {
            let run = runs.add();
            if run == 1 {
                release.notified().await;
            }
            run.to_string()
        }
    };
    let app = Router::new()
        .route("/", get(read).post(|| async { StatusCode::NO_CONTENT }))
        .layer(StampedeGuard::new())
        .with_state(runs.clone());
    let early = tokio::spawn({
        let app = app.clone();
        async move { text(ask(&app, request("/")).await).await }
    });
    settle(|| runs.get() == 1).await;
    ask(&app, method("POST")).await;
    assert_eq!(text(ask(&app, request("/")).await).await, "2");
    release.notify_waiters();
    assert_eq!(early.await.unwrap(), "1");
    assert_eq!(text(ask(&app, request("/")).await).await, "2");
}

#[tokio::test]
async fn point_08_personal_trailers_reach_their_own_client_alone() {
    use http_body_util::{BodyExt, StreamBody};
    let handler = || async {
        let mut trailers = HeaderMap::new();
        trailers.insert("set-cookie", "session=1".parse().unwrap());
        trailers.insert("authentication-info", "nextnonce=1".parse().unwrap());
        trailers.insert("x-checksum", "abc".parse().unwrap());
        let frames = [
            http_body::Frame::data(bytes::Bytes::from_static(b"page")),
            http_body::Frame::trailers(trailers),
        ];
        Body::new(StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, std::convert::Infallible>))))
    };
    let app = Router::new().route("/", get(handler)).layer(StampedeGuard::new());
    let trailers = || async {
        let body = ask(&app, request("/")).await.into_body().collect().await.unwrap();
        body.trailers().cloned().unwrap()
    };
    assert_eq!(trailers().await.len(), 3, "the client whose request it was");
    let others = trailers().await;
    assert_eq!((others.len(), &others["x-checksum"]), (1, &"abc".parse().unwrap()));
}

#[tokio::test]
async fn point_05_a_clients_no_store_takes_no_stored_page_from_the_others() {
    let (clock, builder) = clocked();
    let guard = builder.stale_while_revalidate(Duration::from_secs(60)).build().unwrap();
    let (app, runs) = counting(guard.clone());
    ask(&app, request("/")).await;
    clock.advance(Duration::from_millis(1_500));
    let stale = ask(&app, with(request("/"), "cache-control", "no-store")).await;
    assert_eq!(text(stale).await, "1");
    settle(|| runs.get() == 2).await;
    settle_flights(&guard).await;
    assert_eq!(text(ask(&app, request("/")).await).await, "2", "its refresh is kept for the others");
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn point_03_a_request_that_may_have_trailers_goes_straight_through() {
    use http_body_util::StreamBody;
    let (app, runs) = counting(StampedeGuard::new());
    for _ in 0..2 {
        let frames =
            futures_util::stream::iter([Ok::<_, std::convert::Infallible>(
                http_body::Frame::<bytes::Bytes>::trailers(HeaderMap::new()),
            )]);
        ask(&app, Request::get("/").body(Body::new(StreamBody::new(frames))).unwrap()).await;
    }
    assert_eq!(runs.get(), 2);
}
