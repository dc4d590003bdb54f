//! Many requests at once, and the guard among other layers: one run, no deadlock, nothing left behind.

mod scripted;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{Request, Response, StatusCode, header};
use axum::routing::get as route;
use axum::{Extension, Router};
use futures_util::future::join_all;
use http_body_util::{Empty, Full};
use hyper::body::Bytes;
use scripted::{
    Client, Gauge, Piped, Stage, ask, data, fetch, get, next, piped, serve, served, soon, text, until, whole,
};
use stampede_guard::{ManualClock, StampedeGuard};
use tokio::sync::{Barrier, Notify, Semaphore};
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt};

fn page(uri: &str) -> Request<axum::body::Body> {
    get(uri).map(axum::body::Body::new)
}

// One run.

async fn a_thousand_clients(app: Router, guard: &StampedeGuard, runs: &Gauge, release: &Semaphore) {
    let address = serve(app).await;
    let clients: Vec<_> = (0..1_000).map(|_| tokio::spawn(fetch(address, "/page".to_owned()))).collect();
    until("everyone waits", || guard.stats().flights.coalesced == 999).await;
    release.add_permits(1_000);
    for client in clients {
        let (status, body) = soon(client).await.unwrap();
        assert_eq!((status, &*body), (StatusCode::OK, "the page"));
    }
    assert_eq!(runs.entered(), 1);
    assert_eq!(guard.stats().led, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_on_sockets_cost_one_run() {
    let (guard, runs, release) = (StampedeGuard::new(), Gauge::default(), Arc::new(Semaphore::new(0)));
    let handler = {
        let (runs, release) = (runs.clone(), Arc::clone(&release));
        move || async move {
            let _run = runs.enter(1);
            release.acquire().await.unwrap().forget();
            "the page"
        }
    };
    let app = Router::new().route("/page", route(handler)).layer(guard.clone());
    a_thousand_clients(app, &guard, &runs, &release).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_cost_one_run_where_the_layer_is_made_anew_for_each() {
    let (guard, runs, release) = (StampedeGuard::new(), Gauge::default(), Arc::new(Semaphore::new(0)));
    let handler = |State((runs, release)): State<(Gauge, Arc<Semaphore>)>| async move {
        let _run = runs.enter(1);
        release.acquire().await.unwrap().forget();
        "the page"
    };
    // Before `with_state`: axum makes the service of each request when it comes.
    let app = Router::new()
        .route("/page", route(handler))
        .layer(guard.clone())
        .with_state((runs.clone(), Arc::clone(&release)));
    a_thousand_clients(app, &guard, &runs, &release).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_disconnects_does_not_stop_the_load() {
    let (runs, gate) = (Gauge::default(), Arc::new(Notify::new()));
    let handler = {
        let (runs, gate) = (runs.clone(), Arc::clone(&gate));
        move || async move {
            let _run = runs.enter(1);
            gate.notified().await;
            "the page"
        }
    };
    let guard = StampedeGuard::new();
    let address = serve(Router::new().route("/", route(handler)).layer(guard.clone())).await;
    let client = tokio::spawn(async move { drop(Client::connect(address).await.get("/").await) });
    until("the handler runs", || runs.alive() == 1).await;
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    // The server has seen it go when the run is nobody's: then it may be joined but is not counted as anyone's.
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(runs.alive(), 1);
    gate.notify_one();
    until("the page is stored", || guard.stats().entries == 1).await;
    assert_eq!(soon(fetch(address, "/".to_owned())).await.1, "the page");
    assert_eq!(runs.entered(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uncacheable_pages_run_side_by_side() {
    // The first finds out that the page is not shared; the others all run at once, or this never ends.
    let (runs, barrier) = (Gauge::default(), Arc::new(Barrier::new(199)));
    let handler = {
        let runs = runs.clone();
        move || async move {
            let _run = runs.enter(1);
            if runs.entered() > 1 {
                barrier.wait().await;
            } else {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            ([(header::CACHE_CONTROL, "no-store")], "mine")
        }
    };
    let app = Router::new().route("/", route(handler)).layer(StampedeGuard::new());
    let all = (0..200).map(|_| tokio::spawn(app.clone().oneshot(page("/"))));
    for response in soon(join_all(all)).await {
        assert_eq!(text(response.unwrap().unwrap()).await, "mine");
    }
    assert_eq!(runs.entered(), 200);
    assert!(runs.peak() >= 199, "{} at once", runs.peak());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_page_costs_one_run_while_a_stale_copy_serves() {
    let (clock, runs) = (ManualClock::new(), Gauge::default());
    let handler = {
        let runs = runs.clone();
        move || async move {
            drop(runs.enter(1));
            tokio::time::sleep(Duration::from_millis(20)).await;
            if runs.entered() == 1 {
                (StatusCode::OK, "good")
            } else {
                (StatusCode::INTERNAL_SERVER_ERROR, "bad")
            }
        }
    };
    let guard = StampedeGuard::builder()
        .stale_while_revalidate(Duration::ZERO)
        .stale_if_error(Duration::from_secs(60))
        .clock(clock.clone())
        .build()
        .unwrap();
    let app = Router::new().route("/", route(handler)).layer(guard.clone());
    assert_eq!(text(ask(&app, page("/")).await.unwrap()).await, "good");
    until("it is stored", || guard.stats().entries == 1).await;
    clock.advance(Duration::from_secs(2));
    let all = (0..200).map(|_| tokio::spawn(app.clone().oneshot(page("/"))));
    for response in soon(join_all(all)).await {
        let response = response.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[header::AGE], "2");
        assert_eq!(text(response).await, "good");
    }
    assert_eq!(runs.entered(), 2);
}

#[tokio::test]
async fn a_client_that_comes_between_a_failure_and_its_landing_does_not_run_it_again() {
    let clock = ManualClock::new();
    let guard = StampedeGuard::builder().stale_while_revalidate(Duration::ZERO);
    let guard = guard.stale_if_error(Duration::from_secs(60)).clock(clock.clone()).build().unwrap();
    let mut stage: Stage = Stage::new(guard);
    let first = stage.get("/");
    stage.origin.run().await.done("good");
    assert_eq!(text(served(first).await).await, "good");
    clock.advance(Duration::from_secs(2));
    // It has looked, but is not polled before the failure.
    let late = stage.service.call(get("/"));
    let leader = stage.get("/");
    let failure = Response::builder().status(500).body(whole("bad")).unwrap();
    stage.origin.run().await.respond(failure);
    assert_eq!(text(served(leader).await).await, "good");
    assert_eq!(text(soon(late).await.unwrap()).await, "good");
    stage.origin.rests().await;
    // Once the next load is due, it is made.
    clock.advance(Duration::from_secs(1));
    let again = stage.get("/");
    stage.origin.run().await.done("better");
    assert_eq!(text(served(again).await).await, "better");
}

// Clients that vanish.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_vanish_do_not_lift_the_concurrency_of_the_handlers() {
    const LIMIT: usize = 4;
    const ABANDONED: usize = 8;
    let runs = Gauge::default();
    let handler = {
        let runs = runs.clone();
        move || async move {
            let _run = runs.enter(1);
            tokio::time::sleep(Duration::from_millis(50)).await;
            "late"
        }
    };
    let guard = StampedeGuard::builder().max_abandoned(ABANDONED).build().unwrap();
    let app = Router::new()
        .route("/{page}", route(handler))
        .layer(ServiceBuilder::new().layer(GlobalConcurrencyLimitLayer::new(LIMIT)).layer(guard.clone()));
    let clients: Vec<_> = (0..500)
        .map(|client| {
            let asked = app.clone().oneshot(page(&format!("/{client}")));
            tokio::spawn(tokio::time::timeout(Duration::from_millis(2), asked))
        })
        .collect();
    for client in clients {
        let _ = soon(client).await.unwrap();
    }
    assert!(runs.peak() <= LIMIT + ABANDONED, "{} handlers at once", runs.peak());
    until("all is quiet", || runs.alive() == 0).await;
    let before = runs.entered();
    // And the places are free: a run whose client goes away is finished again.
    let client = tokio::spawn(app.clone().oneshot(page("/again")));
    until("it runs", || runs.alive() == 1).await;
    client.abort();
    until("it is stored", || runs.alive() == 0).await;
    assert_eq!(text(ask(&app, page("/again")).await.unwrap()).await, "late");
    assert_eq!(runs.entered(), before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_herd_that_comes_and_goes_leaves_nothing_behind() {
    let runs = Gauge::default();
    let handler = {
        let runs = runs.clone();
        move |Path(id): Path<usize>| async move {
            let _run = runs.enter(1);
            tokio::time::sleep(Duration::from_millis(5)).await;
            format!("{id}")
        }
    };
    let guard = StampedeGuard::builder().max_abandoned(0).build().unwrap();
    let app = Router::new().route("/{id}", route(handler)).layer(guard.clone());
    for round in 0..20_u64 {
        let clients: Vec<_> = (0..50)
            .map(|client| {
                let asked = app.clone().oneshot(page(&format!("/{}", client % 5)));
                let patience = if client % 2 == 0 { 1_000 } else { round % 7 };
                tokio::spawn(tokio::time::timeout(Duration::from_millis(patience), asked))
            })
            .collect();
        for (client, answer) in clients.into_iter().enumerate() {
            match soon(answer).await.unwrap() {
                Ok(response) => assert_eq!(text(response.unwrap()).await, (client % 5).to_string()),
                Err(_) => assert!(client % 2 == 1, "a client that waits is served"),
            }
        }
        guard.invalidate_all();
    }
    until("all is quiet", || runs.alive() == 0).await;
}

// Among other layers.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_concurrency_limit_of_one_inside_does_not_deadlock() {
    #[derive(Clone)]
    struct Shop(Gauge);
    let (clock, runs) = (ManualClock::new(), Gauge::default());
    let handler = |State(shop): State<Shop>,
                   Path(id): Path<u64>,
                   Extension(name): Extension<&'static str>| async move {
        let _run = shop.0.enter(1);
        tokio::time::sleep(Duration::from_millis(2)).await;
        let private = if id == 3 { "no-store" } else { "max-age=1, stale-while-revalidate=60" };
        ([(header::CACHE_CONTROL, private)], format!("{name} {id}:{}", shop.0.entered()))
    };
    let guard = StampedeGuard::builder().clock(clock.clone()).build().unwrap();
    let app = Router::new()
        .route("/{id}", route(handler))
        .layer(ServiceBuilder::new().layer(guard.clone()).layer(GlobalConcurrencyLimitLayer::new(1)))
        .layer(Extension("shop"))
        .with_state(Shop(runs.clone()));
    // Misses with followers, and one that nobody shares.
    let all = (0..40).map(|client| tokio::spawn(app.clone().oneshot(page(&format!("/{}", client % 4)))));
    for response in soon(join_all(all)).await {
        assert_eq!(response.unwrap().unwrap().status(), StatusCode::OK);
    }
    assert_eq!(runs.peak(), 1);
    assert_eq!(runs.entered(), 13, "three pages are shared, and ten clients have their own");
    until("three pages and a marker are stored", || guard.stats().entries == 4).await;
    // Refreshes, with all that the handler extracts.
    for _ in 0..3 {
        clock.advance(Duration::from_secs(2));
        let before = runs.entered();
        let all = (0..30).map(|client| tokio::spawn(app.clone().oneshot(page(&format!("/{}", client % 3)))));
        for response in soon(join_all(all)).await {
            assert!(text(response.unwrap().unwrap()).await.starts_with("shop "));
        }
        // Time stands still, so what is served is new once it is stored.
        for id in 0..3 {
            let is_new = |body: &str| body.rsplit(':').next().unwrap().parse::<usize>().unwrap() > before;
            while !is_new(&text(soon(ask(&app, page(&format!("/{id}")))).await.unwrap()).await) {
                tokio::task::yield_now().await;
            }
        }
    }
    assert_eq!(runs.peak(), 1);
}

#[tokio::test]
async fn one_guard_at_two_depths_does_not_deadlock_or_serve_its_own_refresh_from_the_store() {
    let (clock, runs) = (ManualClock::new(), Gauge::default());
    let handler = {
        let runs = runs.clone();
        move || async move {
            drop(runs.enter(1));
            tokio::task::yield_now().await;
            runs.entered().to_string()
        }
    };
    let guard = StampedeGuard::builder().jitter(0.0).clock(clock.clone()).build().unwrap();
    let app = Router::new()
        .nest("/shop", Router::new().route("/page", route(handler)).layer(guard.clone()))
        .route(
            "/page",
            route({
                let runs = runs.clone();
                move || async move {
                    drop(runs.enter(1));
                    runs.entered().to_string()
                }
            })
            .layer(guard.clone()),
        )
        .layer(GlobalConcurrencyLimitLayer::new(64))
        .layer(guard.clone());
    for uri in ["/shop/page", "/page"] {
        let before = runs.entered();
        let all = (0..20).map(|_| tokio::spawn(app.clone().oneshot(page(uri))));
        for response in soon(join_all(all)).await {
            assert_eq!(text(response.unwrap().unwrap()).await, (before + 1).to_string());
        }
        for refresh in 2..5 {
            // On one thread, all that is ready to be stored is stored then.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            clock.advance(Duration::from_millis(1_500));
            let stale = text(soon(ask(&app, page(uri))).await.unwrap()).await;
            assert_eq!(stale, (before + refresh - 1).to_string());
            until("the handler runs anew", || runs.entered() == before + refresh).await;
            let new = (before + refresh).to_string();
            while text(soon(ask(&app, page(uri))).await.unwrap()).await != new {
                tokio::task::yield_now().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buffer_inside_and_outside_does_not_deadlock() {
    let runs = Gauge::default();
    let handler = {
        let runs = runs.clone();
        tower::service_fn(move |_: Request<Empty<Bytes>>| {
            let run = runs.enter(1);
            async move {
                tokio::time::sleep(Duration::from_millis(2)).await;
                drop(run);
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"page"))))
            }
        })
    };
    let service = ServiceBuilder::new()
        .buffer(4)
        .layer(StampedeGuard::new())
        .buffer(1)
        .concurrency_limit(1)
        .service(handler);
    let all = (0..100).map(|client| tokio::spawn(service.clone().oneshot(get(&format!("/{}", client % 10)))));
    for response in soon(join_all(all)).await {
        assert_eq!(text(response.unwrap().unwrap()).await, "page");
    }
    assert_eq!((runs.entered(), runs.peak()), (10, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeouts_and_load_shedding_do_their_work_on_either_side() {
    let guard = StampedeGuard::new();
    let (runs, gate) = (Gauge::default(), Arc::new(Notify::new()));
    let handler = {
        let (runs, gate) = (runs.clone(), Arc::clone(&gate));
        tower::service_fn(move |request: Request<Empty<Bytes>>| {
            let (run, gate) = (runs.enter(1), Arc::clone(&gate));
            async move {
                if request.uri().path() == "/slow" {
                    gate.notified().await;
                }
                drop(run);
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"page"))))
            }
        })
    };
    // Outside: the client goes, the load stays.
    let outside =
        ServiceBuilder::new().timeout(Duration::from_millis(5)).layer(guard.clone()).service(handler.clone());
    let error = soon(ask(&outside, get("/slow"))).await.unwrap_err();
    assert!(error.is::<tower::timeout::error::Elapsed>());
    assert_eq!(runs.alive(), 1);
    gate.notify_one();
    until("it is stored", || guard.stats().entries == 1).await;
    assert_eq!(text(soon(ask(&outside, get("/slow"))).await.unwrap()).await, "page");
    // Inside: the leader has the error, the others a response.
    let inside = ServiceBuilder::new()
        .layer(StampedeGuard::new())
        .layer(LoadShedLayer::new())
        .concurrency_limit(1)
        .timeout(Duration::from_millis(50))
        .service(handler);
    let slow = tokio::spawn(inside.clone().oneshot(get("/slow")));
    until("it runs", || runs.alive() == 1).await;
    let shed: BoxError = soon(ask(&inside, get("/other"))).await.unwrap_err();
    assert!(shed.is::<tower::load_shed::error::Overloaded>());
    assert!(soon(slow).await.unwrap().unwrap_err().is::<tower::timeout::error::Elapsed>());
    assert_eq!(text(soon(ask(&inside, get("/other"))).await.unwrap()).await, "page");
}

// Errors, panics and limits.

#[derive(Debug, PartialEq, Eq)]
struct NotCloneNorAnError(u8);

#[tokio::test]
async fn the_inner_error_reaches_its_own_client_unchanged() {
    let mut stage: Stage<NotCloneNorAnError> = Stage::new(StampedeGuard::new());
    let leader = stage.get("/");
    let call = stage.origin.run().await;
    let followers = stage.followers("/", 3).await;
    call.fails(NotCloneNorAnError(7));
    assert_eq!(soon(leader).await.unwrap().unwrap_err(), NotCloneNorAnError(7));
    for follower in followers {
        assert_eq!(soon(follower).await.unwrap().unwrap().status(), StatusCode::BAD_GATEWAY);
    }
    let again = stage.get("/");
    stage.origin.run().await.done("whole");
    assert_eq!(text(soon(again).await.unwrap().unwrap()).await, "whole");
    assert_eq!(stage.stats().flights.failed, 1);
}

#[tokio::test]
async fn a_panic_is_the_leaders_and_a_500_for_the_others() {
    let gate = Arc::new(Notify::new());
    let handler = {
        let gate = Arc::clone(&gate);
        tower::service_fn(move |_: Request<Empty<Bytes>>| {
            let gate = Arc::clone(&gate);
            async move {
                gate.notified().await;
                if true {
                    std::panic::resume_unwind(Box::new("boom"));
                }
                Ok::<_, Infallible>(Response::new(whole("page")))
            }
        })
    };
    let guard = StampedeGuard::new();
    let service = guard.layer(handler);
    let leader = tokio::spawn(service.clone().oneshot(get("/")));
    until("it runs", || guard.stats().flights.loads == 1).await;
    let follower = tokio::spawn(service.oneshot(get("/")));
    until("the other waits", || guard.stats().flights.coalesced == 1).await;
    gate.notify_one();
    let panic = soon(leader).await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref(), Some(&"boom"));
    assert_eq!(soon(follower).await.unwrap().unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(guard.stats().flights.panicked, 1);
}

#[tokio::test(start_paused = true)]
async fn limits_refuse_or_let_through() {
    let guard = StampedeGuard::builder()
        .max_in_flight(1)
        .max_waiters_per_key(2)
        .wait_timeout(Duration::from_secs(5))
        .load_timeout(Duration::from_secs(20));
    let mut stage = Stage::new(guard.build().unwrap());
    let leader = stage.get("/1");
    let call = stage.origin.run().await;
    // Another key goes through, for itself.
    let other = stage.get("/2");
    stage.origin.run().await.done("two");
    assert_eq!(text(served(other).await).await, "two");
    // One more than may wait.
    let follower = stage.followers("/1", 1).await.remove(0);
    let refused = served(stage.get("/1")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
    // The follower loses patience before the load is given up.
    assert_eq!(served(follower).await.status(), StatusCode::GATEWAY_TIMEOUT);
    assert!(call.is_wanted());
    tokio::time::sleep(Duration::from_secs(16)).await;
    assert!(!call.is_wanted());
    assert_eq!(served(leader).await.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(stage.stats().flights.timed_out, 1);
}

#[tokio::test]
async fn a_leader_whose_task_has_spent_its_budget_still_gets_its_own_response() {
    let mut stage: Stage<NotCloneNorAnError> = Stage::new(StampedeGuard::new());
    for fails in [false, true] {
        let mut leader = Box::pin(stage.service.clone().oneshot(get("/")));
        // Every poll comes after much else in the same task.
        let mut late = tokio::spawn(std::future::poll_fn(move |cx| {
            while tokio::task::coop::has_budget_remaining() {
                let mut spend = std::pin::pin!(tokio::task::coop::consume_budget());
                if spend.as_mut().poll(cx).is_pending() {
                    break;
                }
            }
            leader.as_mut().poll(cx)
        }));
        let call = stage.origin.run().await;
        if fails {
            call.fails(NotCloneNorAnError(7));
            assert_eq!(soon(&mut late).await.unwrap().unwrap_err(), NotCloneNorAnError(7));
        } else {
            call.begin(&[("set-cookie", "a=1")], whole("mine"));
            let response = soon(&mut late).await.unwrap().unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(text(response).await, "mine");
        }
        stage.guard.invalidate_all();
    }
}

// Readiness and bounds.

/// A service that panics unless each call follows a readiness of that very clone.
#[derive(Debug)]
struct Strict {
    ready: bool,
    polls: Arc<AtomicUsize>,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        assert!(!self.ready, "a clone that was polled ready is not cloned");
        Self { ready: false, polls: Arc::clone(&self.polls) }
    }
}

impl<B> Service<Request<B>> for Strict {
    type Response = Response<Piped>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Piped>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Ready at the second poll only.
        if self.polls.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without being ready");
        std::future::ready(Ok(Response::new(whole("page"))))
    }
}

#[tokio::test]
async fn it_is_always_ready_and_leaves_the_inner_service_alone_until_a_run_needs_it() {
    let polls = Arc::new(AtomicUsize::new(0));
    let mut service = StampedeGuard::new().layer(Strict { ready: false, polls: Arc::clone(&polls) });
    let mut cx = Context::from_waker(std::task::Waker::noop());
    for _ in 0..3 {
        let ready = Service::<Request<Empty<Bytes>>>::poll_ready(&mut service, &mut cx);
        assert!(matches!(ready, Poll::Ready(Ok(()))));
    }
    let dropped = service.call(get("/"));
    drop(dropped);
    assert_eq!(polls.load(Ordering::SeqCst), 0);
    let miss = service.call(get("/"));
    assert_eq!(text(soon(miss).await.unwrap()).await, "page");
    assert_eq!(polls.load(Ordering::SeqCst), 2);
    let hit = service.call(get("/"));
    assert_eq!(text(soon(hit).await.unwrap()).await, "page");
    assert_eq!(polls.load(Ordering::SeqCst), 2, "a hit needs nobody");
    let mut post = get("/");
    *post.method_mut() = hyper::Method::POST;
    assert_eq!(text(soon(service.call(post)).await.unwrap()).await, "page");
    assert_eq!(polls.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn it_fits_wherever_axum_and_tower_take_a_layer() {
    let guard = StampedeGuard::new();
    let handler = || async { "page" };
    let apps: [Router; 6] = [
        Router::new().route("/", route(handler)).layer(guard.clone()),
        Router::new().route("/", route(handler)).route_layer(guard.clone()),
        Router::new().route("/", route(handler).layer(guard.clone())),
        Router::new().route("/", route(handler).route_layer(guard.clone())),
        Router::new().route("/", route(handler)).layer(ServiceBuilder::new().layer(guard.clone())),
        Router::new().fallback_service(guard.layer(route(handler))),
    ];
    for app in apps {
        assert_eq!(text(ask(&app, page("/")).await.unwrap()).await, "page");
    }
    // Around a whole app, too.
    let around = guard.layer(Router::new().route("/", route(handler)));
    assert_eq!(text(ask(&around, page("/")).await.unwrap()).await, "page");
}

#[tokio::test]
async fn bodies_need_be_neither_sync_nor_default_nor_errors_of_one_kind() {
    fn is_service<S, B>(service: S) -> S
    where
        S: Service<Request<B>, Error = NotCloneNorAnError> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        service
    }
    let (inner, mut calls) = scripted::origin::<NotCloneNorAnError>();
    // A request body that is a pipe itself.
    let inner = inner.map_request(|request: Request<Piped>| request.map(|_| Empty::new()));
    let service = is_service(StampedeGuard::new().layer(inner));
    let asked = tokio::spawn(service.oneshot(get("/").map(|_| whole(""))));
    let (pipe, body) = piped(Some(4));
    calls.run().await.begin(&[], body);
    let mut body = soon(asked).await.unwrap().unwrap().into_body();
    pipe.send(data("page")).unwrap();
    drop(pipe);
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "page");
    assert!(next(&mut body).await.is_none());
}
