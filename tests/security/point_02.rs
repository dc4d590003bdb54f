//! Point 2: the key.

use axum::Router;
use axum::body::Body;
use axum::extract::OriginalUri;
use axum::http::{Request, header};
use axum::routing::get as on_get;
use stampede_guard::StampedeGuard;
use tower::ServiceExt;

use crate::site::{Call, Site, all, answer, get, head, numbered, read, request, with};

fn site() -> Site {
    Site::new(|builder| builder, numbered([("cache-control", "max-age=60")]))
}

/// Whether requests that differ in one header line share, on the shelf and in the air.
async fn header_shares(site: &Site, name: &str, one: &str, other: &str) -> bool {
    let (one, other) = (|| with(get("/"), name, one), || with(get("/"), name, other));
    assert!(site.shares(one(), one()).await, "{name}: equal requests share");
    site.shares(one(), other()).await
}

macro_rules! splits {
    ($($test:ident: $header:literal;)*) => {$(
        #[tokio::test]
        async fn $test() {
            assert!(!header_shares(&site(), $header, "one", "other").await);
            let site = Site::new(|builder| builder, |call: Call| async move {
                call.gate().await;
                answer(200, &[], call.header($header))
            });
            let first = site.lead(with(get("/"), $header, "one")).await;
            let second = site.lead(with(get("/"), $header, "other")).await;
            site.open(2);
            let got = all(vec![first, second]).await;
            assert_eq!((got[0].body.as_str(), got[1].body.as_str()), ("one", "other"));
        }
    )*};
}

splits! {
    x_api_key_splits: "x-api-key";
    x_tenant_splits: "x-tenant";
    accept_splits: "accept";
    accept_encoding_splits: "accept-encoding";
    accept_language_splits: "accept-language";
    origin_splits: "origin";
    sec_fetch_site_splits: "sec-fetch-site";
    sec_fetch_mode_splits: "sec-fetch-mode";
    sec_fetch_dest_splits: "sec-fetch-dest";
    sec_fetch_user_splits: "sec-fetch-user";
    x_forwarded_host_splits: "x-forwarded-host";
    x_forwarded_proto_splits: "x-forwarded-proto";
    x_forwarded_port_splits: "x-forwarded-port";
    x_forwarded_prefix_splits: "x-forwarded-prefix";
    x_forwarded_user_splits: "x-forwarded-user";
    x_forwarded_client_cert_splits: "x-forwarded-client-cert";
    forwarded_splits: "forwarded";
    x_original_url_splits: "x-original-url";
    a_header_nobody_knows_splits: "x-never-heard-of";
}

#[tokio::test]
async fn the_closed_list_shares() {
    for name in [
        "user-agent",
        "sec-ch-ua",
        "sec-ch-ua-platform",
        "referer",
        "if-none-match",
        "if-modified-since",
        "cache-control",
        "pragma",
        "traceparent",
        "x-b3-traceid",
        "x-request-id",
        "x-correlation-id",
        "x-forwarded-for",
        "x-real-ip",
        "via",
        "te",
        "connection",
    ] {
        assert!(header_shares(&site(), name, "one", "other").await, "{name}");
    }
}

#[tokio::test]
async fn the_closed_list_is_exact() {
    for name in
        ["x-b3-tenant", "sec-ch-ua-x", "x-request-ids", "x-request", "user-agents", "x-forwarded-forx"]
    {
        assert!(!header_shares(&site(), name, "one", "other").await, "{name}");
    }
}

#[tokio::test]
async fn two_hosts_do_not_mix() {
    let site = site();
    let of = |host: &str| Request::get("/").header(header::HOST, host).body(Body::empty()).unwrap();
    assert!(site.shares(of("a.example"), of("a.example")).await);
    for other in ["b.example", "A.example", "a.example.", "a.example:80", "u@a.example", "", "a.example "] {
        assert!(!site.shares(of("a.example"), of(other)).await, "{other:?}");
    }
    let none = Request::get("/").body(Body::empty()).unwrap();
    assert!(!site.shares(of(""), none).await);
}

#[tokio::test]
async fn a_second_host_line_splits() {
    let site = site();
    let (one, two) = (|| get("/"), |host| with(get("/"), "host", host));
    assert!(!site.shares(one(), two("shop.example")).await);
    assert!(!site.shares(two("shop.example"), two("evil.example")).await);
    let reversed = with(
        Request::get("/").header(header::HOST, "evil.example").body(Body::empty()).unwrap(),
        "host",
        "shop.example",
    );
    assert!(!site.shares(two("evil.example"), reversed).await);
}

