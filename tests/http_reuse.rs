//! What is served from the store, and how: RFC 9111 section 4, RFC 5861, and ranges (RFC 9110 section 14), through the
//! layer.

#[allow(dead_code)]
#[path = "security/site.rs"]
mod site;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use axum::routing::get as on_get;
use site::{
    Call, Got, Site, all, answer, data, frames, get, head, numbered, read, request, secs, until, with,
};
use stampede_guard::{ManualClock, OnWaitTimeout, StampedeGuard, StampedeGuardBuilder};
use tower::ServiceExt;

const MINUTE: (&str, &str) = ("cache-control", "max-age=60");

fn shared_cache(builder: StampedeGuardBuilder) -> StampedeGuardBuilder {
    builder.coalesce_only().key_headers([])
}

// Section 4: constructing responses.

#[tokio::test]
async fn section_5_1_age_is_what_came_and_the_time_since() {
    let site = Site::new(shared_cache, numbered([MINUTE, ("age", "30")]));
    assert_eq!(site.ask(get("/")).await.header("age"), Some("30"));
    for age in ["30", "42", "54"] {
        assert_eq!(site.ask(get("/")).await.header("age"), Some(age));
        site.clock.advance(secs(12));
    }
    assert_eq!(site.ask(get("/")).await.body, "2");
}

#[tokio::test]
async fn section_4_method_and_query_are_part_of_the_key() {
    let site = Site::new(shared_cache, numbered([MINUTE]));
    assert!(!site.shares(get("/?a"), get("/?b")).await);
    assert!(site.shares(get("/?a=1"), get("/?a=1")).await);
    let head = site.ask(head("/?a=1")).await;
    assert_eq!((head.body.as_str(), head.header("age").is_some()), ("", true), "a GET answers a HEAD");
}

// Section 4.1: Vary.

fn varying(vary: &'static [(&'static str, &'static str)]) -> Site {
    Site::new(
        |builder| shared_cache(builder).max_variants(2),
        move |call: Call| {
            let headers = [&[MINUTE], vary].concat();
            std::future::ready(answer(200, &headers, call.run.to_string()))
        },
    )
}

fn of(lines: &[(&str, &str)]) -> Request<Body> {
    lines.iter().fold(get("/"), |request, (name, value)| with(request, name, value))
}

#[tokio::test]
async fn section_4_1_every_field_of_every_vary_line_has_to_match() {
    let site = varying(&[("vary", "Foo"), ("vary", "bar, BAZ")]);
    let same = [("foo", "1"), ("bar", "abc"), ("baz", "789")];
    assert!(site.shares(of(&same), of(&same)).await);
    assert!(site.shares(of(&same), with(of(&same), "other", "x")).await);
    for other in [
        [("foo", "2"), same[1], same[2]],
        [same[0], ("bar", "abcd"), same[2]],
        [same[0], same[1], ("baz", "")],
    ] {
        assert!(!site.shares(of(&same), of(&other)).await, "{other:?}");
    }
    assert!(!site.shares(of(&same), of(&same[..2])).await);
    assert!(site.shares(of(&same[..2]), of(&same[..2])).await, "both without");
}

#[tokio::test]
async fn section_4_1_a_star_matches_nothing() {
    for vary in [&[("vary", "*")][..], &[("vary", "foo, *")], &[("vary", "foo"), ("vary", "*")]] {
        let site = Site::new(shared_cache, move |call: Call| {
            let headers = [&[MINUTE], vary].concat();
            std::future::ready(answer(200, &headers, call.run.to_string()))
        });
        assert!(!site.shares(of(&[("foo", "1")]), of(&[("foo", "1")])).await, "{vary:?}");
    }
}

#[tokio::test]
async fn section_4_1_values_are_compared_by_meaning() {
    let site = varying(&[("vary", "foo, accept-language")]);
    let foo = |lines: &[&str]| lines.iter().fold(get("/"), |request, line| with(request, "foo", line));
    assert!(site.shares(foo(&["1, 2"]), foo(&["1,2"])).await);
    assert!(site.shares(foo(&["1, 2"]), foo(&["1", "2"])).await);
    assert!(!site.shares(foo(&["1, 2"]), foo(&["2", "1"])).await);
    let language = |value| of(&[("accept-language", value)]);
    assert!(site.shares(language("en, de"), language("eN ,  De")).await);
    assert!(!site.shares(language("en, de"), language("de, en")).await);
}

