//! Replies that no tonic handler gives, and time that does not pass by itself: the guard as a service, without a server.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request, Response, StatusCode};
use bytes::Bytes;
use futures_util::future::{BoxFuture, join, join_all};
use futures_util::{FutureExt, StreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use stampede_guard::{GrpcMethod, GrpcStampedeGuard, ManualClock, RequestBody, StampedeGuard};
use tower::{Layer, ServiceExt, service_fn};

use crate::common::{Runs, clocked};
use crate::everything::Everything;

const METHOD: &str = "/inventory.Inventory/GetStock";
const MESSAGE: &[u8] = &[0, 0, 0, 0, 2, 8, 1];

type Handler = std::sync::Arc<dyn Fn(usize) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// A handler behind a guard, and how often it ran.
#[derive(Clone)]
struct Server {
    guard: GrpcStampedeGuard,
    handler: Handler,
    runs: Runs,
}

/// What a caller sees of a reply: status, and messages with what comes behind.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    head: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    broke_off: bool,
}

impl Seen {
    fn status(&self) -> Option<&str> {
        let trailers = self.trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
        trailers.or_else(|| self.head.get("grpc-status")).map(|status| status.to_str().unwrap())
    }
}

fn ask() -> Request<Body> {
    Request::post(METHOD)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::from(MESSAGE))
        .unwrap()
}

fn patient(limit: &str) -> Request<Body> {
    let mut request = ask();
    request.headers_mut().insert("grpc-timeout", limit.parse().unwrap());
    request
}

impl Server {
    fn new<F>(guard: GrpcStampedeGuard, handler: impl Fn(usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let handler = std::sync::Arc::new(move |run| handler(run).boxed());
        Self { guard, handler, runs: Runs::default() }
    }

    async fn call(&self, request: Request<Body>) -> Seen {
        let Self { handler, runs, .. } = self.clone();
        let service = self.guard.layer(service_fn(move |request: Request<RequestBody<Body>>| {
            let (handler, run) = (handler.clone(), runs.add());
            async move {
                assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), MESSAGE);
                Ok::<_, Infallible>(handler(run).await)
            }
        }));
        let (head, body) = service.oneshot(request).await.unwrap().into_parts();
        assert_eq!(head.status, StatusCode::OK);
        let mut seen = Seen { head: head.headers, body: Vec::new(), trailers: None, broke_off: false };
        let mut body = std::pin::pin!(body);
        while let Some(frame) = body.frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => seen.body.extend(data),
                Ok(Err(frame)) => seen.trailers = frame.into_trailers().ok(),
                Err(_) => seen.broke_off = true,
            }
        }
        seen
    }
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

/// A reply of these pieces; the trailers come last.
fn reply(pieces: &[&'static [u8]], trailers: Option<HeaderMap>) -> Response<Body> {
    let data = pieces.iter().map(|piece| Frame::data(Bytes::from_static(piece))).collect::<Vec<_>>();
    let frames = data.into_iter().chain(trailers.map(Frame::trailers)).map(Ok::<_, Infallible>);
    let mut response = Response::new(Body::new(StreamBody::new(stream::iter(frames))));
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    response
}

fn good() -> Response<Body> {
    reply(&[MESSAGE], Some(headers(&[("grpc-status", "0"), ("x-last", "word"), ("set-cookie", "a=1")])))
}

fn guard() -> GrpcStampedeGuard {
    let times = GrpcMethod::new().ttl(Duration::from_secs(60)).stale_while_revalidate(Duration::ZERO);
    StampedeGuard::builder().jitter(0.0).grpc_method_with(METHOD, times).build().unwrap()
}

/// Three callers at once, and one after them.
async fn at_once_and_later(server: &Server) -> (Vec<Seen>, Seen) {
    let herd = join_all((0..3).map(|_| server.call(ask()))).await;
    (herd, server.call(ask()).await)
}

#[tokio::test]
async fn trailers_are_replayed_to_the_byte() {
    let server = Server::new(guard(), |_| async { good() });
    let (herd, later) = at_once_and_later(&server).await;
    assert_eq!(server.runs.get(), 1);
    assert_eq!(
        later.trailers,
        Some(headers(&[("grpc-status", "0"), ("x-last", "word"), ("set-cookie", "a=1")]))
    );
    assert_eq!((later.body.as_slice(), later.head.len()), (MESSAGE, 1));
    assert!(herd.iter().all(|seen| *seen == later), "{herd:?}");
}

#[tokio::test]
async fn a_reply_without_a_status_is_its_own_callers() {
    let server = Server::new(guard(), |_| async { reply(&[MESSAGE], None) });
    let (herd, later) = at_once_and_later(&server).await;
    assert_eq!(server.runs.get(), 2, "one for those at once, and one later: it was not stored");
    let truncated = herd.iter().filter(|seen| seen.body == MESSAGE).count();
    assert_eq!(truncated, 1, "nobody else got it: {herd:?}");
    assert_eq!(herd.iter().filter(|seen| seen.status() == Some("14")).count(), 2, "{herd:?}");
    assert_eq!((later.body.as_slice(), later.status()), (MESSAGE, None));
}

#[tokio::test]
async fn a_status_of_zero_that_stands_in_the_head_is_shared_and_not_stored() {
    let trailers_only = |status: &'static str| {
        move |_| async move {
            let mut response = reply(&[], None);
            response.headers_mut().insert("grpc-status", status.parse().unwrap());
            response
        }
    };
    for status in ["0", "5", "14"] {
        let server = Server::new(guard(), trailers_only(status));
        let (herd, later) = at_once_and_later(&server).await;
        assert_eq!(server.runs.get(), 2, "{status}");
        assert!(herd.iter().all(|seen| seen.status() == Some(status) && *seen == later), "{herd:?}");
    }
}

