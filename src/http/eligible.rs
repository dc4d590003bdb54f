//! Which requests may be coalesced at all. Everything else goes straight through, untouched.

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::http::headers::{self, Role};
use crate::http::key::{Lines, MethodClass};
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

/// Which of the lines are there that are read on their own: looking for one that is not there is dear on each hit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Present {
    /// `If-None-Match` or `If-Modified-Since`.
    pub(crate) conditions: bool,
    /// `Cache-Control`.
    pub(crate) directives: bool,
}

/// GET, HEAD, OPTIONS and TRACE change nothing (RFC 9110 section 9.2.1). Any other method may, unknown ones included.
pub(crate) fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// Whether the request takes part under `rule`, and for one that is not passed for its method, what else its head has.
/// `body_is_empty` is what the body itself says. The lines that its key holds, if it takes part, go to `lines`: conditions
/// are not among them, since they are evaluated on the result.
pub(crate) fn classify<'a>(
    parts: &'a Parts,
    body_is_empty: bool,
    rule: &KeyRule,
    lines: &mut Lines<'a>,
) -> (Eligibility, Present) {
    let mut present = Present::default();
    let class = match parts.method {
        Method::GET => MethodClass::Get,
        Method::HEAD => MethodClass::Head,
        _ => return (Eligibility::Pass(PassReason::Method), present),
    };
    let mut against = (!body_is_empty).then_some(PassReason::Body);
    for (name, value) in &parts.headers {
        let text = name.as_str();
        let role = headers::role(text);
        let speaks = matches!(role, Role::Ignored | Role::Forbidding | Role::Credentials | Role::Cookie);
        match if speaks { say(name, value, &parts.headers, rule) } else { Say::Nothing } {
            Say::Against(reason) => against = Some(against.map_or(reason, |other| other.min(reason))),
            Say::Condition => {
                present.conditions = true;
                continue;
            }
            Say::Directive => present.directives = true,
            Say::Nothing => {}
        }
        if rule.keys_as(role, name) {
            lines.push(text, value);
        }
    }
    (against.map_or(Eligibility::Take(class), Eligibility::Pass), present)
}

/// What the lines of a head say against taking part.
#[cfg(feature = "grpc")]
pub(crate) fn reasons(headers: &HeaderMap, rule: &KeyRule) -> impl Iterator<Item = PassReason> {
    headers.iter().filter_map(|(name, value)| match say(name, value, headers, rule) {
        Say::Against(reason) => Some(reason),
        Say::Condition | Say::Directive | Say::Nothing => None,
    })
}

/// What one line of a head says.
enum Say {
    Nothing,
    /// Against taking part.
    Against(PassReason),
    /// `If-None-Match` or `If-Modified-Since`.
    Condition,
    /// `Cache-Control`.
    Directive,
}

/// No name is here that has no [`Role`] of its own.
fn say(name: &HeaderName, value: &HeaderValue, headers: &HeaderMap, rule: &KeyRule) -> Say {
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
        "if-none-match" | "if-modified-since" => return Say::Condition,
        "cache-control" => return Say::Directive,
        _ => return Say::Nothing,
    };
    if applies { Say::Against(reason) } else { Say::Nothing }
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
        classify(&parts, true, rule, &mut Lines::new()).0
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
    fn what_is_read_on_its_own_is_noted() {
        let present = |name: &str| {
            let (mut parts, ()) = Request::get("/").body(()).unwrap().into_parts();
            parts.headers = map(&[("accept", "*/*"), (name, "x"), ("accept-language", "en")]);
            classify(&parts, true, &KeyRule::default(), &mut Lines::new()).1
        };
        assert_eq!(present("if-range"), Present::default());
        for name in ["if-none-match", "if-modified-since"] {
            assert_eq!(present(name), Present { conditions: true, directives: false }, "{name}");
        }
        assert_eq!(present("cache-control"), Present { conditions: false, directives: true });
    }

    #[test]
    fn a_body_passes() {
        let (parts, ()) = Request::get("/").body(()).unwrap().into_parts();
        let rule = KeyRule::default();
        let (eligibility, _) = classify(&parts, false, &rule, &mut Lines::new());
        assert_eq!(eligibility, Eligibility::Pass(PassReason::Body));
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
