//! Guards while Redis, or another instance, is not what it should be.

use super::*;
use stampede_guard::RedisConfig;
use std::time::{Duration, Instant};

#[tokio::test]
async fn without_redis_each_instance_goes_on_alone_and_nobody_waits_for_it() {
    let mut server = Server::start();
    let handler = Handler::counting("max-age=1000");
    let a = Instance::with_defaults(&server, &handler).await;
    let b = Instance::with_defaults(&server, &handler).await;
    server.kill();
    until("noticed", || a.tier.stats().circuit_open && b.tier.stats().circuit_open).await;
    let operations = a.tier.stats().operations;
    for page in 0..20 {
        let uri = format!("/page/{page}");
        assert_eq!(a.get(&uri).await, a.get(&uri).await);
        assert_ne!(a.get(&uri).await, b.get(&uri).await);
    }
    assert_eq!((handler.runs.get(), a.tier.stats().operations), (40, operations));
    server.restart();
    until("healed", || !a.tier.stats().circuit_open && !b.tier.stats().circuit_open).await;
    let again = a.get("/new").await;
    a.published(1).await;
    assert_eq!(b.get("/new").await, again);
}

#[tokio::test]
async fn a_server_that_hangs_costs_the_first_request_its_time_out_and_the_next_nothing() {
    let server = Server::start();
    let handler = Handler::counting("max-age=1000");
    let a = Instance::with_defaults(&server, &handler).await;
    server.freeze();
    let started = Instant::now();
    assert_eq!(a.get("/one").await, "run 1");
    assert!(started.elapsed() < 8 * quick().operation_timeout, "{:?}", started.elapsed());
    until("noticed", || a.tier.stats().circuit_open).await;
    let operations = a.tier.stats().operations;
    for page in 0..20 {
        a.get(&format!("/page/{page}")).await;
    }
    assert_eq!(a.tier.stats().operations, operations);
    server.thaw();
}

#[tokio::test]
async fn a_server_that_dies_releases_those_who_wait_for_another_instance() {
    let mut server = Server::start();
    let handler = Handler::counting("max-age=1000").held(1);
    let a = Instance::with_defaults(&server, &handler).await;
    let b = Instance::with_defaults(&server, &handler).await;
    let first = a.spawn(request("/page"));
    soon(handler.started.notified()).await;
    let waits = b.spawn(request("/page"));
    until("the other waits", || b.tier.stats().operations >= 1).await;
    server.kill();
    assert_eq!(waits.await.unwrap(), "run 2");
    handler.go.add_permits(1);
    assert_eq!(first.await.unwrap(), "run 1");
}

/// Of a length that does not fit: the others go on as soon as the head tells, though the body goes on for ever.
#[tokio::test]
async fn a_page_over_the_limit_keeps_nobody_waiting() {
    let server = Server::start();
    let config = RedisConfig { max_value_bytes: 10_000, ..quick() };
    let handler = Handler::new(|_, run| {
        let body = if run == 1 {
            Body::new(http_body_util::StreamBody::new(futures_util::stream::pending::<
                Result<http_body::Frame<bytes::Bytes>, std::convert::Infallible>,
            >()))
        } else {
            Body::from(vec![b'x'; 20_000])
        };
        let mut response = Response::new(body);
        response.headers_mut().insert(header::CONTENT_LENGTH, "20000".parse().unwrap());
        response.headers_mut().insert(header::CACHE_CONTROL, "max-age=60".parse().unwrap());
        response
    })
    .held(1);
    let mut instances = Vec::new();
    for _ in 0..2 {
        let tier = RedisTier::connect(&server.url(), config.clone()).await.unwrap();
        let tiers = tier.clone();
        let one = Instance::new(&server, &handler, |builder| builder.redis(tiers)).await;
        instances.push(Instance { tier, ..one });
    }
    let app = instances[0].app.clone();
    let first = tokio::spawn(async move { ask(&app, request("/page")).await });
    soon(handler.started.notified()).await;
    let waits = instances[1].spawn(request("/page"));
    until("the other waits", || instances[1].tier.stats().operations >= 1).await;
    handler.go.add_permits(1);
    let _reads_on = soon(first).await.unwrap();
    assert_eq!(waits.await.unwrap().len(), 20_000);
    assert!(values(&server).is_empty());
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_page_for_anyone() {
    let server = Server::start();
    let handler = Handler::new(|_, run| {
        if run > 1 {
            return numbered(run, &[("cache-control", "max-age=60")]);
        }
        let pieces = [Ok(bytes::Bytes::from_static(b"half of ")), Err(std::io::Error::other("cut"))];
        let mut response = Response::new(Body::from_stream(futures_util::stream::iter(pieces)));
        response.headers_mut().insert(header::CONTENT_LENGTH, "100".parse().unwrap());
        response.headers_mut().insert(header::CACHE_CONTROL, "max-age=60".parse().unwrap());
        response
    });
    let a = Instance::with_defaults(&server, &handler).await;
    let response = a.ask(request("/page")).await;
    assert!(http_body_util::BodyExt::collect(response.into_body()).await.is_err());
    let b = Instance::with_defaults(&server, &handler).await;
    assert_eq!(b.get("/page").await, "run 2");
    b.published(1).await;
    assert_eq!(values(&server).len(), 1);
    assert_eq!(a.tier.stats().published, 0);
}

#[tokio::test]
async fn an_instance_whose_client_went_away_still_loads_for_the_others() {
    let server = Server::start();
    let handler = Handler::counting("max-age=60").held(1);
    let a = Instance::with_defaults(&server, &handler).await;
    let b = Instance::with_defaults(&server, &handler).await;
    let gone = a.spawn(request("/page"));
    soon(handler.started.notified()).await;
    let waits = b.spawn(request("/page"));
    until("the other waits", || b.tier.stats().operations >= 1).await;
    gone.abort();
    assert!(gone.await.is_err());
    handler.go.add_permits(1);
    assert_eq!(waits.await.unwrap(), "run 1");
}

#[tokio::test]
async fn what_an_instance_keeps_is_asked_for_again_after_the_cap() {
    let server = Server::start();
    let handler = Handler::counting("max-age=1000");
    let config = RedisConfig { local_ttl_cap: Duration::from_millis(30), ..quick() };
    let tier = RedisTier::connect(&server.url(), config).await.unwrap();
    let tiers = tier.clone();
    let a = Instance::new(&server, &handler, |builder| builder.redis(tiers)).await;
    assert_eq!(a.get("/page").await, "run 1");
    until("published", || tier.stats().published == 1).await;
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert_eq!(a.get("/page").await, "run 1");
    assert_eq!((a.guard.stats().shared, handler.runs.get()), (1, 1));
}