#[tokio::test]
async fn section_4_1_variants_live_side_by_side_and_are_capped() {
    let site = varying(&[("vary", "foo")]);
    let foo = |value| of(&[("foo", value)]);
    for (value, body) in [("1", "1"), ("2", "2"), ("1", "1"), ("2", "2"), ("3", "3"), ("2", "2"), ("1", "4")]
    {
        assert_eq!(site.ask(foo(value)).await.body, body, "{value}");
    }
}

// Section 4.2.4: stale.

fn failing(settings: impl FnOnce(StampedeGuardBuilder) -> StampedeGuardBuilder, word: &'static str) -> Site {
    Site::new(
        |builder| settings(shared_cache(builder)),
        move |call: Call| {
            let status = if call.run == 1 { 200 } else { 503 };
            std::future::ready(answer(status, &[("cache-control", word)], call.run.to_string()))
        },
    )
}

#[tokio::test]
async fn rfc_5861_section_4_stale_if_error_serves_as_long_as_it_says() {
    let site = failing(|builder| builder, "max-age=5, stale-if-error=20");
    site.ask(get("/")).await;
    site.clock.advance(secs(24));
    assert_eq!(site.ask(get("/")).await.body, "1");
    site.clock.advance(secs(1));
    assert_eq!(site.ask(get("/")).await.status, 503);
}

#[tokio::test]
async fn rfc_5861_the_operator_caps_both_windows() {
    let site = failing(|builder| builder.max_stale_if_error(secs(3)), "max-age=5, stale-if-error=60");
    site.ask(get("/")).await;
    site.clock.advance(secs(7));
    assert_eq!(site.ask(get("/")).await.body, "1");
    site.clock.advance(secs(1));
    assert_eq!(site.ask(get("/")).await.status, 503);

    let settings = |builder| shared_cache(builder).max_stale_while_revalidate(secs(3));
    let site = Site::new(settings, numbered([("cache-control", "max-age=5, stale-while-revalidate=60")]));
    site.ask(get("/")).await;
    site.clock.advance(secs(8));
    assert_eq!(site.ask(get("/")).await.body, "2");
    site.clock.advance(secs(7));
    assert_eq!(site.ask(get("/")).await.body, "2");
    site.settled(3).await;
    assert_eq!(site.ask(get("/")).await.body, "3");
}

/// RFC 5861 section 3.
#[tokio::test]
async fn a_head_that_is_served_stale_has_the_page_refreshed_by_a_get() {
    let site = Site::new(shared_cache, numbered([("cache-control", "max-age=5, stale-while-revalidate=60")]));
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    assert_eq!(site.ask(head("/")).await.header("age"), Some("6"));
    site.settled(2).await;
    assert_eq!((site.runs(), site.last_seen().method.as_str()), (2, "GET"));
    assert_eq!(site.ask(get("/")).await.body, "2");
}

/// A router hands what its handler for HEAD is asked to that one, whatever the method says by then.
#[tokio::test]
async fn the_handler_for_head_does_not_replace_a_page() {
    for (words, age) in [("max-age=5, stale-while-revalidate=60", 6), ("", 1)] {
        let clock = ManualClock::new();
        let builder =
            StampedeGuard::builder().jitter(0.0).stale_while_revalidate(secs(60)).clock(clock.clone());
        let guard = builder.build().unwrap();
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let page = move || async move { answer(200, &[("cache-control", words)], "the page") };
        let no_page = move || async move {
            counted.fetch_add(1, Ordering::SeqCst);
            answer(200, &[("cache-control", words)], Body::empty())
        };
        let app: Router = Router::new().route("/", on_get(page).head(no_page)).layer(guard.clone());
        let ask = |request| async { read(app.clone().oneshot(request).await.unwrap()).await.body };
        assert_eq!(ask(get("/")).await, "the page");
        clock.advance(secs(age));
        ask(head("/")).await;
        until(|| runs.load(Ordering::SeqCst) == 1 && guard.stats().in_flight == 0).await;
        assert_eq!(ask(get("/")).await, "the page");
    }
}

#[tokio::test]
async fn heads_leave_a_failing_handler_alone_as_gets_do() {
    for method in ["GET", "HEAD"] {
        let site = failing(|builder| builder, "max-age=5, stale-if-error=600");
        site.ask(get("/")).await;
        site.clock.advance(secs(6));
        for _ in 0..10 {
            assert_eq!(site.ask(request(method, "/")).await.status, 200, "{method}");
        }
        assert_eq!(site.runs(), 2, "{method}");
        // The pause is less than that.
        site.clock.advance(secs(1));
        assert_eq!(site.ask(request(method, "/")).await.status, 200, "{method}");
        assert_eq!(site.runs(), 3, "{method}");
    }
}

