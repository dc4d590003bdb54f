//! A stored response through each layer: a GET with ten headers, a body of 1 KiB.

use std::hint::black_box;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use stampede_guard::StampedeGuard;
use tower::{Layer, Service, ServiceExt};

use super::Setting;
use crate::bench::{Contender, Kind, Table, interleave};
use crate::load::AtOnce;
use crate::peers::{Body, Origin, hitbox_layer, tower_http_cache_layer};
use crate::{clocks, counting};

/// As a browser sends it.
pub fn request() -> Request<Body> {
    Request::builder()
        .uri("/products/42?view=full")
        .header("host", "shop.example.com")
        .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0")
        .header("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
        .header("accept-language", "en-GB,en;q=0.7,de;q=0.3")
        .header("accept-encoding", "gzip, deflate, br, zstd")
        .header("referer", "https://shop.example.com/products?page=3")
        .header("sec-fetch-dest", "empty")
        .header("sec-fetch-mode", "cors")
        .header("sec-fetch-site", "same-origin")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .body(Body::default())
        .expect("a valid request")
}

/// The request answered and the body read.
pub async fn answered<S, R>(stack: &mut S, request: Request<Body>)
where
    S: Service<Request<Body>, Response = Response<R>>,
    S::Error: std::fmt::Debug,
    R: HttpBody,
{
    let reply = stack.ready().await.expect("ready").call(request).await.expect("a reply");
    assert_eq!(reply.status(), StatusCode::OK);
    let mut body = std::pin::pin!(reply.into_body());
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { panic!("the body broke off") };
        read += frame.into_data().map_or(0, |data| bytes::Buf::remaining(&data));
    }
    assert_eq!(black_box(read), 1_024);
}

/// How many requests are made at a time: as many as fit into a processor's nearest caches, where a server has those that it has just read.
const BATCH: u32 = 25;

fn requests() -> Vec<Request<Body>> {
    (0..BATCH).map(|_| request()).collect()
}

async fn answered_all<S, R>(stack: &mut S, requests: Vec<Request<Body>>)
where
    S: Service<Request<Body>, Response = Response<R>>,
    S::Error: std::fmt::Debug,
    R: HttpBody,
{
    for request in requests {
        answered(stack, request).await;
    }
}

fn contender<'a, S, R>(setting: &'a Setting, kind: Kind, name: &str, stack: S) -> Contender<'a>
where
    S: Service<Request<Body>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: std::fmt::Debug + Send,
    R: HttpBody + Send,
    R::Data: Send,
    R::Error: Send,
{
    let batches = 80;
    Contender::new(kind, name, move || {
        let mut stack = stack.clone();
        let task = setting.runtime.spawn(async move {
            answered_all(&mut stack, requests()).await;
            let mut took = Duration::ZERO;
            for _ in 0..batches {
                let requests = requests();
                let before = clocks::thread();
                answered_all(&mut stack, requests).await;
                took += clocks::thread() - before;
            }
            let requests = requests();
            let counted = counting::Count::start();
            answered_all(&mut stack, requests).await;
            vec![clocks::per(took, batches * BATCH as usize), counted.so_far().calls / f64::from(BATCH)]
        });
        setting.runtime.block_on(task).expect("no panics")
    })
}

pub fn run(setting: &Setting) -> Vec<Table> {
    let by_uri = StampedeGuard::builder().key_headers([]).build().expect("valid settings");
    let origin = Origin(AtOnce);
    let contenders = vec![
        contender(setting, Kind::Ours, "StampedeGuard, safe key", StampedeGuard::new().layer(origin.clone())),
        contender(setting, Kind::Ours, "StampedeGuard, key of method and URI", by_uri.layer(origin.clone())),
        contender(
            setting,
            Kind::Peer,
            "tower-http-cache (key of path and query)",
            tower_http_cache_layer().layer(origin.clone()),
        ),
        contender(
            setting,
            Kind::Peer,
            "hitbox-tower (key of method, path, query)",
            hitbox_layer().layer(origin.clone()),
        ),
        contender(setting, Kind::Floor, "the handler itself", origin),
    ];
    let note = "Requests are made 25 at a time, just before: they are in the processor's caches, as a server's are that \
                has read them. Their ten headers are dropped in the time measured. The body is read. The safe key \
                holds every header but a closed list; the peers' keys hold none.";
    let columns = ["CPU ns a hit", "allocations a hit"];
    vec![interleave("tower hit: 10 request headers, 1 KiB", note, &columns, setting.rounds(100), contenders)]
}
