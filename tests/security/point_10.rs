//! Point 10: writes that succeed outdate what was read before them.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, header};
use axum::routing::get as on_get;
use stampede_guard::StampedeGuard;
use tower::ServiceExt;

use crate::site::{Call, Site, all, answer, bodies, get, head, read, request, until, with};

/// Reads are numbered; a write answers with the status and headers it asks for.
fn site() -> Site {
    Site::new(
        |builder| builder,
        |call: Call| async move {
            if call.parts.method == "GET" {
                return answer(200, &[("cache-control", "max-age=60")], call.run.to_string());
            }
            let status = call.header("x-status").parse().unwrap_or(204);
            let told: Vec<_> =
                ["location", "content-location"].map(|name| (name, call.header(name))).to_vec();
            let told: Vec<_> = told
                .iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            answer(status, &told, "")
        },
    )
}

/// Whether `write` outdates what was read of `uri`.
async fn outdates(site: &Site, uri: &str, write: Request<Body>) -> bool {
    let before = site.ask(get(uri)).await.body;
    assert_eq!(site.ask(get(uri)).await.body, before);
    site.ask(write).await;
    site.ask(get(uri)).await.body != before
}

#[tokio::test]
async fn unsafe_methods_outdate_their_uri() {
    let site = site();
    for method in ["POST", "PUT", "DELETE", "PATCH", "LOCK", "PURGE"] {
        assert!(outdates(&site, "/a?x=1", request(method, "/a?x=1")).await, "{method}");
    }
}

#[tokio::test]
async fn safe_methods_outdate_nothing() {
    let site = site();
    for method in ["HEAD", "OPTIONS", "TRACE"] {
        assert!(!outdates(&site, "/a", request(method, "/a")).await, "{method}");
    }
    // Nor does a client that only says so.
    assert!(!outdates(&site, "/a", with(get("/a"), "x-http-method-override", "DELETE")).await);
}

#[tokio::test]
async fn what_fails_outdates_nothing() {
    let site = site();
    for status in ["400", "401", "403", "404", "405", "409", "429", "500", "503"] {
        let write = with(with(request("POST", "/a"), "x-status", status), "location", "/b");
        assert!(!outdates(&site, "/a", write).await, "{status}");
        let write = with(with(request("POST", "/a"), "x-status", status), "location", "/b");
        assert!(!outdates(&site, "/b", write).await, "{status}");
    }
}

#[tokio::test]
async fn every_success_counts() {
    let site = site();
    for status in ["200", "201", "202", "204", "301", "303", "307"] {
        assert!(outdates(&site, "/a", with(request("POST", "/a"), "x-status", status)).await, "{status}");
    }
}

#[tokio::test]
async fn location_and_content_location_of_the_same_origin_are_outdated() {
    let site = site();
    for name in ["location", "content-location"] {
        for place in [
            "/b",
            "b",
            "./x/../b",
            "//shop.example/b",
            "http://shop.example/b",
            "https://SHOP.example:443/b#f",
        ] {
            assert!(outdates(&site, "/b", with(request("POST", "/a"), name, place)).await, "{name} {place}");
        }
    }
}

#[tokio::test]
async fn those_of_another_origin_are_not() {
    let site = site();
    for name in ["location", "content-location"] {
        for place in [
            "//other.example/b",
            "http://other.example/b",
            "http://shop.example:8080/b",
            "http://shop.example.evil/b",
            "http://shop.example@evil/b",
            "ftp://shop.example/b",
        ] {
            assert!(!outdates(&site, "/b", with(request("POST", "/a"), name, place)).await, "{name} {place}");
        }
    }
}

#[tokio::test]
async fn a_write_to_another_host_or_uri_outdates_nothing() {
    let site = site();
    let other = Request::post("/a").header(header::HOST, "other.example").body(Body::empty()).unwrap();
    assert!(!outdates(&site, "/a", other).await);
    assert!(!outdates(&site, "/a", request("POST", "/a?x")).await);
    assert!(!outdates(&site, "/a", request("POST", "/b")).await);
}

#[tokio::test]
async fn a_write_outdates_every_variant_form_and_method() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            answer(200, &[("cache-control", "max-age=60"), ("vary", "user-agent")], call.run.to_string())
        },
    );
    let forms = [
        || get("/a"),
        || with(get("/a"), "user-agent", "b"),
        || with(get("/a"), "accept", "text/html"),
        || get("http://shop.example/a"),
        || Request::get("/a").header(header::HOST, "SHOP.example:80").body(Body::empty()).unwrap(),
    ];
    let mut before = Vec::new();
    for form in forms {
        before.push(site.ask(form()).await.body);
    }
    let runs = site.runs();
    for (form, before) in forms.iter().zip(&before) {
        assert_eq!(site.ask(form()).await.body, *before);
    }
    assert_eq!(site.runs(), runs);
    site.ask(request("DELETE", "/a")).await;
    for form in forms {
        assert!(!before.contains(&site.ask(form()).await.body));
    }
    site.ask(head("/a")).await;
    assert_eq!(site.runs(), runs + 1 + before.len());
}

