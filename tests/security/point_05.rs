//! Point 5: what is kept, what may be served stale, and what clients cannot ask for.

use std::time::Duration;

use axum::body::Body;
use stampede_guard::StampedeGuardBuilder;

use crate::site::{
    Call, Got, Site, all, answer, bodies, data, frames, get, head, numbered, secs, until, with,
};

/// The operator grants both stale windows to everything.
fn generous(builder: StampedeGuardBuilder) -> StampedeGuardBuilder {
    builder.stale_while_revalidate(secs(60)).stale_if_error(secs(60))
}

/// A page with this `Cache-Control`, whose origin fails from its second run on.
fn failing(control: &'static str) -> Site {
    Site::new(generous, move |call: Call| async move {
        match call.run {
            1 => answer(200, &[("cache-control", control)], "1"),
            _ => answer(500, &[], "down"),
        }
    })
}

async fn after_freshness(control: &'static str) -> Got {
    let site = failing(control);
    assert_eq!(site.ask(get("/")).await.body, "1");
    assert_eq!(site.ask(get("/")).await.body, "1");
    site.clock.advance(secs(6));
    site.ask(get("/")).await
}

#[tokio::test]
async fn stale_is_served_where_nothing_forbids_it() {
    assert_eq!(after_freshness("max-age=5").await.body, "1");
}

macro_rules! forbids_stale {
    ($($test:ident: $control:literal;)*) => {$(
        #[tokio::test]
        async fn $test() {
            let got = after_freshness($control).await;
            assert_eq!((got.status.as_u16(), got.body.as_str()), (500, "down"));
        }
    )*};
}

forbids_stale! {
    must_revalidate_forbids_stale: "max-age=5, must-revalidate";
    proxy_revalidate_forbids_stale: "max-age=5, proxy-revalidate";
    s_maxage_forbids_stale: "s-maxage=5";
    s_maxage_beside_max_age_forbids_stale: "max-age=60, s-maxage=5";
    must_revalidate_beats_a_stated_window: "max-age=5, must-revalidate, stale-while-revalidate=60";
    must_revalidate_beats_stale_if_error: "max-age=5, must-revalidate, stale-if-error=60";
    directives_have_no_case: "max-age=5, Must-Revalidate";
}

#[tokio::test]
async fn s_maxage_beside_a_stale_directive_allows_that_window() {
    assert_eq!(after_freshness("s-maxage=5, stale-while-revalidate=10").await.body, "1");
    assert_eq!(after_freshness("s-maxage=5, stale-if-error=10").await.body, "1");
}

#[tokio::test]
async fn no_cache_is_not_kept_at_all() {
    let site = failing("no-cache, max-age=5, stale-if-error=60");
    site.ask(get("/")).await;
    assert_eq!(site.ask(get("/")).await.status, 500);
}

#[tokio::test]
async fn stale_is_forbidden_to_one_who_waited_too_long_as_well() {
    let site = Site::new(
        |builder| generous(builder).wait_timeout(Duration::from_millis(20)),
        |call: Call| async move {
            if call.run > 1 {
                call.gate().await;
            }
            answer(200, &[("cache-control", "max-age=5, must-revalidate")], call.run.to_string())
        },
    );
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    let leader = site.lead(get("/")).await;
    let followers = site.follow([get("/")]).await;
    assert_eq!(all(followers).await[0].status, 504);
    site.open(1);
    assert_eq!(leader.await.unwrap().body, "2");
}

#[tokio::test]
async fn stale_ends_with_its_window() {
    let site = failing("max-age=5, stale-while-revalidate=10, stale-if-error=20");
    site.ask(get("/")).await;
    site.clock.advance(secs(24));
    assert_eq!(site.ask(get("/")).await.body, "1");
    site.clock.advance(secs(1));
    assert_eq!(site.ask(get("/")).await.status, 500);
}

#[tokio::test]
async fn clients_cannot_force_a_reload() {
    for (name, value) in [
        ("cache-control", "no-cache"),
        ("cache-control", "max-age=0"),
        ("cache-control", "no-store"),
        ("cache-control", "min-fresh=999"),
        ("cache-control", "\"unended"),
        ("pragma", "no-cache"),
    ] {
        let site = Site::new(|builder| builder, numbered([("cache-control", "max-age=60")]));
        assert!(site.shares(get("/"), with(get("/"), name, value)).await, "{name}: {value}");
        assert!(site.shares(with(get("/"), name, value), get("/")).await);
    }
}

