//! What is stored and what the origin says of it: RFC 9111 sections 3.2 and 4.3, through the layer.

#[allow(dead_code)]
#[path = "security/site.rs"]
mod site;

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use site::{Call, Site, all, answer, bodies, data, frames, get, head, request, secs, until, with};
use stampede_guard::StampedeGuardBuilder;
use tokio::sync::Barrier;

const TAG: (&str, &str) = ("etag", "\"v1\"");
const MODIFIED: (&str, &str) = ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");

/// An origin whose page never changes: it confirms whoever asks about it, with these headers.
fn confirming(
    first: &'static [(&'static str, &'static str)],
    confirmed: &'static [(&'static str, &'static str)],
) -> Site {
    Site::new(StampedeGuardBuilder::coalesce_only, move |call: Call| {
        let asks =
            ["if-none-match", "if-modified-since"].iter().any(|name| call.parts.headers.contains_key(*name));
        let body = call.run.to_string();
        std::future::ready(if asks {
            answer(304, confirmed, Body::empty())
        } else {
            answer(200, first, body)
        })
    })
}

#[tokio::test]
async fn section_4_3_1_a_stale_response_is_asked_about_with_both_validators() {
    let site =
        confirming(&[("cache-control", "max-age=5"), TAG, MODIFIED], &[("cache-control", "max-age=5")]);
    site.ask(get("/")).await;
    assert!(!site.last_seen().headers.contains_key("if-none-match"));
    site.clock.advance(secs(6));
    let got = site.ask(get("/")).await;
    assert_eq!((got.status.as_u16(), got.body.as_str(), site.runs()), (200, "1", 2));
    let seen = site.last_seen().headers;
    assert_eq!(seen["if-none-match"], TAG.1);
    assert_eq!(seen["if-modified-since"], MODIFIED.1);
    // And it is fresh again.
    site.clock.advance(secs(4));
    assert_eq!(site.ask(get("/")).await.header("age"), Some("4"));
    assert_eq!(site.runs(), 2);
}

#[tokio::test]
async fn section_4_3_1_each_validator_does_alone_and_without_one_nobody_asks() {
    for validator in [TAG, MODIFIED] {
        let site = Site::new(StampedeGuardBuilder::coalesce_only, move |call: Call| {
            let asks =
                !call.header("if-none-match").is_empty() || !call.header("if-modified-since").is_empty();
            let headers = [("cache-control", "max-age=5"), validator];
            let status = if asks { 304 } else { 200 };
            std::future::ready(answer(
                status,
                &headers,
                if asks { String::new() } else { call.run.to_string() },
            ))
        });
        site.ask(get("/")).await;
        site.clock.advance(secs(6));
        assert_eq!((site.ask(get("/")).await.body.as_str(), site.runs()), ("1", 2), "{validator:?}");
    }
    let site = confirming(&[("cache-control", "max-age=5")], &[]);
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    assert_eq!(site.ask(get("/")).await.body, "2");
}

#[tokio::test]
async fn section_4_3_1_the_clients_own_conditions_do_not_reach_the_origin() {
    let site = confirming(&[("cache-control", "max-age=5"), TAG], &[("cache-control", "max-age=5")]);
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    let mine = with(with(get("/"), "if-none-match", "\"mine\""), "if-modified-since", MODIFIED.1);
    let got = site.ask(mine).await;
    assert_eq!((got.status.as_u16(), got.body.as_str()), (200, "1"));
    let seen = site.last_seen().headers;
    assert_eq!(seen["if-none-match"], TAG.1);
    assert!(!seen.contains_key("if-modified-since"));
    // One who has it gets a 304 after the validation.
    site.clock.advance(secs(6));
    let got = site.ask(with(get("/"), "if-none-match", "\"x\", W/\"v1\"")).await;
    assert_eq!((got.status.as_u16(), got.header("etag"), site.runs()), (304, Some("\"v1\""), 3));
}

