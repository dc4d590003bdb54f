//! gRPC over HTTP/2, as far as it takes to share unary calls: content types, framing, metadata, status.
//!
//! Names and numbers are those of the gRPC protocol (PROTOCOL-HTTP2.md and statuscodes.md of the gRPC documentation).

pub(crate) mod frame;
pub(crate) mod metadata;
pub(crate) mod method;
pub(crate) mod reply;
pub(crate) mod status;
pub(crate) mod timeout;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, Method};

use crate::http::eligible::{PassReason, reasons};
use crate::http::rule::KeyRule;

/// Whether the content type is `application/grpc`, perhaps with a codec (`+proto`) or parameters. gRPC-Web is another
/// protocol, whose status is part of the body.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(only), None) = (types.next(), types.next()) else { return false };
    let rest = only.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// Whether a call of a method that is to be shared takes part, its message aside.
pub(crate) fn takes_part(parts: &Parts, rule: &KeyRule) -> bool {
    // The body is the message.
    let speaks_only_of_a_body = || reasons(&parts.headers, rule).all(|reason| reason == PassReason::Body);
    parts.method == Method::POST && is_grpc(&parts.headers) && speaks_only_of_a_body()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::syntax::tests::map;
    use http::Request;

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for content_type in ["application/grpc", "application/grpc+proto", "application/grpc;x=1"] {
            assert!(is_grpc(&map(&[("content-type", content_type)])), "{content_type}");
        }
        for content_type in ["application/grpc-web", "application/grpc-web+proto", "application/json", ""] {
            assert!(!is_grpc(&map(&[("content-type", content_type)])), "{content_type}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
        assert!(!is_grpc(&map(&[("content-type", "application/grpc"), ("content-type", "text/plain")])));
    }

    fn takes(method: &str, more: &[(&str, &str)], rule: &KeyRule) -> bool {
        let (mut parts, ()) = Request::builder().method(method).body(()).unwrap().into_parts();
        parts.headers = map(&[&[("content-type", "application/grpc")], more].concat());
        takes_part(&parts, rule)
    }

    #[test]
    fn credentials_take_part_only_in_the_key() {
        let rule = KeyRule::default();
        assert!(takes("POST", &[("content-length", "9"), ("x-tenant", "a")], &rule));
        assert!(!takes("GET", &[], &rule));
        for name in ["authorization", "proxy-authorization", "cookie"] {
            assert!(!takes("POST", &[(name, "x")], &rule), "{name}");
        }
        let rule = KeyRule::default().key_authorization();
        assert!(takes("POST", &[("authorization", "x"), ("proxy-authorization", "x")], &rule));
        assert!(!takes("POST", &[("cookie", "a=1")], &rule));
    }
}
