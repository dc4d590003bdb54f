//! Point 4: a response goes to others only once its head proves that it may.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::http::{Request, Response};
use tokio::sync::Barrier;

use crate::site::{
    Call, Got, Site, all, answer, bodies, data, frames, get, head, numbered, secs, until, with,
};

const HERD: usize = 8;

/// A handler that answers the first run with this head when the gate opens, and the runs of the herd after it only
/// when all of them are under way at once.
fn herded(status: u16, headers: &'static [(&'static str, &'static str)]) -> (Site, Arc<AtomicUsize>) {
    let together = Arc::new(Barrier::new(HERD));
    let plain_from = Arc::new(AtomicUsize::new(usize::MAX));
    let from = Arc::clone(&plain_from);
    let site = Site::new(
        |builder| builder,
        move |call: Call| {
            let together = Arc::clone(&together);
            let is_plain = call.run >= from.load(Ordering::SeqCst);
            async move {
                if is_plain {
                    tokio::task::yield_now().await;
                    return answer(200, &[("cache-control", "max-age=60")], call.run.to_string());
                }
                if call.run == 1 {
                    call.gate().await;
                } else {
                    together.wait().await;
                }
                let mut response = answer(status, headers, call.run.to_string());
                response.headers_mut().insert("x-run", call.run.into());
                response
            }
        },
    );
    (site, plain_from)
}

fn distinct(got: &[Got]) -> bool {
    let mut runs: Vec<_> = got.iter().map(|got| got.header("x-run").unwrap().to_owned()).collect();
    runs.sort();
    runs.dedup();
    runs.len() == got.len()
}

/// That such a response reaches the client it was made for and no other; that nobody waits in a row for that; and
/// that the memory of it ends.
async fn reaches_its_own_client_alone(status: u16, headers: &'static [(&'static str, &'static str)]) {
    let (site, plain_from) = herded(status, headers);
    let mut herd = vec![site.lead(get("/")).await];
    herd.extend(site.follow((0..HERD).map(|_| get("/"))).await);
    site.open(1);
    // The barrier lets the followers through only if all of them run at once.
    let got = all(herd).await;
    assert!(distinct(&got), "{got:?}");
    assert!(got.iter().all(|got| got.status == status));
    // Later ones do not wait for one another to find that out again.
    let later: Vec<_> = (0..HERD).map(|_| site.start(get("/"))).collect();
    let got = all(later).await;
    assert!(distinct(&got), "{got:?}");
    assert_eq!(site.runs(), 1 + 2 * HERD);
    // After ten seconds they look anew.
    site.clock.advance(secs(10));
    plain_from.store(site.runs() + 1, Ordering::SeqCst);
    let got = all((0..HERD).map(|_| site.start(get("/"))).collect()).await;
    let one = got[0].body.clone();
    assert!(got.iter().all(|got| got.body == one), "{got:?}");
    assert_eq!(site.runs(), 2 + 2 * HERD);
}

macro_rules! own_client_alone {
    ($($test:ident: $status:literal, [$(($name:literal, $value:literal)),*];)*) => {$(
        #[tokio::test]
        async fn $test() {
            reaches_its_own_client_alone($status, &[$(($name, $value)),*]).await;
        }
    )*};
}

