//! What the operator asks for: invalidation by hand and by write (RFC 9111 section 4.4), tags, guards that share a store,
//! `Cache-Status` (RFC 9211), targeted fields (RFC 9213) and the directives of clients (RFC 9111 section 5.2.1).

#[allow(dead_code)]
#[path = "security/site.rs"]
mod site;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, Uri};
use axum::routing::get as on_get;
use http_body_util::BodyExt;
use site::{Call, Site, all, answer, get, head, numbered, request, secs, until, with};
use stampede_guard::{ManualClock, StampedeGuard, StampedeGuardBuilder};
use tower::{Layer, Service, ServiceExt};

const MINUTE: (&str, &str) = ("cache-control", "max-age=60");

fn shared_cache(builder: StampedeGuardBuilder) -> StampedeGuardBuilder {
    builder.coalesce_only().key_headers([])
}

#[tokio::test]
async fn a_head_that_confirms_a_page_brings_its_tags() {
    let site = Site::new(
        |builder| shared_cache(builder).tag_header("cache-tag"),
        |call: Call| {
            let tag = if call.parts.method == "HEAD" { "blue" } else { "red" };
            let headers = [("cache-control", "max-age=5"), ("etag", "\"v1\""), ("cache-tag", tag)];
            std::future::ready(answer(200, &headers, call.run.to_string()))
        },
    );
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    site.ask(head("/")).await;
    assert_eq!((site.ask(get("/")).await.body.as_str(), site.runs()), ("1", 2));
    site.guard.invalidate_tag("blue");
    assert_eq!(site.ask(get("/")).await.body, "3");
}

// RFC 9111 section 4.4, and by hand.

#[tokio::test]
async fn section_4_4_a_write_that_succeeds_voids_its_uri_and_those_it_names() {
    for method in ["POST", "PUT", "DELETE", "M-SEARCH"] {
        let site = Site::new(shared_cache, |call: Call| {
            let headers = [MINUTE, ("location", "/named"), ("content-location", "http://shop.example/too")];
            let status = if call.header("x-fails").is_empty() { 200 } else { 500 };
            std::future::ready(answer(status, &headers, call.run.to_string()))
        });
        let pages = ["/", "/named", "/too", "/other"];
        for page in pages {
            site.ask(get(page)).await;
        }
        site.ask(with(request(method, "/"), "x-fails", "1")).await;
        for (page, run) in pages.iter().zip(["1", "2", "3", "4"]) {
            assert_eq!(site.ask(get(page)).await.body, run, "{method} that failed: {page}");
        }
        site.ask(request(method, "/")).await;
        for (page, run) in pages.iter().zip(["7", "8", "9", "4"]) {
            assert_eq!(site.ask(get(page)).await.body, run, "{method}: {page}");
        }
    }
}

#[tokio::test]
async fn a_write_whose_client_went_away_voids_its_uri() {
    let site = Site::new(shared_cache, |call: Call| async move {
        if call.parts.method == "POST" {
            call.gate().await;
        }
        answer(200, &[MINUTE], call.run.to_string())
    });
    site.ask(get("/")).await;
    let write = site.lead(request("POST", "/")).await;
    assert_eq!(site.ask(get("/")).await.body, "1", "nothing has happened yet");
    write.abort();
    assert!(write.await.is_err());
    assert_eq!(site.ask(get("/")).await.body, "3", "whether it did, nobody knows");
}

#[tokio::test]
async fn many_writes_to_other_pages_leave_a_page_alone() {
    let site = Site::new(shared_cache, numbered([MINUTE]));
    site.ask(get("/kept")).await;
    for page in 0..5_000 {
        site.guard.invalidate(format!("http://shop.example/{page}")).unwrap();
    }
    assert_eq!(site.ask(get("/kept")).await.body, "1");
}

#[tokio::test]
async fn a_uri_is_invalidated_with_all_its_variants_on_one_host_or_on_all() {
    let site = Site::new(|builder| builder, numbered([MINUTE, ("vary", "foo")]));
    let ask = async |uri: &str, foo: &str| site.ask(with(get(uri), "foo", foo)).await.body;
    for (foo, run) in [("a", "1"), ("b", "2")] {
        assert_eq!(ask("/x?y", foo).await, run);
    }
    for other in ["/x", "/x?Y", "http://other.example/x?y", "https://shop.example:8443/x?y"] {
        site.guard.invalidate(other).unwrap();
    }
    assert_eq!(ask("/x?y", "a").await, "1");
    site.guard.invalidate("http://SHOP.example:80/x?y").unwrap();
    assert_eq!((ask("/x?y", "a").await, ask("/x?y", "b").await), ("3".to_owned(), "4".to_owned()));
    site.guard.invalidate(Uri::from_static("/x?y")).unwrap();
    assert_eq!(ask("/x?y", "a").await, "5");
    assert!(site.guard.invalidate("no uri").is_err());
}

