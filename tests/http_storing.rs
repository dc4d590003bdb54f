//! What a shared cache stores, and for how long it is fresh: RFC 9111 sections 3, 4.2 and 5.2.2, through the layer.

#[allow(dead_code)]
#[path = "security/site.rs"]
mod site;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::http::{HeaderMap, Response};
use site::{Call, Site, answer, data, frames, get, read, secs, until, with};
use stampede_guard::StampedeGuardBuilder;

type Lines = &'static [(&'static str, &'static str)];

/// A site that stores nothing beyond the responses' own word, and answers each run with these headers and its number.
fn site(status: u16, headers: Lines) -> Site {
    configured(|builder| builder, status, headers)
}

fn configured(
    settings: impl FnOnce(StampedeGuardBuilder) -> StampedeGuardBuilder,
    status: u16,
    headers: Lines,
) -> Site {
    Site::new(
        |builder| settings(builder.coalesce_only()),
        move |call: Call| std::future::ready(answer(status, headers, call.run.to_string())),
    )
}

/// Whether a second request finds the answer to the first.
async fn stores(site: &Site) -> bool {
    site.shares(get("/"), get("/")).await
}

/// For how many seconds an answer with these headers is served, counted to a minute.
async fn served_for(headers: Lines) -> u64 {
    let site = site(200, headers);
    site.ask(get("/")).await;
    for second in 0..60 {
        if site.ask(get("/")).await.body != "1" {
            return second;
        }
        site.clock.advance(secs(1));
    }
    60
}

#[tokio::test]
async fn section_3_every_final_status_is_stored_with_explicit_freshness() {
    for status in [200, 201, 203, 204, 299, 300, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 410, 414] {
        assert!(stores(&site(status, &[("cache-control", "max-age=60")])).await, "{status}");
    }
    for status in [418, 429, 451, 499, 500, 501, 502, 503, 504, 599] {
        assert!(stores(&site(status, &[("cache-control", "max-age=60")])).await, "{status}");
    }
    for status in [206, 304, 600, 999] {
        assert!(!stores(&site(status, &[("cache-control", "max-age=60")])).await, "{status}");
    }
}

#[tokio::test]
async fn section_3_without_a_word_nothing_is_stored_unless_the_operator_asks() {
    for status in [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501] {
        assert!(!stores(&site(status, &[])).await, "{status}");
    }
    let by_default = Site::new(|builder| builder, site::numbered([]));
    assert!(stores(&by_default).await, "a 200 is kept for a second");
}