#[tokio::test]
async fn an_error_in_the_trailers_is_shared_and_not_stored() {
    let server =
        Server::new(guard(), |_| async { reply(&[MESSAGE], Some(headers(&[("grpc-status", "5")]))) });
    let (herd, later) = at_once_and_later(&server).await;
    assert_eq!(server.runs.get(), 2);
    assert!(herd.iter().all(|seen| *seen == later && seen.body == MESSAGE), "{herd:?}");
}

#[tokio::test]
async fn more_or_less_than_one_message_is_each_callers_own() {
    let replies: [&[&[u8]]; 4] = [&[], &[MESSAGE, MESSAGE], &[&MESSAGE[..6]], &[b"\x02\0\0\0\0"]];
    for pieces in replies {
        let ok = || headers(&[("grpc-status", "0")]);
        let pieces: &'static [&'static [u8]] = Vec::leak(pieces.to_vec());
        let server = Server::new(guard(), move |_| async move { reply(pieces, Some(ok())) });
        let (herd, later) = at_once_and_later(&server).await;
        assert_eq!(server.runs.get(), 4, "{pieces:?}");
        assert!(herd.iter().all(|seen| *seen == later && seen.body == pieces.concat()), "{herd:?}");
    }
}

#[tokio::test]
async fn what_is_no_grpc_is_each_callers_own() {
    let server = Server::new(guard(), |_| async { Response::new(Body::from("not found")) });
    let (herd, later) = at_once_and_later(&server).await;
    assert_eq!(server.runs.get(), 4);
    assert!(herd.iter().all(|seen| *seen == later && seen.body == b"not found"), "{herd:?}");
}