own_client_alone! {
    set_cookie: 200, [("set-cookie", "session=secret"), ("cache-control", "public, max-age=60")];
    private: 200, [("cache-control", "private, max-age=60")];
    private_with_a_field_name: 200, [("cache-control", "private=\"x-user\", max-age=60")];
    private_on_a_second_line: 200, [("cache-control", "public, max-age=60"), ("cache-control", "private")];
    private_in_a_broken_line: 200, [("cache-control", "max-age=60; private")];
    no_cache: 200, [("cache-control", "no-cache, max-age=60")];
    no_cache_with_a_field_name: 200, [("cache-control", "no-cache=\"set-cookie\", max-age=60")];
    no_cache_in_upper_case: 200, [("cache-control", "No-Cache")];
    pragma_no_cache: 200, [("pragma", "no-cache")];
    no_store: 200, [("cache-control", "no-store, max-age=60")];
    a_quote_where_none_may_be: 200, [("cache-control", "max-age=60, x=a\"b, private\"")];
    a_directive_in_quotes: 200, [("cache-control", "max-age=60, \"private\"")];
    a_quote_without_an_end: 200, [("cache-control", "max-age=60, x=\"private")];
    vary_any: 200, [("vary", "*"), ("cache-control", "max-age=60")];
    vary_any_in_a_list: 200, [("vary", "accept, *"), ("cache-control", "max-age=60")];
    vary_on_what_is_no_name: 200, [("vary", "accept encoding"), ("cache-control", "max-age=60")];
    www_authenticate: 200, [("www-authenticate", "Basic"), ("cache-control", "max-age=60")];
    www_authenticate_with_401: 401, [("www-authenticate", "Digest nonce=1"), ("cache-control", "max-age=60")];
    proxy_authenticate: 407, [("proxy-authenticate", "Basic"), ("cache-control", "max-age=60")];
    authentication_info: 200, [("authentication-info", "nextnonce=1"), ("cache-control", "max-age=60")];
    clear_site_data: 200, [("clear-site-data", "\"cache\"")];
    clear_site_data_that_is_stale_on_arrival: 200, [("clear-site-data", "\"cache\""), ("cache-control", "max-age=0")];
    partial_content: 206, [("content-range", "bytes 0-0/1"), ("cache-control", "max-age=60")];
    partial_content_of_no_range: 206, [("cache-control", "max-age=60")];
    content_range: 200, [("content-range", "bytes 0-0/1"), ("cache-control", "max-age=60")];
    a_range_that_cannot_be_had: 416, [("content-range", "bytes */1"), ("cache-control", "max-age=60")];
    not_modified: 304, [("cache-control", "max-age=60"), ("etag", "\"v\"")];
    switching_protocols: 101, [("cache-control", "max-age=60")];
    early_hints: 103, [("cache-control", "max-age=60")];
    an_event_stream: 200, [("content-type", "text/event-stream")];
    set_cookie_named_by_connection: 200, [("connection", "set-cookie"), ("set-cookie", "s=1")];
    private_named_by_connection: 200, [("connection", "cache-control"), ("cache-control", "private")];
    vary_named_by_connection: 200, [("connection", "vary"), ("vary", "*")];
    set_cookie_on_a_404: 404, [("set-cookie", "s=1"), ("cache-control", "max-age=60")];
    set_cookie_on_a_redirect: 302, [("set-cookie", "s=1"), ("location", "/"), ("cache-control", "max-age=60")];
    set_cookie_on_a_500: 500, [("set-cookie", "s=1"), ("cache-control", "max-age=60")];
    status_400: 400, [];
    status_401: 401, [];
    status_403: 403, [];
    status_407: 407, [];
    status_408: 408, [];
    status_413: 413, [];
    status_421: 421, [];
    status_425: 425, [];
    status_426: 426, [];
    status_429: 429, [];
    status_431: 431, [];
    status_451: 451, [];
    a_429_that_is_stale_on_arrival: 429, [("cache-control", "max-age=0")];
    a_429_as_old_as_it_is_fresh: 429, [("cache-control", "max-age=5"), ("age", "5")];
}

#[tokio::test]
async fn a_client_fault_with_explicit_freshness_is_shared() {
    for status in [400, 401, 403, 407, 408, 413, 421, 425, 426, 429, 431, 451] {
        let site = Site::new(
            |builder| builder,
            move |call: Call| async move {
                answer(status, &[("cache-control", "max-age=60")], call.run.to_string())
            },
        );
        assert!(site.shares(get("/"), get("/")).await, "{status}");
    }
}

#[tokio::test]
async fn a_private_answer_does_not_end_what_is_stored_of_others() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            let control = if call.parts.uri.path() == "/me" { "private" } else { "max-age=60" };
            answer(200, &[("cache-control", control)], call.run.to_string())
        },
    );
    assert!(site.shares(get("/"), get("/")).await);
    assert!(!site.shares(get("/me"), get("/me")).await);
    assert!(site.shares(get("/"), get("/")).await);
}

#[tokio::test]
async fn heads_of_a_private_page_run_side_by_side_as_well() {
    let (site, _) = herded(200, &[("set-cookie", "session=secret")]);
    let mut herd = vec![site.lead(head("/")).await];
    herd.extend(site.follow((0..HERD).map(|_| head("/"))).await);
    site.open(1);
    assert!(distinct(&all(herd).await));
    assert!(distinct(&all((0..HERD).map(|_| site.start(head("/"))).collect()).await));
    assert_eq!(site.runs(), 1 + 2 * HERD);
}

#[tokio::test]
async fn a_head_that_joined_a_private_get_runs_for_itself() {
    let (site, _) = herded(200, &[("set-cookie", "session=secret")]);
    let leader = site.lead(get("/")).await;
    let heads = site.follow((0..HERD).map(|_| head("/"))).await;
    site.open(1);
    let mut got = all(heads).await;
    got.push(leader.await.unwrap());
    assert!(distinct(&got));
}