#[tokio::test]
async fn section_4_2_2_heuristics_are_for_those_who_ask_and_for_statuses_that_allow_it() {
    const OLD: Lines = &[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")];
    const PUBLIC: Lines = &[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"), ("cache-control", "public")];
    let heuristic = |builder: StampedeGuardBuilder| builder.heuristic_freshness(0.1);
    for status in [200, 203, 204, 404, 405, 410, 414, 501] {
        assert!(!stores(&site(status, OLD)).await, "{status}");
        assert!(stores(&configured(heuristic, status, OLD)).await, "{status}");
    }
    for status in [201, 202, 302, 403, 500, 502, 503, 504, 599] {
        assert!(!stores(&configured(heuristic, status, OLD)).await, "{status}");
    }
    assert!(stores(&configured(heuristic, 599, PUBLIC)).await);
}

#[tokio::test]
async fn section_4_2_2_where_a_lifetime_is_stated_nothing_is_guessed() {
    const STATED: [(&str, &str); 4] = [
        ("cache-control", "max-age=0"),
        ("cache-control", "s-maxage=0, max-age=60"),
        ("cache-control", "max-age=soon"),
        ("expires", "0"),
    ];
    for stated in STATED {
        let site = Site::new(
            |builder| builder.coalesce_only().heuristic_freshness(0.1),
            move |call: Call| {
                let headers = [("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"), stated];
                std::future::ready(answer(200, &headers, call.run.to_string()))
            },
        );
        assert!(!stores(&site).await, "{stated:?}");
    }
}

#[tokio::test]
async fn section_3_answers_to_other_methods_are_not_stored() {
    let site = site(200, &[("cache-control", "public, max-age=60"), ("content-location", "/")]);
    for method in ["POST", "PUT", "OPTIONS", "TRACE", "PROPFIND", "get"] {
        let asked = site::request(method, "/");
        assert!(!site.shares(asked, get("/")).await, "{method}");
        site.guard.invalidate_all();
    }
}

#[tokio::test]
async fn section_3_directives_that_forbid_storing_do_so_in_any_case_and_line() {
    const FORBIDDEN: [Lines; 9] = [
        &[("cache-control", "max-age=60, no-store")],
        &[("cache-control", "No-StOrE, max-age=60")],
        &[("cache-control", "max-age=60"), ("cache-control", "PRIVATE")],
        &[("cache-control", "max-age=60, No-Cache")],
        &[("cache-control", "max-age=60, no-cache=\"set-cookie\"")],
        &[("cache-control", "max-age=60, private=\"x\"")],
        &[("cache-control", "max-age=60, x=\"no-end")],
        &[("cache-control", "max-age=60"), ("vary", "accept, *")],
        &[("cache-control", "max-age=60"), ("set-cookie", "a=b")],
    ];
    for headers in FORBIDDEN {
        assert!(!stores(&site(200, headers)).await, "{headers:?}");
    }
}

#[tokio::test]
async fn section_5_2_2_3_must_understand_overrides_no_store_for_known_statuses() {
    const WORDS: Lines = &[("cache-control", "max-age=60, no-store, must-understand")];
    assert!(stores(&site(200, WORDS)).await);
    assert!(!stores(&site(599, WORDS)).await);
    assert!(!stores(&site(599, &[("cache-control", "max-age=60, must-understand")])).await);
}

#[tokio::test]
async fn section_3_1_fields_of_one_connection_are_not_stored() {
    let site = site(
        200,
        &[
            ("cache-control", "max-age=60"),
            ("connection", "x-hop, close"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("x-end", "2"),
        ],
    );
    site.ask(get("/")).await;
    let got = site.ask(get("/")).await;
    let mut names: Vec<_> = got.headers.keys().map(ToString::to_string).collect();
    names.sort();
    assert_eq!(names, ["age", "cache-control", "content-length", "date", "x-end"]);
}

#[tokio::test]
async fn section_3_1_all_other_fields_are_stored_line_by_line() {
    let site = site(
        200,
        &[
            ("cache-control", "max-age=60"),
            ("link", "</a>; rel=preload"),
            ("x-unheard-of", "\u{e4}"),
            ("link", "</b>; rel=preload"),
            ("content-type", "text/plain"),
            ("warning", "199 - \"x\""),
        ],
    );
    let first = site.ask(get("/")).await;
    let again = site.ask(get("/")).await;
    assert_eq!(again.body, "1");
    for name in ["cache-control", "link", "x-unheard-of", "content-type", "warning"] {
        let lines = |headers: &HeaderMap| headers.get_all(name).iter().cloned().collect::<Vec<_>>();
        assert_eq!(lines(&first.headers), lines(&again.headers), "{name}");
    }
    assert_eq!(again.headers.get_all("link").iter().count(), 2);
}

#[tokio::test]
async fn section_5_2_3_unknown_directives_are_passed_over() {
    for line in [
        "foobar, max-age=5",
        "max-age=5, foobar=\"no-store\"",
        "community=\"a, b=private\", max-age=5",
        "no-storely, privately, max-age=5, x-max-age=9",
    ] {
        let site = Site::new(StampedeGuardBuilder::coalesce_only, move |call: Call| {
            std::future::ready(answer(200, &[("cache-control", line)], call.run.to_string()))
        });
        assert!(stores(&site).await, "{line}");
        site.clock.advance(secs(5));
        assert_eq!(site.ask(get("/")).await.body, "2", "{line}");
    }
}

#[tokio::test]
async fn section_4_2_1_lifetimes_in_their_order() {
    assert_eq!(served_for(&[("cache-control", "s-maxage=5, max-age=9")]).await, 5);
    assert_eq!(served_for(&[("cache-control", "max-age=5"), ("expires", "0")]).await, 5);
    assert_eq!(served_for(&[("cache-control", "MAX-AGE=\"5\"")]).await, 5);
    assert_eq!(served_for(&[("cache-control", "max-age=99999999999999999999")]).await, 60);
    assert_eq!(
        served_for(&[
            ("date", "Sat, 06 Nov 2094 08:49:30 GMT"),
            ("expires", "Sat, 06 Nov 2094 08:49:37 GMT")
        ])
        .await,
        7
    );
}

#[tokio::test]
async fn section_4_2_1_what_contradicts_itself_or_cannot_be_read_is_stale() {
    const STALE: [Lines; 12] = [
        &[("cache-control", "max-age=60, max-age=59")],
        &[("cache-control", "max-age=60"), ("cache-control", "max-age=59")],
        &[("cache-control", "max-age=-60")],
        &[("cache-control", "max-age=60.0")],
        &[("cache-control", "max-age=60s")],
        &[("cache-control", "s-maxage=0, max-age=60")],
        &[("cache-control", "s-maxage=x, max-age=60")],
        &[("expires", "0")],
        &[("expires", "Sun, 06 Nov 1994 08:49:37 GMT")],
        &[("expires", "Sat, 06 Nov 2094 08:49:37 GMT"), ("expires", "Sat, 06 Nov 2094 08:49:38 GMT")],
        &[("expires", "Sunday 6 November 2094")],
        &[("cache-control", "max-age=60"), ("age", "60")],
    ];
    for headers in STALE {
        assert_eq!(served_for(headers).await, 0, "{headers:?}");
    }
}

#[tokio::test]
async fn section_5_1_age_counts_if_it_is_a_number() {
    assert_eq!(served_for(&[("cache-control", "max-age=10"), ("age", "4")]).await, 6);
    assert_eq!(served_for(&[("cache-control", "max-age=10"), ("age", "4"), ("age", "9")]).await, 6);
    assert_eq!(served_for(&[("cache-control", "max-age=10"), ("age", "4, 9")]).await, 6);
    for none in ["abc", "-5", "5.0", "5s", "5;x=1"] {
        let site = Site::new(StampedeGuardBuilder::coalesce_only, move |call: Call| {
            let headers = [("cache-control", "max-age=3"), ("age", none)];
            std::future::ready(answer(200, &headers, call.run.to_string()))
        });
        assert!(stores(&site).await, "{none}");
    }
}

#[tokio::test]
async fn section_4_2_3_date_tells_the_age_of_what_came_a_long_way() {
    let ago = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(30));
    let old = move |call: Call| {
        let headers = [("cache-control", "max-age=60"), ("date", ago.as_str())];
        std::future::ready(answer(200, &headers, call.run.to_string()))
    };
    let site = Site::new(StampedeGuardBuilder::coalesce_only, old);
    site.ask(get("/")).await;
    site.clock.advance(secs(25));
    let got = site.ask(get("/")).await;
    let age: u64 = got.header("age").unwrap().parse().unwrap();
    assert!((55..58).contains(&age), "{age}");
    site.clock.advance(secs(5));
    assert_eq!(site.ask(get("/")).await.body, "2");
}

#[tokio::test]
async fn section_3_5_authorized_requests_share_only_with_the_same_principal() {
    let headers: Lines = &[("cache-control", "public, max-age=60")];
    let asked = |who: &str| with(get("/"), "authorization", who);
    let closed = site(200, headers);
    assert!(!closed.shares(asked("a"), asked("a")).await);
    assert!(!closed.shares(asked("a"), get("/")).await);
    let keyed = configured(StampedeGuardBuilder::key_authorization, 200, headers);
    assert!(keyed.shares(asked("a"), asked("a")).await);
    assert!(!keyed.shares(asked("a"), asked("b")).await);
    assert!(!keyed.shares(asked("a"), get("/")).await);
}

#[tokio::test]
async fn section_3_5_with_the_operators_word_public_s_maxage_and_must_revalidate_share_them() {
    const OPEN: [Lines; 3] = [
        &[("cache-control", "public, max-age=60")],
        &[("cache-control", "s-maxage=60")],
        &[("cache-control", "max-age=60, must-revalidate")],
    ];
    let asked = |who: &str| with(get("/"), "authorization", who);
    let opted_in = |builder: StampedeGuardBuilder| builder.share_authorized(true);
    for headers in OPEN {
        assert!(configured(opted_in, 200, headers).shares(asked("a"), asked("b")).await, "{headers:?}");
        assert!(configured(opted_in, 200, headers).shares(asked("a"), get("/")).await, "{headers:?}");
    }
    let closed = configured(opted_in, 200, &[("cache-control", "max-age=60"), ("expires", "0")]);
    assert!(!closed.shares(asked("a"), asked("a")).await);
    assert!(!closed.shares(asked("a"), get("/")).await);
}

#[tokio::test]
async fn section_5_2_1_5_a_request_with_no_store_leaves_nothing_behind() {
    let site = site(200, &[("cache-control", "max-age=60")]);
    assert!(!site.shares(with(get("/"), "cache-control", "no-store"), get("/")).await);
    assert!(site.shares(get("/"), with(get("/"), "cache-control", "no-store")).await);
}

#[tokio::test]
async fn section_5_2_1_7_only_if_cached_never_runs_the_handler() {
    let site = site(200, &[("cache-control", "max-age=60")]);
    let cached = || with(get("/"), "cache-control", "only-if-cached");
    assert_eq!(site.ask(cached()).await.status, 504);
    assert_eq!(site.ask(with(cached(), "range", "bytes=0-1")).await.status, 504);
    assert_eq!(site.runs(), 0);
    site.ask(get("/")).await;
    assert_eq!((site.ask(cached()).await.body.as_str(), site.runs()), ("1", 1));
}

#[tokio::test]
async fn a_date_that_is_missing_is_the_time_of_arrival_and_stays() {
    let site = site(200, &[("cache-control", "max-age=60")]);
    site.ask(get("/")).await;
    let date = |headers: &HeaderMap| headers["date"].clone();
    let first = date(&site.ask(get("/")).await.headers);
    assert!(httpdate::parse_http_date(first.to_str().unwrap()).unwrap() <= SystemTime::now());
    site.clock.advance(secs(30));
    assert_eq!(date(&site.ask(get("/")).await.headers), first);
    let own: Lines = &[("cache-control", "max-age=60"), ("date", "Sat, 06 Nov 2094 08:49:30 GMT")];
    let dated = self::site(200, own);
    let _: Response<Body> = dated.response(get("/")).await;
    assert_eq!(dated.ask(get("/")).await.header("date"), Some("Sat, 06 Nov 2094 08:49:30 GMT"));
}

#[tokio::test]
async fn section_4_a_body_that_comes_late_takes_the_place_of_nothing_newer() {
    let plain: Lines = &[("cache-control", "max-age=600")];
    let varying: Lines = &[("cache-control", "max-age=600"), ("vary", "user-agent")];
    let by = |client: &str| with(get("/"), "user-agent", client);
    for (slow, newer) in [(plain, varying), (varying, plain), (plain, plain)] {
        let (late, body) = frames(None);
        let body = Arc::new(Mutex::new(Some(body)));
        let site = Site::new(
            |builder| builder.key_headers([]).max_body_wait(Duration::from_millis(10)),
            move |call: Call| {
                let body = body.lock().unwrap().take();
                std::future::ready(match body {
                    Some(body) => answer(200, slow, body),
                    None => answer(200, newer, format!("new for {}", call.header("user-agent"))),
                })
            },
        );
        late.send(data("ol")).unwrap();
        let old = site.response(by("a")).await;
        // It has taken too long: others go on without it.
        until(|| site.guard.stats().in_flight == 0).await;
        site.clock.advance(secs(11));
        site.ask(by("a")).await;
        site.ask(by("b")).await;
        late.send(data("d")).unwrap();
        drop(late);
        assert_eq!(read(old).await.body, "old");
        for client in ["a", "b"] {
            assert!(site.ask(by(client)).await.body.starts_with("new for"), "{slow:?} {newer:?} {client}");
        }
    }
}
