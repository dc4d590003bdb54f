//! What must never pass from one client to another, by way of Redis.

use super::*;
use std::time::Duration;

/// Everything that Redis has, names and values, as one text.
fn everything(server: &Server) -> String {
    let mut connection = connection(server);
    let mut seen = String::new();
    for key in server.keys() {
        seen.push_str(&key);
        let dump: Vec<u8> = redis::cmd("DUMP").arg(&key).query(&mut connection).unwrap();
        seen.push_str(&String::from_utf8_lossy(&dump));
    }
    seen
}

/// Each of two clients in two instances gets a page of its own, and Redis gets none.
async fn stays_with_its_client(
    headers: &'static [(&'static str, &'static str)],
    asks: fn(Request<Body>) -> Request<Body>,
    set: fn(StampedeGuardBuilder) -> StampedeGuardBuilder,
) {
    let server = Server::start();
    let handler = Handler::new(move |_, run| numbered(run, headers));
    let a = Instance::new(&server, &handler, set).await;
    let b = Instance::new(&server, &handler, set).await;
    for round in 0..2 {
        for one in [&a, &b] {
            let own = text(one.ask(asks(request("/me"))).await).await;
            if round == 0 {
                assert_eq!(own, format!("run {}", handler.runs.get()), "{headers:?}");
            }
        }
    }
    assert!(handler.runs.get() >= 2);
    assert_eq!(values(&server), Vec::<String>::new(), "{headers:?}");
    assert_eq!(a.tier.stats().published + b.tier.stats().published, 0);
}

#[tokio::test]
async fn responses_that_are_one_clients_alone_never_enter_redis() {
    const FRESH: (&str, &str) = ("cache-control", "max-age=60");
    for headers in [
        &[FRESH, ("set-cookie", "id=1")][..],
        &[("cache-control", "private, max-age=60")],
        &[("cache-control", "private=\"x-user\", max-age=60")],
        &[("cache-control", "no-store")],
        &[("cache-control", "no-cache"), ("etag", "\"v\"")],
        &[FRESH, ("vary", "*")],
        &[FRESH, ("www-authenticate", "Basic")],
        &[FRESH, ("authentication-info", "x")],
        &[("clear-site-data", "\"cookies\"")],
    ] {
        stays_with_its_client(headers, |request| request, |builder| builder).await;
    }
}

#[tokio::test]
async fn requests_with_credentials_never_enter_redis() {
    const FRESH: &[(&str, &str)] = &[("cache-control", "public, max-age=60")];
    stays_with_its_client(FRESH, |request| with(request, "cookie", "id=1"), |builder| builder).await;
    stays_with_its_client(FRESH, |request| with(request, "authorization", "Bearer s"), |builder| builder)
        .await;
}

#[tokio::test]
async fn authorized_requests_that_may_share_neither_write_to_redis_nor_read_from_it() {
    let server = Server::start();
    let set = |builder: StampedeGuardBuilder| builder.share_authorized(true);
    for (cache_control, may_share) in [("public, max-age=60", true), ("max-age=60", false)] {
        let handler = Handler::counting(cache_control);
        let a = Instance::new(&server, &handler, set).await;
        let b = Instance::new(&server, &handler, set).await;
        let authorized = |path: &str| with(request(path), "authorization", "Bearer secret");
        let uri = format!("/{may_share}");
        assert_eq!(text(a.ask(authorized(&uri)).await).await, "run 1");
        assert_eq!(a.tier.stats().operations, 0);
        assert_eq!(b.get(&uri).await, "run 2");
        b.published(1).await;
        // In the instance that has it from Redis, too, only what says so is for the authorized.
        let other = format!("/other-{may_share}");
        assert_eq!(b.get(&other).await, "run 3");
        b.published(2).await;
        assert_eq!(a.get(&other).await, "run 3");
        let own = text(a.ask(authorized(&other)).await).await;
        assert_eq!(own, if may_share { "run 3" } else { "run 4" });
    }
    assert!(!everything(&server).contains("secret"));
}