#[tokio::test]
async fn an_invalidation_wins_over_what_is_under_way() {
    type Invalidate = fn(&StampedeGuard);
    let all_ways: [Invalidate; 3] = [
        |guard| drop(guard.invalidate("/").unwrap()),
        |guard| drop(guard.invalidate_tag("shoes")),
        |guard| drop(guard.invalidate_all()),
    ];
    for invalidate in all_ways {
        let site = Site::new(
            |builder| shared_cache(builder).tag_header("cache-tag"),
            |call: Call| async move {
                call.gate().await;
                answer(200, &[MINUTE, ("cache-tag", "shoes")], call.run.to_string())
            },
        );
        let leader = site.lead(get("/")).await;
        invalidate(&site.guard);
        let after = site.start(get("/"));
        let boarded = || {
            let flights = site.guard.stats().flights;
            flights.coalesced + flights.loads
        };
        until(|| boarded() == 2).await;
        site.open(2);
        assert_eq!(all(vec![leader]).await[0].body, "1");
        assert_eq!(all(vec![after]).await[0].body, "2", "it came after the invalidation");
        assert_eq!(site.ask(get("/")).await.body, "2");
    }
}

#[tokio::test]
async fn what_was_voided_while_a_run_failed_is_not_served_in_its_place() {
    for voided in [false, true] {
        let site = Site::new(
            |builder| shared_cache(builder).tag_header("cache-tag").stale_if_error(secs(60)),
            |call: Call| async move {
                call.gate().await;
                let status = if call.run == 1 { 200 } else { 503 };
                answer(status, &[("cache-control", "max-age=5"), ("cache-tag", "red")], call.run.to_string())
            },
        );
        site.open(1);
        site.ask(get("/")).await;
        site.clock.advance(secs(6));
        let asked = site.lead(get("/")).await;
        if voided {
            site.guard.invalidate_tag("red");
        }
        site.open(1);
        let got = &all(vec![asked]).await[0];
        assert_eq!(got.status.as_u16(), if voided { 503 } else { 200 });
    }
}

#[tokio::test]
async fn a_tag_voids_what_carries_it_and_no_client_sees_it() {
    let site = Site::new(
        |builder| shared_cache(builder).tag_header("Surrogate-Key"),
        |call: Call| {
            let tags = call.parts.uri.query().unwrap_or_default().replace('+', " ");
            let headers = [MINUTE, ("surrogate-key", tags.as_str()), ("etag", "\"v\"")];
            let status = if call.header("if-none-match").is_empty() { 200 } else { 304 };
            let cookie: &[(&str, &str)] =
                if call.parts.uri.path() == "/mine" { &[("set-cookie", "a=b")] } else { &[] };
            std::future::ready(answer(status, &[&headers, cookie].concat(), call.run.to_string()))
        },
    );
    let pages = ["/a?red+shoes", "/b?red,hats", "/c?", "/mine?red"];
    for page in pages.iter().chain(&pages) {
        assert!(!site.ask(get(page)).await.headers.contains_key("surrogate-key"), "{page}");
    }
    assert!(!site.ask(request("POST", "/d?red")).await.headers.contains_key("surrogate-key"));
    let runs = site.runs();
    site.guard.invalidate_tag("shoes");
    site.ask(get(pages[1])).await;
    assert_eq!(site.runs(), runs);
    site.ask(get(pages[0])).await;
    assert_eq!(site.runs(), runs + 1);
    site.guard.invalidate_tag("red");
    for page in &pages[..3] {
        site.ask(get(page)).await;
    }
    assert_eq!(site.runs(), runs + 3);
}

