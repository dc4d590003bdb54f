//! Point 9: caps.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use stampede_guard::StampedeGuard;

use crate::site::{Call, Site, all, answer, data, frames, get, head, numbered, read, secs, until, with};

#[tokio::test]
async fn bytes_stored_stay_under_their_cap() {
    const CAP: u64 = 256 * 1024;
    let site = Site::new(
        |builder| builder.max_stored_bytes(CAP),
        |_| async { answer(200, &[("cache-control", "max-age=60")], vec![b'x'; 10_000]) },
    );
    for page in 0..200 {
        site.ask(get(&format!("/{page}"))).await;
    }
    let stats = site.guard.stats();
    assert!(stats.bytes <= CAP && stats.bytes > CAP / 2, "{stats:?}");
    assert!(stats.entries <= CAP / 10_000, "{stats:?}");
}

#[tokio::test]
async fn keys_and_headers_count_towards_the_cap() {
    const CAP: u64 = 64 * 1024;
    for long_key in [true, false] {
        let site = Site::new(
            |builder| builder.max_stored_bytes(CAP),
            move |_| {
                let long = "h".repeat(if long_key { 1 } else { 4_000 });
                async move { answer(200, &[("x-long", &long), ("cache-control", "max-age=60")], "") }
            },
        );
        for page in 0..100 {
            let key = "k".repeat(if long_key { 4_000 } else { 1 });
            site.ask(with(get(&format!("/{page}")), "x-key", &key)).await;
        }
        let stats = site.guard.stats();
        assert!(stats.bytes <= CAP && stats.entries <= CAP / 4_000, "{stats:?}");
    }
}

#[tokio::test]
async fn markers_count_towards_the_cap() {
    const CAP: u64 = 64 * 1024;
    let site = Site::new(|builder| builder.max_stored_bytes(CAP), numbered([("cache-control", "private")]));
    for page in 0..1_000 {
        site.ask(get(&format!("/{page}"))).await;
    }
    let stats = site.guard.stats();
    assert!(stats.bytes <= CAP && stats.entries <= CAP / 256, "{stats:?}");
}

#[tokio::test]
async fn a_length_beyond_belief_stores_nothing() {
    let site = Site::new(
        |builder| builder.max_body_bytes(u64::MAX),
        |call: Call| async move {
            if call.run > 1 {
                return answer(200, &[], "own");
            }
            let (sender, body) = frames(None);
            tokio::spawn(async move { sender.closed().await });
            let length = u64::MAX.to_string();
            answer(200, &[("content-length", &length), ("cache-control", "max-age=60")], body)
        },
    );
    let (one, other) = tokio::join!(site.response(get("/")), site.response(get("/")));
    assert_eq!((one.status(), other.status()), (axum::http::StatusCode::OK, axum::http::StatusCode::OK));
    drop((one, other));
    site.settled(1).await;
    // Nobody waits for what no memory holds.
    assert_eq!(site.runs(), 2);
    assert_eq!(site.ask(get("/")).await.body, "own");
}

/// Room that another body holds for a while tells nothing of this one.
#[tokio::test]
async fn a_budget_that_is_full_for_a_while_leaves_nothing_behind() {
    for is_known in [true, false] {
        let site = Site::new(
            |builder| builder.max_stored_bytes(1_000).stale_if_error(secs(60)),
            move |call: Call| async move {
                let is_large = call.parts.uri.path() == "/large";
                let text = if is_large { "x".repeat(1_000) } else { call.run.to_string() };
                let (sender, body) = frames((is_known || is_large).then_some(text.len() as u64));
                let gate = call.gate();
                tokio::spawn(async move {
                    if is_large {
                        gate.await;
                    }
                    sender.send(Ok(http_body::Frame::data(text.into())))
                });
                answer(if call.run == 4 { 500 } else { 200 }, &[("cache-control", "max-age=5")], body)
            },
        );
        assert_eq!(site.ask(get("/")).await.body, "1");
        site.clock.advance(secs(6));
        let large = site.response(get("/large")).await;
        assert_eq!(site.ask(get("/")).await.body, "3");
        // What was stored is there still.
        assert_eq!(site.ask(get("/")).await.body, "1", "known length: {is_known}");
        assert_eq!(site.runs(), 4);
        site.open(1);
        assert_eq!(read(large).await.body.len(), 1_000);
        site.clock.advance(secs(1));
        for _ in 0..2 {
            assert_eq!(site.ask(get("/")).await.body, "5", "known length: {is_known}");
        }
    }
}

