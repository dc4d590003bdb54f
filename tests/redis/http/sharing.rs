//! What instances have in common.

use super::*;
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use std::time::Duration;

/// A body whose length nobody says.
fn streamed(pieces: &'static [&'static str]) -> Body {
    let frames = pieces.iter().map(|piece| {
        Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from_static(piece.as_bytes())))
    });
    Body::new(StreamBody::new(futures_util::stream::iter(frames)))
}

async fn herd(make: impl Fn(Request<Body>, usize) -> Response<Body> + Send + Sync + 'static) {
    const INSTANCES: usize = 4;
    const CLIENTS: usize = 25;
    let server = Server::start();
    let handler = Handler::new(make).held(1);
    let mut instances = Vec::new();
    for _ in 0..INSTANCES {
        instances.push(Instance::with_defaults(&server, &handler).await);
    }
    let clients: Vec<_> =
        instances.iter().flat_map(|one| (0..CLIENTS).map(|_| one.spawn(request("/hot")))).collect();
    soon(handler.started.notified()).await;
    until("all asked", || instances.iter().all(|one| one.tier.stats().operations >= 1)).await;
    handler.go.add_permits(1);
    for client in clients {
        assert_eq!(client.await.unwrap(), "hot page");
    }
    assert_eq!(handler.runs.get(), 1);
    let sum = |count: fn(&stampede_guard::GuardStats) -> u64| -> u64 {
        instances.iter().map(|one| count(&one.guard.stats())).sum()
    };
    assert_eq!(sum(|stats| stats.led), 1);
    assert_eq!(sum(|stats| stats.shared), INSTANCES as u64 - 1);
    assert_eq!(sum(|stats| stats.flights.loads), 1);
    assert_eq!(sum(|stats| stats.led + stats.shared + stats.coalesced + stats.hits), 100);
}

#[tokio::test]
async fn of_all_requests_in_all_instances_one_runs_the_handler() {
    herd(|_, _| Response::new(Body::from("hot page"))).await;
}

#[tokio::test]
async fn a_body_of_unknown_length_that_ends_soon_is_shared_all_the_same() {
    herd(|_, _| Response::new(streamed(&["hot", " ", "page"]))).await;
}

#[tokio::test]
async fn a_page_is_read_with_its_age_and_costs_one_round_trip() {
    let server = Server::start();
    let handler = Handler::new(|_, run| numbered(run, &[("cache-control", "max-age=1000"), ("age", "100")]));
    let a = Instance::with_defaults(&server, &handler).await;
    let b = Instance::with_defaults(&server, &handler).await;
    assert_eq!(a.get("/page").await, "run 1");
    a.published(1).await;
    assert_eq!(a.tier.stats().operations, 2);
    let shared = b.ask(request("/page")).await;
    assert_eq!(b.tier.stats().operations, 1);
    let age: u64 = header_of(&shared, "age").parse().unwrap();
    assert!((100..110).contains(&age), "{age}");
    let status = header_of(&shared, "cache-status");
    assert!(status.starts_with("g; hit; ttl="), "{status}");
    assert_eq!(header_of(&shared, "cache-control"), "max-age=1000");
    assert_eq!(text(shared).await, "run 1");
    assert_eq!(b.get("/page").await, "run 1");
    assert_eq!((b.guard.stats().shared, b.guard.stats().hits, b.tier.stats().operations), (1, 1, 1));
    // What is left of 1,000 seconds, 100 of them gone, is what Redis keeps.
    let left: i64 = server.command(&format!("PTTL {}", values(&server)[0]))[1..].trim().parse().unwrap();
    assert!((800_000..=900_000).contains(&left), "{left}");
}

#[tokio::test]
async fn age_goes_on_where_it_was() {
    let server = Server::start();
    let handler = Handler::counting("max-age=1000");
    let a = Instance::with_defaults(&server, &handler).await;
    a.get("/page").await;
    a.published(1).await;
    tokio::time::sleep(Duration::from_millis(2_050)).await;
    let b = Instance::with_defaults(&server, &handler).await;
    let shared = b.ask(request("/page")).await;
    assert!(header_of(&shared, "age").parse::<u64>().unwrap() >= 2);
}

