//! What each failure becomes, for its own client and for those who waited with it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use stampede_guard::{GuardBody, ManualClock, StampedeGuard, StampedeGuardBuilder};
use tokio::sync::Semaphore;
use tower::{Layer, Service, ServiceExt};

use crate::site::{
    Call, Site, all, answer, bodies, data, frames, get, numbered, read, secs, until, with, within,
};

/// A service with an error of its own: the first run works, the others fail once the gate lets them.
#[derive(Clone)]
struct Failing {
    runs: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
    unready: bool,
    control: &'static str,
}

impl Service<Request<Body>> for Failing {
    type Response = Response<Body>;
    type Error = io::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unready && self.runs.load(Ordering::SeqCst) > 0 {
            return Poll::Ready(Err(io::Error::other("not ready")));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        let run = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
        let (gate, control) = (Arc::clone(&self.gate), self.control);
        Box::pin(async move {
            if run == 1 {
                return Ok(answer(200, &[("cache-control", control)], "1"));
            }
            gate.acquire().await.unwrap().forget();
            Err(io::Error::other(format!("run {run}")))
        })
    }
}

impl Failing {
    fn new(control: &'static str) -> Self {
        Self { runs: Arc::default(), gate: Arc::new(Semaphore::new(0)), unready: false, control }
    }
}

type Asked = tokio::task::JoinHandle<io::Result<Response<GuardBody<Body>>>>;

/// A leader and two followers on a service that fails, when its one good page is past its freshness.
async fn fail(
    settings: impl FnOnce(StampedeGuardBuilder) -> StampedeGuardBuilder,
    failing: Failing,
) -> Vec<io::Result<(u16, String)>> {
    let clock = ManualClock::new();
    let guard = settings(StampedeGuard::builder().jitter(0.0).clock(clock.clone())).build().unwrap();
    let service = guard.layer(failing.clone());
    let start = || -> Asked { tokio::spawn(service.clone().oneshot(get("/"))) };
    start().await.unwrap().unwrap();
    clock.advance(secs(6));
    let mut asked = vec![start()];
    if !failing.unready {
        until(|| failing.runs.load(Ordering::SeqCst) == 2).await;
    }
    asked.extend([start(), start()]);
    until(|| guard.stats().flights.coalesced == 2).await;
    failing.gate.add_permits(1);
    let mut got = Vec::new();
    for asked in asked {
        got.push(match within(asked).await.unwrap() {
            Err(error) => Err(error),
            Ok(response) => {
                let status = response.status().as_u16();
                let body = response.into_body().collect().await.unwrap().to_bytes();
                Ok((status, String::from_utf8(body.to_vec()).unwrap()))
            }
        });
    }
    assert_eq!(failing.runs.load(Ordering::SeqCst), if failing.unready { 1 } else { 2 });
    got
}

#[tokio::test]
async fn an_error_of_the_service_is_its_own_clients_and_502_to_others() {
    let got = fail(|builder| builder, Failing::new("max-age=5")).await;
    assert_eq!(got[0].as_ref().unwrap_err().to_string(), "run 2");
    for other in &got[1..] {
        assert_eq!(other.as_ref().unwrap(), &(502, String::new()));
    }
}

#[tokio::test]
async fn an_error_of_the_service_is_a_stale_page_to_others_if_allowed() {
    let got = fail(|builder| builder.stale_if_error(secs(60)), Failing::new("max-age=5")).await;
    assert_eq!(got[0].as_ref().unwrap_err().to_string(), "run 2");
    for other in &got[1..] {
        assert_eq!(other.as_ref().unwrap(), &(200, "1".to_owned()));
    }
}

#[tokio::test]
async fn an_error_of_the_service_is_no_stale_page_where_that_is_forbidden() {
    for control in ["max-age=5, must-revalidate", "max-age=5, proxy-revalidate", "s-maxage=5"] {
        let got = fail(|builder| builder.stale_if_error(secs(60)), Failing::new(control)).await;
        assert!(got[1..].iter().all(|other| other.as_ref().unwrap().0 == 502), "{control}");
    }
}