/// RFC 9110 section 8.6.
#[tokio::test]
async fn a_head_of_a_stored_204_tells_no_length() {
    let site = Site::new(shared_cache, |_| async { answer(204, &[MINUTE], Body::empty()) });
    site.ask(get("/")).await;
    let got = site.ask(head("/")).await;
    assert_eq!((got.status.as_u16(), got.header("content-length"), site.runs()), (204, None, 1));
}

#[tokio::test]
async fn section_4_2_4_what_forbids_stale_forbids_it_after_every_failure() {
    for word in [
        "max-age=5, must-revalidate, stale-if-error=60",
        "max-age=5, proxy-revalidate, stale-while-revalidate=60",
        "s-maxage=5",
    ] {
        let site = failing(|builder| builder.stale_if_error(secs(60)).stale_while_revalidate(secs(60)), word);
        site.ask(get("/")).await;
        site.clock.advance(secs(6));
        assert_eq!(site.ask(get("/")).await.status, 503, "{word}");
    }
}

#[tokio::test]
async fn two_hundred_clients_of_a_failing_page_are_one_run_and_two_hundred_stale_answers() {
    let site = Site::new(
        |builder| shared_cache(builder).stale_if_error(secs(60)),
        |call: Call| async move {
            if call.run == 1 {
                return answer(200, &[("cache-control", "max-age=5")], "page");
            }
            call.gate().await;
            answer(500, &[], "broken")
        },
    );
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    let leader = site.lead(get("/")).await;
    let herd = site.follow((0..199).map(|_| get("/"))).await;
    site.open(1);
    let mut got = all(herd).await;
    got.extend(all(vec![leader]).await);
    assert!(got.iter().all(|got| got.status == 200 && got.body == "page"));
    assert_eq!((got.len(), site.runs()), (200, 2));
    // The next run is not due at once, and each that fails puts it off for longer.
    for _ in 0..20 {
        assert_eq!(site.ask(get("/")).await.body, "page");
    }
    assert_eq!(site.runs(), 2);
    let mut pauses = Vec::new();
    let mut waited = 0;
    while pauses.len() < 5 {
        site.clock.advance(Duration::from_millis(10));
        waited += 10;
        let runs = site.runs();
        site.open(1);
        assert_eq!(site.ask(get("/")).await.body, "page");
        if site.runs() > runs {
            pauses.push(std::mem::take(&mut waited));
        }
    }
    for (nth, pause) in pauses.iter().enumerate() {
        let longest = 100 << nth;
        assert!((longest * 3 / 4..=longest + 10).contains(pause), "{pauses:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hung_leader_holds_the_others_no_longer_than_wait_timeout() {
    let hangs = |call: Call| async move {
        if call.run == 1 {
            call.gate().await;
        }
        answer(200, &[], call.run.to_string())
    };
    for (what, expected) in [(OnWaitTimeout::Refuse, (504, "")), (OnWaitTimeout::PassThrough, (200, "2"))] {
        let site =
            Site::new(|builder| shared_cache(builder).wait_timeout(secs(2)).on_wait_timeout(what), hangs);
        let leader = site.lead(get("/")).await;
        let got = site.ask(with(get("/"), "if-none-match", "\"a\"")).await;
        assert_eq!((got.status.as_u16(), got.body.as_str()), expected, "{what:?}");
        site.open(1);
        assert_eq!(all(vec![leader]).await[0].body, "1");
    }
}

// Section 4.3.2: the client's conditions.

fn etagged() -> Site {
    Site::new(
        shared_cache,
        numbered([
            MINUTE,
            ("etag", "\"v1\""),
            ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("content-type", "text/plain"),
            ("vary", "foo"),
            ("expires", "Sat, 06 Nov 2094 08:49:37 GMT"),
        ]),
    )
}

#[tokio::test]
async fn section_4_3_2_if_none_match_is_answered_from_the_store() {
    let site = etagged();
    site.ask(get("/")).await;
    let ask = |value: &'static str| site.ask(with(get("/"), "if-none-match", value));
    for same in ["\"v1\"", "W/\"v1\"", "\"a\", \"v1\" ,\"b\"", "*"] {
        let got = ask(same).await;
        assert_eq!((got.status.as_u16(), got.body.as_str()), (304, ""), "{same}");
        for name in ["age", "cache-control", "date", "etag", "expires", "vary"] {
            assert!(got.headers.contains_key(name), "{name}");
        }
        for name in ["content-length", "content-type", "last-modified"] {
            assert!(!got.headers.contains_key(name), "{name}");
        }
    }
    for other in ["\"v2\"", "v1", "w/\"v1\"", "\"v1", "\"\""] {
        assert_eq!(ask(other).await.status, 200, "{other}");
    }
    // It comes before If-Modified-Since.
    let both =
        with(with(get("/"), "if-none-match", "\"v2\""), "if-modified-since", "Sat, 06 Nov 2094 08:49:37 GMT");
    assert_eq!(site.ask(both).await.status, 200);
    assert_eq!(site.runs(), 1);
}

#[tokio::test]
async fn section_4_3_2_if_modified_since_is_answered_from_the_store() {
    let site = etagged();
    site.ask(get("/")).await;
    for (since, status) in [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 304),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 304),
        ("Sun, 06 Nov 1994 08:49:38 GMT", 304),
        ("Sun, 06 Nov 1994 08:49:36 GMT", 200),
        ("yesterday", 200),
    ] {
        assert_eq!(site.ask(with(get("/"), "if-modified-since", since)).await.status, status, "{since}");
        assert_eq!(site.ask(with(head("/"), "if-modified-since", since)).await.status, status, "{since}");
    }
    assert_eq!(site.runs(), 1);
}