#[tokio::test]
async fn absolute_form_and_origin_form_do_not_mix() {
    let site = site();
    assert!(!site.shares(get("/"), get("http://shop.example/")).await);
    assert!(!site.shares(get("http://shop.example/"), get("https://shop.example/")).await);
    assert!(!site.shares(get("http://shop.example/"), get("http://other.example/")).await);
    assert!(!site.shares(get("http://shop.example/"), get("http://u:p@shop.example/")).await);
    assert!(!site.shares(get("http://shop.example/"), get("http://SHOP.example/")).await);
    assert!(!site.shares(get("http://shop.example/"), get("http://shop.example:80/")).await);
}

#[tokio::test]
async fn authority_and_host_both_count() {
    let site = site();
    let of = |host: &str| {
        Request::get("http://a.example/").header(header::HOST, host).body(Body::empty()).unwrap()
    };
    assert!(site.shares(of("a.example"), of("a.example")).await);
    assert!(!site.shares(of("a.example"), of("b.example")).await);
}

#[tokio::test]
async fn forms_and_hosts_do_not_mix_on_a_socket() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move { answer(200, &[], format!("{} {}", call.parts.uri, call.header("host"))) },
    );
    let server = site.serve().await;
    for (target, host) in [
        ("/", "a"),
        ("/", "b"),
        ("http://a/", "a"),
        ("http://a/", "b"),
        ("http://b/", "a"),
        ("/?", "a"),
        ("/%2e", "a"),
    ] {
        for _ in 0..2 {
            let got = server
                .raw(&format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"))
                .await;
            let body = got.rsplit("\r\n").next().unwrap();
            assert_eq!(body, format!("{target} {host}"));
        }
    }
    assert_eq!(site.runs(), 7);
}

#[tokio::test]
async fn bytes_of_path_and_query_are_not_normalised() {
    let site = site();
    assert!(site.shares(get("/a?x=1&y=2"), get("/a?x=1&y=2")).await);
    for (one, other) in [
        ("/a?x=1&y=2", "/a?y=2&x=1"),
        ("/a", "/%61"),
        ("/%2f", "/%2F"),
        ("/a", "/A"),
        ("/a", "/a/"),
        ("/a", "//a"),
        ("/a", "/./a"),
        ("/a/b", "/a/x/../b"),
        ("/a", "/a?"),
        ("/a?", "/a??"),
        ("/a?x", "/a?x="),
        ("/a?x=1", "/a?x=+1"),
        ("/a;v=1", "/a"),
        ("/a?b", "/a%3fb"),
    ] {
        assert!(!site.shares(get(one), get(other)).await, "{one} {other}");
    }
}

async fn where_is(OriginalUri(original): OriginalUri, request: Request<Body>) -> String {
    format!("{} {}", original.path(), request.uri().path())
}

async fn nested(app: Router) {
    for (uri, expected) in
        [("/en/page", "/en/page /page"), ("/de/page", "/de/page /page"), ("/page", "/page /page")]
    {
        for _ in 0..2 {
            let got = read(app.clone().oneshot(get(uri)).await.unwrap()).await;
            assert_eq!(got.body, expected);
        }
    }
}

#[tokio::test]
async fn a_guard_inside_two_nests_does_not_mix_them() {
    let guard = StampedeGuard::new();
    let inner = || Router::new().route("/page", on_get(where_is)).layer(guard.clone());
    nested(Router::new().nest("/en", inner()).nest("/de", inner()).merge(inner())).await;
    assert_eq!(guard.stats().hits, 3);
}

#[tokio::test]
async fn a_guard_outside_two_nests_does_not_mix_them() {
    let guard = StampedeGuard::new();
    let inner = || Router::new().route("/page", on_get(where_is));
    nested(Router::new().nest("/en", inner()).nest("/de", inner()).merge(inner()).layer(guard.clone())).await;
    assert_eq!(guard.stats().hits, 3);
}

#[tokio::test]
async fn a_guard_at_two_depths_keeps_them_apart() {
    let guard = StampedeGuard::new();
    let inner = || Router::new().route("/page", on_get(where_is)).layer(guard.clone());
    nested(Router::new().nest("/en", inner()).nest("/de", inner()).merge(inner()).layer(guard.clone())).await;
}

