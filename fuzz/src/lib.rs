//! What must hold for any bytes. The fuzz targets look for bytes for which it does not; `tests/properties.rs` checks
//! it with random ones, and with those of `fuzz/seeds`, at every run of the tests.
//!
//! Inputs are text, so that a seed can be read and written by hand: a first line, then lines of headers.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use stampede_guard::test_util::reread_response;
use stampede_guard::{ManualClock, StampedeGuard};
use tower::{Layer, ServiceExt, service_fn};

/// Two requests of one guard: each gets the answer that the handler would give to it alone.
///
/// `data` is two messages with an empty line between them; a message begins with its method and URI.
///
/// # Panics
/// If a request got the other's answer.
pub fn keys(data: &[u8]) {
    let end = data.windows(2).position(|bytes| bytes == b"\n\n").unwrap_or(data.len());
    let (first, second) = data.split_at(end);
    let second = second.get(2..).unwrap_or_default();
    let rules = [
        StampedeGuard::builder(),
        StampedeGuard::builder().key_authorization().key_cookies(["id"]),
        StampedeGuard::builder()
            .key_headers(["authorization", "cookie", "k-one"])
            .bypass_if(has_other_headers),
    ];
    for rule in rules {
        let service = rule.build().expect("a rule that can be built").layer(service_fn(describe));
        for message in [first, second] {
            let Some(request) = request(message) else { return };
            let own = description(request.method(), request.uri(), request.headers());
            let head = *request.method() == Method::HEAD;
            block_on(async {
                let response = service.clone().oneshot(request).await.unwrap_or_else(|error| match error {});
                let status = response.status();
                if let Some(seen) = response.headers().get("x-seen") {
                    assert_eq!(seen.as_bytes(), digest(&own).as_bytes(), "the answer to another request");
                }
                let body = response.into_body().collect().await.expect("a whole body").to_bytes();
                match status {
                    StatusCode::OK if head => assert_eq!(body, Bytes::new()),
                    StatusCode::OK => assert_eq!(body, own),
                    StatusCode::PARTIAL_CONTENT => {
                        let part = |part: &[u8]| part == body;
                        assert!(body.is_empty() || own.as_bytes().windows(body.len()).any(part));
                    }
                    // A refusal or "not modified".
                    _ => assert!(!String::from_utf8_lossy(&body).contains("seen:")),
                }
            });
        }
    }
}

/// Under a rule that keys some headers only, the others have no say: the operator promises it.
fn has_other_headers(parts: &axum::http::request::Parts) -> bool {
    let keyed = ["authorization", "cookie", "host", "k-one"];
    parts.headers.keys().any(|name| counts(name) && !keyed.contains(&name.as_str()))
}

async fn describe(request: Request<Empty<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let seen = description(request.method(), request.uri(), request.headers());
    let mut response = Response::new(Full::new(Bytes::new()));
    response.headers_mut().insert("x-seen", HeaderValue::from_str(&digest(&seen)).expect("digits"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
    response.headers_mut().insert(header::ETAG, HeaderValue::from_static("\"one\""));
    if *request.method() != Method::HEAD {
        *response.body_mut() = Full::new(Bytes::from(seen));
    }
    Ok(response)
}

/// All of a request by which a handler may tell it from another. A HEAD may have a GET's answer.
fn description(method: &Method, uri: &Uri, headers: &HeaderMap) -> String {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    let mut lines: Vec<String> = headers
        .keys()
        .filter(|name| counts(name))
        .map(|name| format!("{name}: {:?}", values(headers, name)))
        .filter(|line| line != "cookie: []")
        .collect();
    lines.sort();
    format!("seen: {method} {uri:?} {}", lines.join("\n"))
}

/// The lines of a header; of cookies, the cookies: where they are sorted by name, their layout does not count.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a [u8]> {
    let lines = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    if *name != header::COOKIE {
        return lines.collect();
    }
    let cookies = lines.flat_map(|line| line.split(|&byte| byte == b';')).map(<[u8]>::trim_ascii);
    cookies.filter(|cookie| !cookie.is_empty()).collect()
}

/// Headers that no guard may leave out of account: those that are known to matter, and those that nobody knows.
fn counts(name: &HeaderName) -> bool {
    let name = name.as_str();
    let known =
        ["authorization", "cookie", "host", "origin", "proxy-authorization", "forwarded", "x-api-key"];
    let kinds = [
        "accept",
        "k-",
        "sec-fetch-",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-forwarded-user",
        "x-tenant",
    ];
    known.contains(&name) || kinds.iter().any(|kind| name.starts_with(kind))
}

fn digest(text: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish().to_string()
}

/// One response, asked for again and again: what it forbids is not done, its body comes whole, and nothing is kept
/// for ever.
///
/// `data` begins with the status code.
///
/// # Panics
/// If a response was shared that must not be, or kept beyond all bounds.
pub fn responses(data: &[u8]) {
    let (first, headers) = message(data);
    let status = std::str::from_utf8(first).ok().and_then(|first| first.trim().parse().ok());
    let status = status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK);
    // The handler must not answer with an informational or a switched connection.
    if status.is_informational() {
        return;
    }
    let clock = ManualClock::new();
    let guard = StampedeGuard::builder().clock(clock.clone()).build().expect("a guard");
    let runs = Arc::new(AtomicUsize::new(0));
    let service = guard.layer(service_fn({
        let (runs, headers) = (Arc::clone(&runs), headers.clone());
        move |_: Request<Empty<Bytes>>| {
            let run = runs.fetch_add(1, Ordering::Relaxed) + 1;
            let mut response = Response::new(Full::new(Bytes::from(format!("run {run}"))));
            *response.status_mut() = status;
            *response.headers_mut() = headers.clone();
            async move { Ok::<_, Infallible>(response) }
        }
    }));
    let ask = || {
        block_on(async {
            let request =
                Request::get("/page").header(header::HOST, "shop.example").body(Empty::<Bytes>::new());
            let response = service.clone().oneshot(request.expect("a request")).await;
            let response = response.unwrap_or_else(|error| match error {});
            assert_eq!(response.status(), status);
            response.into_body().collect().await.expect("a whole body").to_bytes()
        })
    };
    assert_eq!(ask(), "run 1");
    let again = ask();
    let ran_again = runs.load(Ordering::Relaxed) == 2;
    // RFC 5861 section 4: in place of another error, what is stale may be served.
    let may_stand_in = ran_again && status.is_server_error();
    assert!(again == if ran_again { "run 2" } else { "run 1" } || (may_stand_in && again == "run 1"));
    if forbids_sharing(status, &headers) {
        assert_eq!(again, "run 2", "a response that must not be shared");
    }
    // Longer than any freshness and stale windows together.
    clock.advance(Duration::from_secs(400 * 365 * 24 * 60 * 60));
    let before = runs.load(Ordering::Relaxed);
    assert_eq!(ask(), format!("run {}", before + 1), "kept for ever");
}