// Sections 3.3 and 3.4, RFC 9110 section 14: ranges.

const TEN: &str = "0123456789";

fn ranged() -> Site {
    Site::new(shared_cache, |_: Call| {
        std::future::ready(answer(
            200,
            &[("cache-control", "max-age=5"), ("etag", "\"v1\""), ("x", "1")],
            TEN,
        ))
    })
}

fn range(value: &str) -> Request<Body> {
    with(get("/"), "range", value)
}

#[tokio::test]
async fn a_range_is_cut_from_a_complete_stored_body() {
    let site = ranged();
    site.ask(get("/")).await;
    site.clock.advance(secs(3));
    for (asked, body, content_range) in [
        ("bytes=0-1", "01", "bytes 0-1/10"),
        ("bytes=8-", "89", "bytes 8-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=5-500", "56789", "bytes 5-9/10"),
    ] {
        let got = site.ask(range(asked)).await;
        assert_eq!((got.status.as_u16(), got.body.as_str()), (206, body), "{asked}");
        assert_eq!(got.header("content-range"), Some(content_range));
        assert_eq!(got.header("content-length"), Some(body.len().to_string().as_str()));
        assert_eq!(
            (got.header("age"), got.header("etag"), got.header("x")),
            (Some("3"), Some("\"v1\""), Some("1"))
        );
    }
    for asked in ["bytes=10-", "bytes=-0"] {
        let got = site.ask(range(asked)).await;
        assert_eq!((got.status.as_u16(), got.body.as_str()), (416, ""), "{asked}");
        assert_eq!(got.header("content-range"), Some("bytes */10"));
    }
    assert_eq!((site.runs(), site.guard.stats().hits), (1, 6));
}

#[tokio::test]
async fn a_range_under_a_condition() {
    let site = ranged();
    site.ask(get("/")).await;
    let status = |request| {
        let site = site.clone();
        async move {
            let got = site.ask(request).await;
            (got.status.as_u16(), got.body)
        }
    };
    let asked = || range("bytes=0-1");
    assert_eq!(status(with(asked(), "if-range", "\"v1\"")).await, (206, "01".to_owned()));
    assert_eq!(status(with(asked(), "if-range", "\"v2\"")).await, (200, TEN.to_owned()));
    assert_eq!(status(with(asked(), "if-range", "W/\"v1\"")).await, (200, TEN.to_owned()));
    assert_eq!(status(with(asked(), "if-none-match", "\"v1\"")).await, (304, String::new()));
    assert_eq!(status(with(asked(), "if-none-match", "\"v2\"")).await, (206, "01".to_owned()));
    assert_eq!(site.runs(), 1);
}

#[tokio::test]
async fn other_ranges_and_ranges_of_what_is_not_there_go_through() {
    let site = ranged();
    // Nothing is stored, or left behind.
    assert_eq!(site.ask(range("bytes=0-1")).await.body, TEN);
    assert_eq!(site.last_seen().headers["range"], "bytes=0-1");
    site.ask(get("/")).await;
    assert_eq!(site.runs(), 2);
    for asked in ["bytes=0-1,3-4", "lines=0-1", "bytes=5-1"] {
        site.ask(with(range(asked), "if-none-match", "\"x\"")).await;
        let seen = site.last_seen().headers;
        assert_eq!(
            (seen["range"].to_str().unwrap(), seen["if-none-match"].to_str().unwrap()),
            (asked, "\"x\"")
        );
    }
    site.ask(with(request("HEAD", "/"), "range", "bytes=0-1")).await;
    assert_eq!(site.runs(), 6);
    // What is stale is the origin's.
    site.clock.advance(secs(6));
    site.ask(range("bytes=0-1")).await;
    assert_eq!(site.runs(), 7);
}