#[tokio::test]
async fn section_4_3_3_a_new_response_takes_the_place_of_the_stale_one() {
    let site =
        Site::new(StampedeGuardBuilder::coalesce_only, site::numbered([("cache-control", "max-age=5"), TAG]));
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    assert_eq!(site.ask(get("/")).await.body, "2");
    assert_eq!(site.ask(get("/")).await.body, "2");
}

#[tokio::test]
async fn section_4_3_3_a_herd_on_a_stale_page_is_one_question() {
    let site = Site::new(StampedeGuardBuilder::coalesce_only, |call: Call| async move {
        if call.run == 1 {
            return answer(200, &[("cache-control", "max-age=5"), TAG], "page");
        }
        call.gate().await;
        answer(304, &[("cache-control", "max-age=5")], Body::empty())
    });
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    let leader = site.lead(get("/")).await;
    let herd = site.follow((0..199).map(|_| get("/"))).await;
    site.open(1);
    assert_eq!(all(vec![leader]).await[0].body, "page");
    assert!(all(herd).await.iter().all(|got| got.body == "page" && got.status == 200));
    assert_eq!(site.runs(), 2);
}

#[tokio::test]
async fn section_4_3_4_and_3_2_a_304_updates_fields_and_leaves_those_of_the_body() {
    let site = confirming(
        &[
            ("cache-control", "max-age=5"),
            TAG,
            ("date", "Sat, 06 Nov 2094 08:49:30 GMT"),
            ("content-type", "text/plain"),
            ("content-encoding", "gzip"),
            ("x-old", "1"),
            ("x-kept", "1"),
        ],
        &[
            ("cache-control", "max-age=50"),
            TAG,
            ("date", "Sat, 06 Nov 2094 08:59:30 GMT"),
            ("content-type", "text/plain;charset=utf-8"),
            ("content-encoding", "br"),
            ("content-length", "0"),
            ("x-old", "2"),
            ("x-old", "3"),
            ("x-new", "4"),
            ("connection", "x-hop"),
            ("x-hop", "5"),
        ],
    );
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    for _ in 0..2 {
        let got = site.ask(get("/")).await;
        assert_eq!((got.body.as_str(), got.header("cache-control")), ("1", Some("max-age=50")));
        assert_eq!(got.header("date"), Some("Sat, 06 Nov 2094 08:59:30 GMT"));
        assert_eq!(got.header("content-type"), Some("text/plain;charset=utf-8"));
        assert_eq!((got.header("content-encoding"), got.header("content-length")), (Some("gzip"), Some("1")));
        let old: Vec<_> = got.headers.get_all("x-old").iter().map(|line| line.to_str().unwrap()).collect();
        assert_eq!((old, got.header("x-kept"), got.header("x-new")), (vec!["2", "3"], Some("1"), Some("4")));
        assert!(!got.headers.contains_key("x-hop") && !got.headers.contains_key("connection"));
    }
    assert_eq!(site.runs(), 2);
}

#[tokio::test]
async fn section_4_3_4_a_304_about_something_else_updates_nothing() {
    let site = confirming(
        &[("cache-control", "max-age=5"), TAG, ("x", "1")],
        &[("cache-control", "max-age=50"), ("etag", "\"v2\""), ("x", "2")],
    );
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    let got = site.ask(get("/")).await;
    assert_eq!((got.body.as_str(), got.header("x"), got.header("etag")), ("1", Some("1"), Some("\"v1\"")));
    // Nobody is asked about it again.
    assert_eq!(site.ask(get("/")).await.body, "3");
    assert!(!site.last_seen().headers.contains_key("if-none-match"));
}

