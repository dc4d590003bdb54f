//! Attacks that no clause names.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use stampede_guard::StampedeGuardBuilder;

use crate::site::{Call, Site, all, answer, get, head, numbered, read, request, secs, until, with, within};

#[tokio::test]
async fn a_304_to_nobodys_question_is_not_kept() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            match call.run {
                1 => answer(304, &[("etag", "\"v\""), ("cache-control", "max-age=60")], ""),
                run => answer(200, &[("cache-control", "max-age=60")], run.to_string()),
            }
        },
    );
    assert_eq!(site.ask(with(get("/"), "if-none-match", "\"v\"")).await.status, 304);
    assert_eq!(site.ask(get("/")).await.body, "2");
}

#[tokio::test]
async fn conditions_do_not_fill_the_store_with_304() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            // As a handler would that knows conditions.
            if call.parts.headers.contains_key("if-none-match")
                || call.parts.headers.contains_key("if-modified-since")
            {
                return answer(304, &[("etag", "\"v\"")], "");
            }
            answer(200, &[("etag", "\"v\""), ("cache-control", "max-age=60")], "page")
        },
    );
    for (name, value) in [
        ("if-none-match", "\"v\""),
        ("if-none-match", "*"),
        ("if-modified-since", "Sun, 06 Nov 2094 08:49:37 GMT"),
    ] {
        let got = site.ask(with(get("/"), name, value)).await;
        assert!(got.status == 304 || got.body == "page");
        let got = site.ask(get("/")).await;
        assert_eq!((got.status.as_u16(), got.body.as_str()), (200, "page"));
        site.guard.invalidate_all();
    }
}

#[tokio::test]
async fn followers_with_conditions_get_their_own_304_and_others_the_page() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            call.gate().await;
            answer(200, &[("etag", "\"v\""), ("cache-control", "max-age=60")], "page")
        },
    );
    let leader = site.lead(with(get("/"), "if-none-match", "\"v\"")).await;
    let followers = site
        .follow([
            get("/"),
            with(get("/"), "if-none-match", "\"w\""),
            with(get("/"), "if-none-match", "\"v\""),
        ])
        .await;
    site.open(1);
    assert_eq!(leader.await.unwrap().status, 304);
    let got = all(followers).await;
    assert_eq!(got.iter().map(|got| got.status.as_u16()).collect::<Vec<_>>(), [200, 200, 304]);
    assert_eq!((got[0].body.as_str(), got[1].body.as_str(), got[2].body.as_str()), ("page", "page", ""));
}

#[tokio::test]
async fn a_head_does_not_poison_what_a_get_left() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            if call.parts.method == "HEAD" {
                return answer(200, &[("content-length", "99"), ("etag", "\"evil\"")], "");
            }
            answer(200, &[("cache-control", "max-age=5")], "page")
        },
    );
    site.ask(head("/")).await;
    assert_eq!(site.ask(get("/")).await.body, "page");
    site.clock.advance(secs(6));
    site.ask(head("/")).await;
    let got = site.ask(get("/")).await;
    assert_eq!((got.body.as_str(), got.header("etag")), ("page", None));
}

#[tokio::test]
async fn a_stale_page_is_not_served_to_another_principal() {
    let site = Site::new(
        |builder| builder.key_authorization().stale_if_error(secs(60)),
        |call: Call| async move {
            if call.run > 1 {
                return answer(500, &[], "down");
            }
            answer(200, &[("cache-control", "max-age=5")], "page of a")
        },
    );
    let of = |token| with(get("/"), "authorization", token);
    site.ask(of("a")).await;
    site.clock.advance(secs(6));
    assert_eq!(site.ask(of("b")).await.body, "down");
    assert_eq!(site.ask(get("/")).await.body, "down");
    assert_eq!(site.ask(of("a")).await.body, "page of a");
}

#[tokio::test]
async fn a_stale_variant_is_not_served_to_another_variant() {
    let site = Site::new(
        |builder| builder.stale_if_error(secs(60)).stale_while_revalidate(secs(60)),
        |call: Call| async move {
            if call.run > 1 {
                return answer(500, &[("vary", "user-agent")], "down");
            }
            answer(200, &[("cache-control", "max-age=5"), ("vary", "user-agent")], "page of a")
        },
    );
    let of = |agent| with(get("/"), "user-agent", agent);
    site.ask(of("a")).await;
    site.clock.advance(secs(6));
    assert_eq!(site.ask(of("b")).await.body, "down");
    assert_eq!(site.ask(of("a")).await.body, "page of a");
}