#[tokio::test]
async fn clients_cannot_widen_reuse() {
    let site = Site::new(|builder| builder, numbered([("cache-control", "max-age=5")]));
    let lax = || with(get("/"), "cache-control", "max-stale, max-age=999");
    site.ask(lax()).await;
    site.clock.advance(secs(6));
    assert_eq!(site.ask(lax()).await.body, "2");
}

fn no_store() -> axum::http::Request<Body> {
    with(get("/"), "cache-control", "no-store")
}

#[tokio::test]
async fn the_response_to_a_no_store_leader_is_shared_and_not_stored() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            call.gate().await;
            answer(200, &[("cache-control", "max-age=60")], call.run.to_string())
        },
    );
    let leader = site.lead(no_store()).await;
    let followers = site.follow([get("/"), no_store()]).await;
    site.open(1);
    assert_eq!(leader.await.unwrap().body, "1");
    assert_eq!(bodies(&all(followers).await), ["1", "1"]);
    assert_eq!(site.guard.stats().entries, 0);
    site.open(1);
    assert_eq!(site.ask(get("/")).await.body, "2");
    assert_eq!(site.guard.stats().entries, 1);
}

#[tokio::test]
async fn a_no_store_leader_does_not_take_the_stale_page_from_the_others() {
    let site = Site::new(generous, |call: Call| async move {
        match call.run {
            1 | 2 => {
                answer(200, &[("cache-control", "max-age=5, stale-while-revalidate=0")], call.run.to_string())
            }
            _ => answer(500, &[], "down"),
        }
    });
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    assert_eq!(site.ask(no_store()).await.body, "2");
    assert_eq!(site.ask(get("/")).await.body, "1");
}

#[tokio::test]
async fn a_refresh_that_a_no_store_request_set_off_is_stored() {
    let site = Site::new(generous, numbered([("cache-control", "max-age=5")]));
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    assert_eq!(site.ask(no_store()).await.body, "1");
    site.settled(2).await;
    assert_eq!(site.ask(get("/")).await.body, "2");
    assert_eq!(site.runs(), 2);
}

#[tokio::test]
async fn only_if_cached_gets_what_is_stored_or_504() {
    let cached = || with(get("/"), "cache-control", "only-if-cached");
    let site = Site::new(|builder| builder, numbered([("cache-control", "max-age=5")]));
    let got = site.ask(cached()).await;
    assert_eq!((got.status.as_u16(), site.runs()), (504, 0));
    assert_eq!(got.header("cache-control"), Some("no-store"));
    site.ask(get("/")).await;
    assert_eq!(site.ask(cached()).await.body, "1");
    site.clock.advance(secs(6));
    assert_eq!((site.ask(cached()).await.status.as_u16(), site.runs()), (504, 1));
}

#[tokio::test]
async fn only_if_cached_gets_504_where_the_request_would_go_straight_through() {
    let site = Site::new(|builder| builder, numbered([("cache-control", "max-age=5")]));
    site.ask(get("/")).await;
    let long = "a".repeat(9_000);
    for (name, value) in [("authorization", "x"), ("cookie", "a=1"), ("if-match", "*"), ("x-long", &long)] {
        let got = site.ask(with(with(get("/"), "cache-control", "only-if-cached"), name, value)).await;
        assert_eq!((got.status.as_u16(), site.runs()), (504, 1), "{name}");
    }
}

#[tokio::test]
async fn only_if_cached_gets_504_where_responses_are_each_clients_own() {
    let site = Site::new(|builder| builder, numbered([("cache-control", "private")]));
    site.ask(get("/")).await;
    for request in [get("/"), head("/")] {
        let got = site.ask(with(request, "cache-control", "only-if-cached")).await;
        assert_eq!((got.status.as_u16(), site.runs()), (504, 1));
    }
}

#[tokio::test]
async fn a_body_shorter_than_announced_is_not_stored() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            let length = if call.run == 1 { "5" } else { "3" };
            answer(200, &[("content-length", length), ("cache-control", "max-age=60")], "abc")
        },
    );
    assert!(site.ask(get("/")).await.broke);
    let got = site.ask(get("/")).await;
    assert_eq!((got.body.as_str(), got.broke, site.runs()), ("abc", false, 2));
}

