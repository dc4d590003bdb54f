//! The guard beside tower-http's `CompressionLayer`, on either side of it: `Content-Encoding` is part of what is stored,
//! and nobody gets an encoding that it did not ask for.

mod support;

use std::io::Read;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request};
use axum::routing::get;
use flate2::read::GzDecoder;
use http_body_util::BodyExt;
use stampede_guard::StampedeGuard;
use support::{Runs, ask, clocked, request, with};
use tower_http::compression::CompressionLayer;

const TEXT: &str = "a page that is long enough to be worth compressing, ";

async fn page(State(runs): State<Runs>) -> ([(&'static str, &'static str); 3], String) {
    runs.add();
    let headers = [("cache-control", "max-age=60"), ("content-type", "text/html"), ("etag", "\"v\"")];
    (headers, TEXT.repeat(20))
}

fn handler(runs: &Runs) -> Router {
    Router::new().route("/", get(page)).with_state(runs.clone())
}

fn guard() -> StampedeGuard {
    clocked().1.build().unwrap()
}

fn accepting(encoding: &str) -> Request<Body> {
    let request = request("/");
    if encoding.is_empty() { request } else { with(request, "accept-encoding", encoding) }
}

/// The text of an answer, and what it says its encoding is.
async fn read(app: &Router, encoding: &str) -> (String, Option<String>, HeaderMap) {
    let response = ask(app, accepting(encoding)).await;
    let headers = response.headers().clone();
    let coded = headers.get("content-encoding").map(|coded| coded.to_str().unwrap().to_owned());
    let bytes: Bytes = response.into_body().collect().await.unwrap().to_bytes();
    let mut text = String::new();
    match coded.as_deref() {
        Some("gzip") => drop(GzDecoder::new(&*bytes).read_to_string(&mut text).unwrap()),
        None => text.push_str(std::str::from_utf8(&bytes).unwrap()),
        other => panic!("{other:?}"),
    }
    (text, coded, headers)
}

/// Asks twice as each kind of client, in turns, and compares what comes with what should.
async fn serves_each_its_own(app: &Router) {
    for _ in 0..2 {
        for encoding in ["gzip", "", "identity", "gzip, br;q=0"] {
            let (text, coded, headers) = read(app, encoding).await;
            assert_eq!(text, TEXT.repeat(20), "{encoding}");
            assert_eq!(coded.as_deref(), encoding.contains("gzip").then_some("gzip"), "{encoding}");
            if coded.is_some() {
                assert_eq!(headers["vary"], "accept-encoding");
            }
        }
    }
}

#[tokio::test]
async fn compression_inside_the_guard_is_stored_by_encoding() {
    let runs = Runs::default();
    let app = handler(&runs).layer(CompressionLayer::new()).layer(guard());
    serves_each_its_own(&app).await;
    assert_eq!(runs.get(), 4, "one a value of Accept-Encoding");
}

#[tokio::test]
async fn compression_inside_a_guard_that_keys_by_vary_alone() {
    let runs = Runs::default();
    let guard = clocked().1.key_headers([]).build().unwrap();
    let app = handler(&runs).layer(CompressionLayer::new()).layer(guard);
    serves_each_its_own(&app).await;
    assert_eq!(runs.get(), 4);
}

#[tokio::test]
async fn compression_outside_the_guard_compresses_what_is_stored_plain() {
    let runs = Runs::default();
    let guard = clocked().1.ignore_header("accept-encoding").build().unwrap();
    let app = handler(&runs).layer(guard).layer(CompressionLayer::new());
    serves_each_its_own(&app).await;
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn a_range_is_cut_from_the_encoding_that_the_client_takes() {
    let runs = Runs::default();
    let app = handler(&runs).layer(CompressionLayer::new()).layer(guard());
    read(&app, "gzip").await;
    read(&app, "").await;
    let plain = ask(&app, with(accepting(""), "range", "bytes=0-5")).await;
    assert_eq!((plain.status().as_u16(), plain.headers().get("content-encoding")), (206, None));
    assert_eq!(plain.into_body().collect().await.unwrap().to_bytes(), TEXT[..6]);
    let coded = ask(&app, with(accepting("gzip"), "range", "bytes=0-1")).await;
    assert_eq!(
        (coded.status().as_u16(), &coded.headers()["content-encoding"].to_str().unwrap()),
        (206, &"gzip")
    );
    assert_eq!(coded.into_body().collect().await.unwrap().to_bytes()[..], [0x1f, 0x8b], "how gzip begins");
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn clients_with_other_encodings_at_once_do_not_share_a_body() {
    let runs = Runs::default();
    let guard = clocked().1.key_headers([]).build().unwrap();
    let app = handler(&runs).layer(CompressionLayer::new()).layer(guard);
    let (gzip, plain, again) = tokio::join!(read(&app, "gzip"), read(&app, ""), read(&app, "gzip"));
    assert_eq!((gzip.1.as_deref(), plain.1, again.1.as_deref()), (Some("gzip"), None, Some("gzip")));
    assert!([gzip.0, plain.0, again.0].iter().all(|text| *text == TEXT.repeat(20)));
}
