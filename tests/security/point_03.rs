//! Point 3: credentials, bodies and preconditions go straight through unless the operator opts in.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use stampede_guard::StampedeGuardBuilder;
use tokio::io::AsyncWriteExt;
use tokio::sync::Barrier;

use crate::site::{Call, Site, all, answer, get, head, numbered, request, secs, with};

/// That such requests run side by side, leave nothing, and neither see what is stored nor are seen.
async fn passes(ask: impl Fn() -> Request<Body>) {
    let pair = Arc::new(Barrier::new(2));
    let site = Site::new(
        |builder| builder,
        move |call: Call| {
            let pair = Arc::clone(&pair);
            async move {
                if call.run > 1 {
                    pair.wait().await;
                }
                answer(200, &[("cache-control", "public, max-age=60")], call.run.to_string())
            }
        },
    );
    // Something is stored, and it is not for them.
    assert_eq!(site.ask(get("/")).await.body, "1");
    let mut got: Vec<_> = all(vec![site.start(ask()), site.start(ask())]).await;
    got.sort_by(|a, b| a.body.cmp(&b.body));
    assert_eq!((got[0].body.as_str(), got[1].body.as_str()), ("2", "3"));
    assert!(got.iter().all(|got| got.header("age").is_none()));
    // Nor is theirs for anybody else.
    assert_eq!(site.ask(get("/")).await.body, "1");
    assert_eq!((site.guard.stats().passed, site.guard.stats().entries), (2, 1));
}

macro_rules! passes {
    ($($test:ident: $header:literal, $value:literal;)*) => {$(
        #[tokio::test]
        async fn $test() {
            passes(|| with(get("/"), $header, $value)).await;
        }
    )*};
}

passes! {
    authorization_passes: "authorization", "Bearer secret";
    an_empty_authorization_passes: "authorization", "";
    proxy_authorization_passes: "proxy-authorization", "Basic c2VjcmV0";
    cookie_passes: "cookie", "session=secret";
    an_empty_cookie_passes: "cookie", "";
    if_match_passes: "if-match", "\"v\"";
    if_unmodified_since_passes: "if-unmodified-since", "Sun, 06 Nov 1994 08:49:37 GMT";
    expect_passes: "expect", "100-continue";
    several_ranges_pass: "range", "bytes=0-0, 2-3";
    a_range_of_another_unit_passes: "range", "lines=0-1";
    a_content_length_passes: "content-length", "5";
    a_content_length_that_is_none_passes: "content-length", "0x0";
    chunked_framing_passes: "transfer-encoding", "chunked";
}

#[tokio::test]
async fn a_body_passes() {
    passes(|| get("/").map(|_| Body::from("{\"q\":1}"))).await;
    passes(|| {
        get("/").map(|_| Body::from_stream(futures_util::stream::pending::<Result<Bytes, axum::Error>>()))
    })
    .await;
}

/// No data, then trailers.
struct OnlyTrailers(Option<HeaderMap>);

impl http_body::Body for OnlyTrailers {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(0)
    }
}

#[tokio::test]
async fn request_trailers_pass() {
    passes(|| {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-user", "secret".parse().unwrap());
        get("/").map(|_| Body::new(OnlyTrailers(Some(trailers))))
    })
    .await;
}

