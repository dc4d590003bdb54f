//! Which requests may be coalesced at all. Everything else goes straight through, untouched.

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::http::key::MethodClass;
use crate::http::rule::KeyRule;
use crate::http::syntax;

/// Whether a request takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Eligibility {
    /// It does.
    Take(MethodClass),
    /// It goes straight through.
    Pass(PassReason),
}

/// Why a request goes straight through. When several apply, the first in this order is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PassReason {
    /// Neither GET nor HEAD (CONNECT included, plain or extended as in RFC 8441), or a GET that asks a handler to
    /// treat it as something else.
    Method,
    /// It asks for another protocol.
    Upgrade,
    /// `Authorization` that is neither in the key nor shared.
    Authorization,
    /// `Proxy-Authorization` that is not in the key.
    ProxyAuthorization,
    /// A cookie that is neither in the key nor ignored.
    Cookie,
    /// It has a body, or framing that speaks of one.
    Body,
    /// `If-Match` or `If-Unmodified-Since`: a condition on the origin's own state.
    Precondition,
    /// `Expect`.
    Expect,
    /// `Range`, and nothing else against it: it may be answered from a complete stored body.
    Range,
}

/// GET, HEAD, OPTIONS and TRACE change nothing (RFC 9110 section 9.2.1). Any other method may, unknown ones included.
pub(crate) fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// Whether the request takes part under `rule`. `body_is_empty` is what the body itself says.
pub(crate) fn classify(parts: &Parts, body_is_empty: bool, rule: &KeyRule) -> Eligibility {
    let class = match parts.method {
        Method::GET => MethodClass::Get,
        Method::HEAD => MethodClass::Head,
        _ => return Eligibility::Pass(PassReason::Method),
    };
    match pass_reason(&parts.headers, body_is_empty, rule) {
        Some(reason) => Eligibility::Pass(reason),
        None => Eligibility::Take(class),
    }
}

fn pass_reason(headers: &HeaderMap, body_is_empty: bool, rule: &KeyRule) -> Option<PassReason> {
    let framing = (!body_is_empty).then_some(PassReason::Body);
    reasons(headers, rule).chain(framing).min()
}

/// What the lines of a head say against taking part.
pub(crate) fn reasons(headers: &HeaderMap, rule: &KeyRule) -> impl Iterator<Item = PassReason> {
    headers.iter().filter_map(|(name, value)| reason_of(name, value, headers, rule))
}

/// What one line says against taking part. One look at each name: nearly all requests have none of these.
fn reason_of(
    name: &HeaderName,
    value: &HeaderValue,
    headers: &HeaderMap,
    rule: &KeyRule,
) -> Option<PassReason> {
    let (reason, applies) = match name.as_str() {
        // By these some frameworks let a GET act as another method. Answers to those are no answers to GET.
        "x-http-method-override" | "x-method-override" | "x-http-method" => (PassReason::Method, true),
        "upgrade" => (PassReason::Upgrade, true),
        "connection" => (PassReason::Upgrade, names_upgrade(value)),
        "authorization" => (PassReason::Authorization, !rule.takes_authorization()),
        "proxy-authorization" => (PassReason::ProxyAuthorization, !rule.keys(name)),
        "cookie" => (PassReason::Cookie, !rule.admits_cookies(headers)),
        "transfer-encoding" => (PassReason::Body, true),
        // Any but zero, malformed ones included.
        "content-length" => (PassReason::Body, syntax::delta_seconds(value.as_bytes()) != Some(0)),
        "if-match" | "if-unmodified-since" => (PassReason::Precondition, true),
        "expect" => (PassReason::Expect, true),
        "range" => (PassReason::Range, true),
        _ => return None,
    };
    applies.then_some(reason)
}