#[tokio::test]
async fn panics_in_the_operators_functions_leave_the_guard_working() {
    let armed = Arc::new(AtomicBool::new(true));
    for by_key in [true, false] {
        armed.store(true, Ordering::SeqCst);
        let fuse = Arc::clone(&armed);
        let blow = move || assert!(!fuse.load(Ordering::SeqCst), "operator");
        let site = Site::new(
            |builder| {
                if by_key {
                    builder.key_with(move |_, _| blow())
                } else {
                    builder.bypass_if(move |_| {
                        blow();
                        false
                    })
                }
            },
            numbered([("cache-control", "max-age=60")]),
        );
        for request in [get("/"), head("/"), get("/other")] {
            assert!(site.start(request).await.unwrap_err().is_panic());
        }
        assert_eq!((site.runs(), site.guard.stats().entries), (0, 0));
        armed.store(false, Ordering::SeqCst);
        assert!(site.shares(get("/"), get("/")).await);
    }
}

#[tokio::test]
async fn what_bypasses_neither_fills_nor_sees_the_store() {
    let site = Site::new(
        |builder| builder.bypass_if(|parts| parts.extensions.get::<&str>().is_some()),
        numbered([("cache-control", "max-age=60")]),
    );
    let member = || {
        let mut request = get("/");
        request.extensions_mut().insert("member");
        request
    };
    assert!(!site.shares(member(), get("/")).await);
    assert!(!site.shares(get("/"), member()).await);
    assert!(site.shares(get("/"), get("/")).await);
}

#[tokio::test]
async fn directives_on_several_lines_add_up() {
    for (one, other) in [("max-age=60", "no-store"), ("private", "max-age=60"), ("public", "no-cache")] {
        let site = Site::new(
            |builder| builder,
            move |call: Call| async move {
                answer(200, &[("cache-control", one), ("cache-control", other)], call.run.to_string())
            },
        );
        assert!(!site.shares(get("/"), get("/")).await, "{one} {other}");
    }
}

#[tokio::test]
async fn contradictions_are_stale() {
    for lines in [
        [("cache-control", "max-age=60"), ("cache-control", "max-age=61")],
        [("cache-control", "max-age=60x"), ("x", "y")],
        [("expires", "Sun, 06 Nov 2094 08:49:37 GMT"), ("expires", "0")],
        [("cache-control", "max-age=60"), ("age", "61")],
    ] {
        let site = Site::new(
            |builder| builder,
            move |call: Call| async move { answer(200, &lines, call.run.to_string()) },
        );
        assert!(!site.shares(get("/"), get("/")).await, "{lines:?}");
    }
}

#[tokio::test]
async fn a_clock_that_leaps_serves_nothing_beyond_its_time() {
    let site = Site::new(
        |builder| builder.stale_while_revalidate(secs(60)).stale_if_error(secs(60)),
        numbered([("cache-control", "max-age=5")]),
    );
    site.ask(get("/")).await;
    site.clock.advance(Duration::from_secs(1 << 33));
    assert_eq!(site.ask(get("/")).await.body, "2");
    site.clock.advance(Duration::from_secs(1 << 33));
    let got = site.ask(get("/")).await;
    assert_eq!((got.body.as_str(), got.header("age")), ("3", None));
}

#[tokio::test]
async fn a_length_that_lies_does_not_leak_into_the_next_response() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            if call.parts.uri.path() == "/lie" {
                return answer(
                    200,
                    &[("content-length", "2"), ("cache-control", "max-age=60")],
                    "okHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
                );
            }
            answer(200, &[], "page")
        },
    );
    let server = site.serve().await;
    for _ in 0..2 {
        let got = server
            .raw("GET /lie HTTP/1.1\r\nhost: a\r\n\r\nGET /page HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            .await;
        assert!(!got.contains("evil"), "{got}");
    }
}

#[tokio::test]
async fn markers_of_made_up_urls_do_not_touch_a_real_one() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            if call.parts.uri.query().is_some() {
                return answer(400, &[], "no such thing");
            }
            answer(200, &[("cache-control", "max-age=60")], call.run.to_string())
        },
    );
    assert!(site.shares(get("/"), get("/")).await);
    for junk in 0..500 {
        site.ask(get(&format!("/?{junk}"))).await;
    }
    assert!(site.shares(get("/"), get("/")).await);
}

#[tokio::test]
async fn a_long_header_named_by_vary_does_not_close_the_key_to_the_others() {
    let site =
        Site::new(|builder| builder, numbered([("vary", "user-agent"), ("cache-control", "max-age=60")]));
    let long = || with(get("/"), "user-agent", &"x".repeat(9_000));
    assert!(!site.shares(long(), long()).await);
    let of = || with(get("/"), "user-agent", "firefox");
    site.ask(of()).await;
    assert!(site.shares(of(), of()).await);
    assert!(!site.shares(of(), long()).await);
}

#[tokio::test]
async fn a_poisonous_header_that_is_not_in_the_key_does_not_stay() {
    // Each answer is to blame on the attacker's header alone; none may reach whoever asks next.
    for status in [400, 403, 404, 405, 413, 429, 431, 500, 501, 503] {
        let site = Site::new(
            |builder| builder,
            move |call: Call| async move {
                if call.header("x-forwarded-for") == "poison" {
                    return answer(status, &[], "poisoned");
                }
                answer(200, &[], "page")
            },
        );
        assert_eq!(site.ask(with(get("/"), "x-forwarded-for", "poison")).await.body, "poisoned");
        assert_eq!(site.ask(get("/")).await.body, "page", "{status}");
    }
}