#[tokio::test]
async fn pages_of_a_principal_stay_in_their_instance_and_so_do_the_credentials() {
    let server = Server::start();
    let handler = Handler::counting("max-age=60");
    let set = |builder: StampedeGuardBuilder| builder.key_authorization().key_cookies(["session"]);
    let a = Instance::new(&server, &handler, set).await;
    let b = Instance::new(&server, &handler, set).await;
    for (name, value) in [("authorization", "Bearer secret-1"), ("cookie", "session=secret-2")] {
        let asks = || with(request("/me"), name, value);
        let first = text(a.ask(asks()).await).await;
        assert_eq!(text(a.ask(asks()).await).await, first, "shared with itself in one instance");
        assert_ne!(text(b.ask(asks()).await).await, first);
    }
    assert_eq!(a.tier.stats().operations + b.tier.stats().operations, 0);
    assert!(!everything(&server).contains("secret"));
}

#[tokio::test]
async fn a_header_of_a_tenant_keeps_tenants_apart() {
    let server = Server::start();
    let handler = Handler::new(|request, _| {
        let tenant = request.headers().get("x-tenant").map_or("nobody", |tenant| tenant.to_str().unwrap());
        let mut response = Response::new(Body::from(format!("for {tenant}")));
        response.headers_mut().insert(header::CACHE_CONTROL, "max-age=60".parse().unwrap());
        response
    });
    let a = Instance::with_defaults(&server, &handler).await;
    let b = Instance::with_defaults(&server, &handler).await;
    for (one, tenant) in [(&a, "red"), (&b, "blue"), (&b, "red"), (&a, "blue")] {
        let own = text(one.ask(with(request("/page"), "x-tenant", tenant)).await).await;
        assert_eq!(own, format!("for {tenant}"));
        until("published", || a.tier.stats().published + b.tier.stats().published >= 1).await;
    }
    assert_eq!(b.get("/page").await, "for nobody");
    // Another host is another page.
    let other = Request::get("/page").header(header::HOST, "other.example").header("x-tenant", "red");
    b.ask(other.body(Body::empty()).unwrap()).await;
    assert_eq!(handler.runs.get(), 4);
}

#[tokio::test]
async fn what_the_operators_function_adds_keeps_pages_apart() {
    let server = Server::start();
    let handler = Handler::counting("max-age=60");
    let of = |name: &'static str| {
        move |builder: StampedeGuardBuilder| builder.key_with(move |_, key| key.push(name))
    };
    let a = Instance::new(&server, &handler, of("red")).await;
    let b = Instance::new(&server, &handler, of("blue")).await;
    let c = Instance::new(&server, &handler, of("red")).await;
    assert_eq!(a.get("/page").await, "run 1");
    a.published(1).await;
    assert_eq!(b.get("/page").await, "run 2");
    assert_eq!(c.get("/page").await, "run 1");
}

#[tokio::test]
async fn guards_of_other_rules_or_names_do_not_share() {
    let server = Server::start();
    let handler = Handler::counting("max-age=60");
    let a = Instance::with_defaults(&server, &handler).await;
    a.get("/page").await;
    a.published(1).await;
    let sets: [fn(StampedeGuardBuilder) -> StampedeGuardBuilder; 3] = [
        |builder| builder.name("others"),
        |builder| builder.key_headers([]),
        |builder| builder.ignore_header("x-tenant"),
    ];
    for (number, set) in sets.into_iter().enumerate() {
        let other = Instance::new(&server, &handler, set).await;
        assert_eq!(other.get("/page").await, format!("run {}", number + 2));
    }
    let same = Instance::new(&server, &handler, |builder| builder.name("http")).await;
    assert_eq!(same.get("/page").await, "run 1");
}

#[tokio::test]
async fn the_names_of_keys_and_the_events_hold_nothing_that_a_client_sent() {
    let server = Server::start();
    let handler = Handler::counting("max-age=60");
    let a = Instance::with_defaults(&server, &handler).await;
    a.ask(with(request("/secret-path?q=secret"), "x-api-key", "secret-key")).await;
    a.published(1).await;
    soon(a.guard.invalidate("/secret-path?q=secret").unwrap()).await.unwrap();
    for key in server.keys() {
        assert!(!key.contains("secret"), "{key}");
    }
}