#[tokio::test]
async fn a_body_that_all_of_the_store_could_not_hold_is_known_for_it() {
    let long = || "x".repeat(1_001);
    let site = Site::new(
        |builder| builder.max_stored_bytes(1_000),
        move |_| async move { answer(200, &[], long()) },
    );
    for runs in 1..4 {
        assert_eq!(site.ask(get("/")).await.body.len(), 1_001);
        assert_eq!((site.runs(), site.guard.stats().unshared), (runs, runs as u64 - 1));
    }
}

fn gated() -> impl Fn(Call) -> std::pin::Pin<Box<dyn Future<Output = axum::http::Response<Body>> + Send>>
+ Clone
+ Send
+ Sync
+ 'static {
    |call: Call| {
        Box::pin(async move {
            call.gate().await;
            answer(200, &[("cache-control", "max-age=5")], call.run.to_string())
        })
    }
}

#[tokio::test]
async fn keys_in_flight_beyond_the_cap_pass() {
    let site = Site::new(|builder| builder.max_in_flight(2), gated());
    let mut asked = Vec::new();
    for uri in ["/1", "/2", "/3", "/3"] {
        // Every one runs: the last two are not even shared with one another.
        asked.push(site.lead(get(uri)).await);
    }
    // Those in flight are still joined.
    asked.extend(site.follow([get("/1"), get("/2")]).await);
    site.open(4);
    assert!(all(asked).await.iter().all(|got| got.status == 200));
    assert_eq!(site.runs(), 4);
    // What passed was not stored, and the cap is free again.
    site.open(1);
    let got = site.ask(get("/3")).await;
    assert_eq!((got.body.as_str(), site.guard.stats().entries), ("5", 3));
}

#[tokio::test]
async fn waiters_beyond_the_cap_are_told_to_come_back() {
    let site = Site::new(|builder| builder.max_waiters_per_key(3), gated());
    let leader = site.lead(get("/")).await;
    let followers = site.follow([get("/"), get("/")]).await;
    let got = site.ask(get("/")).await;
    assert_eq!((got.status.as_u16(), got.header("retry-after")), (503, Some("1")));
    assert_eq!(got.header("cache-control"), Some("no-store"));
    site.open(1);
    assert_eq!(leader.await.unwrap().body, "1");
    assert!(all(followers).await.iter().all(|got| got.body == "1"));
    assert_eq!((site.runs(), site.guard.stats().refused), (1, 1));
}

#[tokio::test]
async fn waiters_beyond_the_cap_get_what_is_stale() {
    let site = Site::new(|builder| builder.max_waiters_per_key(1).stale_if_error(secs(60)), gated());
    site.open(1);
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    let leader = site.lead(get("/")).await;
    let got = site.ask(get("/")).await;
    assert_eq!((got.status.as_u16(), got.body.as_str(), got.header("age")), (200, "1", Some("6")));
    site.open(1);
    assert_eq!(leader.await.unwrap().body, "2");
}