#[tokio::test]
async fn a_uri_rewritten_on_the_way_counts_as_it_came_and_as_it_is_seen() {
    let site = site();
    let rewritten = |original: &'static str, seen: &str| {
        let mut request = get(seen);
        request.extensions_mut().insert(OriginalUri(original.parse().unwrap()));
        request
    };
    assert!(site.shares(rewritten("/a", "/x"), rewritten("/a", "/x")).await);
    assert!(!site.shares(rewritten("/a", "/x"), rewritten("/b", "/x")).await);
    assert!(!site.shares(rewritten("/a", "/x"), rewritten("/a", "/y")).await);
    assert!(!site.shares(rewritten("http://h/x", "/x"), rewritten("http://H/x", "/x")).await);
    // Of what came, one part alone is not what is seen.
    for (seen, one, other) in [
        ("/x", "/a", "/b"),
        ("/x?c", "/x?a", "/x?b"),
        ("http://h/x", "https://h/x", "ws://h/x"),
        ("http://h/x", "http://H/x", "http://g/x"),
    ] {
        site.guard.invalidate_all();
        assert!(!site.shares(rewritten(one, seen), rewritten(other, seen)).await, "{one} {other} {seen}");
    }
}

#[tokio::test]
async fn absent_empty_and_repeated_headers_differ() {
    let site = site();
    let of = |values: &[&str]| values.iter().fold(get("/"), |request, value| with(request, "x-a", value));
    let all: [&[&str]; 8] = [&[], &[""], &["", ""], &["1"], &["1", ""], &["", "1"], &["1", "2"], &["2", "1"]];
    for (i, one) in all.iter().enumerate() {
        for other in &all[..i] {
            assert!(!site.shares(of(one), of(other)).await, "{one:?} {other:?}");
            site.guard.invalidate_all();
        }
    }
    assert!(!site.shares(of(&["1", "2"]), of(&["1, 2"])).await);
}

#[tokio::test]
async fn a_value_cannot_move_to_another_header() {
    let site = site();
    let of = |lines: &[(&str, &str)]| {
        lines.iter().fold(get("/"), |request, (name, value)| with(request, name, value))
    };
    assert!(!site.shares(of(&[("x-a", "1")]), of(&[("x-b", "1")])).await);
    assert!(!site.shares(of(&[("x-a", "x-b")]), of(&[("x-b", "x-a")])).await);
    assert!(!site.shares(of(&[("x-a", "1"), ("x-b", "")]), of(&[("x-a", ""), ("x-b", "1")])).await);
    // The order of different names is nobody's business.
    let (forth, back) = ([("x-a", "1"), ("x-b", "2")], [("x-b", "2"), ("x-a", "1")]);
    assert!(site.shares(of(&forth), of(&back)).await);
}

#[tokio::test]
async fn odd_bytes_in_values_count() {
    let site = site();
    let of = |value: &[u8]| {
        let mut request = get("/");
        request.headers_mut().insert("x-a", header::HeaderValue::from_bytes(value).unwrap());
        request
    };
    for (one, other) in [(&b"\xff"[..], &b"\xfe"[..]), (b"a\t", b"a"), (b" a", b"a"), (b"\xc3\xa9", b"e")] {
        assert!(!site.shares(of(one), of(other)).await, "{one:?}");
    }
}

#[tokio::test]
async fn ignore_header_widens_the_list() {
    let site =
        Site::new(|builder| builder.ignore_header("X-Nonce"), numbered([("cache-control", "max-age=60")]));
    assert!(header_shares(&site, "x-nonce", "one", "other").await);
    assert!(!header_shares(&site, "x-nonces", "one", "other").await);
    assert!(!header_shares(&site, "x-api-key", "one", "other").await);
}

#[tokio::test]
async fn vary_counts_a_header_that_is_ignored() {
    for ignoring in [true, false] {
        let name = if ignoring { "x-nonce" } else { "user-agent" };
        let site = Site::new(
            |builder| builder.ignore_header("x-nonce"),
            numbered([("vary", "x-nonce, user-agent"), ("cache-control", "max-age=60")]),
        );
        assert!(!header_shares(&site, name, "one", "other").await, "{name}");
    }
}

