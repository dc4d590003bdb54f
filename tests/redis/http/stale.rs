//! Pages past their freshness, over all instances.

use super::*;
use stampede_guard::OnWaitTimeout;
use std::time::Duration;

#[tokio::test]
async fn a_stale_page_is_served_by_all_while_one_refreshes_it() {
    let server = Server::start();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let saw = Arc::clone(&seen);
    let handler = Handler::new(move |request, run| {
        saw.lock().unwrap().push(request.headers().contains_key("user-agent"));
        // The first says nothing about freshness.
        numbered(run, if run == 1 { &[] } else { &[("cache-control", "max-age=1000")] })
    });
    let set = |builder: StampedeGuardBuilder| {
        builder.ttl(Duration::from_millis(40)).stale_while_revalidate(Duration::from_secs(1_000))
    };
    let a = Instance::new(&server, &handler, set).await;
    a.get("/page").await;
    a.published(1).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    // The handler of the one that refreshes waits: nobody waits for it.
    let held = handler.clone().held(2);
    let b = Instance::new(&server, &held, set).await;
    let c = Instance::new(&server, &held, set).await;
    assert_eq!(text(b.ask(with(request("/page"), "user-agent", "x")).await).await, "run 1");
    soon(held.started.notified()).await;
    assert_eq!((c.get("/page").await.as_str(), b.get("/page").await.as_str()), ("run 1", "run 1"));
    assert_eq!(handler.runs.get(), 2);
    assert_eq!((b.guard.stats().led, c.guard.stats().led), (0, 0));
    held.go.add_permits(1);
    b.published(1).await;
    assert_eq!(*seen.lock().unwrap(), [false, false], "a refresh does not carry what is not in the key");
    assert_eq!(c.after("run 1", "/page").await, "run 2");
    assert_eq!(handler.runs.get(), 2);
}

#[tokio::test]
async fn a_stale_page_of_another_instance_stands_in_for_a_failure() {
    let server = Server::start();
    let handler = Handler::new(|_, run| {
        let mut response = numbered(run, &[("cache-control", "max-age=1, stale-if-error=1000")]);
        if run > 1 {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
        response
    });
    let a = Instance::with_defaults(&server, &handler).await;
    a.get("/page").await;
    a.published(1).await;
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    let b = Instance::with_defaults(&server, &handler).await;
    let stale = b.ask(request("/page")).await;
    assert_eq!(stale.status(), StatusCode::OK);
    assert_eq!((text(stale).await.as_str(), handler.runs.get()), ("run 1", 2));
}

#[tokio::test]
async fn a_stale_page_stands_in_for_another_instances_slow_run() {
    let server = Server::start();
    let handler = Handler::counting("max-age=1, stale-if-error=1000");
    let a = Instance::with_defaults(&server, &handler).await;
    a.get("/page").await;
    a.published(1).await;
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    let slow = handler.clone().held(2);
    let b = Instance::new(&server, &slow, |builder| builder).await;
    let first = b.spawn(request("/page"));
    soon(slow.started.notified()).await;
    for what in [OnWaitTimeout::default(), OnWaitTimeout::PassThrough] {
        let short = |builder: StampedeGuardBuilder| {
            builder.wait_timeout(Duration::from_millis(200)).on_wait_timeout(what)
        };
        let c = Instance::new(&server, &handler, short).await;
        let stale = c.ask(request("/page")).await;
        assert_eq!((stale.status(), text(stale).await.as_str()), (StatusCode::OK, "run 1"), "{what:?}");
    }
    slow.go.add_permits(1);
    assert_eq!(first.await.unwrap(), "run 2");
    assert_eq!(handler.runs.get(), 2);
}

#[tokio::test]
async fn a_page_that_forbids_it_is_not_served_stale_by_another_instance() {
    let server = Server::start();
    let handler = Handler::counting("max-age=1, must-revalidate, stale-while-revalidate=1000");
    let set = |builder: StampedeGuardBuilder| builder.stale_if_error(Duration::from_secs(1_000));
    let a = Instance::new(&server, &handler, set).await;
    a.get("/page").await;
    a.published(1).await;
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    let b = Instance::new(&server, &handler, set).await;
    assert_eq!(b.get("/page").await, "run 2");
}

#[tokio::test]
async fn a_failure_is_told_to_those_who_waited_in_other_instances() {
    let server = Server::start();
    let runs = Runs::default();
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let mut services = Vec::new();
    for _ in 0..2 {
        let (tier, builder) = tiered(&server).await;
        let (runs, started, go) = (runs.clone(), Arc::clone(&started), Arc::clone(&go));
        let fails = tower::service_fn(move |_: Request<Body>| {
            let (runs, started, go) = (runs.clone(), Arc::clone(&started), Arc::clone(&go));
            async move {
                runs.add();
                started.notify_one();
                go.notified().await;
                Err::<Response<Body>, _>("down".to_string())
            }
        });
        services.push((tier, tower::Layer::layer(&builder.build().unwrap(), fails)));
    }
    let ask = |at: usize| {
        let service = services[at].1.clone();
        tokio::spawn(async move {
            soon(tower::ServiceExt::oneshot(service, request("/page"))).await.map(|answer| answer.status())
        })
    };
    let first = ask(0);
    soon(started.notified()).await;
    let second = ask(1);
    until("the other waits", || services[1].0.stats().operations >= 1).await;
    go.notify_one();
    assert_eq!(first.await.unwrap(), Err("down".to_string()));
    assert_eq!(second.await.unwrap(), Ok(StatusCode::BAD_GATEWAY));
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn a_wait_for_another_instance_has_the_limit_of_any_wait() {
    let server = Server::start();
    let handler = Handler::counting("max-age=60").held(1);
    let a = Instance::with_defaults(&server, &handler).await;
    let short = |builder: StampedeGuardBuilder| builder.wait_timeout(Duration::from_millis(30));
    let b = Instance::new(&server, &handler, short).await;
    let passes = |builder: StampedeGuardBuilder| short(builder).on_wait_timeout(OnWaitTimeout::PassThrough);
    let c = Instance::new(&server, &handler, passes).await;
    let first = a.spawn(request("/page"));
    soon(handler.started.notified()).await;
    assert_eq!(b.ask(request("/page")).await.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(c.get("/page").await, "run 2");
    handler.go.add_permits(1);
    assert_eq!(first.await.unwrap(), "run 1");
}
