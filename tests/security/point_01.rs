//! Point 1: only GET and HEAD take part, and HEAD never answers GET.

use std::sync::Arc;

use tokio::sync::Barrier;

use crate::site::{
    Call, Site, all, answer, bodies, data, frames, get, head, numbered, read, request, until, with, within,
};

/// A handler that goes on only when two of its runs are under way at once.
fn paired() -> Site {
    let pair = Arc::new(Barrier::new(2));
    Site::new(
        |builder| builder,
        move |call: Call| {
            let pair = Arc::clone(&pair);
            async move {
                pair.wait().await;
                answer(200, &[("cache-control", "max-age=60")], call.run.to_string())
            }
        },
    )
}

#[tokio::test]
async fn only_get_and_head_take_part() {
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE", "CONNECT", "get", "QUERY"] {
        let site = paired();
        let pair = (0..2).map(|_| site.start(request(method, "/")));
        assert_eq!(all(pair.collect()).await.len(), 2);
        assert_eq!((site.runs(), site.guard.stats().entries), (2, 0), "{method}");
        assert_eq!(site.guard.stats().passed, 2, "{method}");
    }
}

#[tokio::test]
async fn upgrades_pass() {
    for (name, value) in
        [("upgrade", "websocket"), ("connection", "keep-alive, Upgrade"), ("connection", "upgrade")]
    {
        let site = paired();
        let pair = (0..2).map(|_| site.start(with(get("/"), name, value)));
        all(pair.collect()).await;
        assert_eq!((site.runs(), site.guard.stats().entries), (2, 0), "{name}: {value}");
    }
}

#[tokio::test]
async fn an_upgraded_connection_is_its_own_clients() {
    let site = Site::new(
        |builder| builder,
        |mut call: Call| {
            let upgrade = call.parts.extensions.remove::<hyper::upgrade::OnUpgrade>().unwrap();
            let run = call.run;
            tokio::spawn(async move {
                use tokio::io::AsyncWriteExt;
                let mut stream = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
                stream.write_all(format!("socket {run}").as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            });
            let upgraded = [("connection", "upgrade"), ("upgrade", "echo")];
            async move { answer(101, &upgraded, "") }
        },
    );
    let server = site.serve().await;
    let ask = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    let mut sockets = Vec::new();
    for got in futures_util::future::join_all([server.raw(ask), server.raw(ask)]).await {
        assert!(got.starts_with("HTTP/1.1 101"), "{got}");
        sockets.push(got.rsplit("\r\n").next().unwrap().to_owned());
    }
    sockets.sort();
    assert_eq!(sockets, ["socket 1", "socket 2"]);
}

#[tokio::test]
async fn a_get_that_asks_to_be_another_method_passes() {
    for name in ["x-http-method-override", "x-method-override", "x-http-method"] {
        let site = paired();
        let pair = (0..2).map(|_| site.start(with(get("/"), name, "DELETE")));
        all(pair.collect()).await;
        assert_eq!((site.runs(), site.guard.stats().entries), (2, 0), "{name}");
    }
}

#[tokio::test]
async fn head_uses_a_get_entry() {
    let site = Site::new(|builder| builder, numbered([]));
    site.ask(get("/")).await;
    let got = site.ask(head("/")).await;
    assert_eq!((site.runs(), got.body.as_str(), got.header("content-length")), (1, "", Some("1")));
}

#[tokio::test]
async fn head_joins_a_get_flight() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            call.gate().await;
            answer(200, &[], format!("run {}", call.run))
        },
    );
    let first = site.lead(get("/")).await;
    let heads = site.follow((0..3).map(|_| head("/"))).await;
    site.open(1);
    assert_eq!(within(first).await.unwrap().body, "run 1");
    for got in all(heads).await {
        assert_eq!((got.body.as_str(), got.header("content-length")), ("", Some("5")));
    }
    assert_eq!(site.runs(), 1);
}

fn gated() -> Site {
    Site::new(
        |builder| builder,
        |call: Call| async move {
            call.gate().await;
            answer(200, &[("cache-control", "max-age=60")], format!("run {}", call.run))
        },
    )
}

#[tokio::test]
async fn heads_share_with_heads_and_store_nothing() {
    let site = gated();
    let mut heads = vec![site.lead(head("/")).await];
    heads.extend(site.follow((0..3).map(|_| head("/"))).await);
    site.open(1);
    all(heads).await;
    assert_eq!((site.runs(), site.guard.stats().entries), (1, 0));
    site.open(1);
    site.ask(head("/")).await;
    assert_eq!(site.runs(), 2);
}

#[tokio::test]
async fn every_head_of_a_herd_hears_the_length_that_the_first_hears() {
    let site = gated();
    let mut heads = vec![site.lead(head("/")).await];
    heads.extend(site.follow((0..3).map(|_| head("/"))).await);
    site.open(1);
    for got in all(heads).await {
        assert_eq!(got.header("content-length"), Some("5"));
    }
    // Nor is a length made up where the first hears none.
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            call.gate().await;
            answer(200, &[], frames(None).1)
        },
    );
    let mut heads = vec![site.lead(head("/")).await];
    heads.extend(site.follow([head("/")]).await);
    site.open(1);
    for got in all(heads).await {
        assert_eq!(got.header("content-length"), None);
    }
}

#[tokio::test]
async fn head_never_answers_get() {
    let site = gated();
    let first = site.lead(head("/")).await;
    let second = site.lead(get("/")).await;
    site.open(2);
    assert_eq!(within(first).await.unwrap().body, "");
    assert_eq!(within(second).await.unwrap().body, "run 2");
    // Nor does what a HEAD left.
    let site = gated();
    site.open(2);
    site.ask(head("/")).await;
    assert_eq!(site.ask(get("/")).await.body, "run 2");
}

#[tokio::test]
async fn head_of_a_growing_page_ends_at_once() {
    let site = Site::new(
        |builder| builder,
        |_| {
            let (sender, body) = frames(Some(6));
            sender.send(data("abc")).unwrap();
            // Goes on for as long as the body is read.
            tokio::spawn(async move { sender.closed().await });
            async move { answer(200, &[], body) }
        },
    );
    let leader = site.response(get("/")).await;
    until(|| site.guard.stats().entries == 1).await;
    let got = site.ask(head("/")).await;
    assert_eq!((site.runs(), got.body.as_str(), got.header("content-length")), (1, "", Some("6")));
    drop(leader);
}

#[tokio::test]
async fn a_bodiless_post_is_no_get() {
    let site = Site::new(|builder| builder, numbered([("cache-control", "max-age=60")]));
    assert_eq!(site.ask(get("/")).await.body, "1");
    assert_eq!(site.ask(request("POST", "/")).await.body, "2");
    assert_eq!(site.ask(request("PUT", "/")).await.body, "3");
}

#[tokio::test]
async fn conditions_of_a_head_are_evaluated_on_the_result() {
    let site = Site::new(|builder| builder, numbered([("etag", "\"v\"")]));
    let got = site.ask(with(head("/"), "if-none-match", "\"v\"")).await;
    assert_eq!(got.status, 304);
    assert!(!site.last_seen().headers.contains_key("if-none-match"));
    let got = read(site.response(get("/")).await).await;
    assert_eq!((got.status.as_u16(), bodies(&[got])), (200, vec!["2"]));
}