#[tokio::test]
async fn section_4_3_4_a_304_may_end_sharing() {
    for end in [("set-cookie", "session=1"), ("cache-control", "private"), ("cache-control", "no-store")] {
        let site = Site::new(StampedeGuardBuilder::coalesce_only, move |call: Call| {
            let first = [("cache-control", "max-age=5"), TAG];
            std::future::ready(match call.run {
                1 => answer(200, &first, "1"),
                2 => answer(304, &[end], Body::empty()),
                run => answer(200, &first, run.to_string()),
            })
        });
        site.ask(get("/")).await;
        site.clock.advance(secs(6));
        let got = site.ask(get("/")).await;
        assert_eq!((got.body.as_str(), got.header(end.0)), ("1", Some(end.1)), "its own client has it");
        let got = site.ask(get("/")).await;
        assert_eq!((got.body.as_str(), got.header("set-cookie")), ("3", None), "{end:?}");
    }
}

#[tokio::test]
async fn a_background_refresh_asks_and_a_304_refreshes() {
    const SWR: (&str, &str) = ("cache-control", "max-age=5, stale-while-revalidate=60");
    let site = confirming(&[SWR, TAG], &[SWR]);
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    assert_eq!(site.ask(get("/")).await.header("age"), Some("6"));
    site.settled(2).await;
    let got = site.ask(get("/")).await;
    assert_eq!((got.body.as_str(), got.header("age"), site.runs()), ("1", Some("0"), 2));
}

#[tokio::test]
async fn what_is_stale_on_arrival_is_kept_for_the_question() {
    let site = confirming(&[("cache-control", "max-age=0"), TAG], &[("cache-control", "max-age=0")]);
    for run in 1..=3 {
        assert_eq!(site.ask(get("/")).await.body, "1");
        assert_eq!(site.runs(), run);
    }
    // But not served in place of an error.
    let site = Site::new(
        |builder| builder.coalesce_only().stale_if_error(secs(60)),
        |call: Call| {
            let headers = [("cache-control", "max-age=0"), TAG];
            std::future::ready(answer(if call.run == 1 { 200 } else { 500 }, &headers, call.run.to_string()))
        },
    );
    site.ask(get("/")).await;
    assert_eq!(site.ask(get("/")).await.status, 500);
}

#[tokio::test]
async fn what_is_stale_before_its_body_ends_is_kept_for_the_question() {
    let site = Site::new(StampedeGuardBuilder::coalesce_only, |call: Call| async move {
        if call.run > 1 {
            return answer(304, &[("cache-control", "max-age=0")], Body::empty());
        }
        let (pipe, body) = frames(None);
        tokio::spawn(async move {
            call.gate().await;
            pipe.send(data("whole")).unwrap();
        });
        answer(200, &[("cache-control", "max-age=0"), TAG], body)
    });
    let first = site.lead(get("/")).await;
    site.open(1);
    assert_eq!(all(vec![first]).await[0].body, "whole");
    until(|| site.guard.stats().entries == 1).await;
    assert_eq!((site.ask(get("/")).await.body.as_str(), site.runs()), ("whole", 2));
}

#[tokio::test]
async fn a_variant_is_asked_about_with_its_own_validator() {
    let site = Site::new(
        |builder| builder.coalesce_only().key_headers([]),
        |call: Call| {
            let language = call.header("accept-language");
            let tag = format!("\"{language}\"");
            let headers =
                [("cache-control", "max-age=5"), ("vary", "accept-language"), ("etag", tag.as_str())];
            let status = if call.header("if-none-match") == tag { 304 } else { 200 };
            std::future::ready(answer(status, &headers, if status == 304 { String::new() } else { language }))
        },
    );
    let ask = |language: &str| with(get("/"), "accept-language", language);
    for language in ["de", "en"] {
        site.ask(ask(language)).await;
    }
    site.clock.advance(secs(6));
    for language in ["de", "en"] {
        assert_eq!(site.ask(ask(language)).await.body, language);
        assert_eq!(site.last_seen().headers["if-none-match"], format!("\"{language}\""));
    }
}

