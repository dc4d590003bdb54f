//! What one instance drops, all do.

use super::*;

/// Two instances that both keep what the first run brought.
async fn both_keep(server: &Server, handler: &Handler, uri: &str) -> (Instance, Instance) {
    let set = |builder: StampedeGuardBuilder| builder.tag_header("x-tags");
    let a = Instance::new(server, handler, set).await;
    let b = Instance::new(server, handler, set).await;
    assert_eq!(a.get(uri).await, "run 1");
    a.published(1).await;
    assert_eq!(b.get(uri).await, "run 1");
    (a, b)
}

/// Whoever asks any instance from now on does not get the first run's page, and the second run's is everybody's: its
/// own instance's, that of one that keeps the old, and that of one which comes later.
async fn is_gone(server: &Server, [a, b]: [&Instance; 2], handler: &Handler, uri: &str) {
    let set = |builder: StampedeGuardBuilder| builder.tag_header("x-tags");
    let late = Instance::new(server, handler, set).await;
    assert_eq!(late.get(uri).await, "run 2");
    late.published(1).await;
    assert_eq!(b.after("run 1", uri).await, "run 2");
    assert_eq!(a.get(uri).await, "run 2");
    assert_eq!(handler.runs.get(), 2);
}

#[tokio::test]
async fn a_url_is_dropped_in_all_instances() {
    let server = Server::start();
    let handler = Handler::counting("max-age=1000");
    let (a, b) = both_keep(&server, &handler, "/page?q=1").await;
    soon(a.guard.invalidate("/page?q=1").unwrap()).await.unwrap();
    is_gone(&server, [&a, &b], &handler, "/page?q=1").await;
}

#[tokio::test]
async fn a_tag_is_dropped_in_all_instances() {
    let server = Server::start();
    let handler =
        Handler::new(|_, run| numbered(run, &[("cache-control", "max-age=1000"), ("x-tags", "shoes, red")]));
    let (a, b) = both_keep(&server, &handler, "/page").await;
    soon(b.guard.invalidate_tag("shoes")).await.unwrap();
    is_gone(&server, [&b, &a], &handler, "/page").await;
}

#[tokio::test]
async fn everything_is_dropped_in_all_instances() {
    let server = Server::start();
    let handler = Handler::counting("max-age=1000");
    let (a, b) = both_keep(&server, &handler, "/page").await;
    soon(a.guard.invalidate_all()).await.unwrap();
    is_gone(&server, [&a, &b], &handler, "/page").await;
}

#[tokio::test]
async fn a_write_in_one_instance_outdates_the_page_in_all() {
    let server = Server::start();
    let handler =
        Handler::new(
            |request, run| {
                if request.method() == "POST" { Response::default() } else { numbered(run, &[]) }
            },
        );
    let set = |builder: StampedeGuardBuilder| builder.ttl(std::time::Duration::from_secs(1_000));
    let a = Instance::new(&server, &handler, set).await;
    let b = Instance::new(&server, &handler, set).await;
    a.get("/page").await;
    a.published(1).await;
    assert_eq!(b.get("/page").await, "run 1");
    let post = Request::post("/page").header(header::HOST, "shop.example").body(Body::empty()).unwrap();
    assert_eq!(a.ask(post).await.status(), StatusCode::OK);
    until("told", || a.tier.stats().pending_invalidations == 0).await;
    // Runs 1 and 2 are the first page's and the POST.
    assert_eq!(a.get("/page").await, "run 3");
    assert_eq!(b.after("run 1", "/page").await, "run 3");
    assert_eq!(handler.runs.get(), 3);
}

#[tokio::test]
async fn other_pages_stay() {
    let server = Server::start();
    let handler = Handler::counting("max-age=1000");
    let (a, b) = both_keep(&server, &handler, "/page").await;
    soon(a.guard.invalidate("/another").unwrap()).await.unwrap();
    a.guard.invalidate_tag("another");
    let late = Instance::with_defaults(&server, &handler).await;
    for one in [&a, &b, &late] {
        assert_eq!(one.get("/page").await, "run 1");
    }
}