#[tokio::test]
async fn own_requests_of_followers_carry_their_own_headers() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            if call.run == 1 {
                call.gate().await;
            }
            let told =
                ["user-agent", "if-none-match", "x-forwarded-for", "cookie"].map(|name| call.header(name));
            answer(200, &[("set-cookie", "session=secret")], told.join("|"))
        },
    );
    let of = |client: &str| {
        let request = with(get("/"), "user-agent", client);
        with(with(request, "if-none-match", &format!("\"{client}\"")), "x-forwarded-for", client)
    };
    let leader = site.lead(of("a")).await;
    let followers = site.follow([of("b"), of("c")]).await;
    site.open(1);
    assert_eq!(leader.await.unwrap().body, "a||a|");
    assert_eq!(bodies(&all(followers).await), ["b|\"b\"|b|", "c|\"c\"|c|"]);
    assert_eq!(site.ask(of("d")).await.body, "d|\"d\"|d|");
}

/// Of a page that differs by `User-Agent`, behind a gate.
fn varying() -> Site {
    Site::new(
        |builder| builder,
        |call: Call| async move {
            call.gate().await;
            answer(
                200,
                &[("vary", "User-Agent"), ("cache-control", "max-age=60")],
                format!("{} {}", call.header("user-agent"), call.run),
            )
        },
    )
}

fn by(agent: &str) -> Request<Body> {
    with(get("/"), "user-agent", agent)
}

#[tokio::test]
async fn on_a_cold_key_followers_group_by_what_vary_names() {
    let site = varying();
    let leader = site.lead(by("a")).await;
    let followers = site.follow(["a", "b", "c", "b", "c", "b"].map(by)).await;
    site.open(3);
    let (leader, got) = (leader.await.unwrap(), all(followers).await);
    assert_eq!((leader.body.as_str(), got[0].body.as_str()), ("a 1", "a 1"));
    for (got, agent) in got[1..].iter().zip(["b", "c", "b", "c", "b"]) {
        assert!(got.body.starts_with(agent), "{got:?}");
    }
    assert_eq!(site.runs(), 3);
    assert_eq!((&got[1].body, &got[2].body), (&got[3].body, &got[4].body));
}

/// With the header that `Vary` names in it, the leader's own key is over 8 KiB.
#[tokio::test]
async fn followers_of_a_leader_without_a_key_group_by_what_vary_names() {
    let site = varying();
    let leader = site.lead(by(&"a".repeat(9_000))).await;
    let followers = site.follow(["b", "c", "b", "c"].map(by)).await;
    site.open(3);
    assert!(leader.await.unwrap().body.ends_with(" 1"));
    let got = all(followers).await;
    assert_eq!((&got[0].body, &got[1].body), (&got[2].body, &got[3].body));
    assert_eq!(site.runs(), 3);
}

#[tokio::test]
async fn a_client_whose_key_is_too_long_does_not_take_the_guard_from_the_others() {
    for is_known in [true, false] {
        let site = Site::new(
            |builder| builder,
            move |call: Call| async move {
                let exact = is_known.then_some(1);
                let (sender, body) = frames(exact);
                sender.send(data("x")).unwrap();
                let run = call.run.to_string();
                let told = [("vary", "user-agent"), ("cache-control", "max-age=60"), ("x-run", &run)];
                answer(200, &told, body)
            },
        );
        site.ask(by(&"a".repeat(9_000))).await;
        site.ask(by("b")).await;
        assert_eq!(site.ask(by("b")).await.header("x-run"), Some("2"), "known length: {is_known}");
        // Nor from those who have something stored.
        site.ask(by(&"a".repeat(9_000))).await;
        assert_eq!(site.ask(by("b")).await.header("x-run"), Some("2"), "known length: {is_known}");
    }
}

#[tokio::test]
async fn followers_of_a_variant_that_is_private_share_nothing() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            call.gate().await;
            let agent = call.header("user-agent");
            let control = if agent == "a" { "max-age=60" } else { "private" };
            answer(
                200,
                &[("vary", "User-Agent"), ("cache-control", control)],
                format!("{agent} {}", call.run),
            )
        },
    );
    let leader = site.lead(by("a")).await;
    let followers = site.follow(["b", "b", "b"].map(by)).await;
    site.open(4);
    leader.await.unwrap();
    let got = all(followers).await;
    let mut seen = bodies(&got);
    seen.sort_unstable();
    assert_eq!(seen, ["b 2", "b 3", "b 4"]);
}