#[tokio::test]
async fn headers_keep_their_order_and_repetition_and_trailers_come_along() {
    let server = Server::start();
    let handler = Handler::new(|_, _| {
        let mut trailers = axum::http::HeaderMap::new();
        trailers.insert("x-sum", "abc".parse().unwrap());
        trailers.insert("set-cookie", "id=secret".parse().unwrap());
        let frames =
            [http_body::Frame::data(Bytes::from_static(b"body")), http_body::Frame::trailers(trailers)];
        let frames = frames.map(Ok::<_, std::convert::Infallible>);
        let mut response = Response::new(Body::new(StreamBody::new(futures_util::stream::iter(frames))));
        for (name, value) in
            [("x-b", "1"), ("x-a", "1"), ("x-b", "2"), ("connection", "x-gone"), ("x-gone", "1")]
        {
            response.headers_mut().append(name, value.parse().unwrap());
        }
        *response.status_mut() = StatusCode::NOT_FOUND;
        response.headers_mut().insert(header::CACHE_CONTROL, "max-age=60".parse().unwrap());
        response
    });
    let a = Instance::with_defaults(&server, &handler).await;
    let b = Instance::with_defaults(&server, &handler).await;
    a.get("/page").await;
    a.published(1).await;
    let shared = b.ask(request("/page")).await;
    assert_eq!(shared.status(), StatusCode::NOT_FOUND);
    let names: Vec<_> = shared
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
        .filter(|line| line.starts_with("x-"))
        .collect();
    assert_eq!(names, ["x-b=1", "x-b=2", "x-a=1"]);
    let body = shared.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap().get("x-sum").unwrap(), "abc");
    assert!(!body.trailers().unwrap().contains_key("set-cookie"));
    // Nor is it in Redis.
    let value: Vec<u8> = redis::cmd("GET").arg(&values(&server)[0]).query(&mut connection(&server)).unwrap();
    assert!(!String::from_utf8_lossy(&value).contains("secret"));
    assert_eq!(handler.runs.get(), 1);
}

#[tokio::test]
async fn what_a_response_varies_on_is_part_of_what_it_is_found_by() {
    let server = Server::start();
    let handler = Handler::new(|request, run| {
        let agent = request.headers().get("user-agent").map_or("none", |agent| agent.to_str().unwrap());
        let mut response = Response::new(Body::from(format!("{agent} {run}")));
        response.headers_mut().insert(header::VARY, "user-agent".parse().unwrap());
        response.headers_mut().insert(header::CACHE_CONTROL, "max-age=60".parse().unwrap());
        response
    });
    let a = Instance::with_defaults(&server, &handler).await;
    let b = Instance::with_defaults(&server, &handler).await;
    let c = Instance::with_defaults(&server, &handler).await;
    let by = |agent| with(request("/page"), "user-agent", agent);
    let ask = async |one: &Instance, agent| text(one.ask(by(agent)).await).await;
    assert_eq!(ask(&a, "red").await, "red 1");
    a.published(1).await;
    // The first run's page is found without knowing what it varies on, and by nobody else.
    assert_eq!(ask(&b, "red").await, "red 1");
    assert_eq!(ask(&b, "blue").await, "blue 2");
    b.published(1).await;
    assert_eq!(ask(&c, "red").await, "red 1");
    assert_eq!(ask(&c, "blue").await, "blue 2");
    assert_eq!(ask(&a, "blue").await, "blue 2");
    assert_eq!(c.get("/page").await, "none 3");
    assert_eq!(handler.runs.get(), 3);
}

#[tokio::test]
async fn a_herd_of_variants_runs_the_handler_once_for_each() {
    let server = Server::start();
    let handler = Handler::new(|request, _| {
        let agent = request.headers().get("user-agent").unwrap().to_str().unwrap().to_string();
        let mut response = Response::new(Body::from(agent));
        response.headers_mut().insert(header::VARY, "user-agent".parse().unwrap());
        response
    })
    .held(1);
    let mut instances = Vec::new();
    for _ in 0..3 {
        instances.push(Instance::with_defaults(&server, &handler).await);
    }
    let mut clients = Vec::new();
    for one in &instances {
        for agent in ["red", "blue"].repeat(10) {
            clients.push((agent, one.spawn(with(request("/page"), "user-agent", agent))));
        }
    }
    soon(handler.started.notified()).await;
    until("all asked", || instances.iter().all(|one| one.tier.stats().operations >= 1)).await;
    handler.go.add_permits(1);
    for (agent, client) in clients {
        assert_eq!(client.await.unwrap(), agent);
    }
    assert_eq!(handler.runs.get(), 2);
}