#[tokio::test]
async fn a_range_of_a_body_under_way_goes_through() {
    let site = Site::new(shared_cache, |call: Call| async move {
        if call.run > 1 {
            return answer(206, &[("content-range", "bytes 0-1/10")], "01");
        }
        let (pipe, body) = frames(Some(10));
        pipe.send(data("01234")).unwrap();
        tokio::spawn(async move {
            call.gate().await;
            pipe.send(data("56789")).unwrap();
        });
        answer(200, &[MINUTE], body)
    });
    let whole: Response<Body> = site.response(get("/")).await;
    assert_eq!(site.ask(range("bytes=0-1")).await.status, 206);
    assert_eq!(site.runs(), 2);
    site.open(1);
    let whole: Got = read(whole).await;
    assert_eq!(whole.body, TEN);
    until(|| site.guard.stats().entries == 1).await;
    assert_eq!(site.ask(range("bytes=4-5")).await.body, "45");
    assert_eq!(site.runs(), 2);
}

#[tokio::test]
async fn section_3_3_a_part_is_never_stored_as_the_whole() {
    let site = Site::new(shared_cache, |call: Call| {
        let part = [MINUTE, ("content-range", "bytes 0-1/10")];
        std::future::ready(match call.run {
            1 => answer(206, &part, "01"),
            2 => answer(200, &part, "01"),
            _ => answer(200, &[MINUTE], TEN),
        })
    });
    for body in ["01", "01", TEN, TEN] {
        assert_eq!(site.ask(get("/")).await.body, body);
        // Not even the mark that such a response leaves keeps the next from being stored.
        site.clock.advance(secs(11));
    }
}

#[tokio::test]
async fn a_range_of_what_is_stale_goes_through() {
    let control = ("cache-control", "max-age=10, stale-while-revalidate=60, stale-if-error=60");
    let site = Site::new(shared_cache, numbered([control]));
    site.ask(get("/")).await;
    assert_eq!(site.ask(range("bytes=0-0")).await.status, 206);
    site.clock.advance(secs(11));
    assert_eq!(site.ask(range("bytes=0-0")).await.body, "2");
    assert_eq!(site.last_seen().headers["range"], "bytes=0-0");
}

/// It is an error of the guard's own: caches further on are not to keep it in the page's place.
#[tokio::test]
async fn a_range_that_cannot_be_had_says_nothing_of_the_page() {
    let said = [
        ("cache-control", "public, max-age=60"),
        ("cdn-cache-control", "max-age=60"),
        ("expires", "Thu, 01 Jan 2099 00:00:00 GMT"),
        ("content-encoding", "br"),
        ("etag", "\"v1\""),
        ("x-site", "shop"),
    ];
    let site = Site::new(shared_cache, numbered(said));
    site.ask(get("/")).await;
    let got = site.ask(range("bytes=7-")).await;
    assert_eq!((got.status.as_u16(), got.header("content-range")), (416, Some("bytes */1")));
    assert_eq!((got.header("cache-control"), got.header("x-site")), (Some("no-store"), Some("shop")));
    for name in ["age", "cdn-cache-control", "content-encoding", "etag", "expires"] {
        assert_eq!(got.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn section_5_1_what_is_shared_and_not_stored_has_its_age_too() {
    let gated = |directives: &'static str| {
        move |call: Call| async move {
            call.gate().await;
            answer(200, &[("cache-control", directives), ("age", "50")], "")
        }
    };
    // A client that wants nothing stored leads; or nobody said that it may be.
    for (lead, directives) in [("no-store", "max-age=60"), ("max-age=0", "x")] {
        let site = Site::new(|builder| builder.coalesce_only().key_headers([]), gated(directives));
        let leader = site.lead(with(get("/"), "cache-control", lead)).await;
        let mut followers = site.follow([get("/")]).await;
        site.open(1);
        let (own, got) = (leader.await.unwrap(), followers.remove(0).await.unwrap());
        assert_eq!((own.header("age"), got.header("age")), (Some("50"), Some("50")), "{directives}");
    }
}