/// While one instance's client still reads its private page, those of another instance run for themselves, all at
/// once.
#[tokio::test]
async fn a_private_answer_makes_no_other_instance_wait_in_series() {
    let server = Server::start();
    let together = Arc::new(tokio::sync::Barrier::new(5));
    let handler = Handler::new(|_, run| {
        let mut response = numbered(run, &[("set-cookie", "id=1")]);
        if run == 1 {
            // Its body never ends.
            *response.body_mut() =
                Body::new(http_body_util::StreamBody::new(futures_util::stream::pending::<
                    Result<http_body::Frame<bytes::Bytes>, std::convert::Infallible>,
                >()));
        }
        response
    })
    .held(1);
    let a = Instance::with_defaults(&server, &handler).await;
    let b = Instance::with_defaults(&server, &handler).await;
    let first = tokio::spawn({
        let app = a.app.clone();
        async move { ask(&app, request("/me")).await }
    });
    soon(handler.started.notified()).await;
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let (app, together) = (b.app.clone(), Arc::clone(&together));
            tokio::spawn(async move {
                together.wait().await;
                text(ask(&app, request("/me")).await).await
            })
        })
        .collect();
    until("the other instance waits", || b.tier.stats().operations >= 1).await;
    handler.go.add_permits(1);
    let _reads_on = soon(first).await.unwrap();
    let mut answers = Vec::new();
    for waiting in waiting {
        answers.push(soon(waiting).await.unwrap());
    }
    answers.sort();
    answers.dedup();
    assert_eq!(answers.len(), 5, "each its own: {answers:?}");
    // From now on nobody asks Redis about it, for a while.
    let operations = b.tier.stats().operations;
    b.get("/me").await;
    assert_eq!(b.tier.stats().operations, operations);
}

#[tokio::test]
async fn what_is_shared_with_those_who_wait_and_not_stored_is_each_instances_own() {
    let server = Server::start();
    let handler = Handler::new(|_, run| numbered(run, &[]));
    let a = Instance::new(&server, &handler, StampedeGuardBuilder::coalesce_only).await;
    for run in 1..=3 {
        assert_eq!(a.get("/page").await, format!("run {run}"));
    }
    until("the lease is given back", || a.tier.stats().kept_local == 1).await;
    assert_eq!(a.tier.stats().leases, 1, "the first taught it that this is no page for all");
    assert!(values(&server).is_empty());
    let b = Instance::new(&server, &handler, StampedeGuardBuilder::coalesce_only).await;
    assert_eq!(b.get("/page").await, "run 4");
}

#[tokio::test]
async fn a_client_that_wants_nothing_stored_has_nothing_stored() {
    let server = Server::start();
    let handler = Handler::counting("max-age=60");
    let a = Instance::with_defaults(&server, &handler).await;
    let asks = with(request("/page"), "cache-control", "no-store");
    assert_eq!(text(a.ask(asks).await).await, "run 1");
    assert!(values(&server).is_empty());
    let b = Instance::with_defaults(&server, &handler).await;
    assert_eq!(b.get("/page").await, "run 2");
    b.published(1).await;
    assert_eq!(a.tier.stats().published, 0);
}

#[tokio::test]
async fn a_guard_on_a_tier_of_the_default_namespace_needs_a_name() {
    let server = Server::start();
    let config = stampede_guard::RedisConfig { lease: Duration::from_secs(1), ..Default::default() };
    let tier = RedisTier::connect(&server.url(), config).await.unwrap();
    let refused = StampedeGuard::builder().redis(tier.clone()).build().unwrap_err();
    assert_eq!(refused.field(), "name");
    StampedeGuard::builder().redis(tier.clone()).name("pages").build().unwrap();
    let refused = StampedeGuard::builder().redis(tier.clone()).name("a b").build().unwrap_err();
    assert_eq!(refused.field(), "name");
    let refused = StampedeGuard::new().derive().redis(tier).build().unwrap_err();
    assert_eq!(refused.field(), "redis");
}