#[tokio::test]
async fn a_service_that_is_never_ready_fails_alike() {
    let failing = Failing { unready: true, ..Failing::new("max-age=5") };
    let got = fail(|builder| builder, failing).await;
    assert_eq!(got[0].as_ref().unwrap_err().to_string(), "not ready");
    assert!(got[1..].iter().all(|other| other.as_ref().unwrap().0 == 502));
}

#[tokio::test]
async fn an_error_on_the_way_through_is_unchanged() {
    let failing = Failing::new("no-store");
    failing.runs.store(1, Ordering::SeqCst);
    failing.gate.add_permits(1);
    let service = StampedeGuard::new().layer(failing);
    let error = service.oneshot(with(get("/"), "cookie", "a=1")).await.unwrap_err();
    assert_eq!(error.to_string(), "run 2");
}

/// The first run works, the others panic once the gate lets them.
fn panicking(settings: impl FnOnce(StampedeGuardBuilder) -> StampedeGuardBuilder) -> Site {
    Site::new(settings, |call: Call| async move {
        if call.run == 1 {
            return answer(200, &[("cache-control", "max-age=5")], "1");
        }
        if call.run == 2 {
            call.gate().await;
            std::panic::panic_any("secret of the leader");
        }
        answer(200, &[("cache-control", "max-age=5")], call.run.to_string())
    })
}

#[tokio::test]
async fn a_panic_is_its_own_clients_and_500_to_others() {
    for stale in [false, true] {
        let site = panicking(|builder| builder.stale_if_error(secs(if stale { 60 } else { 0 })));
        site.ask(get("/")).await;
        site.clock.advance(secs(6));
        let leader = site.lead(get("/")).await;
        let followers = site.follow([get("/"), get("/")]).await;
        site.open(1);
        let payload = leader.await.unwrap_err().into_panic();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"secret of the leader"));
        for got in all(followers).await {
            let expected = if stale { (200, "1") } else { (500, "") };
            assert_eq!((got.status.as_u16(), got.body.as_str()), expected);
        }
        // The key is free at once.
        site.clock.advance(secs(60));
        assert_eq!(site.ask(get("/")).await.body, "3");
    }
}

/// The first run works, the others hang.
fn hanging(settings: impl FnOnce(StampedeGuardBuilder) -> StampedeGuardBuilder) -> Site {
    Site::new(settings, |call: Call| async move {
        if call.run > 1 {
            call.gate().await;
        }
        answer(200, &[("cache-control", "max-age=5")], call.run.to_string())
    })
}

#[tokio::test]
async fn a_load_that_takes_too_long_is_504_or_stale_to_all() {
    for stale in [false, true] {
        let site = hanging(|builder| {
            builder.load_timeout(Duration::from_millis(30)).stale_if_error(secs(if stale { 60 } else { 0 }))
        });
        site.ask(get("/")).await;
        site.clock.advance(secs(6));
        let mut asked = vec![site.lead(get("/")).await];
        asked.extend(site.follow([get("/"), get("/")]).await);
        for got in all(asked).await {
            let expected = if stale { (200, "1") } else { (504, "") };
            assert_eq!((got.status.as_u16(), got.body.as_str()), expected);
        }
        assert_eq!((site.runs(), site.guard.stats().flights.timed_out), (2, 1));
    }
}

#[tokio::test]
async fn a_waiter_that_waits_too_long_gets_504_or_stale_and_the_run_goes_on() {
    for stale in [false, true] {
        let site = hanging(|builder| {
            builder.wait_timeout(Duration::from_millis(20)).stale_if_error(secs(if stale { 60 } else { 0 }))
        });
        site.ask(get("/")).await;
        site.clock.advance(secs(6));
        let leader = site.lead(get("/")).await;
        let followers = site.follow([get("/"), get("/")]).await;
        for got in all(followers).await {
            let expected = if stale { (200, "1") } else { (504, "") };
            assert_eq!((got.status.as_u16(), got.body.as_str()), expected);
        }
        assert!(!leader.is_finished());
        site.open(1);
        assert_eq!(leader.await.unwrap().body, "2");
        assert_eq!((site.ask(get("/")).await.body.as_str(), site.runs()), ("2", 2));
    }
}