#[tokio::test]
async fn key_headers_replaces_the_rule() {
    let site =
        Site::new(|builder| builder.key_headers(["x-tenant"]), numbered([("cache-control", "max-age=60")]));
    assert!(!header_shares(&site, "x-tenant", "one", "other").await);
    assert!(header_shares(&site, "x-other", "one", "other").await);
    let of = |host: &str| Request::get("/").header(header::HOST, host).body(Body::empty()).unwrap();
    assert!(!site.shares(of("a"), of("b")).await);
}

#[tokio::test]
async fn no_key_headers_is_the_classic_key() {
    let site = Site::new(|builder| builder.key_headers([]), numbered([("cache-control", "max-age=60")]));
    assert!(header_shares(&site, "x-tenant", "one", "other").await);
    assert!(header_shares(&site, "accept-language", "one", "other").await);
    assert!(!site.shares(get("/1"), get("/2")).await);
    assert!(!site.shares(head("/3"), get("/3")).await);
    assert!(!site.shares(get("/4"), request("GET", "http://shop.example/4")).await);
    let varying = Site::new(
        |builder| builder.key_headers([]),
        numbered([("cache-control", "max-age=60"), ("vary", "accept-language")]),
    );
    assert!(!header_shares(&varying, "accept-language", "one", "other").await);
}

#[tokio::test]
async fn what_the_operator_adds_splits() {
    let site = Site::new(
        |builder| {
            builder.key_with(|parts, key| {
                for part in parts.extensions.get::<Vec<&'static str>>().into_iter().flatten() {
                    key.push(part);
                }
            })
        },
        numbered([("cache-control", "max-age=60")]),
    );
    let of = |parts: &[&'static str]| {
        let mut request = get("/");
        request.extensions_mut().insert(parts.to_vec());
        request
    };
    assert!(site.shares(of(&["a"]), of(&["a"])).await);
    for (one, other) in
        [(&["a"][..], &["b"][..]), (&["a", "b"], &["ab"]), (&["ab", ""], &["a", "b"]), (&[], &[""])]
    {
        assert!(!site.shares(of(one), of(other)).await, "{one:?}");
        site.guard.invalidate_all();
    }
}

#[tokio::test]
async fn keys_over_8_kib_pass() {
    let site = site();
    let long = "a".repeat(9 * 1024);
    let by_uri = format!("/{long}");
    for request in [|_: &str, long: &str| with(get("/"), "x-a", long), |uri: &str, _: &str| get(uri)] {
        assert!(!site.shares(request(&by_uri, &long), request(&by_uri, &long)).await);
    }
    assert_eq!(site.guard.stats().entries, 0);
    let nearly = "a".repeat(7 * 1024);
    assert!(site.shares(with(get("/"), "x-a", &nearly), with(get("/"), "x-a", &nearly)).await);
    let other = format!("{}b", &nearly[1..]);
    assert!(!site.shares(with(get("/"), "x-a", &nearly), with(get("/"), "x-a", &other)).await);
}

#[tokio::test]
async fn very_many_headers_all_count() {
    let site = site();
    let of = |last: &str| {
        let many = (0..300).fold(get("/"), |request, i| with(request, &format!("x-{i}"), "v"));
        with(many, "x-last", last)
    };
    assert!(site.shares(of("one"), of("one")).await);
    assert!(!site.shares(of("one"), of("other")).await);
}

#[tokio::test]
async fn clones_share_one_store_and_others_do_not() {
    let clone = StampedeGuard::new();
    let app = |guard: &StampedeGuard| Router::new().route("/page", on_get(where_is)).layer(guard.clone());
    for _ in 0..2 {
        app(&clone).oneshot(get("/page")).await.unwrap();
    }
    assert_eq!((clone.stats().led, clone.stats().hits), (1, 1));
    let other = StampedeGuard::new();
    app(&other).oneshot(get("/page")).await.unwrap();
    assert_eq!((other.stats().led, other.stats().hits), (1, 0));
}

#[tokio::test]
async fn a_header_that_makes_every_key_unique_is_named() {
    let site = Site::new(|builder| builder, numbered([]));
    for i in 0..600 {
        site.ask(with(with(get("/"), "x-nonce", &format!("secret-{i}")), "x-tenant", "t")).await;
    }
    let stats = site.guard.stats();
    assert_eq!(stats.unique_headers, ["x-nonce"]);
    assert!(!format!("{stats:?}").contains("secret"));
}
