//! What callers get when a call fails, takes too long, or too many wait for it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use stampede_guard::{GrpcMethod, ManualClock, StampedeGuard};
use tokio::sync::Semaphore;
use tonic::{Code, Status};
use tower::ServiceExt;

use crate::common::{Runs, settle};
use crate::shop::{GET_STOCK, Shop, Shopping, ask_for, minutes, units};

#[tokio::test]
async fn an_error_goes_to_those_who_wait_and_is_not_stored() {
    let shop = Shop::closed();
    shop.fails_with(Status::not_found("no such chair"));
    let shopping = Shopping::at(&shop, |builder| minutes(builder).grpc_method(GET_STOCK)).await;
    let mut herd = Vec::new();
    for mut client in shopping.clients(10).await {
        herd.push(tokio::spawn(async move { client.get_stock(ask_for("chair")).await }));
    }
    settle(|| shopping.guard.stats().flights.coalesced == 9).await;
    shop.gate.add_permits(1);
    for caller in herd {
        let error = caller.await.unwrap().unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::NotFound, "no such chair"));
    }
    assert_eq!(shop.runs.get(), 1);
    shop.gate.add_permits(1);
    let mut client = shopping.client().await;
    client.get_stock(ask_for("chair")).await.unwrap_err();
    assert_eq!(shop.runs.get(), 2);
}

#[tokio::test]
async fn an_old_reply_stands_in_for_trouble_and_not_for_an_answer() {
    for (code, stands_in) in [
        (Code::Unavailable, true),
        (Code::DeadlineExceeded, true),
        (Code::ResourceExhausted, true),
        (Code::Internal, true),
        (Code::Unknown, true),
        (Code::NotFound, false),
        (Code::PermissionDenied, false),
        (Code::Cancelled, false),
    ] {
        let shop = Shop::open();
        let lenient = GrpcMethod::new()
            .ttl(Duration::from_secs(60))
            .stale_while_revalidate(Duration::ZERO)
            .stale_if_error(Duration::from_secs(600));
        let shopping = Shopping::at(&shop, |builder| builder.grpc_method_with(GET_STOCK, lenient)).await;
        let mut client = shopping.client().await;
        assert_eq!(units(&mut client, ask_for("chair")).await, 1);
        shopping.clock.advance(Duration::from_secs(61));
        shop.fails_with(Status::new(code, "down"));
        let reply = client.get_stock(ask_for("chair")).await;
        assert_eq!(shop.runs.get(), 2, "{code:?}");
        match reply {
            Ok(stock) => assert!(stands_in && stock.into_inner().units == 1, "{code:?}"),
            Err(status) => assert!(!stands_in && status.code() == code, "{status}"),
        }
        // An answer voids what was stored, trouble leaves it.
        shop.fails_with(None);
        shopping.clock.advance(Duration::from_secs(60));
        shop.fails_with(Status::unavailable("down"));
        assert_eq!(client.get_stock(ask_for("chair")).await.is_ok(), stands_in, "{code:?}");
    }
}

#[tokio::test]
async fn a_deadline_bounds_its_own_caller() {
    let shop = Shop::closed();
    let shopping = Shopping::at(&shop, |builder| minutes(builder).grpc_method(GET_STOCK)).await;
    let (mut hasty, mut patient) = (shopping.client().await, shopping.client().await);
    let mut request = ask_for("chair");
    request.set_timeout(Duration::from_millis(300));
    let hasty = tokio::spawn(async move { hasty.get_stock(request).await });
    settle(|| shop.runs.get() == 1).await;
    let patient = tokio::spawn(async move { units(&mut patient, ask_for("chair")).await });
    let error = hasty.await.unwrap().unwrap_err();
    // On a machine that stalls, the client's own timer may speak before the answer has come through the socket.
    let told = (error.code(), error.message());
    let possible =
        [(Code::DeadlineExceeded, "the call was not answered in time"), (Code::Cancelled, "Timeout expired")];
    assert!(possible.contains(&told), "{told:?}");
    settle(|| shopping.site.arrived.get() == 2).await;
    shop.gate.add_permits(1);
    assert_eq!(patient.await.unwrap(), 1);
    assert_eq!(shop.runs.get(), 1, "the call outlived the caller that began it");
}