#[tokio::test]
async fn a_304_makes_a_page_fresh_for_all() {
    let server = Server::start();
    let handler = Handler::new(|request, run| {
        let tagged = [("etag", "\"v1\""), ("cache-control", "max-age=1, stale-if-error=1000")];
        if request.headers().contains_key(header::IF_NONE_MATCH) {
            let mut response = numbered(run, &[("etag", "\"v1\""), ("cache-control", "max-age=1000")]);
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            *response.body_mut() = Body::empty();
            return response;
        }
        numbered(run, &tagged)
    });
    let a = Instance::with_defaults(&server, &handler).await;
    a.get("/page").await;
    a.published(1).await;
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    // It never had the page, and asks about the one that Redis has.
    let b = Instance::with_defaults(&server, &handler).await;
    assert_eq!(b.get("/page").await, "run 1");
    assert_eq!(handler.runs.get(), 2);
    b.published(1).await;
    let c = Instance::with_defaults(&server, &handler).await;
    let fresh = c.ask(request("/page")).await;
    assert_eq!(header_of(&fresh, "cache-control"), "max-age=1000");
    assert_eq!((text(fresh).await.as_str(), handler.runs.get()), ("run 1", 2));
}

#[tokio::test]
async fn a_client_that_demands_a_newer_page_gets_one_for_all() {
    let server = Server::start();
    let handler = Handler::counting("max-age=1000");
    let a = Instance::new(&server, &handler, |builder| builder.honor_client_directives(true)).await;
    let b = Instance::new(&server, &handler, |builder| builder.honor_client_directives(true)).await;
    a.get("/page").await;
    a.published(1).await;
    let demanding = with(request("/page"), "cache-control", "no-cache");
    assert_eq!(text(b.ask(demanding).await).await, "run 2");
    b.published(1).await;
    let c = Instance::with_defaults(&server, &handler).await;
    assert_eq!(c.get("/page").await, "run 2");
}

#[cfg(feature = "grpc")]
#[tokio::test]
async fn replies_to_calls_are_shared_with_their_trailers() {
    let server = Server::start();
    let runs = Runs::default();
    let call = || {
        let mut call = Request::post("http://shop.example/inventory.Inventory/GetStock");
        call = call.header("content-type", "application/grpc").header("te", "trailers");
        call.body(Body::from(&b"\0\0\0\0\x01\x07"[..])).unwrap()
    };
    let mut apps = Vec::new();
    for _ in 0..2 {
        let (tier, builder) = tiered(&server).await;
        let guard = builder.ttl(Duration::from_secs(60)).grpc_method("/inventory.Inventory/GetStock").build();
        let runs = runs.clone();
        let answer = move || {
            let run = u8::try_from(runs.add()).unwrap();
            async move {
                let mut trailers = axum::http::HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                let message = Bytes::copy_from_slice(&[0, 0, 0, 0, 1, run]);
                let frames = [http_body::Frame::data(message), http_body::Frame::trailers(trailers)];
                let frames = frames.map(Ok::<_, std::convert::Infallible>);
                let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
                Response::builder().header("content-type", "application/grpc").body(body).unwrap()
            }
        };
        let layer = guard.unwrap();
        apps.push((tier, Router::new().fallback(answer).layer(layer.clone()), layer));
    }
    let reply = async |at: usize| {
        let response = soon(ask(&apps[at].1, call())).await;
        assert!(!response.headers().contains_key("age"));
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap().get("grpc-status").unwrap(), "0");
        body.to_bytes()[5]
    };
    assert_eq!(reply(0).await, 1);
    until("published", || apps[0].0.stats().published == 1).await;
    assert_eq!(reply(1).await, 1);
    soon(apps[0].2.invalidate("/inventory.Inventory/GetStock").unwrap()).await.unwrap();
    until("heard", || futures_util::FutureExt::now_or_never(reply(1)).is_none() || runs.get() == 2).await;
    assert_eq!(reply(1).await, 2);
}