#[tokio::test]
async fn the_last_vary_is_remembered_and_keys_the_next_flights() {
    let site = varying();
    site.open(1);
    site.ask(by("a")).await;
    // Two variants at once: neither waits for the other, though neither is stored.
    let b = site.lead(by("b")).await;
    let c = site.lead(by("c")).await;
    let followers = site.follow([by("b"), by("c")]).await;
    site.open(2);
    let got = all(vec![b, c]).await;
    assert_eq!(bodies(&got), bodies(&all(followers).await));
    assert_eq!(site.runs(), 3);
    // Past freshness as well.
    site.clock.advance(secs(61));
    let a = site.lead(by("a")).await;
    let b = site.lead(by("b")).await;
    site.open(2);
    all(vec![a, b]).await;
    assert_eq!(site.runs(), 5);
}

#[tokio::test]
async fn vary_on_an_absent_header_tells_absent_from_empty() {
    let site = Site::new(
        |builder| builder,
        numbered([("vary", "user-agent, x-new"), ("cache-control", "max-age=60")]),
    );
    assert!(site.shares(get("/"), get("/")).await);
    assert!(!site.shares(get("/"), by("")).await);
    assert!(!site.shares(by(""), by("a")).await);
    assert!(!site.shares(by("a"), with(by("a"), "user-agent", "b")).await);
    assert!(site.shares(get("/"), get("/")).await);
}

#[tokio::test]
async fn a_second_vary_is_added_to_the_first() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            let vary = if call.run == 1 { "user-agent" } else { "referer" };
            answer(200, &[("vary", vary), ("cache-control", "max-age=60")], call.run.to_string())
        },
    );
    site.ask(by("a")).await;
    let of = |agent: &str, referer: &str| with(by(agent), "referer", referer);
    assert!(site.shares(of("b", "x"), of("b", "x")).await);
    assert!(!site.shares(of("b", "x"), of("b", "y")).await);
    assert!(!site.shares(of("b", "x"), of("c", "x")).await);
}

#[tokio::test]
async fn headers_that_no_vary_names_any_more_are_forgotten_after_an_hour() {
    let site = Site::new(
        |builder| builder.key_headers([]),
        |call: Call| {
            let vary = if call.run == 1 { "foo, bar" } else { "bar" };
            let headers = [("cache-control", "max-age=600"), ("vary", vary)];
            std::future::ready(answer(200, &headers, call.run.to_string()))
        },
    );
    let asked = |foo| with(with(get("/"), "foo", foo), "bar", "x");
    assert_eq!(site.ask(asked("1")).await.body, "1");
    // While it is remembered, both count, whatever later responses say.
    for round in 0..6 {
        assert_eq!(site.ask(asked("2")).await.body, (2 * round + 2).to_string());
        assert_eq!(site.ask(asked("1")).await.body, (2 * round + 1).to_string());
        site.clock.advance(secs(600));
        assert_eq!(site.ask(asked("1")).await.body, (2 * round + 3).to_string());
    }
    site.clock.advance(secs(600));
    let run = site.runs() + 1;
    assert_eq!(site.ask(asked("1")).await.body, run.to_string());
    assert_eq!(site.ask(asked("2")).await.body, run.to_string());
    assert_ne!(site.ask(with(get("/"), "bar", "y")).await.body, run.to_string());
}

#[tokio::test]
async fn variants_beyond_the_cap_are_shared_and_take_the_oldest_ones_place() {
    let site = varying();
    site.open(usize::MAX >> 4);
    for agent in 0..40 {
        site.ask(by(&agent.to_string())).await;
    }
    let runs = site.runs();
    assert_eq!(runs, 40);
    // 32 variants and the signpost to them.
    assert_eq!(site.guard.stats().entries, 33);
    for agent in 8..40 {
        site.ask(by(&agent.to_string())).await;
    }
    assert_eq!(site.runs(), runs);
    site.ask(by("0")).await;
    assert_eq!((site.runs(), site.guard.stats().entries), (runs + 1, 33));
}

#[tokio::test]
async fn a_client_that_makes_up_variants_does_not_shut_the_others_out() {
    let site = Site::new(
        |builder| builder.max_variants(4),
        numbered([("vary", "user-agent"), ("cache-control", "max-age=60")]),
    );
    for junk in 0..100 {
        site.ask(by(&format!("junk {junk}"))).await;
    }
    assert!(site.shares(by("firefox"), by("firefox")).await);
}

#[tokio::test]
async fn a_variant_that_is_asked_for_again_and_again_outlives_those_made_up_once() {
    let site = Site::new(
        |builder| builder.max_variants(2),
        numbered([("vary", "user-agent"), ("cache-control", "max-age=60")]),
    );
    site.ask(by("firefox")).await;
    site.ask(by("junk 1")).await;
    site.clock.advance(secs(61));
    site.ask(by("firefox")).await;
    site.ask(by("junk 2")).await;
    let runs = site.runs();
    site.ask(by("firefox")).await;
    assert_eq!(site.runs(), runs);
}