fn names_upgrade(connection: &HeaderValue) -> bool {
    let mut members = connection.as_bytes().split(|byte| *byte == b',').map(syntax::trim_ows);
    members.any(|member| member.eq_ignore_ascii_case(b"upgrade"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::syntax::tests::map;
    use http::Request;

    fn of(method: &str, headers: &[(&str, &str)], rule: &KeyRule) -> Eligibility {
        let (mut parts, ()) = Request::builder().method(method).body(()).unwrap().into_parts();
        parts.headers = map(headers);
        classify(&parts, true, rule)
    }

    fn get(headers: &[(&str, &str)]) -> Eligibility {
        of("GET", headers, &KeyRule::default())
    }

    const TAKE: Eligibility = Eligibility::Take(MethodClass::Get);

    #[test]
    fn only_get_and_head_take_part() {
        let rule = KeyRule::default();
        assert_eq!(of("GET", &[], &rule), TAKE);
        assert_eq!(of("HEAD", &[], &rule), Eligibility::Take(MethodClass::Head));
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PURGE", "get"] {
            assert_eq!(of(method, &[], &rule), Eligibility::Pass(PassReason::Method), "{method}");
        }
    }

    #[test]
    fn unknown_methods_are_unsafe() {
        for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
            assert!(is_safe(&method.parse().unwrap()), "{method}");
        }
        for method in ["POST", "PUT", "DELETE", "PATCH", "CONNECT", "PROPFIND", "get"] {
            assert!(!is_safe(&method.parse().unwrap()), "{method}");
        }
    }

    #[test]
    fn each_header_that_forbids_it_passes() {
        for (name, value, reason) in [
            ("x-http-method-override", "DELETE", PassReason::Method),
            ("x-http-method", "DELETE", PassReason::Method),
            ("x-method-override", "DELETE", PassReason::Method),
            ("upgrade", "websocket", PassReason::Upgrade),
            ("connection", "keep-alive, Upgrade", PassReason::Upgrade),
            ("authorization", "", PassReason::Authorization),
            ("proxy-authorization", "x", PassReason::ProxyAuthorization),
            ("cookie", "a=1", PassReason::Cookie),
            ("content-length", "1", PassReason::Body),
            ("content-length", "x", PassReason::Body),
            ("transfer-encoding", "chunked", PassReason::Body),
            ("if-match", "*", PassReason::Precondition),
            ("if-unmodified-since", "x", PassReason::Precondition),
            ("expect", "100-continue", PassReason::Expect),
            ("range", "bytes=0-1", PassReason::Range),
        ] {
            assert_eq!(get(&[(name, value)]), Eligibility::Pass(reason), "{name}: {value}");
        }
    }

    #[test]
    fn harmless_headers_take_part() {
        for (name, value) in [
            ("connection", "keep-alive"),
            ("content-length", "0"),
            ("if-none-match", "\"a\""),
            ("if-modified-since", "x"),
            ("if-range", "\"a\""),
            ("cache-control", "no-cache"),
        ] {
            assert_eq!(get(&[(name, value)]), TAKE, "{name}: {value}");
        }
    }

    #[test]
    fn a_body_passes() {
        let (parts, ()) = Request::get("/").body(()).unwrap().into_parts();
        assert_eq!(classify(&parts, false, &KeyRule::default()), Eligibility::Pass(PassReason::Body));
    }

    #[test]
    fn every_line_is_looked_at() {
        assert_eq!(
            get(&[("content-length", "0"), ("content-length", "5")]),
            Eligibility::Pass(PassReason::Body)
        );
        assert_eq!(
            get(&[("connection", "close"), ("connection", "upgrade")]),
            Eligibility::Pass(PassReason::Upgrade)
        );
    }

    #[test]
    fn range_is_named_only_when_nothing_else_is_against_it() {
        assert_eq!(
            get(&[("range", "bytes=0-1"), ("authorization", "x")]),
            Eligibility::Pass(PassReason::Authorization)
        );
        assert_eq!(get(&[("range", "bytes=0-1"), ("expect", "x")]), Eligibility::Pass(PassReason::Expect));
    }

    #[test]
    fn credentials_in_the_key_take_part() {
        let rule = KeyRule::default().key_authorization().ignore_cookies(["_ga"]).key_cookies(["session"]);
        assert_eq!(of("GET", &[("authorization", "x"), ("proxy-authorization", "y")], &rule), TAKE);
        assert_eq!(of("GET", &[("cookie", "_ga=1; session=2")], &rule), TAKE);
        assert_eq!(of("GET", &[("cookie", "_ga=1; other=2")], &rule), Eligibility::Pass(PassReason::Cookie));
    }
}