#[tokio::test]
async fn a_body_on_a_socket_passes() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            let run = call.run;
            let body = call.body.collect().await.unwrap().to_bytes();
            answer(200, &[], format!("{run}:{}", String::from_utf8_lossy(&body)))
        },
    );
    let server = site.serve().await;
    for (run, body) in [(1, "one"), (2, "two"), (3, "two")] {
        let length = body.len();
        let chunked = format!(
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"
        );
        let got = server.raw(&chunked).await;
        assert!(got.ends_with(&format!("{run}:{body}")), "{got}");
    }
    let mut socket = server.connect().await;
    socket.write_all(b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n").await.unwrap();
    let plain = server.raw("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(plain.ends_with(':'), "{plain}");
}

#[tokio::test]
async fn a_credential_on_a_head_passes() {
    let site = Site::new(|builder| builder, numbered([("cache-control", "public, max-age=60")]));
    site.ask(get("/")).await;
    site.ask(with(head("/"), "authorization", "Bearer secret")).await;
    assert_eq!(site.runs(), 2);
}

#[tokio::test]
async fn a_206_is_its_own_clients() {
    let partial = [("content-range", "bytes 0-0/1"), ("cache-control", "max-age=60")];
    let site = Site::new(
        |builder| builder,
        move |call: Call| async move { answer(206, &partial, call.run.to_string()) },
    );
    for run in ["1", "2"] {
        assert_eq!(site.ask(with(get("/"), "range", "bytes=0-0")).await.body, run);
    }
    assert_eq!(site.guard.stats().entries, 0);
    assert_eq!(site.ask(get("/")).await.body, "3");
}

fn opted(opt: impl FnOnce(StampedeGuardBuilder) -> StampedeGuardBuilder) -> Site {
    Site::new(opt, numbered([("cache-control", "max-age=60")]))
}

fn bearing(name: &'static str) -> impl Fn(&str) -> Request<Body> {
    move |value| with(get("/"), name, value)
}

#[tokio::test]
async fn key_authorization_keeps_principals_apart() {
    let site = opted(StampedeGuardBuilder::key_authorization);
    for name in ["authorization", "proxy-authorization"] {
        let of = bearing(name);
        assert!(site.shares(of("Bearer a"), of("Bearer a")).await);
        assert!(!site.shares(of("Bearer a"), of("Bearer b")).await);
        assert!(!site.shares(of("Bearer a"), of("bearer a")).await);
        assert!(!site.shares(of("Bearer a"), get("/")).await);
        assert!(!site.shares(of("Bearer a"), with(of("Bearer a"), name, "Bearer b")).await);
    }
    assert!(!site.shares(bearing("authorization")("x"), bearing("proxy-authorization")("x")).await);
    // Cookies are another matter.
    let both = || with(bearing("authorization")("Bearer a"), "cookie", "a=1");
    assert!(!site.shares(both(), both()).await);
}

#[tokio::test]
async fn key_authorization_does_not_share_what_is_private() {
    let site = Site::new(
        StampedeGuardBuilder::key_authorization,
        numbered([("cache-control", "private, max-age=60")]),
    );
    let of = bearing("authorization");
    assert!(!site.shares(of("Bearer a"), of("Bearer a")).await);
}

#[tokio::test]
async fn naming_a_credential_in_key_headers_opts_it_in() {
    let site = opted(|builder| builder.key_headers(["authorization", "cookie"]));
    for name in ["authorization", "cookie"] {
        let of = bearing(name);
        assert!(site.shares(of("a=1"), of("a=1")).await);
        assert!(!site.shares(of("a=1"), of("a=2")).await);
        assert!(!site.shares(of("a=1"), get("/")).await);
    }
}

#[tokio::test]
async fn ignoring_a_credential_header_does_not_opt_it_in() {
    let site = opted(|builder| {
        builder.ignore_header("authorization").ignore_header("cookie").ignore_header("proxy-authorization")
    });
    for name in ["authorization", "cookie", "proxy-authorization"] {
        assert!(!site.shares(bearing(name)("a=1"), bearing(name)("a=1")).await, "{name}");
    }
    let both = opted(|builder| builder.key_authorization().ignore_header("authorization"));
    assert!(!both.shares(bearing("authorization")("a"), bearing("authorization")("a")).await);
}

#[tokio::test]
async fn ignored_cookies_share_and_others_pass() {
    let site = opted(|builder| builder.ignore_cookies(["_ga", "_gid"]));
    let of = bearing("cookie");
    assert!(site.shares(of("_ga=1"), of("_gid=2; _ga=3")).await);
    assert!(site.shares(of("_ga=1"), get("/")).await);
    for odd in [
        "session=1",
        "_ga=1; session=1",
        "_ga=1;session=1",
        "_ga=1, session=1",
        "_ga=\"1; session=1\"",
        "_GA=1",
        "_ga",
        "_ga =1",
        "=_ga",
        "_gax=1",
        "_ga=a\\b",
    ] {
        assert!(!site.shares(of(odd), of(odd)).await, "{odd}");
    }
    // A second line hides nothing.
    let two = || with(of("_ga=1"), "cookie", "session=1");
    assert!(!site.shares(two(), two()).await);
}

#[tokio::test]
async fn keyed_cookies_split_and_others_pass() {
    let site = opted(|builder| builder.key_cookies(["lang"]).ignore_cookies(["_ga"]));
    let of = bearing("cookie");
    assert!(site.shares(of("lang=de; _ga=1"), of("_ga=2; lang=de")).await);
    for (one, other) in [
        ("lang=de", "lang=en"),
        ("lang=de", "lang=de; lang=en"),
        ("lang=de; lang=en", "lang=en; lang=de"),
        ("lang=", "_ga=1"),
        ("lang=de", "lang=\"de\""),
        ("lang=de", "lang=DE"),
    ] {
        assert!(!site.shares(of(one), of(other)).await, "{one} {other}");
        site.guard.invalidate_all();
    }
    assert!(!site.shares(of("lang=de; session=1"), of("lang=de; session=1")).await);
}

#[tokio::test]
async fn a_session_minted_for_an_analytics_visitor_reaches_it_alone() {
    let site = Site::new(
        |builder| builder.ignore_cookies(["_ga"]),
        numbered([("set-cookie", "session=secret"), ("cache-control", "public, max-age=60")]),
    );
    let of = bearing("cookie");
    assert!(!site.shares(of("_ga=1"), of("_ga=1")).await);
}

#[tokio::test]
async fn vary_on_credentials_does_not_let_them_in() {
    let site = Site::new(
        |builder| builder,
        numbered([("vary", "cookie, authorization"), ("cache-control", "max-age=60")]),
    );
    assert!(site.shares(get("/"), get("/")).await);
    for name in ["cookie", "authorization"] {
        assert!(!site.shares(bearing(name)("a=1"), bearing(name)("a=1")).await, "{name}");
    }
    site.clock.advance(secs(1));
    assert!(site.shares(get("/"), request("GET", "/")).await);
}