#[test]
fn a_run_that_dies_with_its_runtime_is_503_to_others() {
    let site = hanging(|builder| builder);
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (mine, others) = (runtime(), runtime());
    others.block_on(async {
        site.ask(get("/")).await;
        // On another thread than its client, the run may land after it was answered.
        until(|| site.guard.stats().entries == 1).await;
    });
    site.clock.advance(secs(6));
    let leading = site.clone();
    others.spawn(async move { leading.ask(get("/")).await });
    let followers = mine.block_on(async {
        until(|| site.runs() == 2).await;
        site.follow([get("/")]).await
    });
    others.shutdown_background();
    let got = &mine.block_on(all(followers))[0];
    assert_eq!((got.status.as_u16(), got.header("retry-after")), (503, Some("1")));
}

#[tokio::test]
async fn a_handler_that_asks_for_itself_passes_through() {
    let guard = StampedeGuard::new();
    let runs = Arc::new(AtomicUsize::new(0));
    let app: Arc<std::sync::OnceLock<axum::Router>> = Arc::default();
    let (counted, own) = (Arc::clone(&runs), Arc::clone(&app));
    let handler = move || async move {
        if counted.fetch_add(1, Ordering::SeqCst) == 0 {
            let inner = own.get().unwrap().clone().oneshot(get("/")).await.unwrap();
            return format!("outer of {}", read(inner).await.body);
        }
        "inner".to_owned()
    };
    let router = axum::Router::new().route("/", axum::routing::get(handler)).layer(guard.clone());
    app.set(router.clone()).unwrap();
    let got = read(within(router.oneshot(get("/"))).await.unwrap()).await;
    assert_eq!(got.body, "outer of inner");
    assert_eq!((runs.load(Ordering::SeqCst), guard.stats().flights.reentrant), (2, 1));
}

#[tokio::test]
async fn a_body_that_breaks_half_way_is_an_error_to_those_who_read_it() {
    let senders = crate::site::Bodies::default();
    let sender = senders.add(Some(6));
    let site = Site::new(
        |builder| builder,
        move |call: Call| {
            let senders = senders.clone();
            async move {
                call.gate().await;
                answer(200, &[("cache-control", "max-age=60")], senders.next())
            }
        },
    );
    let mut asked = vec![site.lead(get("/")).await];
    asked.extend(site.follow([get("/"), get("/")]).await);
    site.open(1);
    sender.send(data("abc")).unwrap();
    until(|| site.guard.stats().entries == 1).await;
    sender.send(Err("the disk is gone".into())).unwrap();
    for got in all(asked).await {
        assert_eq!((got.status.as_u16(), got.body.as_str(), got.broke), (200, "abc", true));
    }
    assert_eq!(site.guard.stats().entries, 0);
    site.open(1);
    assert_eq!(site.ask(get("/")).await.body, "own");
}

#[tokio::test]
async fn a_body_that_breaks_before_others_have_its_head_is_502_to_them() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            call.gate().await;
            let (sender, body) = frames(None);
            sender.send(data("abc")).unwrap();
            sender.send(Err("the disk is gone".into())).unwrap();
            answer(200, &[("cache-control", "max-age=60")], body)
        },
    );
    let leader = site.lead(get("/")).await;
    let followers = site.follow([get("/"), get("/")]).await;
    site.open(1);
    let got = leader.await.unwrap();
    assert_eq!((got.status.as_u16(), got.body.as_str(), got.broke), (200, "abc", true));
    assert!(all(followers).await.iter().all(|got| got.status == 502 && got.body.is_empty()));
    assert_eq!(site.guard.stats().entries, 0);
}