#[tokio::test]
async fn a_write_with_credentials_outdates_as_well() {
    let site = site();
    assert!(outdates(&site, "/a", with(request("POST", "/a"), "authorization", "Bearer secret")).await);
    assert!(outdates(&site, "/a", with(request("POST", "/a"), "cookie", "session=secret")).await);
}

#[tokio::test]
async fn a_write_that_the_operator_bypasses_outdates_as_well() {
    let site = Site::new(
        |builder| builder.bypass_if(|parts| parts.method == "POST"),
        |call: Call| async move { answer(200, &[("cache-control", "max-age=60")], call.run.to_string()) },
    );
    assert!(outdates(&site, "/a", request("POST", "/a")).await);
}

#[tokio::test]
async fn a_read_from_before_a_write_does_not_publish_after_it() {
    let site = Site::new(
        |builder| builder,
        |call: Call| async move {
            if call.run == 1 {
                call.gate().await;
            }
            answer(200, &[("cache-control", "max-age=60")], call.run.to_string())
        },
    );
    let before = site.lead(get("/a")).await;
    let with_it = site.follow([get("/a")]).await;
    site.ask(request("POST", "/a")).await;
    // Whoever comes after the write does not join what was read before it, even while that goes on.
    assert_eq!(site.ask(get("/a")).await.body, "3");
    site.open(1);
    assert_eq!(before.await.unwrap().body, "1");
    assert_eq!(bodies(&all(with_it).await), ["1"]);
    assert_eq!(site.ask(get("/a")).await.body, "3");
}

#[tokio::test]
async fn invalidate_all_voids_what_is_stored_and_what_is_under_way() {
    let site = Site::new(
        |builder| builder.stale_if_error(crate::site::secs(600)),
        |call: Call| async move {
            if call.parts.uri.path() == "/slow" && call.run == 2 {
                call.gate().await;
            }
            answer(200, &[("cache-control", "max-age=60")], call.run.to_string())
        },
    );
    site.ask(get("/a")).await;
    let slow = site.lead(get("/slow")).await;
    site.guard.invalidate_all();
    assert_eq!(site.ask(get("/a")).await.body, "3");
    assert_eq!(site.ask(get("/slow")).await.body, "4");
    site.open(1);
    assert_eq!(slow.await.unwrap().body, "2");
    assert_eq!(site.ask(get("/slow")).await.body, "4");
}

#[tokio::test]
async fn writes_inside_a_nest_outdate_the_uri_as_the_client_knows_it() {
    let counter = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let guard = StampedeGuard::new();
    let read_it = move || {
        let run = counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async move { ([(header::CACHE_CONTROL, "max-age=60")], run.to_string()) }
    };
    let write = || async { ([(header::LOCATION, "/en/other")], "done") };
    let inner = || {
        let pages = on_get(read_it.clone()).post(write);
        Router::new().route("/page", pages.clone()).route("/other", pages).layer(guard.clone())
    };
    let app = Router::new().nest("/en", inner()).nest("/de", inner()).layer(guard.clone());
    let ask = async |request: Request<Body>| read(app.clone().oneshot(request).await.unwrap()).await.body;
    let mut before = Vec::new();
    for uri in ["/en/page", "/de/page", "/en/other", "/de/other"] {
        before.push(ask(get(uri)).await);
    }
    ask(request("POST", "/en/page")).await;
    assert_ne!(ask(get("/en/page")).await, before[0]);
    assert_eq!(ask(get("/de/page")).await, before[1]);
    assert_ne!(ask(get("/en/other")).await, before[2]);
    assert_eq!(ask(get("/de/other")).await, before[3]);
}

#[tokio::test]
async fn a_herd_beside_writes_never_sees_what_is_older_than_the_last_write() {
    let written = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let state = std::sync::Arc::clone(&written);
    let site = Site::new(
        |builder| builder,
        move |call: Call| {
            let state = std::sync::Arc::clone(&state);
            async move {
                if call.parts.method == "POST" {
                    state.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
                let now = state.load(std::sync::atomic::Ordering::SeqCst);
                tokio::task::yield_now().await;
                answer(200, &[("cache-control", "max-age=60")], now.to_string())
            }
        },
    );
    for _ in 0..50 {
        let herd: Vec<_> = (0..4).map(|_| site.start(get("/"))).collect();
        let write = site.start(request("POST", "/"));
        until(|| write.is_finished()).await;
        let now = written.load(std::sync::atomic::Ordering::SeqCst).to_string();
        assert_eq!(site.ask(get("/")).await.body, now);
        all(herd).await;
        assert_eq!(site.ask(get("/")).await.body, now);
    }
}

/// An empty path is `/` (RFC 9110 section 4.2.3).
#[tokio::test]
async fn a_target_without_a_path_is_the_root() {
    let site = site();
    for (read, write) in [
        ("/?x=1", "http://shop.example?x=1"),
        ("http://shop.example?x=1", "/?x=1"),
        ("/", "http://shop.example"),
    ] {
        assert!(outdates(&site, read, request("POST", write)).await, "{read} {write}");
    }
}