#[tokio::test]
async fn the_date_of_one_page_asks_nothing_about_another_variant() {
    let site = Site::new(
        |builder| builder.coalesce_only().key_headers([]),
        |call: Call| async move {
            let word = ("cache-control", "max-age=5");
            match call.run {
                1 => answer(200, &[word, MODIFIED], "old"),
                _ if call.header("x") == "2" && !call.header("if-modified-since").is_empty() => {
                    answer(304, &[word], Body::empty())
                }
                _ => {
                    call.gate().await;
                    answer(200, &[word, MODIFIED, ("vary", "x")], format!("for {}", call.header("x")))
                }
            }
        },
    );
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    let leader = site.lead(with(get("/"), "x", "1")).await;
    let other = site.follow([with(get("/"), "x", "2")]).await;
    site.open(2);
    assert_eq!(bodies(&all(vec![leader]).await), ["for 1"]);
    assert_eq!(bodies(&all(other).await), ["for 2"]);
}

#[tokio::test]
async fn a_body_that_is_not_there_yet_is_not_asked_about() {
    let site = Site::new(StampedeGuardBuilder::coalesce_only, |call: Call| async move {
        let headers = [("cache-control", "max-age=5"), TAG, ("content-length", "3")];
        if call.run > 1 {
            return answer(200, &headers, "new");
        }
        let (pipe, body) = frames(Some(3));
        pipe.send(data("ol")).unwrap();
        tokio::spawn(async move {
            pipe.closed().await;
        });
        answer(200, &headers, body)
    });
    let first = site.response(get("/")).await;
    site.clock.advance(secs(6));
    assert_eq!(site.ask(get("/")).await.body, "new");
    assert!(!site.last_seen().headers.contains_key("if-none-match"));
    drop(first);
}

#[tokio::test]
async fn section_5_2_2_4_no_cache_is_reused_on_the_origins_word_alone() {
    let site =
        confirming(&[("cache-control", "max-age=60, no-cache"), TAG], &[("cache-control", "no-cache")]);
    for run in 1..=4 {
        let got = site.ask(get("/")).await;
        assert_eq!((got.status.as_u16(), got.body.as_str(), site.runs()), (200, "1", run));
        assert_eq!(site.last_seen().headers.contains_key("if-none-match"), run > 1);
    }
    let got = site.ask(with(get("/"), "if-none-match", "\"v1\"")).await;
    assert_eq!((got.status.as_u16(), site.runs()), (304, 5));
}

#[tokio::test]
async fn section_5_2_2_4_no_cache_pages_are_checked_all_at_once() {
    let all_there = Arc::new(Barrier::new(50));
    let site = Site::new(StampedeGuardBuilder::coalesce_only, move |call: Call| {
        let all_there = Arc::clone(&all_there);
        async move {
            if call.run == 1 {
                return answer(200, &[("cache-control", "no-cache"), TAG], "page");
            }
            all_there.wait().await;
            answer(304, &[("cache-control", "no-cache")], Body::empty())
        }
    });
    site.ask(get("/")).await;
    let got = all((0..50).map(|_| site.start(get("/"))).collect()).await;
    assert!(bodies(&got).iter().all(|body| *body == "page"));
    assert_eq!(site.runs(), 51);
}

#[tokio::test]
async fn section_5_2_2_4_a_herd_that_finds_the_mark_expired_asks_too() {
    let site = Site::new(StampedeGuardBuilder::coalesce_only, |call: Call| async move {
        if call.run == 1 {
            return answer(200, &[("cache-control", "no-cache"), TAG], "page");
        }
        if call.run == 2 {
            call.gate().await;
        }
        let asks = !call.header("if-none-match").is_empty();
        answer(
            if asks { 304 } else { 200 },
            &[("cache-control", "no-cache")],
            if asks { "" } else { "asked nothing" },
        )
    });
    site.ask(get("/")).await;
    site.clock.advance(secs(11));
    let leader = site.lead(get("/")).await;
    let herd = site.follow((0..49).map(|_| get("/"))).await;
    site.open(1);
    let mut got = all(herd).await;
    got.extend(all(vec![leader]).await);
    assert!(got.iter().all(|got| got.body == "page"));
    assert_eq!(site.runs(), 51);
}