#[tokio::test]
async fn a_tag_voids_what_guards_at_two_depths_have_made_of_it() {
    for is_derived in [false, true] {
        let guard = StampedeGuard::builder().ttl(secs(100)).tag_header("cache-tag").build().unwrap();
        let inner = if is_derived { guard.derive().ttl(secs(50)).build().unwrap() } else { guard.clone() };
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let handler = move || async move {
            ([("cache-tag", "shoes")], counted.fetch_add(1, Ordering::SeqCst).to_string())
        };
        let inside = Router::new().route("/page", on_get(handler)).layer(inner);
        let app = Router::new().nest("/shop", inside).layer(guard.clone());
        let ask = || async {
            let response = app.clone().oneshot(get("/shop/page")).await.unwrap();
            assert!(!response.headers().contains_key("cache-tag"));
            site::read(response).await.body
        };
        for run in ["0", "0", "1", "1"] {
            if run == "1" && runs.load(Ordering::SeqCst) == 1 {
                guard.invalidate_tag("shoes");
            }
            assert_eq!(ask().await, run, "derived: {is_derived}");
        }
    }
}

/// A service whose copy, which is made once the stored page has been found, voids that.
struct Voids {
    guard: StampedeGuard,
    is_armed: Arc<AtomicBool>,
}

impl Clone for Voids {
    fn clone(&self) -> Self {
        if self.is_armed.swap(false, Ordering::SeqCst) {
            self.guard.invalidate_tag("red");
        }
        Self { guard: self.guard.clone(), is_armed: Arc::clone(&self.is_armed) }
    }
}

impl Service<Request<Body>> for Voids {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let status = if request.headers().contains_key("if-none-match") { 304 } else { 200 };
        let told = [("cache-control", "max-age=5"), ("etag", "\"v\""), ("cache-tag", "red")];
        ready(Ok(answer(status, &told, status.to_string())))
    }
}

#[tokio::test]
async fn a_page_that_is_voided_before_the_handler_runs_is_not_asked_about() {
    let clock = ManualClock::new();
    let guard = StampedeGuard::builder().jitter(0.0).clock(clock.clone()).tag_header("cache-tag");
    let guard = guard.cache_status("shop").build().unwrap();
    let is_armed = Arc::new(AtomicBool::new(false));
    let service = guard.layer(Voids { guard: guard.clone(), is_armed: Arc::clone(&is_armed) });
    for (voids, forwarded) in [(false, "fwd-status=200"), (false, "fwd-status=304"), (true, "fwd-status=200")]
    {
        let service = service.clone();
        is_armed.store(voids, Ordering::SeqCst);
        let response = service.oneshot(get("/")).await.unwrap();
        assert!(!is_armed.load(Ordering::SeqCst));
        let told = response.headers()["cache-status"].to_str().unwrap();
        assert!(told.contains(forwarded), "{told}");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "200");
        clock.advance(secs(6));
    }
}

#[tokio::test]
async fn a_page_that_was_confirmed_keeps_its_tags() {
    let site = Site::new(
        |builder| shared_cache(builder).tag_header("cache-tag"),
        |call: Call| {
            let first = [("cache-control", "max-age=5"), ("etag", "\"v\""), ("cache-tag", "red")];
            std::future::ready(if call.header("if-none-match").is_empty() {
                answer(200, &first, call.run.to_string())
            } else {
                answer(304, &first[..2], Body::empty())
            })
        },
    );
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    assert_eq!(site.ask(get("/")).await.body, "1");
    site.guard.invalidate_tag("red");
    assert_eq!(site.ask(get("/")).await.body, "3");
}

// Guards on routes.

#[tokio::test]
async fn derived_guards_share_one_store_and_have_their_own_times() {
    let clock = stampede_guard::ManualClock::new();
    let guard = StampedeGuard::builder().jitter(0.0).clock(clock.clone()).ttl(secs(5)).build().unwrap();
    let patient = guard.derive().ttl(secs(50)).stale_while_revalidate(secs(0)).build().unwrap();
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let handler = move || {
        let runs = std::sync::Arc::clone(&runs);
        async move { (runs.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1).to_string() }
    };
    let app: Router = Router::new()
        .route("/quick", on_get(handler.clone()).layer(guard.clone()))
        .route("/slow", on_get(handler).layer(patient.clone()));
    let ask = async |uri: &str| site::read(app.clone().oneshot(get(uri)).await.unwrap()).await.body;
    assert_eq!((ask("/quick").await.as_str(), ask("/slow").await.as_str()), ("1", "2"));
    clock.advance(secs(7));
    assert_eq!((ask("/quick").await.as_str(), ask("/slow").await.as_str()), ("3", "2"));
    assert_eq!(guard.stats(), patient.stats());
    assert_eq!(guard.stats().entries, 2);
    guard.invalidate("/slow").unwrap();
    assert_eq!(ask("/slow").await, "4");
    patient.invalidate_all();
    assert_eq!(ask("/quick").await, "5");
}