#[tokio::test]
async fn one_clients_fault_does_not_take_the_guard_from_the_others() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            tokio::task::yield_now().await;
            match call.header("user-agent").as_str() {
                "scanner" => answer(403, &[], "no"),
                _ => answer(200, &[("cache-control", "max-age=60")], call.run.to_string()),
            }
        },
    );
    assert_eq!(site.ask(by("scanner")).await.status, 403);
    // Whoever comes next shows that the key is shareable after all.
    assert_eq!(site.ask(by("firefox")).await.body, "2");
    let got = all((0..HERD).map(|_| site.start(by("firefox"))).collect()).await;
    assert_eq!(site.runs(), 3, "{got:?}");
    assert!(site.shares(get("/"), by("scanner")).await);
}

/// As behind a layer that compresses: no length is known.
#[tokio::test]
async fn one_clients_fault_does_not_take_bodies_of_unknown_length_from_the_others() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            if call.header("user-agent") == "scanner" {
                return answer(403, &[], "no");
            }
            let (sender, body) = frames(None);
            sender.send(data("page")).unwrap();
            let run = call.run.to_string();
            answer(200, &[("cache-control", "max-age=60"), ("x-run", &run)], body)
        },
    );
    for run in ["2", "3", "3"] {
        if run == "2" {
            assert_eq!(site.ask(by("scanner")).await.status, 403);
        }
        assert_eq!(site.ask(by("firefox")).await.header("x-run"), Some(run));
    }
}

/// The page under a URL is there for the others still, whatever a response says that one client wanted not kept.
#[tokio::test]
async fn a_no_store_client_puts_up_no_signpost() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            let lasts = ("cache-control", "max-age=5, stale-if-error=60");
            match call.run {
                1 => answer(200, &[lasts], "1"),
                2 => answer(200, &[lasts, ("vary", "user-agent")], "2"),
                _ => answer(500, &[], ""),
            }
        },
    );
    site.ask(by("firefox")).await;
    site.clock.advance(secs(6));
    assert_eq!(site.ask(with(by("firefox"), "cache-control", "no-store")).await.body, "2");
    assert_eq!(site.ask(by("firefox")).await.body, "1");
}

#[tokio::test]
async fn what_shows_nothing_about_others_leaves_the_marker() {
    let site = Site::new(
        |builder| builder.max_body_bytes(4),
        |call: Call| async move {
            match call.run {
                1 => answer(200, &[], "too long"),
                // A body without end: the others would have to wait for it, as they did for that one.
                2 => answer(
                    200,
                    &[],
                    Body::from_stream(futures_util::stream::empty::<Result<Vec<u8>, axum::Error>>()),
                ),
                3 => answer(304, &[("etag", "\"v\"")], ""),
                4 => answer(200, &[("set-cookie", "s=1")], "4"),
                run => answer(200, &[("cache-control", "no-store")], run.to_string()),
            }
        },
    );
    for _ in 0..6 {
        site.ask(get("/")).await;
    }
    assert_eq!((site.runs(), site.guard.stats().unshared), (6, 5));
}

#[tokio::test]
async fn the_leaders_own_response_is_untouched() {
    let site = Site::new(
        |builder| builder,
        |_| async {
            let mut response: Response<Body> =
                answer(200, &[("set-cookie", "a=1"), ("set-cookie", "b=2"), ("connection", "close")], "x");
            response.extensions_mut().insert("mine");
            response
        },
    );
    let response = site.response(get("/")).await;
    assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
    assert_eq!(response.headers()["connection"], "close");
    assert_eq!(response.extensions().get::<&str>(), Some(&"mine"));
}

#[tokio::test]
async fn extensions_of_a_response_stay_with_their_own_client() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            call.gate().await;
            let mut response = answer(200, &[("cache-control", "max-age=60")], "x");
            response.extensions_mut().insert("secret");
            response
        },
    );
    let routed = site.clone();
    let leader = site.lead(get("/")).await;
    let follower = tokio::spawn(async move { routed.response(get("/")).await });
    until(|| site.guard.stats().flights.coalesced == 1).await;
    site.open(1);
    leader.await.unwrap();
    assert_eq!(follower.await.unwrap().extensions().get::<&str>(), None);
    assert_eq!(site.response(get("/")).await.extensions().get::<&str>(), None);
}