#[tokio::test]
async fn section_5_2_2_4_a_no_cache_page_that_changed_takes_the_place_of_the_old() {
    let site = Site::new(StampedeGuardBuilder::coalesce_only, |call: Call| {
        let tag = if call.run < 3 { "\"v1\"" } else { "\"v3\"" };
        let headers = [("cache-control", "no-cache"), ("etag", tag)];
        let same = call.header("if-none-match") == tag;
        let (status, body) = if same { (304, String::new()) } else { (200, call.run.to_string()) };
        std::future::ready(answer(status, &headers, body))
    });
    for expected in ["1", "1", "3", "3", "3"] {
        assert_eq!(site.ask(get("/")).await.body, expected);
    }
}

#[tokio::test]
async fn section_5_2_2_4_one_clients_own_answer_ends_no_checking() {
    let site = Site::new(StampedeGuardBuilder::coalesce_only, |call: Call| {
        let no_cache = ("cache-control", "no-cache");
        std::future::ready(match call.run {
            2 => answer(200, &[no_cache, TAG, ("set-cookie", "a=b")], "own"),
            _ if call.header("if-none-match") == TAG.1 => answer(304, &[no_cache, TAG], Body::empty()),
            _ => answer(200, &[no_cache, TAG], "page"),
        })
    });
    for body in ["page", "own", "page", "page"] {
        assert_eq!(site.ask(get("/")).await.body, body);
    }
    assert_eq!(site.last_seen().headers["if-none-match"], TAG.1);
}

#[tokio::test]
async fn section_4_3_5_a_head_freshens_what_is_stored() {
    let site = Site::new(StampedeGuardBuilder::coalesce_only, |call: Call| {
        let kind = if call.parts.method == "HEAD" { "head" } else { "get" };
        let headers = [("cache-control", "max-age=5"), TAG, ("x-kind", kind)];
        std::future::ready(answer(200, &headers, call.run.to_string()))
    });
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    assert_eq!(site.ask(head("/")).await.header("x-kind"), Some("head"));
    let got = site.ask(get("/")).await;
    assert_eq!((got.body.as_str(), got.header("x-kind"), site.runs()), ("1", Some("head"), 2));
}

/// Without a validator a HEAD tells nothing of the body that is stored, which is as old as it is.
#[tokio::test]
async fn section_4_3_5_a_head_without_a_validator_makes_nothing_younger() {
    for (get_says, head_says, tagged) in [
        // The operator's own time to live.
        ("", "", false),
        ("max-age=5", "max-age=5", false),
        ("max-age=5, stale-if-error=600", "max-age=5, stale-if-error=600", false),
        ("max-age=5, must-revalidate", "max-age=600", false),
        ("max-age=5, must-revalidate", "max-age=600", true),
    ] {
        let site = Site::new(
            |guard| guard,
            move |call: Call| {
                let is_head = call.parts.method == "HEAD";
                let mut headers = vec![("cache-control", if is_head { head_says } else { get_says })];
                headers.extend((tagged && !is_head).then_some(TAG));
                std::future::ready(answer(
                    200,
                    &headers,
                    if is_head { "0".into() } else { call.run.to_string() },
                ))
            },
        );
        for round in 0..3 {
            let got = site.ask(get("/")).await;
            assert_eq!(got.body, (2 * round + 1).to_string(), "{get_says}, {head_says}, {tagged}");
            site.clock.advance(secs(6));
            site.ask(head("/")).await;
        }
    }
}

