//! Point 3, the opt-in: `share_authorized` and what it does not share (RFC 9111 section 3.5).

use stampede_guard::StampedeGuard;

use crate::site::{Call, Site, all, answer, get, head, numbered, secs, with};

/// What a client gets that asks with these credentials, or none.
async fn asked(site: &Site, credentials: Option<&str>) -> String {
    let request = match credentials {
        Some(credentials) => with(get("/"), "authorization", credentials),
        None => get("/"),
    };
    site.ask(request).await.body
}

fn sharing_authorized(cache_control: &'static str) -> Site {
    Site::new(|builder| builder.share_authorized(true), numbered([("cache-control", cache_control)]))
}

const OPEN: [&str; 3] = ["max-age=60, public", "s-maxage=60", "max-age=60, must-revalidate"];
const CLOSED: [&str; 5] =
    ["max-age=60", "max-age=60, proxy-revalidate", "private, max-age=60", "public, no-store", ""];

#[tokio::test]
async fn no_directive_shares_authorized_responses_by_default() {
    for line in OPEN.iter().chain(&CLOSED) {
        let site = Site::new(|builder| builder, numbered([("cache-control", line)]));
        assert_eq!(asked(&site, Some("a")).await, "1", "{line}");
        assert_eq!(asked(&site, Some("a")).await, "2", "{line}");
        assert_eq!(asked(&site, None).await, "3", "{line}");
        assert_eq!(asked(&site, Some("b")).await, "4", "{line}");
    }
}

#[tokio::test]
async fn share_authorized_shares_what_says_so() {
    for line in OPEN {
        let site = sharing_authorized(line);
        assert_eq!(asked(&site, Some("a")).await, "1", "{line}");
        for other in [Some("a"), Some("b"), None] {
            assert_eq!(asked(&site, other).await, "1", "{line}");
        }
        // The other way round, too.
        let site = sharing_authorized(line);
        assert_eq!(asked(&site, None).await, "1", "{line}");
        assert_eq!(asked(&site, Some("a")).await, "1", "{line}");
    }
}

#[tokio::test]
async fn share_authorized_shares_nothing_else() {
    for line in CLOSED {
        let site = sharing_authorized(line);
        assert_eq!(asked(&site, Some("a")).await, "1", "{line}");
        assert_eq!(asked(&site, Some("a")).await, "2", "{line}");
        assert_eq!(asked(&site, Some("b")).await, "3", "{line}");
        assert_eq!(asked(&site, None).await, "4", "{line}");
    }
}

#[tokio::test]
async fn share_authorized_keeps_a_page_for_strangers_from_those_who_signed_in() {
    let site = sharing_authorized("max-age=60");
    assert_eq!(asked(&site, None).await, "1");
    assert_eq!(asked(&site, Some("a")).await, "2");
    let part = |request| with(request, "range", "bytes=0-0");
    assert_eq!(site.ask(part(with(get("/"), "authorization", "a"))).await.body, "3");
    assert_eq!(site.ask(with(head("/"), "authorization", "a")).await.status, 200);
    assert_eq!(site.runs(), 4);
    let cached = with(with(get("/"), "authorization", "a"), "cache-control", "only-if-cached");
    assert_eq!(site.ask(cached).await.status, 504);
    // And it is still there for the others.
    assert_eq!(asked(&site, None).await, "1");
    let got = site.ask(part(get("/"))).await;
    assert_eq!((got.status.as_u16(), got.body.as_str()), (206, "1"));
}

#[tokio::test]
async fn share_authorized_keeps_those_who_wait_apart() {
    let site = Site::new(
        |builder| builder.share_authorized(true),
        |call: Call| async move {
            call.gate().await;
            answer(200, &[("cache-control", "max-age=60")], call.run.to_string())
        },
    );
    let signed = |who: &str| with(get("/"), "authorization", who);
    // Behind a stranger, who leads: strangers share, those who signed in run.
    let leader = site.lead(get("/")).await;
    let mut waiting = site.follow([get("/"), signed("a"), signed("b")]).await;
    waiting.push(leader);
    site.open(3);
    let mut got: Vec<_> = all(waiting).await.into_iter().map(|got| got.body).collect();
    got.sort();
    assert_eq!(got, ["1", "1", "2", "3"]);
    // Behind one who signed in, everybody runs.
    site.guard.invalidate_all();
    let leader = site.lead(signed("a")).await;
    let mut waiting = site.follow([get("/"), signed("a")]).await;
    waiting.push(leader);
    site.open(3);
    let mut got: Vec<_> = all(waiting).await.into_iter().map(|got| got.body).collect();
    got.sort();
    assert_eq!(got, ["4", "5", "6"]);
}

#[tokio::test]
async fn share_authorized_refreshes_with_the_credentials_that_the_origin_wants() {
    let site = Site::new(
        |builder| builder.share_authorized(true),
        |call: Call| {
            let admitted = !call.header("authorization").is_empty();
            let headers = [("cache-control", "public, max-age=10, stale-while-revalidate=60")];
            std::future::ready(answer(if admitted { 200 } else { 401 }, &headers, call.run.to_string()))
        },
    );
    assert_eq!(asked(&site, Some("a")).await, "1");
    site.clock.advance(secs(11));
    assert_eq!(asked(&site, Some("a")).await, "1");
    site.settled(2).await;
    assert_eq!(site.last_seen().headers["authorization"], "a");
    assert_eq!(asked(&site, Some("b")).await, "2");
}

#[test]
fn sharing_authorized_requests_and_keying_them_exclude_each_other() {
    for builder in [
        StampedeGuard::builder().key_authorization(),
        StampedeGuard::builder().key_headers(["authorization"]),
    ] {
        let error = builder.share_authorized(true).build().unwrap_err();
        assert!(error.to_string().contains("share_authorized"), "{error}");
    }
    assert!(StampedeGuard::builder().key_authorization().share_authorized(false).build().is_ok());
}

#[tokio::test]
async fn share_authorized_leaves_the_credentials_of_proxies_alone() {
    let site = sharing_authorized("public, max-age=60");
    let asked = || with(get("/"), "proxy-authorization", "a");
    assert!(!site.shares(asked(), asked()).await);
}