#[tokio::test]
async fn a_page_of_before_invalidate_all_does_not_come_back_with_a_late_body() {
    let bodies = crate::site::Bodies::default();
    let sender = bodies.add(None);
    let site = Site::new(
        |builder| builder.max_body_wait(Duration::ZERO),
        move |call: Call| {
            let body = if call.run == 1 { bodies.next() } else { Body::from(call.run.to_string()) };
            async move { answer(200, &[("cache-control", "max-age=60")], body) }
        },
    );
    let leader = site.response(get("/")).await;
    site.guard.invalidate_all();
    sender.send(crate::site::data("purged")).unwrap();
    drop(sender);
    assert_eq!(read(leader).await.body, "purged");
    site.settled(1).await;
    assert_eq!(site.ask(get("/")).await.body, "2");
}

#[tokio::test]
async fn a_late_body_does_not_replace_what_is_newer() {
    let bodies = crate::site::Bodies::default();
    let sender = bodies.add(None);
    let site = Site::new(
        |builder| builder.max_body_wait(Duration::ZERO),
        move |call: Call| {
            let body = if call.run == 1 { bodies.next() } else { Body::from(call.run.to_string()) };
            async move { answer(200, &[("cache-control", "max-age=60")], body) }
        },
    );
    let leader = site.response(get("/")).await;
    until(|| site.guard.stats().entries == 1).await;
    site.clock.advance(secs(11));
    assert_eq!(site.ask(get("/")).await.body, "2");
    sender.send(crate::site::data("old")).unwrap();
    drop(sender);
    assert_eq!(read(leader).await.body, "old");
    site.settled(2).await;
    assert_eq!(site.ask(get("/")).await.body, "2");
}

#[tokio::test]
async fn a_handler_that_varies_on_something_else_each_time_ends_in_a_run_of_ones_own() {
    let site = Site::new(StampedeGuardBuilder::coalesce_only, |call: Call| async move {
        let vary = format!("x-{}", call.run);
        tokio::task::yield_now().await;
        answer(200, &[("vary", &vary)], format!("{} {}", call.header("user-agent"), call.run))
    });
    let of = |client: usize| with(get("/"), "user-agent", &client.to_string());
    let got = all((0..20).map(|client| site.start(of(client))).collect()).await;
    assert_eq!(got.len(), 20);
}

#[tokio::test]
async fn a_herd_of_everything_at_once_crosses_no_answers() {
    let site = Site::new(
        |builder| builder.key_authorization().max_variants(2).max_in_flight(8).max_body_wait(Duration::ZERO),
        |call: Call| async move {
            if call.run.is_multiple_of(3) {
                tokio::task::yield_now().await;
            }
            let who =
                ["authorization", "x-api-key", "user-agent", "host"].map(|name| call.header(name)).join("|");
            let who = format!("{who} {}", call.parts.uri);
            let body = if call.run.is_multiple_of(5) {
                Body::from_stream(futures_util::stream::iter([Ok::<_, axum::Error>(who)]))
            } else {
                Body::from(who)
            };
            let control = ["max-age=60", "no-store", "max-age=0", "private"][call.run % 4];
            answer(200, &[("vary", "user-agent"), ("cache-control", control)], body)
        },
    );
    let mut asked = Vec::new();
    for i in 0..2_000_usize {
        let pick = |of: &[&'static str]| of[(i * 7919 + i / 3) % of.len()];
        let (token, key) = (pick(&["", "a", "b"]), pick(&["", "k", "l", "m", "n"]));
        let (agent, host) = (pick(&["", "x", "y", "z", "u", "v", "w"]), pick(&["one", "two"]));
        let uri = pick(&["/", "/?", "/p", "/%70", "/p/", "http://one/", "/%C3%A9"]);
        let mut asking = Request::get(uri).header("host", host).body(Body::empty()).unwrap();
        for (name, value) in [("authorization", token), ("x-api-key", key), ("user-agent", agent)] {
            if !value.is_empty() {
                asking = with(asking, name, value);
            }
        }
        asked.push((format!("{token}|{key}|{agent}|{host} {uri}"), site.start(asking)));
        if i % 50 == 0 {
            site.clock.advance(secs(3));
            tokio::task::yield_now().await;
        }
        if i % 97 == 0 {
            asked.push((String::new(), site.start(request("POST", "/p"))));
        }
    }
    for (expected, asked) in asked {
        let got = within(asked).await.unwrap();
        if !expected.is_empty() {
            assert_eq!(got.body, expected);
        }
    }
    let stats = site.guard.stats();
    assert!(stats.hits > 0 && stats.coalesced > 0 && stats.unshared > 0, "{stats:?}");
    until(|| site.guard.stats().flights.loads > 0).await;
}