#[tokio::test]
async fn section_4_3_5_a_head_without_a_validator_lengthens_a_life_and_keeps_its_age() {
    let site = Site::new(StampedeGuardBuilder::coalesce_only, |call: Call| {
        let says = if call.parts.method == "HEAD" { "max-age=20" } else { "max-age=5" };
        std::future::ready(answer(200, &[("cache-control", says)], call.run.to_string()))
    });
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    site.ask(head("/")).await;
    site.clock.advance(secs(13));
    let got = site.ask(get("/")).await;
    assert_eq!((got.body.as_str(), got.header("age")), ("1", Some("19")));
    site.clock.advance(secs(1));
    assert_eq!(site.ask(get("/")).await.body, "3");
}

#[tokio::test]
async fn section_4_3_5_a_head_that_tells_of_another_response_voids_what_is_stored() {
    for other in [("etag", "\"v2\""), ("content-length", "77")] {
        let site = Site::new(StampedeGuardBuilder::coalesce_only, move |call: Call| {
            let stored = [("cache-control", "max-age=5, stale-if-error=60"), TAG];
            let is_head = call.parts.method == "HEAD";
            let headers = if is_head { [stored[0], other] } else { stored };
            let status = if call.run > 2 { 500 } else { 200 };
            let body = if is_head { String::new() } else { call.run.to_string() };
            std::future::ready(answer(status, &headers, body))
        });
        site.ask(get("/")).await;
        site.clock.advance(secs(6));
        site.ask(head("/")).await;
        assert_eq!(site.ask(get("/")).await.status, 500, "{other:?}");
    }
}

#[tokio::test]
async fn a_write_voids_what_a_question_confirms() {
    let site = Site::new(StampedeGuardBuilder::coalesce_only, |call: Call| async move {
        match (call.run, call.parts.method.as_str()) {
            (2, _) => {
                call.gate().await;
                answer(304, &[("cache-control", "max-age=60")], Body::empty())
            }
            (_, "POST") => answer(200, &[], ""),
            (run, _) => answer(200, &[("cache-control", "max-age=5"), TAG], run.to_string()),
        }
    });
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    let asks = site.lead(get("/")).await;
    site.ask(request("POST", "/")).await;
    site.open(1);
    assert_eq!(all(vec![asks]).await[0].body, "1");
    assert_eq!(site.ask(get("/")).await.body, "4");
}

#[tokio::test]
async fn an_answer_that_is_no_304_is_not_taken_for_one() {
    let site: Site = confirming(&[("cache-control", "max-age=5")], &[]);
    let got: Response<Body> = site.response(with(get("/"), "if-none-match", "\"v1\"")).await;
    assert_eq!(got.status(), 200);
    until(|| site.runs() == 1).await;
    assert!(!site.last_seen().headers.contains_key("if-none-match"), "nothing is stored to ask about");
}

/// RFC 9110 section 13.1.3: without a date of its last change there is nothing to compare with. RFC 9111 section 4.3.2 has
/// `Date` stand in for what is stored alone.
#[tokio::test]
async fn section_4_3_2_the_date_of_what_is_not_stored_answers_no_condition() {
    let now = httpdate::fmt_http_date(std::time::SystemTime::now());
    for (directive, later) in [("no-store", 200), ("private", 200), ("max-age=60", 304)] {
        let date = now.clone();
        let site = Site::new(
            |builder| builder,
            move |_| {
                let date = date.clone();
                async move { answer(200, &[("cache-control", directive), ("date", &date)], "whole") }
            },
        );
        let since = || with(get("/"), "if-modified-since", &now);
        assert_eq!(site.ask(since()).await.status.as_u16(), 200, "{directive}");
        assert_eq!(site.ask(since()).await.status.as_u16(), later, "{directive}");
    }
}

/// What a 304 forbids in a field of its one connection, it forbids.
#[tokio::test]
async fn section_4_3_4_a_304_ends_sharing_in_a_field_that_connection_names() {
    let site = confirming(
        &[("cache-control", "max-age=5"), TAG],
        &[("connection", "cache-control"), ("cache-control", "private"), TAG],
    );
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    for runs in 2..5 {
        site.ask(get("/")).await;
        assert_eq!(site.runs(), runs);
    }
}