#[test]
fn what_is_the_stores_is_not_set_on_a_derived_guard() {
    let guard = StampedeGuard::new();
    let set: [(&str, StampedeGuardBuilder); 7] = [
        ("jitter", guard.derive().jitter(0.5)),
        ("max_stored_bytes", guard.derive().max_stored_bytes(1)),
        ("max_in_flight", guard.derive().max_in_flight(1)),
        ("max_waiters_per_key", guard.derive().max_waiters_per_key(1)),
        ("max_abandoned", guard.derive().max_abandoned(1)),
        ("clock", guard.derive().clock(stampede_guard::ManualClock::new())),
        ("seed", guard.derive().seed(1)),
    ];
    for (field, builder) in set {
        assert_eq!(builder.build().unwrap_err().field(), field);
    }
    assert!(guard.derive().ttl(secs(9)).max_variants(3).build().is_ok());
}

#[test]
fn settings_that_say_something_impossible_are_named() {
    let wrong: [(&str, StampedeGuardBuilder); 6] = [
        ("cache_status", StampedeGuard::builder().cache_status("")),
        ("tag_header", StampedeGuard::builder().tag_header("a b")),
        ("targeted_cache_control", StampedeGuard::builder().targeted_cache_control("")),
        ("heuristic_freshness", StampedeGuard::builder().heuristic_freshness(0.0)),
        ("heuristic_freshness", StampedeGuard::builder().heuristic_freshness(f64::NAN)),
        ("heuristic_freshness", StampedeGuard::builder().heuristic_freshness(1.1)),
    ];
    for (field, builder) in wrong {
        assert_eq!(builder.build().unwrap_err().field(), field);
    }
}

// RFC 9211.

fn told(site: &Site, request: Request<Body>) -> impl Future<Output = String> {
    let site = site.clone();
    async move {
        let got = site.ask(request).await;
        let lines = got.headers.get_all("cache-status");
        lines.iter().map(|line| line.to_str().unwrap()).collect::<Vec<_>>().join(", ")
    }
}

#[tokio::test]
async fn rfc_9211_says_what_became_of_each_request() {
    let site = Site::new(
        |builder| shared_cache(builder).cache_status("shop"),
        |call: Call| {
            let headers = [("cache-control", "max-age=5, stale-while-revalidate=5"), ("vary", "foo")];
            let personal = [("cache-control", "no-store")];
            let headers = if call.parts.uri.path() == "/mine" { &personal[..] } else { &headers };
            std::future::ready(answer(200, headers, ""))
        },
    );
    assert_eq!(told(&site, get("/")).await, "shop; fwd=uri-miss; fwd-status=200; ttl=5; stored");
    site.clock.advance(secs(2));
    assert_eq!(told(&site, get("/")).await, "shop; hit; ttl=3");
    assert_eq!(told(&site, head("/")).await, "shop; hit; ttl=3");
    assert_eq!(
        told(&site, with(get("/"), "foo", "x")).await,
        "shop; fwd=vary-miss; fwd-status=200; ttl=5; stored"
    );
    site.clock.advance(secs(4));
    assert_eq!(told(&site, get("/")).await, "shop; hit; ttl=-1");
    site.settled(3).await;
    site.clock.advance(secs(11));
    assert_eq!(told(&site, get("/")).await, "shop; fwd=stale; fwd-status=200; ttl=5; stored");
    assert_eq!(told(&site, request("POST", "/")).await, "shop; fwd=method; fwd-status=200");
    assert_eq!(told(&site, with(get("/"), "authorization", "x")).await, "shop; fwd=bypass; fwd-status=200");
    for _ in 0..2 {
        assert_eq!(told(&site, get("/mine")).await, "shop; fwd=uri-miss; fwd-status=200");
    }
}

#[tokio::test]
async fn rfc_9211_the_guards_own_answers_say_why() {
    let settings = |builder| {
        let patience = std::time::Duration::from_millis(20);
        shared_cache(builder).cache_status("shop").wait_timeout(patience)
    };
    let site = Site::new(settings, |call: Call| async move {
        call.gate().await;
        answer(200, &[MINUTE], "")
    });
    let stored_only = with(get("/"), "cache-control", "only-if-cached");
    assert_eq!(told(&site, stored_only).await, "shop; detail=not-stored");
    let leader = site.lead(get("/")).await;
    assert_eq!(told(&site, get("/")).await, "shop; detail=too-slow");
    site.open(1);
    all(vec![leader]).await;
}