#[tokio::test]
async fn a_body_longer_than_announced_is_not_stored() {
    for body in [
        Body::from("abcdef"),
        Body::from_stream(futures_util::stream::iter([Ok::<_, axum::Error>("abcdef")])),
    ] {
        let body = std::sync::Arc::new(std::sync::Mutex::new(Some(body)));
        let site = Site::new(
            |builder| builder,
            move |_| {
                let body = body.lock().unwrap().take().unwrap_or_else(|| Body::from("abc"));
                async move { answer(200, &[("content-length", "3"), ("cache-control", "max-age=60")], body) }
            },
        );
        site.ask(get("/")).await;
        assert_eq!(site.guard.stats().entries, 0);
        let got = site.ask(get("/")).await;
        assert_eq!((got.body.as_str(), got.broke), ("abc", false));
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_stored() {
    for exact in [None, Some(6)] {
        let site = Site::new(
            |builder| builder,
            move |call: Call| async move {
                if call.run > 1 {
                    return answer(200, &[], "whole");
                }
                let (sender, body) = frames(exact);
                sender.send(data("abc")).unwrap();
                sender.send(Err("the disk is gone".into())).unwrap();
                answer(200, &[("cache-control", "max-age=60")], body)
            },
        );
        let got = site.ask(get("/")).await;
        assert!(got.broke);
        assert_eq!(site.ask(get("/")).await.body, "whole");
    }
}

#[tokio::test]
async fn a_page_whose_body_was_slow_is_no_younger_for_it() {
    let bodies = crate::site::Bodies::default();
    let sender = bodies.add(None);
    let site = Site::new(
        |builder| builder.max_body_wait(Duration::ZERO),
        move |call: Call| {
            let body = if call.run == 1 { bodies.next() } else { Body::from("own") };
            async move { answer(200, &[("cache-control", "max-age=60")], body) }
        },
    );
    let leader = site.response(get("/")).await;
    until(|| site.guard.stats().entries == 1).await;
    site.clock.advance(secs(50));
    sender.send(data("slow")).unwrap();
    drop(sender);
    assert_eq!(crate::site::read(leader).await.body, "slow");
    // It takes the marker's place.
    site.settled(1).await;
    let got = site.ask(get("/")).await;
    assert_eq!((got.body.as_str(), got.header("age")), ("slow", Some("50")));
    site.clock.advance(secs(10));
    assert_eq!(site.ask(get("/")).await.body, "own");
}

#[tokio::test]
async fn freshness_is_never_longer_than_was_said() {
    let site = Site::new(|builder| builder, numbered([("cache-control", "max-age=60"), ("age", "55")]));
    site.ask(get("/")).await;
    site.clock.advance(Duration::from_millis(4_999));
    assert_eq!(site.ask(get("/")).await.header("age"), Some("59"));
    site.clock.advance(Duration::from_millis(1));
    assert_eq!(site.ask(get("/")).await.body, "2");
}

#[tokio::test]
async fn what_says_nothing_is_served_for_two_seconds() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            if call.run > 1 {
                call.gate().await;
            }
            answer(200, &[], call.run.to_string())
        },
    );
    site.ask(get("/")).await;
    site.clock.advance(Duration::from_millis(1_999));
    assert_eq!(site.ask(get("/")).await.body, "1");
    site.clock.advance(Duration::from_millis(1));
    site.open(1);
    assert_eq!(site.ask(get("/")).await.body, "2");
}

#[tokio::test]
async fn only_a_200_is_kept_without_a_word() {
    for status in [203, 204, 301, 302, 404, 405, 410, 500, 503] {
        let site = Site::new(
            |builder| builder,
            move |call: Call| async move { answer(status, &[("x-run", &call.run.to_string())], "") },
        );
        site.ask(get("/")).await;
        assert_eq!(site.ask(get("/")).await.header("x-run"), Some("2"), "{status}");
    }
}

#[tokio::test]
async fn coalesce_only_keeps_nothing_beyond_the_responses_word() {
    let site = Site::new(StampedeGuardBuilder::coalesce_only, numbered([]));
    assert!(!site.shares(get("/"), get("/")).await);
    let site = Site::new(StampedeGuardBuilder::coalesce_only, numbered([("cache-control", "max-age=60")]));
    assert!(site.shares(get("/"), get("/")).await);
}