/// A handler that runs, or waits to.
struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn abandoned_runs_stay_under_their_cap() {
    let alive = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (counted, highest) = (Arc::clone(&alive), Arc::clone(&most));
    let site = Site::new(
        |builder| builder.max_abandoned(3),
        move |call: Call| {
            highest.fetch_max(counted.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let alive = Alive(Arc::clone(&counted));
            async move {
                call.gate().await;
                drop(alive);
                answer(200, &[("cache-control", "max-age=60")], "x")
            }
        },
    );
    for page in 0..20 {
        let client = site.lead(get(&format!("/{page}"))).await;
        client.abort();
        let _ = client.await;
        until(|| alive.load(Ordering::SeqCst) <= 3).await;
    }
    assert_eq!((alive.load(Ordering::SeqCst), most.load(Ordering::SeqCst)), (3, 4));
    // They fill the store for those who come later.
    site.open(3);
    site.settled(20).await;
    assert_eq!((alive.load(Ordering::SeqCst), site.guard.stats().entries), (0, 3));
}

#[tokio::test]
async fn refreshes_beyond_the_cap_are_left_to_later_requests() {
    let site = Site::new(
        |builder| builder.max_abandoned(2).stale_while_revalidate(secs(60)),
        |call: Call| async move {
            if call.run > 5 {
                call.gate().await;
            }
            answer(200, &[("cache-control", "max-age=5")], call.run.to_string())
        },
    );
    let pages: Vec<_> = (0..5).map(|page| format!("/{page}")).collect();
    for page in &pages {
        site.ask(get(page)).await;
    }
    site.clock.advance(secs(6));
    for page in &pages {
        assert_eq!(site.ask(get(page)).await.header("age"), Some("6"));
    }
    site.settled(7).await;
    assert_eq!((site.runs(), site.guard.stats().refreshes), (7, 2));
}

#[test]
fn every_cap_has_a_floor() {
    let refused = |build: Result<StampedeGuard, stampede_guard::ConfigError>| build.unwrap_err().field();
    assert_eq!(refused(StampedeGuard::builder().max_stored_bytes(0).build()), "max_stored_bytes");
    assert_eq!(refused(StampedeGuard::builder().max_body_bytes(0).build()), "max_body_bytes");
    assert_eq!(refused(StampedeGuard::builder().max_in_flight(0).build()), "max_in_flight");
    assert_eq!(refused(StampedeGuard::builder().max_waiters_per_key(0).build()), "max_waiters_per_key");
    assert_eq!(refused(StampedeGuard::builder().max_variants(0).build()), "max_variants");
    assert_eq!(refused(StampedeGuard::builder().key_headers(["x y"]).build()), "key_headers");
    assert_eq!(refused(StampedeGuard::builder().ignore_header("\n").build()), "ignore_header");
}

/// Its length is the page's, and none of it comes.
#[tokio::test]
async fn heads_of_what_is_over_the_body_cap_wait_for_one_run() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            call.gate().await;
            answer(200, &[("content-length", "10000000")], Body::empty())
        },
    );
    let leader = site.lead(head("/")).await;
    let mut heads = site.follow((0..5).map(|_| head("/"))).await;
    site.open(1);
    heads.push(leader);
    for got in all(heads).await {
        assert_eq!(got.header("content-length"), Some("10000000"));
    }
    assert_eq!(site.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_changes_its_key_waits_no_longer_in_all() {
    let site = Site::new(
        |builder| builder.key_headers([]).wait_timeout(secs(10)),
        |_: Call| async move {
            tokio::time::sleep(secs(9)).await;
            answer(200, &[("vary", "user-agent")], "page")
        },
    );
    let by = |client: &str| with(get("/"), "user-agent", client);
    let began = tokio::time::Instant::now();
    let leader = site.lead(by("a")).await;
    // Of another variant: once that is known one of them leads, and the other waits again.
    let others = site.follow([by("b"), by("b")]).await;
    let got = all(others).await;
    let statuses: Vec<_> = got.iter().map(|got| got.status.as_u16()).collect();
    assert!(statuses.contains(&504) && statuses.contains(&200), "{statuses:?}");
    assert_eq!(leader.await.unwrap().status, 200);
    assert!(began.elapsed() < secs(19), "{:?}", began.elapsed());
}

#[tokio::test]
async fn trailers_count_towards_the_cap() {
    const CAP: u64 = 64 * 1024;
    for is_known in [true, false] {
        let site = Site::new(
            |builder| builder.max_stored_bytes(CAP),
            move |_| async move {
                let (sender, body) = frames(is_known.then_some(1));
                tokio::spawn(async move {
                    tokio::task::yield_now().await;
                    let long = "t".repeat(4_000).parse().unwrap();
                    let trailers = [("x-long".parse().unwrap(), long)].into_iter().collect();
                    let _ = sender.send(data("x"));
                    let _ = sender.send(Ok(http_body::Frame::trailers(trailers)));
                });
                answer(200, &[("cache-control", "max-age=60")], body)
            },
        );
        for page in 0..100 {
            site.ask(get(&format!("/{page}"))).await;
        }
        let stats = site.guard.stats();
        assert!(stats.bytes <= CAP && stats.entries <= CAP / 4_000, "known length: {is_known}, {stats:?}");
        assert!(stats.entries > 0, "{stats:?}");
    }
}

/// The way to the variants of a URL holds their keys.
#[tokio::test]
async fn keys_of_variants_count_with_their_signpost() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            let vary = if call.header("via").is_empty() { "referer" } else { "user-agent" };
            answer(200, &[("cache-control", "max-age=60"), ("vary", vary)], "x")
        },
    );
    let by = |agent: &str| {
        let request = with(with(get("/"), "via", "x"), "referer", "r");
        with(request, "user-agent", agent)
    };
    site.ask(with(get("/"), "referer", "another")).await;
    site.ask(by("")).await;
    let before = site.guard.stats();
    for agent in 0..10 {
        site.ask(by(&format!("{agent}{}", "u".repeat(6_000)))).await;
    }
    let stats = site.guard.stats();
    let grown = stats.bytes - before.bytes;
    assert!(grown > 2 * 10 * 6_000, "once with each page, once with the signpost: {grown}, {stats:?}");
}
