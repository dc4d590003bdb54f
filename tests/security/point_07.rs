//! Point 7: what belongs to one connection is not replayed.

use std::time::Duration;

use crate::site::{Call, Site, all, answer, get, head, numbered, secs, with};

const CONNECTION_LEVEL: [(&str, &str); 12] = [
    ("connection", "close, X-One"),
    ("connection", "x-two"),
    ("keep-alive", "timeout=5"),
    ("proxy-connection", "keep-alive"),
    ("te", "trailers"),
    ("upgrade", "h2c"),
    ("proxy-authenticate", "Basic"),
    ("proxy-authentication-info", "nextnonce=1"),
    ("x-one", "1"),
    ("X-Two", "2"),
    ("x-kept", "3"),
    ("cache-control", "max-age=60"),
];

#[tokio::test]
async fn hop_by_hop_and_connection_named_fields_are_not_replayed() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            call.gate().await;
            answer(200, &CONNECTION_LEVEL, "x")
        },
    );
    let leader = site.lead(get("/")).await;
    let mut others = site.follow([get("/"), head("/")]).await;
    site.open(1);
    assert_eq!(leader.await.unwrap().header("x-one"), Some("1"));
    others.push(site.start(get("/")));
    others.push(site.start(head("/")));
    for got in all(others).await {
        for name in [
            "connection",
            "keep-alive",
            "proxy-connection",
            "te",
            "upgrade",
            "transfer-encoding",
            "proxy-authenticate",
            "proxy-authentication-info",
            "x-one",
            "x-two",
        ] {
            assert_eq!(got.header(name), None, "{name}");
        }
        assert_eq!(got.header("x-kept"), Some("3"));
    }
}

#[tokio::test]
async fn a_page_stored_from_one_connection_is_whole_on_another() {
    let site = Site::new(
        |builder| builder,
        |_| async { answer(200, &[("connection", "close"), ("cache-control", "max-age=60")], "page") },
    );
    let server = site.serve().await;
    for replayed in [false, true] {
        let (status, headers, body) = server.get(get("/")).await.unwrap();
        assert_eq!((status.as_u16(), &body[..]), (200, &b"page"[..]));
        assert_eq!(headers["content-length"], "4");
        assert_eq!(headers.contains_key("connection"), !replayed);
    }
}

#[tokio::test]
async fn age_counts_from_generation() {
    let site = Site::new(|builder| builder, numbered([("cache-control", "max-age=60"), ("age", "7")]));
    assert_eq!(site.ask(get("/")).await.header("age"), Some("7"));
    assert_eq!(site.ask(get("/")).await.header("age"), Some("7"));
    site.clock.advance(Duration::from_millis(13_500));
    let got = site.ask(get("/")).await;
    assert_eq!(got.headers.get_all("age").iter().count(), 1);
    assert_eq!(got.header("age"), Some("20"));
}

#[tokio::test]
async fn a_304_from_the_store_has_age_and_no_body() {
    let site = Site::new(|builder| builder, numbered([("cache-control", "max-age=60"), ("etag", "\"v\"")]));
    site.ask(get("/")).await;
    site.clock.advance(secs(3));
    let got = site.ask(with(get("/"), "if-none-match", "W/\"v\"")).await;
    assert_eq!((got.status.as_u16(), got.body.as_str(), got.header("age")), (304, "", Some("3")));
}

#[tokio::test]
async fn nothing_tells_about_the_cache_unless_asked_for() {
    let site = Site::new(|builder| builder, numbered([]));
    for _ in 0..2 {
        let got = site.ask(get("/")).await;
        for name in ["cache-status", "x-cache", "via", "server"] {
            assert_eq!(got.header(name), None);
        }
    }
}
