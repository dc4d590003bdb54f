//! What a hit costs in allocations, and a wait in bytes.

use std::convert::Infallible;
use std::task::{Context, Poll, Waker};

use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Bytes};
use hyper::{Request, Response};
use stampede_guard::StampedeGuard;
use tower::{Layer, Service, ServiceExt};

/// What a browser sends, and the host.
const HEADERS: [(&str, &str); 10] = [
    ("host", "shop.example"),
    ("user-agent", "Mozilla/5.0"),
    ("accept", "text/html,application/xhtml+xml"),
    ("accept-language", "en-GB,en;q=0.5"),
    ("accept-encoding", "gzip, deflate, br"),
    ("referer", "https://shop.example/"),
    ("connection", "keep-alive"),
    ("sec-fetch-dest", "document"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-site", "same-origin"),
];

fn request() -> Request<Empty<Bytes>> {
    let mut request = Request::get("/products/7?size=l");
    for (name, value) in HEADERS {
        request = request.header(name, value);
    }
    request.body(Empty::new()).unwrap()
}

#[tokio::test]
async fn a_hit_allocates_at_most_four_times() {
    let handler = tower::service_fn(|_: Request<Empty<Bytes>>| async {
        let response = Response::builder().header("content-type", "text/html").header("etag", "\"1\"");
        Ok::<_, Infallible>(response.body(Full::new(Bytes::from(vec![b'x'; 1024]))).unwrap())
    });
    let guard = StampedeGuard::builder().ttl(std::time::Duration::from_secs(3_600)).build().unwrap();
    let mut service = guard.layer(handler);
    let first = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(first.into_body().collect().await.unwrap().to_bytes().len(), 1024);
    let mut hit = |request| {
        let mut cx = Context::from_waker(Waker::noop());
        let mut answer = std::pin::pin!(service.call(request));
        let Poll::Ready(Ok(response)) = answer.as_mut().poll(&mut cx) else {
            panic!("a hit is ready at once")
        };
        let mut body = std::pin::pin!(response.into_body());
        let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(&mut cx) else { panic!("all is there") };
        assert_eq!(frame.into_data().unwrap().len(), 1024);
        assert!(body.is_end_stream());
    };
    // What moka and this thread's buffers take once.
    for _ in 0..1_000 {
        hit(request());
    }
    let requests: Vec<_> = (0..100).map(|_| request()).collect();
    let measured = allocation_counter::measure(|| requests.into_iter().for_each(&mut hit));
    println!("{} allocations in 100 hits, {} bytes", measured.count_total, measured.bytes_total);
    assert!(measured.count_total <= 400, "{} allocations in 100 hits", measured.count_total);
}

#[tokio::test]
async fn a_request_that_waits_takes_little() {
    const WAITING: u64 = 100;
    let handler = tower::service_fn(|_: Request<Empty<Bytes>>| {
        std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>()
    });
    let mut service = StampedeGuard::new().layer(handler);
    let mut wait = |request| {
        let mut answer = Box::pin(service.call(request));
        assert!(answer.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        answer
    };
    // The leader, and what this thread's buffers take once.
    let warm: Vec<_> = (0..WAITING).map(|_| wait(request())).collect();
    let requests: Vec<_> = (0..WAITING).map(|_| request()).collect();
    let mut waiting = Vec::with_capacity(requests.len());
    let measured =
        allocation_counter::measure(|| requests.into_iter().for_each(|request| waiting.push(wait(request))));
    let bytes = measured.bytes_current.unsigned_abs() / WAITING;
    println!("{bytes} bytes a waiting request, in {} allocations for {WAITING}", measured.count_current);
    assert!(bytes <= 1_280, "{bytes} bytes a waiting request, its key and its future among them");
    drop((warm, waiting));
}