#[tokio::test]
async fn rfc_9211_a_question_is_asked_about_what_is_stale() {
    for word in ["no-cache", "max-age=0"] {
        let site = Site::new(
            |builder| shared_cache(builder).cache_status("shop"),
            move |call: Call| {
                let asks = !call.header("if-none-match").is_empty();
                let headers = [("cache-control", word), ("etag", "\"v\"")];
                std::future::ready(answer(if asks { 304 } else { 200 }, &headers, ""))
            },
        );
        assert!(told(&site, get("/")).await.starts_with("shop; fwd=uri-miss; fwd-status=200;"), "{word}");
        let again = told(&site, get("/")).await;
        assert!(
            again.starts_with("shop; fwd=stale; fwd-status=304;") && again.ends_with("; stored"),
            "{again}"
        );
    }
}

#[tokio::test]
async fn rfc_9211_those_who_waited_were_collapsed_and_by_default_nobody_is_told() {
    let gated = |call: Call| async move {
        call.gate().await;
        answer(200, &[MINUTE, ("cache-status", "origin; hit")], "")
    };
    let site = Site::new(|builder| shared_cache(builder).cache_status("my shop"), gated);
    let leader = site.lead(get("/")).await;
    let follower = site.follow([get("/")]).await;
    site.open(1);
    let told: Vec<_> = all(vec![leader])
        .await
        .into_iter()
        .chain(all(follower).await)
        .map(|got| {
            got.headers
                .get_all("cache-status")
                .iter()
                .map(|line| line.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    let lines = |own: &str| vec!["origin; hit".to_owned(), own.to_owned()];
    let expected: [Vec<String>; 2] = [
        lines("\"my shop\"; fwd=uri-miss; fwd-status=200; ttl=60; stored"),
        lines("\"my shop\"; fwd=uri-miss; fwd-status=200; collapsed"),
    ];
    assert_eq!(told, expected);
    let silent = Site::new(shared_cache, numbered([MINUTE]));
    for _ in 0..2 {
        assert!(!silent.ask(get("/")).await.headers.contains_key("cache-status"));
    }
}

// RFC 9213.

#[tokio::test]
async fn rfc_9213_a_targeted_field_counts_before_the_others_if_it_is_valid_and_asked_for() {
    let targeted = |builder| shared_cache(builder).targeted_cache_control("CDN-Cache-Control");
    let stores = async |asked: bool, cdn: &'static str, plain: &'static str| {
        let headers = [("cdn-cache-control", cdn), ("cache-control", plain), ("expires", "0")];
        let settings = if asked { targeted } else { shared_cache };
        let site = Site::new(settings, numbered(headers));
        site.shares(get("/"), get("/")).await
    };
    assert!(stores(true, "max-age=60", "no-store").await);
    assert!(stores(true, "foobar, max-age=60", "max-age=0").await);
    assert!(!stores(false, "max-age=60", "no-store").await);
    for forbids in ["no-store", "private", "no-cache", "max-age=0", "max-age=60, no-store"] {
        assert!(!stores(true, forbids, "max-age=60").await, "{forbids}");
    }
    for invalid in ["", "max-age=60, &&&&&", "max-age=\"60\"", "max-age =60", "MaX-aGe=60"] {
        assert!(!stores(true, invalid, "no-store").await, "{invalid:?}");
        assert!(stores(true, invalid, "max-age=60").await, "{invalid:?}");
    }
}

// RFC 9111 section 5.2.1.

fn aged(settings: fn(StampedeGuardBuilder) -> StampedeGuardBuilder) -> Site {
    Site::new(settings, numbered([("cache-control", "max-age=20"), ("etag", "\"v\"")]))
}

fn asking(words: &str) -> Request<Body> {
    with(get("/"), "cache-control", words)
}

#[tokio::test]
async fn section_5_2_1_clients_are_heard_only_if_the_operator_says_so() {
    for words in ["no-cache", "max-age=0", "max-age=9", "min-fresh=11"] {
        let deaf = aged(shared_cache);
        let hearing = aged(|builder| shared_cache(builder).honor_client_directives(true));
        for (site, runs) in [(deaf, 1), (hearing, 2)] {
            site.ask(get("/")).await;
            site.clock.advance(secs(10));
            site.ask(asking(words)).await;
            assert_eq!(site.runs(), runs, "{words}");
            site.ask(with(asking(words), "range", "bytes=0-0")).await;
        }
    }
    let site = aged(|builder| shared_cache(builder).honor_client_directives(true));
    site.ask(get("/")).await;
    site.clock.advance(secs(10));
    for words in ["max-age=10", "min-fresh=10", "max-stale", "no-transform", ""] {
        assert_eq!(site.ask(asking(words)).await.body, "1", "{words}");
    }
    // A reload is a question, and others profit.
    site.ask(asking("no-cache")).await;
    assert_eq!(site.last_seen().headers["if-none-match"], "\"v\"");
    assert_eq!(site.ask(get("/")).await.body, "2");
}

#[tokio::test]
async fn section_5_2_1_2_max_stale_takes_what_is_old_unless_the_origin_forbids_it() {
    let hearing = |builder| shared_cache(builder).honor_client_directives(true);
    for (word, served) in [("max-age=5", true), ("max-age=5, must-revalidate", false), ("s-maxage=5", false)]
    {
        let site = Site::new(hearing, move |call: Call| {
            let headers = [("cache-control", word), ("etag", "\"v\"")];
            std::future::ready(answer(200, &headers, call.run.to_string()))
        });
        site.ask(get("/")).await;
        site.clock.advance(secs(15));
        assert_eq!(site.ask(asking("max-stale=10")).await.body == "1", served, "{word}");
    }
    let site = Site::new(hearing, numbered([("cache-control", "max-age=5"), ("etag", "\"v\"")]));
    site.ask(get("/")).await;
    site.clock.advance(secs(16));
    assert_eq!(site.ask(asking("max-stale=10")).await.body, "2");
}

#[tokio::test]
async fn clients_that_reload_share_one_run() {
    let site = Site::new(
        |builder| shared_cache(builder).honor_client_directives(true).cache_status("shop"),
        |call: Call| async move {
            if call.run > 1 {
                call.gate().await;
            }
            answer(200, &[MINUTE], call.run.to_string())
        },
    );
    site.ask(get("/")).await;
    let leader = site.lead(asking("no-cache")).await;
    let others = site.follow((0..99).map(|_| asking("no-cache"))).await;
    assert_eq!(site.ask(get("/")).await.body, "1", "the others are not held up");
    site.open(1);
    let got = all(vec![leader]).await;
    assert_eq!(got[0].header("cache-status"), Some("shop; fwd=request; fwd-status=200; ttl=60; stored"));
    assert!(all(others).await.iter().all(|got| got.body == "2"));
    until(|| site.runs() == 2).await;
}

/// Who asks for a newer page than the fresh one learns that there is none; what is stored stays.
#[tokio::test]
async fn section_5_2_1_4_no_cache_is_not_answered_with_the_old_page_when_the_handler_fails() {
    let site = Site::new(
        |builder| shared_cache(builder).honor_client_directives(true).stale_if_error(secs(60)),
        |call: Call| async move {
            if call.run == 2 { answer(500, &[], "2") } else { answer(200, &[MINUTE], call.run.to_string()) }
        },
    );
    site.ask(get("/")).await;
    let got = site.ask(with(get("/"), "cache-control", "no-cache")).await;
    assert_eq!((got.status.as_u16(), got.body.as_str()), (500, "2"));
    assert_eq!(site.ask(get("/")).await.body, "1");
}

/// RFC 9211 section 2.1: a hit is what was not forwarded.
#[tokio::test]
async fn a_stale_answer_after_a_failure_is_no_hit() {
    let site = Site::new(
        |builder| shared_cache(builder).cache_status("shop"),
        |call: Call| async move {
            if call.run > 1 {
                call.gate().await;
            }
            let lasts = [("cache-control", "max-age=5, stale-if-error=60")];
            answer(if call.run > 1 { 500 } else { 200 }, &lasts, "")
        },
    );
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    let mut asked = vec![site.lead(get("/")).await];
    asked.extend(site.follow([get("/")]).await);
    site.open(1);
    let got = all(asked).await;
    let told: Vec<_> = got.iter().map(|got| got.header("cache-status").unwrap()).collect();
    assert_eq!(told, ["shop; fwd=stale; ttl=-1", "shop; fwd=stale; ttl=-1; collapsed"]);
}