#[tokio::test]
async fn a_broken_body_never_looks_complete_on_a_socket() {
    for exact in [None, Some(6)] {
        let site = Site::new(
            |builder| builder,
            move |call: Call| async move {
                if call.run > 2 {
                    return answer(200, &[], "whole");
                }
                let (sender, body) = frames(exact);
                tokio::spawn(async move {
                    sender.send(data("abc")).unwrap();
                    tokio::task::yield_now().await;
                    let _ = sender.send(Err("the disk is gone".into()));
                });
                answer(200, &[("cache-control", "max-age=60")], body)
            },
        );
        let server = site.serve().await;
        assert!(server.get(get("/")).await.is_err());
        assert!(server.get(get("/")).await.is_err());
        assert_eq!(&server.get(get("/")).await.unwrap().2[..], b"whole");
    }
}

#[tokio::test]
async fn a_server_error_is_stale_to_all_if_allowed_and_shared_otherwise() {
    for stale in [false, true] {
        let site = Site::new(
            |builder| builder.stale_if_error(secs(if stale { 60 } else { 0 })),
            |call: Call| async move {
                if call.run == 1 {
                    return answer(200, &[("cache-control", "max-age=5")], "1");
                }
                call.gate().await;
                answer(503, &[], "down")
            },
        );
        site.ask(get("/")).await;
        site.clock.advance(secs(6));
        let mut asked = vec![site.lead(get("/")).await];
        asked.extend(site.follow([get("/"), get("/")]).await);
        site.open(1);
        for got in all(asked).await {
            let expected = if stale { (200, "1") } else { (503, "down") };
            assert_eq!((got.status.as_u16(), got.body.as_str()), expected);
        }
        assert_eq!(site.runs(), 2);
    }
}

#[tokio::test]
async fn a_stale_page_that_dies_while_it_is_waited_for_is_not_served() {
    let site = Site::new(
        |builder| builder.stale_if_error(secs(10)),
        |call: Call| async move {
            if call.run == 1 {
                return answer(200, &[("cache-control", "max-age=5")], "1");
            }
            call.gate().await;
            answer(500, &[], "down")
        },
    );
    site.ask(get("/")).await;
    site.clock.advance(secs(6));
    let mut asked = vec![site.lead(get("/")).await];
    asked.extend(site.follow([get("/")]).await);
    site.clock.advance(secs(9));
    site.open(1);
    assert_eq!(bodies(&all(asked).await), ["down", "down"]);
}

#[tokio::test]
async fn refusals_are_not_for_keeping_and_say_nothing() {
    let site = Site::new(|builder| builder, numbered([]));
    let got = site.ask(with(get("/"), "cache-control", "only-if-cached")).await;
    assert_eq!((got.header("cache-control"), got.body.as_str()), (Some("no-store"), ""));
    assert_eq!(got.headers.len(), 2, "{got:?}");
}

/// A body that comes in two polls, and panics when it is dropped.
struct PanicsAtLast {
    polls: usize,
    length: Option<u64>,
}

impl http_body::Body for PanicsAtLast {
    type Data = axum::body::Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<http_body::Frame<axum::body::Bytes>>>> {
        self.polls += 1;
        match self.polls {
            1 => Poll::Ready(Some(Ok(http_body::Frame::data("ab".into())))),
            2 => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            _ => Poll::Ready(None),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.length.map_or_else(http_body::SizeHint::new, http_body::SizeHint::with_exact)
    }
}

impl Drop for PanicsAtLast {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "dropped");
    }
}

#[tokio::test]
async fn a_body_whose_destructor_panics_holds_nobody() {
    for length in [Some(2), None] {
        let site = Site::new(
            |builder| builder,
            move |_: Call| async move {
                answer(200, &[("cache-control", "max-age=60")], Body::new(PanicsAtLast { polls: 0, length }))
            },
        );
        for _ in 0..3 {
            assert_eq!(site.ask(get("/")).await.body, "ab", "{length:?}");
        }
        assert_eq!(site.runs(), 1, "{length:?}");
    }
}