#[tokio::test]
async fn one_waiter_too_many_is_told_when_to_come_back() {
    let shop = Shop::closed();
    let shopping =
        Shopping::at(&shop, |builder| minutes(builder).max_waiters_per_key(1).grpc_method(GET_STOCK)).await;
    let (mut first, mut second) = (shopping.client().await, shopping.client().await);
    let first = tokio::spawn(async move { units(&mut first, ask_for("chair")).await });
    settle(|| shop.runs.get() == 1).await;
    let error = second.get_stock(ask_for("chair")).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert_eq!(error.metadata().get("grpc-retry-pushback-ms").unwrap(), "1000");
    let details = <Rich as prost::Message>::decode(error.details()).unwrap();
    assert_eq!((details.code, &*details.message), (8, error.message()));
    assert_eq!(details.details[0].type_url, "type.googleapis.com/google.rpc.RetryInfo");
    let retry = <RetryInfo as prost::Message>::decode(&*details.details[0].value).unwrap();
    assert_eq!(retry.retry_delay.unwrap().seconds, 1);
    assert_eq!(shopping.guard.stats().refused, 1);
    shop.gate.add_permits(1);
    assert_eq!(first.await.unwrap(), 1);
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
struct Rich {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Delay>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
}

/// What a limit or a time-out between guard and service answers: clients read it as `UNAVAILABLE`.
#[tokio::test]
async fn an_answer_of_http_alone_is_shared_and_an_old_reply_stands_in_for_it() {
    let clock = ManualClock::new();
    let guard = StampedeGuard::builder()
        .jitter(0.0)
        .clock(clock.clone())
        .ttl(Duration::from_secs(10))
        .stale_while_revalidate(Duration::ZERO)
        .stale_if_error(Duration::from_secs(60))
        .grpc_method("/a.B/C")
        .build()
        .unwrap();
    let (runs, gate) = (Runs::default(), Arc::new(Semaphore::new(1)));
    let service = {
        let (runs, gate) = (runs.clone(), Arc::clone(&gate));
        move |_: Request<Body>| {
            let (first, gate) = (runs.add() == 1, Arc::clone(&gate));
            async move {
                gate.acquire().await.unwrap().forget();
                if first { reply() } else { Response::builder().status(503).body(Body::empty()).unwrap() }
            }
        }
    };
    let app = Router::new().fallback(service).layer(guard.clone());
    let ask = || {
        let message = Body::from(&[0_u8, 0, 0, 0, 2, 8, 1][..]);
        let call = Request::post("/a.B/C").header("content-type", "application/grpc").body(message).unwrap();
        let app = app.clone();
        tokio::spawn(async move {
            let response = app.oneshot(call).await.unwrap();
            let status = response.status().as_u16();
            response.into_body().collect().await.unwrap();
            status
        })
    };
    assert_eq!(ask().await.unwrap(), 200);
    // The old reply, and once that is dead the answer itself; one run each time.
    for (seconds, status, run) in [(11, 200, 2), (60, 503, 3)] {
        clock.advance(Duration::from_secs(seconds));
        let before = guard.stats().flights.coalesced;
        let herd: Vec<_> = (0..5).map(|_| ask()).collect();
        settle(|| guard.stats().flights.coalesced == before + 4).await;
        gate.add_permits(1);
        for caller in herd {
            assert_eq!(caller.await.unwrap(), status);
        }
        assert_eq!(runs.get(), run);
    }
}

/// A message of two bytes, and that all is well.
fn reply() -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Frame::data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1])), Frame::trailers(trailers)];
    let frames = frames.map(Ok::<_, Infallible>);
    let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}
