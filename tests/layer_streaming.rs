//! Bodies through the layer: what streams, what is held, and what becomes of a body that breaks, stalls or lies.

mod scripted;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body as AxumBody;
use axum::response::IntoResponse;
use axum::routing::get as route;
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame};
use hyper::{Response, StatusCode};
use scripted::{
    Client, Gauge, Pipe, Piped, Stage, broken, data, get, head, next, piped, serve, served, soon, text,
    trailers, until, whole,
};
use stampede_guard::{BrokenBody, GuardBody, ManualClock, StampedeGuard};
use tokio::sync::Notify;

const KNOWN: &[(&str, &str)] = &[("content-length", "6")];

fn stage() -> Stage {
    Stage::new(StampedeGuard::new())
}

/// An origin whose responses nobody may keep, though they may be shared.
fn stage_without_store() -> Stage {
    Stage::new(StampedeGuard::coalesce_only())
}

fn is_broken(frame: Option<Result<String, tower::BoxError>>) -> bool {
    frame.is_some_and(|frame| frame.is_err_and(|error| error.is::<BrokenBody>()))
}

// Over real sockets.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_stream_sends_its_first_event_at_once_and_holds_nothing() {
    const FRAME: usize = 16 * 1024;
    let bytes = Gauge::default();
    let gate = Arc::new(Notify::new());
    let handler = {
        let (bytes, gate) = (bytes.clone(), Arc::clone(&gate));
        move || async move {
            let events = stream::unfold(0_usize, move |sent| {
                let (bytes, gate) = (bytes.clone(), Arc::clone(&gate));
                async move {
                    if sent == 1 {
                        gate.notified().await;
                    }
                    // Tokio's sockets are always ready to take a little more.
                    tokio::task::yield_now().await;
                    Some((Ok::<_, std::io::Error>(bytes.bytes(FRAME)), sent + 1))
                }
            });
            ([("content-type", "text/event-stream")], AxumBody::from_stream(events))
        }
    };
    let app = Router::new().route("/", route(handler)).layer(StampedeGuard::new());
    let mut client = Client::connect(serve(app).await).await;
    let mut body = soon(client.get("/")).await.into_body();
    let first = soon(body.frame()).await.unwrap().unwrap();
    assert!(first.is_data(), "the second event waits for the client to have the first");
    gate.notify_one();
    let mut read = 0;
    while read < 32 * 1024 * 1024 {
        read += soon(body.frame()).await.unwrap().unwrap().into_data().unwrap().len();
    }
    assert!(bytes.peak() < 2 * 1024 * 1024, "{} bytes were alive at once", bytes.peak());
    drop((body, client));
    until("the stream ends with its client", || bytes.alive() == 0).await;
}