#[tokio::test]
async fn a_reply_for_one_client_is_each_callers_own() {
    let personal =
        [("set-cookie", "a=1"), ("cache-control", "private"), ("vary", "*"), ("vary", "user-agent")];
    for (name, value) in personal {
        for status in ["0", "5"] {
            let server = Server::new(guard(), move |_| async move {
                let mut response = reply(&[MESSAGE], Some(headers(&[("grpc-status", status)])));
                response.headers_mut().insert(name, value.parse().unwrap());
                response
            });
            at_once_and_later(&server).await;
            assert_eq!(server.runs.get(), 4, "{name}: {value}, {status}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_reaches_its_caller_as_it_comes() {
    let server = Server::new(guard(), |_| async {
        let frames = stream::unfold(0, |sent| async move {
            tokio::time::sleep(Duration::from_secs(u64::from(sent > 0))).await;
            match sent {
                0..5 => Some((Frame::data(Bytes::from_static(MESSAGE)), sent + 1)),
                5 => Some((Frame::trailers(headers(&[("grpc-status", "0")])), 6)),
                _ => None,
            }
        });
        let mut response = reply(&[], None);
        *response.body_mut() = Body::new(StreamBody::new(frames.map(Ok::<_, Infallible>)));
        response
    });
    let started = tokio::time::Instant::now();
    let (herd, later) = at_once_and_later(&server).await;
    assert_eq!(server.runs.get(), 4);
    assert!(herd.iter().all(|seen| *seen == later && seen.body == MESSAGE.repeat(5)), "{herd:?}");
    // Those who waited gave it up after the 200 ms that bodies of unknown length are waited for.
    assert_eq!(started.elapsed(), Duration::from_millis(200) + 2 * Duration::from_secs(6));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_bounds_its_own_caller_to_the_millisecond() {
    let server = Server::new(guard(), |_| async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        good()
    });
    let started = tokio::time::Instant::now();
    let hasty = async {
        let seen = server.call(patient("1S")).await;
        assert_eq!((seen.status(), started.elapsed()), (Some("4"), Duration::from_millis(980)));
        assert_eq!(seen.head["content-type"], "application/grpc");
    };
    let in_time = async {
        let seen = server.call(patient("11S")).await;
        assert_eq!((seen.status(), started.elapsed()), (Some("0"), Duration::from_secs(10)));
    };
    join(hasty, in_time).await;
    assert_eq!(server.runs.get(), 1);
    assert_eq!(server.call(patient("1u")).await.status(), Some("0"), "it is stored");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_bounds_the_wait_for_the_message_too() {
    let server = Server::new(guard(), |_| async { good() });
    let started = tokio::time::Instant::now();
    let never = Body::from_stream(futures_util::stream::pending::<Result<&'static [u8], Infallible>>());
    let seen = server.call(patient("2S").map(|_| never)).await;
    assert_eq!((seen.status(), started.elapsed()), (Some("4"), Duration::from_millis(1_980)));
    assert_eq!(server.runs.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn at_its_deadline_a_caller_gets_an_old_reply_where_one_may_stand_in() {
    for (window, status) in [(60, "0"), (0, "4")] {
        let times = GrpcMethod::new().ttl(Duration::from_secs(1)).stale_if_error(Duration::from_secs(window));
        let guard = StampedeGuard::builder().grpc_method_with(METHOD, times).build().unwrap();
        let server = Server::new(guard, |run| async move {
            if run > 1 {
                std::future::pending::<()>().await;
            }
            good()
        });
        assert_eq!(server.call(ask()).await.status(), Some("0"));
        tokio::time::advance(Duration::from_secs(5)).await;
        let callers = join_all((0..2).map(|_| server.call(patient("3S")))).await;
        assert!(callers.iter().all(|seen| seen.status() == Some(status)), "{window}: {callers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_takes_too_long_ends_for_all() {
    let times = GrpcMethod::new().load_timeout(Duration::from_secs(3));
    let guard = StampedeGuard::builder().grpc_method_with(METHOD, times).build().unwrap();
    let server = Server::new(guard, |_| std::future::pending());
    for seen in join_all((0..3).map(|_| server.call(ask()))).await {
        assert_eq!(seen.status(), Some("4"));
    }
    assert_eq!(server.runs.get(), 1);
}

#[tokio::test]
async fn a_panic_is_internal_to_those_who_waited() {
    let server = Server::new(guard(), |_| async { panic!("no such shelf") });
    let led = std::panic::AssertUnwindSafe(server.call(ask())).catch_unwind();
    let (led, waited) = join(led, server.call(ask())).await;
    assert!(led.is_err());
    assert_eq!(waited.status(), Some("13"));
}

#[tokio::test]
async fn a_reply_that_breaks_off_is_unavailable_to_those_who_waited() {
    let server = Server::new(guard(), |_| async {
        let frames = [Ok(Frame::data(Bytes::from_static(MESSAGE))), Err("gone")];
        let mut response = reply(&[], None);
        *response.body_mut() = Body::new(StreamBody::new(stream::iter(frames)));
        response
    });
    let (herd, later) = at_once_and_later(&server).await;
    assert_eq!(server.runs.get(), 2);
    assert!(later.broke_off);
    assert_eq!(herd.iter().filter(|seen| seen.broke_off).count(), 1);
    assert_eq!(herd.iter().filter(|seen| seen.status() == Some("14")).count(), 2);
}

/// A clock, a guard on it whose replies are stale after a minute and good in place of errors for ten more.
fn lenient() -> (ManualClock, GrpcStampedeGuard) {
    let (clock, builder) = clocked();
    let times = GrpcMethod::new()
        .ttl(Duration::from_secs(60))
        .stale_while_revalidate(Duration::ZERO)
        .stale_if_error(Duration::from_secs(600));
    (clock, builder.grpc_method_with(METHOD, times).build().unwrap())
}

#[tokio::test]
async fn an_old_reply_stands_in_for_trouble_behind_a_message() {
    for is_late in [false, true] {
        let (clock, guard) = lenient();
        let server = Server::new(guard, move |run| async move {
            let late = stream::once(async move {
                for _ in 0..if is_late { 3 } else { 0 } {
                    tokio::task::yield_now().await;
                }
                Ok::<_, Infallible>(Frame::trailers(headers(&[("grpc-status", "14")])))
            });
            let mut response = good();
            if run > 1 {
                *response.body_mut() = Body::new(StreamBody::new(late));
            }
            response
        });
        server.call(ask()).await;
        clock.advance(Duration::from_secs(61));
        let seen = join_all((0..3).map(|_| server.call(ask()))).await;
        assert_eq!(server.runs.get(), 2);
        let troubled = seen.iter().filter(|seen| seen.status() == Some("14")).count();
        // One that is told late is the caller's own: its head had gone out.
        assert_eq!(troubled, usize::from(is_late), "{seen:?}");
        assert_eq!(seen.iter().filter(|seen| seen.body == MESSAGE).count(), 3 - troubled);
    }
}

#[tokio::test]
async fn trailers_count_towards_the_bytes_stored() {
    let long = "x".repeat(10_000);
    let server = Server::new(guard(), move |_| {
        let trailers = headers(&[("grpc-status", "0"), ("x-long", &long)]);
        async move { reply(&[MESSAGE], Some(trailers)) }
    });
    server.call(ask()).await;
    let stats = server.guard.stats();
    assert!(stats.entries == 1 && stats.bytes > 10_000, "{stats:?}");
}

#[tokio::test]
async fn a_name_that_never_matches_shows() {
    let guard = StampedeGuard::builder()
        .grpc_method(METHOD)
        .grpc_method("/inventory.Inventory/GetStok")
        .grpc_method("/inventory.Inventori/*")
        .build()
        .unwrap();
    let server = Server::new(guard.clone(), |_| async { good() });
    assert_eq!(guard.stats().unmatched_methods.len(), 3);
    server.call(ask()).await;
    let unmatched = guard.stats().unmatched_methods;
    assert_eq!(unmatched, ["/inventory.Inventori/*", "/inventory.Inventory/GetStok"]);

    let log = Everything::default();
    let _listens = tracing::subscriber::set_default(log.clone());
    for _ in 0..200 {
        server.call(ask()).await;
    }
    let log = log.0.lock().unwrap();
    for name in unmatched {
        assert_eq!(log.matches(&name).count(), 1, "{name} is spoken of once: {log}");
    }
    assert!(!log.contains("GetStock"), "{log}");
}

/// The method reads, in whatever words it is called.
#[tokio::test]
async fn a_call_in_other_words_passes_and_outdates_nothing() {
    let server = Server::new(guard(), |_| async { good() });
    server.call(ask()).await;
    for content_type in ["application/grpc-web+proto", "application/json"] {
        let mut request = ask();
        request.headers_mut().insert("content-type", content_type.parse().unwrap());
        server.call(request).await;
    }
    assert_eq!(server.runs.get(), 3);
    server.call(ask()).await;
    assert_eq!(server.runs.get(), 3);
    // Of other methods nobody knows what they do.
    let mut put = ask();
    *put.method_mut() = axum::http::Method::PUT;
    put.headers_mut().remove("content-type");
    server.call(put).await;
    server.call(ask()).await;
    assert_eq!(server.runs.get(), 5);
}

#[tokio::test]
async fn calls_that_the_operator_bypasses_run_for_themselves() {
    let guard = StampedeGuard::builder()
        .bypass_if(|parts| parts.headers.contains_key("x-fresh"))
        .key_with(|parts, key| {
            if let Some(shop) = parts.extensions.get::<u8>() {
                key.push([*shop]);
            }
        })
        .grpc_method(METHOD)
        .build()
        .unwrap();
    let server = Server::new(guard, |_| async { good() });
    let fresh = || {
        let mut request = ask();
        request.headers_mut().insert("x-fresh", "1".parse().unwrap());
        request
    };
    let of_shop = |shop: u8| {
        let mut request = ask();
        request.extensions_mut().insert(shop);
        request
    };
    for (request, runs) in
        [(ask(), 1), (fresh(), 2), (fresh(), 3), (ask(), 3), (of_shop(1), 4), (of_shop(2), 5)]
    {
        server.call(request).await;
        assert_eq!(server.runs.get(), runs);
    }
    server.call(of_shop(1)).await;
    assert_eq!(server.runs.get(), 5);
}