/// A run that began before an invalidation, in another instance, serves those who waited for it and nobody else.
async fn voids_a_run_under_way(invalidate: impl AsyncFn(&Instance)) {
    let server = Server::start();
    let handler =
        Handler::new(|_, run| numbered(run, &[("cache-control", "max-age=1000"), ("x-tags", "shoes")]));
    let handler = handler.held(1);
    let set = |builder: StampedeGuardBuilder| builder.tag_header("x-tags");
    let a = Instance::new(&server, &handler, set).await;
    let b = Instance::new(&server, &handler, set).await;
    let waits = a.spawn(request("/page"));
    soon(handler.started.notified()).await;
    invalidate(&b).await;
    handler.go.add_permits(1);
    assert_eq!(waits.await.unwrap(), "run 1");
    until("the lease is over", || {
        let stats = a.tier.stats();
        stats.published + stats.superseded + stats.kept_local > 0
            || server.keys().iter().all(|key| !server.command(&format!("HGET {key} o")).contains("\r\n0"))
    })
    .await;
    assert_eq!(b.get("/page").await, "run 2");
    b.published(1).await;
    assert_eq!(a.after("run 1", "/page").await, "run 2");
    let late = Instance::new(&server, &handler, set).await;
    assert_eq!(late.get("/page").await, "run 2");
}

#[tokio::test]
async fn a_run_from_before_a_urls_invalidation_is_not_published() {
    voids_a_run_under_way(async |one| soon(one.guard.invalidate("/page").unwrap()).await.unwrap()).await;
}

#[tokio::test]
async fn a_run_from_before_a_tags_invalidation_is_not_published() {
    voids_a_run_under_way(async |one| soon(one.guard.invalidate_tag("shoes")).await.unwrap()).await;
}

#[tokio::test]
async fn a_run_from_before_all_was_invalidated_is_not_published() {
    voids_a_run_under_way(async |one| soon(one.guard.invalidate_all()).await.unwrap()).await;
}

#[tokio::test]
async fn an_invalidation_while_redis_is_away_is_made_good_before_anything_is_read() {
    for what in ["url", "tag", "all"] {
        let server = Server::start();
        let handler =
            Handler::new(|_, run| numbered(run, &[("cache-control", "max-age=1000"), ("x-tags", "shoes")]));
        let (a, b) = both_keep(&server, &handler, "/page").await;
        server.freeze();
        let handle = match what {
            "url" => a.guard.invalidate("/page").unwrap(),
            "tag" => a.guard.invalidate_tag("shoes"),
            _ => a.guard.invalidate_all(),
        };
        assert!(soon(handle).await.is_err(), "{what}: Redis has not confirmed it");
        assert_eq!(a.get("/page").await, "run 2", "{what}");
        server.thaw();
        until("told", || a.tier.stats().pending_invalidations == 0).await;
        let late = Instance::new(&server, &handler, |builder| builder.tag_header("x-tags")).await;
        assert_ne!(late.get("/page").await, "run 1", "{what}");
        b.after("run 1", "/page").await;
    }
}

/// Redis answers, and only the events fail to arrive.
#[tokio::test]
async fn an_instance_that_hears_nothing_still_reads_nothing_that_was_dropped() {
    for what in ["url", "tag", "all"] {
        let server = Server::start();
        server.command("ACL SETUSER deaf on nopass ~* &* +@all -subscribe");
        let handler =
            Handler::new(|_, run| numbered(run, &[("cache-control", "max-age=1000"), ("x-tags", "shoes")]));
        let set = |builder: StampedeGuardBuilder| builder.tag_header("x-tags");
        let a = Instance::new(&server, &handler, set).await;
        let url = format!("redis://deaf:any@127.0.0.1:{}", server.port);
        let nothing = std::time::Duration::from_nanos(1);
        let config = stampede_guard::RedisConfig { unsubscribed_ttl_cap: nothing, ..quick() };
        let deaf = RedisTier::connect(&url, config).await.unwrap();
        let deafs = deaf.clone();
        let b = Instance::new(&server, &handler, |builder| set(builder).redis(deafs)).await;
        a.get("/page").await;
        a.published(1).await;
        assert_eq!(b.get("/page").await, "run 1");
        assert!(!deaf.stats().subscribed);
        let handle = match what {
            "url" => a.guard.invalidate("/page").unwrap(),
            "tag" => a.guard.invalidate_tag("shoes"),
            _ => a.guard.invalidate_all(),
        };
        soon(handle).await.unwrap();
        assert_eq!(b.get("/page").await, "run 2", "{what}");
    }
}
