//! Point 8: bodies stream, and what they carry at their end is looked at too.

use std::time::Duration;

use axum::http::HeaderMap;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;

use crate::site::{
    Bodies, Call, Site, all, answer, bodies, data, frames, get, read, secs, until, with, within,
};

/// A site whose first run hands out a body that the test writes.
fn written(
    length: Option<u64>,
    headers: &'static [(&'static str, &'static str)],
) -> (Site, crate::site::FrameSender) {
    written_with(|builder| builder, length, headers)
}

fn written_with(
    settings: impl FnOnce(stampede_guard::StampedeGuardBuilder) -> stampede_guard::StampedeGuardBuilder,
    length: Option<u64>,
    headers: &'static [(&'static str, &'static str)],
) -> (Site, crate::site::FrameSender) {
    let bodies = Bodies::default();
    let sender = bodies.add(length);
    let site = Site::new(settings, move |call: Call| {
        let bodies = bodies.clone();
        async move {
            if call.run == 1 {
                call.gate().await;
            }
            answer(200, headers, bodies.next())
        }
    });
    (site, sender)
}

async fn first_frame(body: &mut axum::body::Body) -> String {
    let frame = within(body.frame()).await.unwrap().unwrap();
    String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn followers_of_a_known_length_attach_at_once() {
    let (site, sender) = written(Some(6), &[]);
    let routed = site.clone();
    let leader = tokio::spawn(async move { routed.response(get("/")).await });
    until(|| site.runs() == 1).await;
    let routed = site.clone();
    let follower = tokio::spawn(async move { routed.response(get("/")).await });
    until(|| site.guard.stats().flights.coalesced == 1).await;
    site.open(1);
    sender.send(data("abc")).unwrap();
    let mut bodies = [leader.await.unwrap().into_body(), follower.await.unwrap().into_body()];
    // And whoever comes while it grows.
    let mut late = site.response(get("/")).await.into_body();
    for body in &mut bodies {
        assert_eq!(first_frame(body).await, "abc");
    }
    assert_eq!(first_frame(&mut late).await, "abc");
    sender.send(data("def")).unwrap();
    drop(sender);
    for body in bodies {
        assert_eq!(&body.collect().await.unwrap().to_bytes()[..], b"def");
    }
    assert_eq!(site.runs(), 1);
}

#[tokio::test]
async fn followers_of_an_unknown_length_wait_for_a_near_end() {
    let (site, sender) = written(None, &[]);
    let leader = site.lead(get("/")).await;
    let followers = site.follow([get("/"), get("/")]).await;
    site.open(1);
    sender.send(data("abc")).unwrap();
    drop(sender);
    assert_eq!(leader.await.unwrap().body, "abc");
    assert_eq!(bodies(&all(followers).await), ["abc", "abc"]);
    assert_eq!(site.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn followers_of_an_endless_body_run_their_own_after_200_ms() {
    let (site, sender) = written(None, &[]);
    let leader = site.lead(get("/")).await;
    let followers = site.follow([get("/"), get("/")]).await;
    let start = tokio::time::Instant::now();
    site.open(1);
    sender.send(data("abc")).unwrap();
    assert_eq!(bodies(&all(followers).await), ["own", "own"]);
    assert_eq!(start.elapsed().as_millis() / 10, 20);
    drop(sender);
    assert_eq!(leader.await.unwrap().body, "abc");
}

#[tokio::test(start_paused = true)]
async fn an_event_stream_holds_nobody_and_sends_its_first_event_at_once() {
    let stream = [("content-type", "text/event-stream"), ("cache-control", "max-age=60")];
    let site = Site::new(
        |builder| builder,
        move |call: Call| async move {
            if call.run == 1 {
                call.gate().await;
            }
            let (sender, body) = frames(None);
            sender.send(data("data: 1\n\n")).unwrap();
            tokio::spawn(async move { sender.closed().await });
            answer(200, &stream, body)
        },
    );
    let routed = site.clone();
    let leader = tokio::spawn(async move { routed.response(get("/")).await });
    until(|| site.runs() == 1).await;
    let routed = site.clone();
    let follower = tokio::spawn(async move { routed.response(get("/")).await });
    until(|| site.guard.stats().flights.coalesced == 1).await;
    let start = tokio::time::Instant::now();
    site.open(1);
    for response in [leader, follower] {
        assert_eq!(first_frame(&mut response.await.unwrap().into_body()).await, "data: 1\n\n");
    }
    assert!(start.elapsed() < Duration::from_millis(5));
    assert_eq!(site.runs(), 2);
}

#[tokio::test]
async fn a_body_over_the_cap_streams_through_and_releases_the_others() {
    for length in [None, Some(12)] {
        let (site, sender) = written_with(|builder| builder.max_body_bytes(8), length, &[]);
        let leader = site.lead(get("/")).await;
        let followers = site.follow([get("/")]).await;
        site.open(1);
        for part in ["abcd", "efgh", "ijkl"] {
            sender.send(data(part)).unwrap();
        }
        assert_eq!(bodies(&all(followers).await), ["own"]);
        drop(sender);
        let got = leader.await.unwrap();
        assert_eq!((got.body.as_str(), got.broke), ("abcdefghijkl", false));
        assert_eq!(site.ask(get("/")).await.body, "own");
    }
}

#[tokio::test]
async fn a_length_over_the_cap_releases_the_others_before_the_body_comes() {
    let (site, sender) = written_with(|builder| builder.max_body_bytes(8), Some(12), &[]);
    let leader = site.lead(get("/")).await;
    let followers = site.follow([get("/")]).await;
    site.open(1);
    assert_eq!(bodies(&all(followers).await), ["own"]);
    sender.send(data("abcdefghijkl")).unwrap();
    drop(sender);
    assert_eq!(leader.await.unwrap().body, "abcdefghijkl");
}

fn trailers(of: &[(&'static str, &str)]) -> Frame<axum::body::Bytes> {
    let mut trailers = HeaderMap::new();
    for (name, value) in of {
        trailers.append(*name, value.parse().unwrap());
    }
    Frame::trailers(trailers)
}

#[tokio::test]
async fn trailers_survive() {
    let (site, sender) = written(Some(3), &[("cache-control", "max-age=60")]);
    let leader = site.lead(get("/")).await;
    let mut got = site.follow([get("/")]).await;
    site.open(1);
    sender.send(data("abc")).unwrap();
    sender.send(Ok(trailers(&[("x-checksum", "1")]))).unwrap();
    got.push(leader);
    got.push(site.start(get("/")));
    for got in all(got).await {
        assert_eq!(got.trailers.unwrap()["x-checksum"], "1");
    }
}

#[tokio::test]
async fn personal_trailers_stay_with_their_own_client() {
    const PERSONAL: [&str; 5] = [
        "set-cookie",
        "authentication-info",
        "proxy-authentication-info",
        "www-authenticate",
        "proxy-authenticate",
    ];
    for length in [None, Some(3)] {
        let (site, sender) = written(length, &[("cache-control", "max-age=60")]);
        let leader = site.lead(get("/")).await;
        let mut others = site.follow([get("/"), get("/")]).await;
        site.open(1);
        sender.send(data("abc")).unwrap();
        let mut all_of_them = PERSONAL.map(|name| (name, "secret")).to_vec();
        all_of_them.push(("x-checksum", "1"));
        all_of_them.push(("connection", "close"));
        sender.send(Ok(trailers(&all_of_them))).unwrap();
        let own = leader.await.unwrap().trailers.unwrap();
        assert!(PERSONAL.iter().all(|name| own[*name] == "secret"));
        others.push(site.start(get("/")));
        for got in all(others).await {
            let trailers = got.trailers.unwrap();
            let names: Vec<_> = trailers.keys().map(axum::http::HeaderName::as_str).collect();
            assert_eq!(names, ["x-checksum"]);
        }
        assert_eq!(site.runs(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_load_time_out_ends_at_the_head() {
    let (site, sender) = written_with(|builder| builder.load_timeout(secs(1)), Some(3), &[]);
    site.open(1);
    let leader = site.response(get("/")).await;
    tokio::time::sleep(secs(10)).await;
    sender.send(data("abc")).unwrap();
    drop(sender);
    assert_eq!(read(leader).await.body, "abc");
}

/// A leader goes away before its body has come; those who wait with it get all of it.
async fn outlives_its_leader(length: Option<u64>, control: &'static [(&'static str, &'static str)]) {
    let (site, sender) = written(length, control);
    let leader = site.lead(get("/")).await;
    let followers = site.follow([get("/"), with(get("/"), "user-agent", "b")]).await;
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    site.open(1);
    until(|| site.guard.stats().flights.loads == 1).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    sender.send(data("abc")).unwrap();
    drop(sender);
    for got in all(followers).await {
        assert_eq!((got.status.as_u16(), got.body.as_str(), got.broke), (200, "abc", false));
    }
    assert_eq!(site.runs(), 1);
}

#[tokio::test]
async fn a_leader_that_goes_away_takes_nothing_from_the_others() {
    outlives_its_leader(Some(3), &[("cache-control", "max-age=60")]).await;
    outlives_its_leader(None, &[("cache-control", "max-age=60")]).await;
}

#[tokio::test]
async fn a_leader_that_goes_away_takes_nothing_from_the_others_of_what_is_not_kept() {
    outlives_its_leader(Some(3), &[("cache-control", "max-age=0")]).await;
    outlives_its_leader(None, &[("cache-control", "max-age=0")]).await;
}

#[tokio::test]
async fn a_body_that_nobody_wants_ends() {
    let (site, sender) = written(Some(3), &[("cache-control", "max-age=0")]);
    site.open(1);
    let response = site.response(get("/")).await;
    assert!(!sender.is_closed());
    drop(response);
    within(sender.closed()).await;
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_the_run_to_the_others() {
    let (site, sender) = written(Some(3), &[]);
    let server = site.serve().await;
    let mut socket = server.connect().await;
    socket.write_all(b"GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n").await.unwrap();
    until(|| site.runs() == 1).await;
    let follower = server.get(get("/"));
    let hang_up = async {
        until(|| site.guard.stats().flights.coalesced == 1).await;
        drop(socket);
        site.open(1);
        sender.send(data("abc")).unwrap();
        drop(sender);
    };
    let (got, ()) = tokio::join!(follower, hang_up);
    assert_eq!(&got.unwrap().2[..], b"abc");
    assert_eq!(site.runs(), 1);
}