/// Bytes that lie where a guard looks for another instance's response. Most are none; what is one is the same when it
/// is written and read again.
///
/// `data` is hexadecimal digits, or any bytes.
///
/// # Panics
/// If a response changed on its way, or took more room than it may.
pub fn stored(data: &[u8]) {
    for bytes in [data, &unhex(data)] {
        let Some(again) = reread_response(bytes) else { continue };
        // Lines of one name are put next to each other, and nothing is added.
        assert_eq!(again.len(), bytes.len(), "something was lost or added");
        assert_eq!(reread_response(&again).as_ref(), Some(&again), "it is another when it is read again");
    }
}

/// The bytes that hexadecimal digits stand for, passing over comments and white space; of anything else, none.
fn unhex(text: &[u8]) -> Vec<u8> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.starts_with(b"#"));
    let digits: Vec<_> = lines.flatten().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let value = |digit: &u8| char::from(*digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let bytes = digits.chunks(2).map(|pair| match pair {
        [high, low] => Some(value(high)? << 4 | value(low)?),
        _ => None,
    });
    bytes.collect::<Option<_>>().unwrap_or_default()
}

/// A plain reading of the rules, which may miss what is malformed, and forbids nothing else.
fn forbids_sharing(status: StatusCode, headers: &HeaderMap) -> bool {
    let has = |name| headers.contains_key(name);
    let list = |name: HeaderName| {
        let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
        lines
            .filter(|line| !line.contains('"'))
            .flat_map(|line| line.split(','))
            .map(|item| {
                item.split('=').next().unwrap_or_default().trim_matches([' ', '\t']).to_ascii_lowercase()
            })
            .collect::<Vec<_>>()
    };
    let directives = list(header::CACHE_CONTROL);
    let has_no_store = directives.iter().any(|name| name == "no-store");
    status == StatusCode::PARTIAL_CONTENT
        || has(header::SET_COOKIE)
        || has(header::WWW_AUTHENTICATE)
        || has(HeaderName::from_static("authentication-info"))
        || list(header::VARY).iter().any(|name| name == "*")
        || directives.iter().any(|name| name == "private" || name == "no-cache")
        // RFC 9111 section 5.2.2.3: with `must-understand`, a cache that knows the status code ignores `no-store`.
        || (has_no_store && !directives.iter().any(|name| name == "must-understand"))
}

fn request(text: &[u8]) -> Option<Request<Empty<Bytes>>> {
    let (first, headers) = message(text);
    let (method, uri) = std::str::from_utf8(first).ok()?.split_once(' ')?;
    let mut request = Request::new(Empty::new());
    *request.method_mut() = method.parse().ok()?;
    *request.uri_mut() = uri.parse().ok()?;
    *request.headers_mut() = headers;
    Some(request)
}

/// The first line, and of the others those that are headers.
fn message(text: &[u8]) -> (&[u8], HeaderMap) {
    let mut lines = text.split(|&byte| byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let headers = lines.filter_map(|line| {
        let colon = line.iter().position(|&byte| byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        Some((name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?))
    });
    let mut map = HeaderMap::new();
    for (name, value) in headers.take(64) {
        map.append(name, value);
    }
    (first, map)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}