/// A body of so many frames over a socket, of which hardly any are alive at once.
async fn streams_in_bounded_memory(frames: usize, announced: bool) {
    const FRAME: usize = 64 * 1024;
    let bytes = Gauge::default();
    let gate = Arc::new(Notify::new());
    let handler = {
        let (bytes, gate) = (bytes.clone(), Arc::clone(&gate));
        move || async move {
            let sent = stream::unfold(0_usize, move |sent| {
                let (bytes, gate) = (bytes.clone(), Arc::clone(&gate));
                async move {
                    if sent == 1 {
                        gate.notified().await;
                    }
                    (sent < frames).then(|| (Ok::<_, std::io::Error>(bytes.bytes(FRAME)), sent + 1))
                }
            });
            let mut response = AxumBody::from_stream(sent).into_response();
            if announced {
                response.headers_mut().insert("content-length", (FRAME * frames).into());
            }
            response
        }
    };
    let guard = StampedeGuard::new();
    let app = Router::new().route("/", route(handler)).layer(guard.clone());
    let mut client = Client::connect(serve(app).await).await;
    let response = soon(client.get("/")).await;
    assert_eq!(response.headers().contains_key("content-length"), announced);
    let mut body = response.into_body();
    let mut read = soon(body.frame()).await.unwrap().unwrap().into_data().unwrap().len();
    gate.notify_one();
    while let Some(frame) = soon(body.frame()).await {
        read += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(read, FRAME * frames);
    assert!(bytes.peak() < 3 * 1024 * 1024, "{} bytes were alive at once", bytes.peak());
    until("nothing is kept", || bytes.alive() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_of_known_length_streams_through_in_bounded_memory() {
    streams_in_bounded_memory(16_384, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_of_unknown_length_streams_through_in_bounded_memory() {
    streams_in_bounded_memory(16_384, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_reach_every_client_over_a_socket() {
    let runs = Gauge::default();
    let handler = {
        let runs = runs.clone();
        move || async move {
            drop(runs.enter(1));
            let (pipe, body) = piped(None);
            pipe.send(data("body")).unwrap();
            pipe.send(trailers("x-sum", "42")).unwrap();
            ([("trailer", "x-sum")], AxumBody::new(body))
        }
    };
    let app = Router::new().route("/", route(handler)).layer(StampedeGuard::new());
    let address = serve(app).await;
    for client in ["leader", "hit"] {
        let mut connection = Client::connect(address).await;
        let mut request = get("/");
        request.headers_mut().insert("te", "trailers".parse().unwrap());
        let response = soon(connection.send(request)).await;
        let body = soon(response.into_body().collect()).await.unwrap();
        assert_eq!(body.trailers().expect(client)["x-sum"], "42", "{client}");
        assert_eq!(body.to_bytes(), "body");
    }
    assert_eq!(runs.entered(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_says_the_length_that_a_get_would_have_and_no_other() {
    for (announced, expected) in [(true, Some("4")), (false, None)] {
        let entered = Gauge::default();
        let release = Arc::new(Notify::new());
        let handler = {
            let (entered, release) = (entered.clone(), Arc::clone(&release));
            move || async move {
                drop(entered.enter(1));
                release.notified().await;
                let (pipe, body) = piped(announced.then_some(4));
                pipe.send(data("body")).unwrap();
                AxumBody::new(body)
            }
        };
        let guard = StampedeGuard::new();
        let app = Router::new().route("/", route(handler)).layer(guard.clone());
        let address = serve(app).await;
        let ask = move || async move {
            let mut client = Client::connect(address).await;
            let response = client.send(head("/")).await;
            let length = response.headers().get("content-length").cloned();
            length.map(|length| length.to_str().unwrap().to_owned())
        };
        let leader = tokio::spawn(ask());
        until("the handler runs", || entered.entered() == 1).await;
        let follower = tokio::spawn(ask());
        until("the other HEAD waits", || guard.stats().flights.coalesced == 1).await;
        release.notify_one();
        assert_eq!(soon(leader).await.unwrap().as_deref(), expected, "leader");
        assert_eq!(soon(follower).await.unwrap().as_deref(), expected, "follower");
        assert_eq!(entered.entered(), 1);
    }
}

#[tokio::test]
async fn a_304_says_no_length() {
    let handler = || async { ([("etag", "\"1\"")], "body") };
    let app = Router::new().route("/", route(handler)).layer(StampedeGuard::new());
    for _ in ["leader", "hit"] {
        let mut request = get("/");
        request.headers_mut().insert("if-none-match", "\"1\"".parse().unwrap());
        // Not over a socket: for HTTP/1.1 hyper leaves out what axum puts in.
        let response = scripted::ask(&app, request.map(AxumBody::new)).await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(response.headers().get("content-length"), None);
        assert_eq!(text(response).await, "");
    }
}

// Reading along.

#[tokio::test]
async fn followers_of_a_body_of_known_length_read_along_and_hold_one_copy() {
    const FRAME: usize = 8 * 1024;
    let mut stage = stage();
    let bytes = Gauge::default();
    let leader = stage.get("/");
    let call = stage.origin.run().await;
    let followers = stage.followers("/", 100).await;
    let (pipe, body) = piped(None);
    let length = (4 * FRAME).to_string();
    call.begin(&[("content-length", &length)], body);
    let mut bodies = vec![served(leader).await.into_body()];
    for follower in followers {
        bodies.push(served(follower).await.into_body());
    }
    for sent in 1..=4 {
        pipe.send(Ok(Frame::data(bytes.bytes(FRAME)))).unwrap();
        for body in &mut bodies {
            assert_eq!(next(body).await.unwrap().unwrap().len(), FRAME);
            assert_eq!(body.size_hint().exact(), Some(((4 - sent) * FRAME) as u64));
            assert!(!body.is_end_stream(), "only the handler's body knows that there are no trailers");
        }
        assert_eq!(bytes.alive(), sent * FRAME);
        // Whoever comes later reads from the start.
        let late = served(stage.get("/")).await;
        bodies.push(late.into_body());
        for _ in 0..sent {
            assert_eq!(next(bodies.last_mut().unwrap()).await.unwrap().unwrap().len(), FRAME);
        }
    }
    drop(pipe);
    for body in &mut bodies {
        assert!(next(body).await.is_none());
        assert!(next(body).await.is_none(), "and again");
        assert!(body.is_end_stream());
    }
    assert_eq!(bytes.alive(), 4 * FRAME);
    assert_eq!(text(served(stage.get("/")).await).await.len(), 4 * FRAME);
    stage.origin.rests().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_of_unknown_length_that_ends_in_time_is_shared() {
    let mut stage = stage();
    let leader = stage.get("/");
    let call = stage.origin.run().await;
    let followers = stage.followers("/", 5).await;
    let (pipe, body) = piped(None);
    call.begin(&[], body);
    let mut own = served(leader).await.into_body();
    pipe.send(data("one")).unwrap();
    assert_eq!(next(&mut own).await.unwrap().unwrap(), "one", "before the end is known");
    tokio::time::sleep(Duration::from_millis(150)).await;
    pipe.send(data("two")).unwrap();
    drop(pipe);
    assert_eq!(next(&mut own).await.unwrap().unwrap(), "two");
    assert!(next(&mut own).await.is_none());
    for follower in followers {
        assert_eq!(text(served(follower).await).await, "onetwo");
    }
    assert_eq!(text(served(stage.get("/")).await).await, "onetwo");
    stage.origin.rests().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_of_unknown_length_holds_nobody_longer_than_max_body_wait() {
    let mut stage = stage();
    let leader = stage.get("/");
    let call = stage.origin.run().await;
    let followers = stage.followers("/", 5).await;
    let (pipe, body) = piped(None);
    let begun = tokio::time::Instant::now();
    call.begin(&[], body);
    let mut own = served(leader).await.into_body();
    pipe.send(data("one")).unwrap();
    for _ in 0..5 {
        stage.origin.run().await.done("own");
    }
    assert!(begun.elapsed() < Duration::from_millis(250), "after {:?}", begun.elapsed());
    for follower in followers {
        assert_eq!(text(served(follower).await).await, "own");
    }
    // Until it is known how the body ends, nobody waits for it again.
    let late = stage.get("/");
    stage.origin.run().await.done("late");
    assert_eq!(text(served(late).await).await, "late");
    pipe.send(data("two")).unwrap();
    drop(pipe);
    assert_eq!(next(&mut own).await.unwrap().unwrap(), "one");
    assert_eq!(next(&mut own).await.unwrap().unwrap(), "two");
    assert!(next(&mut own).await.is_none());
    until("it is stored", || stage.stats().hits > 0 || stage.stats().entries == 1).await;
    assert_eq!(text(served(stage.get("/")).await).await, "onetwo");
    stage.origin.rests().await;
}

#[tokio::test]
async fn a_body_over_the_cap_goes_through_and_its_followers_run() {
    let guard = StampedeGuard::builder().max_body_bytes(8).max_body_wait(Duration::from_secs(3_600));
    let mut stage = Stage::new(guard.build().unwrap());
    for length in [None, Some(10)] {
        let uri = format!("/{length:?}").replace(['(', ')'], "");
        let leader = stage.get(&uri);
        let call = stage.origin.run().await;
        let follower = stage.followers(&uri, 1).await.remove(0);
        let (pipe, body) = piped(length);
        call.begin(&[], body);
        let mut own = served(leader).await.into_body();
        for part in ["12345", "67890"] {
            pipe.send(data(part)).unwrap();
            assert_eq!(next(&mut own).await.unwrap().unwrap(), part);
        }
        stage.origin.run().await.done("own");
        assert_eq!(text(served(follower).await).await, "own");
        pipe.send(trailers("x-sum", "42")).unwrap();
        assert!(next(&mut own).await.unwrap().unwrap().contains("42"));
        drop(pipe);
        assert!(next(&mut own).await.is_none());
        let later = stage.get(&uri);
        stage.origin.run().await.done("later");
        assert_eq!(text(served(later).await).await, "later");
    }
}

#[tokio::test]
async fn trailers_survive_for_leader_follower_and_hit() {
    for headers in [&[][..], &[("content-length", "4")]] {
        let mut stage = stage();
        let leader = stage.get("/");
        let call = stage.origin.run().await;
        let follower = stage.followers("/", 1).await.remove(0);
        let (pipe, body) = piped(None);
        call.begin(headers, body);
        let leader = served(leader).await;
        pipe.send(data("body")).unwrap();
        pipe.send(trailers("x-sum", "42")).unwrap();
        for response in [leader, served(follower).await, served(stage.get("/")).await] {
            let mut body = response.into_body();
            assert_eq!(next(&mut body).await.unwrap().unwrap(), "body");
            assert!(!body.is_end_stream(), "the trailers are still to come");
            assert!(next(&mut body).await.unwrap().unwrap().contains("42"));
            assert!(next(&mut body).await.is_none());
            assert!(body.is_end_stream());
        }
        stage.origin.rests().await;
    }
}

#[tokio::test]
async fn an_empty_body_is_at_its_end_from_the_start() {
    let mut stage = stage();
    let leader = stage.get("/");
    stage.origin.run().await.begin(&[], whole(""));
    for response in [served(leader).await, served(stage.get("/")).await] {
        assert!(response.body().is_end_stream());
        assert_eq!(response.body().size_hint().exact(), Some(0));
    }
}

// Bodies that break off, stall or lie.

#[tokio::test]
async fn a_body_of_known_length_that_breaks_off_breaks_for_all_who_read_it_and_is_not_kept() {
    let mut stage = stage();
    let leader = stage.get("/");
    let call = stage.origin.run().await;
    let followers = stage.followers("/", 3).await;
    let (pipe, body) = piped(None);
    call.begin(KNOWN, body);
    pipe.send(data("one")).unwrap();
    let mut bodies = vec![served(leader).await.into_body()];
    for follower in followers {
        bodies.push(served(follower).await.into_body());
    }
    for body in &mut bodies {
        assert_eq!(next(body).await.unwrap().unwrap(), "one");
    }
    pipe.send(broken()).unwrap();
    for body in &mut bodies {
        assert!(is_broken(next(body).await));
        assert!(next(body).await.is_none(), "nothing comes after an error");
        assert!(body.is_end_stream());
    }
    let again = stage.get("/");
    stage.origin.run().await.done("whole");
    assert_eq!(text(served(again).await).await, "whole");
}

#[tokio::test]
async fn a_body_of_unknown_length_that_breaks_off_is_a_502_for_those_without_its_head() {
    let mut stage = stage();
    let leader = stage.get("/");
    let call = stage.origin.run().await;
    let followers = stage.followers("/", 3).await;
    let (pipe, body) = piped(None);
    call.begin(&[], body);
    let mut own = served(leader).await.into_body();
    pipe.send(data("one")).unwrap();
    assert_eq!(next(&mut own).await.unwrap().unwrap(), "one");
    pipe.send(broken()).unwrap();
    assert!(is_broken(next(&mut own).await));
    for follower in followers {
        assert_eq!(served(follower).await.status(), StatusCode::BAD_GATEWAY);
    }
    let again = stage.get("/");
    stage.origin.run().await.done("whole");
    assert_eq!(text(served(again).await).await, "whole");
}

#[tokio::test]
async fn a_body_that_is_not_as_long_as_announced_is_not_kept() {
    for (parts, last) in [(["one", "2"], true), (["one", "too long"], true), (["one", "2"], false)] {
        let mut stage = stage();
        let leader = stage.get("/");
        let call = stage.origin.run().await;
        let (pipe, body) = piped(None);
        let pipe = if last {
            call.begin(KNOWN, body);
            pipe
        } else {
            // All of it is there with the head.
            for part in parts {
                pipe.send(data(part)).unwrap();
            }
            drop(pipe);
            call.begin(KNOWN, body);
            piped(None).0
        };
        let mut own = served(leader).await.into_body();
        let mut follower = None;
        if last {
            follower = Some(served(stage.get("/")).await.into_body());
            for part in parts {
                pipe.send(data(part)).unwrap();
            }
            drop(pipe);
        }
        for body in [Some(&mut own), follower.as_mut()].into_iter().flatten() {
            for part in parts {
                assert_eq!(next(body).await.unwrap().unwrap(), part);
            }
            assert!(is_broken(next(body).await), "never a truncated 200 that looks complete");
        }
        let again = stage.get("/");
        stage.origin.run().await.done("whole");
        assert_eq!(text(served(again).await).await, "whole");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_holds_nobody_new() {
    let guard = StampedeGuard::builder().ttl(Duration::from_secs(3_600)).build().unwrap();
    let mut stage = Stage::new(guard);
    let leader = stage.get("/");
    let (pipe, body) = piped(None);
    stage.origin.run().await.begin(KNOWN, body);
    let mut own = served(leader).await.into_body();
    pipe.send(data("one")).unwrap();
    assert_eq!(next(&mut own).await.unwrap().unwrap(), "one");
    // As long as a handler run may take; meanwhile others read along.
    tokio::time::sleep(Duration::from_secs(29)).await;
    let mut early = served(stage.get("/")).await.into_body();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let late = stage.get("/");
    stage.origin.run().await.done("whole");
    assert_eq!(text(served(late).await).await, "whole");
    // Those who read it keep it.
    pipe.send(data("two")).unwrap();
    drop(pipe);
    assert_eq!(next(&mut early).await.unwrap().unwrap(), "one");
    for body in [&mut own, &mut early] {
        assert_eq!(next(body).await.unwrap().unwrap(), "two");
        assert!(next(body).await.is_none());
    }
    assert_eq!(text(served(stage.get("/")).await).await, "whole");
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_that_somebody_reads_is_kept() {
    let guard = StampedeGuard::builder().ttl(Duration::from_secs(3_600)).build().unwrap();
    let mut stage = Stage::new(guard);
    let leader = stage.get("/");
    let (pipe, body) = piped(None);
    stage.origin.run().await.begin(KNOWN, body);
    let mut own = served(leader).await.into_body();
    for part in ["o", "n", "e", "t", "w", "o"] {
        tokio::time::sleep(Duration::from_secs(20)).await;
        pipe.send(data(part)).unwrap();
        assert_eq!(next(&mut own).await.unwrap().unwrap(), part);
    }
    drop(pipe);
    assert!(next(&mut own).await.is_none());
    assert_eq!(text(served(stage.get("/")).await).await, "onetwo");
    stage.origin.rests().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_takes_its_time_is_not_fresh_for_longer() {
    let mut stage = stage();
    let leader = stage.get("/");
    let (pipe, body) = piped(None);
    stage.origin.run().await.begin(&[("cache-control", "max-age=60")], body);
    let mut own = served(leader).await.into_body();
    for part in ["one", "two"] {
        tokio::time::sleep(Duration::from_secs(20)).await;
        pipe.send(data(part)).unwrap();
        assert_eq!(next(&mut own).await.unwrap().unwrap(), part);
    }
    drop(pipe);
    assert!(next(&mut own).await.is_none());
    let hit = served(stage.get("/")).await;
    assert_eq!(hit.headers()["age"], "40");
    assert_eq!(text(hit).await, "onetwo");
    tokio::time::sleep(Duration::from_secs(21)).await;
    let late = stage.get("/");
    stage.origin.run().await.done("new");
    assert_eq!(text(served(late).await).await, "new");
}

#[tokio::test]
async fn a_refresh_whose_body_breaks_off_leaves_the_stale_response() {
    let clock = ManualClock::new();
    let guard = StampedeGuard::builder().jitter(0.0).stale_while_revalidate(Duration::from_secs(60));
    let mut stage = Stage::new(guard.clock(clock.clone()).build().unwrap());
    let first = stage.get("/");
    stage.origin.run().await.done("first");
    assert_eq!(text(served(first).await).await, "first");
    clock.advance(Duration::from_secs(2));
    assert_eq!(text(served(stage.get("/")).await).await, "first");
    let (pipe, body) = piped(None);
    stage.origin.run().await.begin(KNOWN, body);
    pipe.send(data("one")).unwrap();
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    let mut early = served(stage.get("/")).await.into_body();
    assert_eq!(next(&mut early).await.unwrap().unwrap(), "one", "the new one is read along");
    pipe.send(broken()).unwrap();
    assert!(is_broken(next(&mut early).await));
    until("the refresh is over", || pipe.is_closed()).await;
    assert_eq!(text(served(stage.get("/")).await).await, "first");
    // And the next refresh is put off as after any failure.
    stage.origin.rests().await;
    clock.advance(Duration::from_secs(1));
    assert_eq!(text(served(stage.get("/")).await).await, "first");
    stage.origin.run().await.done("second");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_with_a_slow_body_of_unknown_length_lets_nobody_through() {
    let guard = StampedeGuard::builder().jitter(0.0).stale_while_revalidate(Duration::from_secs(60));
    let mut stage = Stage::new(guard.build().unwrap());
    let first = stage.get("/");
    stage.origin.run().await.done("first");
    assert_eq!(text(served(first).await).await, "first");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(text(served(stage.get("/")).await).await, "first");
    let (pipe, body) = piped(None);
    stage.origin.run().await.begin(&[], body);
    for part in ["one", "two", "three"] {
        tokio::time::sleep(Duration::from_secs(1)).await;
        pipe.send(data(part)).unwrap();
        assert_eq!(text(served(stage.get("/")).await).await, "first");
    }
    stage.origin.rests().await;
    drop(pipe);
    until("the new one is there", || stage.stats().bytes > 0).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(text(served(stage.get("/")).await).await, "onetwothree");
}

// Clients that go away.

#[tokio::test]
async fn a_leader_that_goes_away_mid_body_takes_nothing_from_the_others_or_the_store() {
    for headers in [KNOWN, &[]] {
        let mut stage = stage();
        let leader = stage.get("/");
        let call = stage.origin.run().await;
        let follower = stage.followers("/", 1).await.remove(0);
        let (pipe, body) = piped(None);
        call.begin(headers, body);
        pipe.send(data("one")).unwrap();
        let mut own = served(leader).await.into_body();
        assert_eq!(next(&mut own).await.unwrap().unwrap(), "one");
        drop(own);
        pipe.send(data("two")).unwrap();
        drop(pipe);
        assert_eq!(text(served(follower).await).await, "onetwo");
        assert_eq!(text(served(stage.get("/")).await).await, "onetwo");
        stage.origin.rests().await;
    }
}

#[tokio::test]
async fn a_body_is_stored_although_its_only_client_goes_away() {
    for headers in [KNOWN, &[]] {
        let mut stage = stage();
        let leader = stage.get("/");
        let (pipe, body) = piped(None);
        stage.origin.run().await.begin(headers, body);
        drop(served(leader).await);
        pipe.send(data("one")).unwrap();
        tokio::task::yield_now().await;
        pipe.send(data("two")).unwrap();
        drop(pipe);
        until("it is stored", || stage.stats().entries == 1).await;
        assert_eq!(text(served(stage.get("/")).await).await, "onetwo");
        stage.origin.rests().await;
    }
}

#[tokio::test]
async fn followers_of_a_body_that_is_not_stored_outlive_their_leader() {
    for headers in [KNOWN, &[]] {
        for gone_early in [true, false] {
            let mut stage = stage_without_store();
            let leader = stage.get("/");
            let call = stage.origin.run().await;
            let follower = stage.followers("/", 1).await.remove(0);
            let (pipe, body) = piped(None);
            if gone_early {
                leader.abort();
                call.begin(headers, body);
                assert!(soon(leader).await.is_err());
            } else {
                call.begin(headers, body);
                drop(served(leader).await);
            }
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            pipe.send(data("one")).unwrap();
            pipe.send(data("two")).expect("the body is wanted");
            drop(pipe);
            assert_eq!(text(served(follower).await).await, "onetwo", "{headers:?} {gone_early}");
            stage.origin.rests().await;
        }
    }
}

#[tokio::test]
async fn a_body_that_nobody_wants_is_dropped() {
    for headers in [KNOWN, &[]] {
        let bodies = Gauge::default();
        let guard = StampedeGuard::builder().coalesce_only().max_body_wait(Duration::from_millis(1));
        let mut stage = Stage::new(guard.build().unwrap());
        let leader = stage.get("/");
        let call = stage.origin.run().await;
        let follower = stage.followers("/", 1).await.remove(0);
        let (pipe, body) = piped(None);
        call.begin(headers, body.counted(&bodies));
        pipe.send(data("one")).unwrap();
        let own = served(leader).await;
        follower.abort();
        drop(follower.await);
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        assert_eq!(bodies.alive(), 1, "its client reads");
        drop(own);
        until("the body is dropped", || bodies.alive() == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_the_store_wants_and_that_does_not_come_is_dropped() {
    for headers in [KNOWN, &[]] {
        let bodies = Gauge::default();
        let mut stage = stage();
        let leader = stage.get("/");
        let (pipe, body) = piped(None);
        stage.origin.run().await.begin(headers, body.counted(&bodies));
        drop(served(leader).await);
        tokio::time::sleep(Duration::from_secs(29)).await;
        assert_eq!(bodies.alive(), 1);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(bodies.alive(), 0);
        assert!(pipe.is_closed());
    }
}

#[tokio::test]
async fn bodies_without_a_client_are_as_few_as_handlers_without_one() {
    let bodies = Gauge::default();
    let mut stage = Stage::new(StampedeGuard::builder().max_abandoned(3).build().unwrap());
    let mut pipes = Vec::new();
    for page in 0..20 {
        let leader = stage.get(&format!("/{page}"));
        let (pipe, body) = piped(None);
        stage.origin.run().await.begin(KNOWN, body.counted(&bodies));
        drop(served(leader).await);
        pipes.push(pipe);
    }
    until("the others are dropped", || bodies.alive() <= 3).await;
    assert_eq!(bodies.alive(), 3);
    for pipe in pipes {
        let _ = pipe.send(data("onetwo"));
    }
    until("nothing is left", || bodies.alive() == 0).await;
    // The places are free again.
    let leader = stage.get("/");
    let (_pipe, body) = piped(None);
    stage.origin.run().await.begin(KNOWN, body.counted(&bodies));
    drop(served(leader).await);
    stage.origin.rests().await;
    assert_eq!(bodies.alive(), 1);
}

#[test]
fn a_runtime_that_shuts_down_ends_its_loads_and_bodies() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (dying, living) = (runtime(), runtime());
    let mut stage = stage();
    // A body, with a reader elsewhere.
    let (pipe, body) = piped(None);
    let leader = dying.block_on(async {
        let leader = stage.get("/body");
        stage.origin.run().await.begin(KNOWN, body);
        served(leader).await
    });
    pipe.send(data("one")).unwrap();
    // A load, with a follower elsewhere.
    let (led, _call) = dying.block_on(async { (stage.get("/load"), stage.origin.run().await) });
    let followers = living.block_on(stage.followers("/load", 1));
    let mut own = leader.into_body();
    living.block_on(async { assert_eq!(next(&mut own).await.unwrap().unwrap(), "one") });
    dying.shutdown_background();
    living.block_on(async {
        assert!(is_broken(next(&mut own).await));
        assert!(next(&mut own).await.is_none());
        for follower in followers {
            assert_eq!(served(follower).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
        assert!(soon(led).await.is_err());
        // Nothing is poisoned.
        for uri in ["/body", "/load"] {
            let again = stage.get(uri);
            stage.origin.run().await.done("whole");
            assert_eq!(text(served(again).await).await, "whole");
        }
    });
}

// Memory.

#[tokio::test]
async fn empty_frames_take_no_memory() {
    let frames = Gauge::default();
    let mut stage = stage();
    let leader = stage.get("/");
    let (pipe, body) = piped(None);
    stage.origin.run().await.begin(KNOWN, body);
    let mut own = served(leader).await.into_body();
    let empty = || {
        struct Owner(#[allow(dead_code)] scripted::Entered);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &[]
            }
        }
        Bytes::from_owner(Owner(frames.enter(1)))
    };
    for _ in 0..1_000 {
        pipe.send(data(empty())).unwrap();
    }
    pipe.send(data("onetwo")).unwrap();
    drop(pipe);
    assert_eq!(next(&mut own).await.unwrap().unwrap(), "onetwo");
    assert!(next(&mut own).await.is_none());
    assert_eq!(frames.alive(), 0);
}

#[tokio::test]
async fn a_stored_body_does_not_keep_the_buffer_alive_that_it_was_read_into() {
    let buffers = Gauge::default();
    let mut stage = stage();
    let leader = stage.get("/");
    let (pipe, body) = piped(None);
    stage.origin.run().await.begin(&[], body);
    let response = served(leader).await;
    for _ in 0..10 {
        pipe.send(data(buffers.bytes(64 * 1024).slice(..10))).unwrap();
    }
    drop(pipe);
    assert_eq!(text(response).await.len(), 100);
    until("it is stored", || stage.stats().entries == 1).await;
    assert_eq!(buffers.alive(), 0);
    assert_eq!(text(served(stage.get("/")).await).await.len(), 100);
}

/// A body that never has to be waited for.
struct Ready {
    left: usize,
    taken: Gauge,
}

impl Body for Ready {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<scripted::Piece>> {
        if self.left == 0 {
            return std::task::Poll::Ready(None);
        }
        self.left -= 1;
        drop(self.taken.enter(1));
        std::task::Poll::Ready(Some(data(vec![b'x'; 1024])))
    }
}

#[tokio::test]
async fn a_body_that_is_always_ready_keeps_no_client_waiting_for_its_first_frame() {
    let taken = Gauge::default();
    let handler = {
        let taken = taken.clone();
        tower::service_fn(move |_: hyper::Request<http_body_util::Empty<Bytes>>| {
            let body = Ready { left: 100_000, taken: taken.clone() };
            async move { Ok::<_, std::convert::Infallible>(Response::new(body)) }
        })
    };
    let guard = StampedeGuard::builder().max_body_bytes(1 << 30).build().unwrap();
    let service = tower::Layer::layer(&guard, handler);
    let mut body = scripted::ask(&service, get("/")).await.unwrap().into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap().len(), 1024);
    assert!(taken.entered() < 10_000, "{} frames were read first", taken.entered());
    let mut read = 1024;
    while let Some(frame) = next(&mut body).await {
        read += frame.unwrap().len();
    }
    assert_eq!(read, 100_000 * 1024);
}

/// A response whose body the test sends, and what its client reads.
async fn begun(stage: &mut Stage, uri: &'static str, length: Option<u64>) -> (Pipe, GuardBody<Piped>) {
    let leader = stage.get(uri);
    let (pipe, body) = piped(length);
    stage.origin.run().await.begin(&[], body);
    (pipe, served(leader).await.into_body())
}

#[test]
fn a_thousand_followers_of_ten_megabytes_hold_one_copy() {
    const LENGTH: usize = 10 * 1024 * 1024;
    // On this thread alone, whose allocations are counted.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (pipe, mut bodies) = runtime.block_on(async {
        let guard = StampedeGuard::builder().max_body_bytes(LENGTH as u64).build().unwrap();
        let mut stage = Stage::new(guard);
        let leader = stage.get("/");
        let call = stage.origin.run().await;
        let followers = stage.followers("/", 1_000).await;
        let (pipe, body) = piped(Some(LENGTH as u64));
        call.begin(&[], body);
        let mut bodies = vec![served(leader).await.into_body()];
        for follower in followers {
            bodies.push(served(follower).await.into_body());
        }
        (pipe, bodies)
    });
    let bytes = Gauge::default();
    let counted = allocation_counter::measure(|| {
        runtime.block_on(async {
            for _ in 0..10 {
                pipe.send(Ok(Frame::data(bytes.bytes(LENGTH / 10)))).unwrap();
                for body in &mut bodies {
                    let frame = soon(body.frame()).await.unwrap().unwrap();
                    assert_eq!(frame.data_ref().map(Bytes::len), Some(LENGTH / 10));
                }
            }
            drop(pipe);
            for body in &mut bodies {
                assert!(next(body).await.is_none());
            }
        });
    });
    assert_eq!((bytes.peak(), bodies.len()), (LENGTH, 1_001));
    let most = LENGTH as u64 + 512 * 1024;
    assert!(counted.bytes_max <= most, "{} bytes were alive at once", counted.bytes_max);
}

#[tokio::test]
async fn bodies_under_way_hold_no_more_together_than_the_store() {
    let guard = StampedeGuard::builder().ttl(Duration::from_secs(60)).max_stored_bytes(10_000);
    let guard = guard.max_body_bytes(6_000).build().unwrap();
    let mut stage = Stage::new(guard);
    let (one, mut first) = begun(&mut stage, "/one", Some(6_000)).await;
    let (two, mut second) = begun(&mut stage, "/two", Some(6_000)).await;
    let (three, mut third) = begun(&mut stage, "/three", None).await;
    // The first has its followers. There is no room for the second.
    let mut follower = served(stage.get("/one")).await.into_body();
    let own = stage.get("/two");
    stage.origin.run().await.done("own");
    assert_eq!(text(served(own).await).await, "own");
    // One of unknown length has room for as much as is left, and goes on without others.
    for (pipe, body) in [(&one, &mut first), (&two, &mut second), (&three, &mut third)] {
        pipe.send(data(vec![b'x'; 3_000])).unwrap();
        pipe.send(data(vec![b'x'; 3_000])).unwrap();
        for _ in 0..2 {
            assert_eq!(next(body).await.unwrap().unwrap().len(), 3_000);
        }
    }
    for _ in 0..2 {
        assert_eq!(next(&mut follower).await.unwrap().unwrap().len(), 3_000);
    }
    drop((one, two, three));
    for body in [&mut first, &mut second, &mut third, &mut follower] {
        assert!(next(body).await.is_none());
    }
    // The first is stored, the third is not.
    assert_eq!(text(served(stage.get("/one")).await).await.len(), 6_000);
    let again = stage.get("/three");
    stage.origin.run().await.done("again");
    assert_eq!(text(served(again).await).await, "again");
    // What has ended has given its room back.
    let (_four, _fourth) = begun(&mut stage, "/four", Some(6_000)).await;
    served(stage.get("/four")).await;
    stage.origin.rests().await;
}

#[tokio::test]
async fn clients_that_read_nothing_make_the_guard_hold_no_more_than_that() {
    const BODY: usize = 1_000;
    for is_known in [true, false] {
        for is_stored in [true, false] {
            let builder = StampedeGuard::builder().max_stored_bytes(20 * BODY as u64);
            let builder =
                if is_stored { builder.ttl(Duration::from_secs(60)) } else { builder.coalesce_only() };
            let mut stage = Stage::new(builder.build().unwrap());
            let bytes = Gauge::default();
            let mut bodies = Vec::new();
            for page in 0..500 {
                let leader = stage.get(&format!("/{page}"));
                let (pipe, body) = piped(is_known.then_some(BODY as u64));
                stage.origin.run().await.begin(&[], body.counted(&bytes));
                bodies.push(served(leader).await.into_body());
                pipe.send(data(bytes.bytes(BODY))).unwrap();
                drop(pipe);
                stage.origin.rests().await;
            }
            // What the others wrote is with their own clients: it lies in their pipes.
            let held = bodies.iter().filter(|body| format!("{body:?}").contains("shared")).count();
            assert!(held < 100, "{held} bodies of {is_known} length, stored: {is_stored}");
            for body in &mut bodies {
                assert_eq!(next(body).await.unwrap().unwrap().len(), BODY);
                assert!(next(body).await.is_none());
            }
            drop(bodies);
            // It has all been given back.
            let (pipe, body) = begun(&mut stage, "/last", Some(BODY as u64)).await;
            assert_eq!(format!("{body:?}"), "GuardBody(\"shared\")");
            drop(pipe);
        }
    }
}

/// There are 64 places for runs that nobody waits for.
#[tokio::test]
async fn clients_that_read_a_body_wait_for_it_and_take_no_place_of_those_that_went() {
    const PAGES: usize = 200;
    let minute = Duration::from_secs(60);
    let mut stage = Stage::new(StampedeGuard::builder().ttl(minute).max_body_wait(minute).build().unwrap());
    let mut under_way = Vec::new();
    for page in 0..PAGES {
        let leader = stage.get(&format!("/{page}"));
        let (pipe, body) = piped(None);
        stage.origin.run().await.begin(&[], body);
        under_way.push((pipe, served(leader).await.into_body()));
    }
    assert_eq!((stage.stats().in_flight, stage.stats().flights.abandoned), (PAGES, 0));
    let mut followers = Vec::new();
    for page in 0..PAGES {
        followers.extend(stage.followers(&format!("/{page}"), 1).await);
    }
    for (pipe, _) in &under_way {
        pipe.send(data("page")).unwrap();
    }
    let (pipes, bodies): (Vec<_>, Vec<_>) = under_way.into_iter().unzip();
    drop(pipes);
    for follower in followers {
        assert_eq!(text(served(follower).await).await, "page");
    }
    drop(bodies);
    for page in 0..PAGES {
        assert_eq!(text(served(stage.get(&format!("/{page}"))).await).await, "page");
    }
    stage.origin.rests().await;
}

/// A marker of a body that took too long does not take the place of the page that it came to at that moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_ends_as_the_wait_for_it_does_is_stored() {
    const WAIT: Duration = Duration::from_millis(3);
    let guard = StampedeGuard::builder().ttl(Duration::from_secs(60)).max_body_wait(WAIT).build().unwrap();
    let handler = || async {
        let pieces = stream::unfold(0, |sent| async move {
            if sent == 1 {
                tokio::time::sleep(WAIT).await;
            }
            (sent < 2).then_some((Ok::<_, std::io::Error>("piece"), sent + 1))
        });
        AxumBody::from_stream(pieces)
    };
    let app = Router::new().route("/{page}", route(handler)).layer(guard);
    for batch in 0..40 {
        let pages = (0..20).map(|page| {
            let app = app.clone();
            tokio::spawn(async move {
                let uri = format!("/{}", batch * 20 + page);
                let own = scripted::ask(&app, get(&uri)).await.unwrap();
                assert_eq!(own.into_body().collect().await.unwrap().to_bytes(), "piecepiece");
                tokio::time::sleep(4 * WAIT).await;
                scripted::ask(&app, get(&uri)).await.unwrap().headers().contains_key("age")
            })
        });
        for page in pages.collect::<Vec<_>>() {
            assert!(soon(page).await.unwrap(), "a page is not stored");
        }
    }
}
