//! Headers by what they are for: the closed list that no key needs, and the fields that belong to one connection.

use http::header::{
    CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRANSFER_ENCODING, UPGRADE,
    WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName};

use crate::http::syntax;

/// Request headers on which no answer should depend unless the response says so in `Vary`.
///
/// Exact names, no patterns: a name that is not here splits the key, which costs a load; a name that is here
/// wrongly hands one client's answer to another. Hence left out on purpose: `accept*`, `origin`, `sec-fetch-*`,
/// `forwarded` and `x-forwarded-host/-proto/-port/-prefix/-user` (they end up in links and redirects, or are an
/// identity), `x-forwarded-client-cert`, `cf-visitor` (a scheme), `cf-ipcountry`, `save-data`, `sec-gpc`, and
/// `host`, which every key holds.
const IGNORED: [&str; 78] = [
    // The connection and the message's framing (RFC 9110 sections 7.6 and 8.6). A request with a body passes by.
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "content-length",
    "via",
    "cdn-loop",
    "priority",
    // The client's software: a page that depends on it says `Vary: user-agent` (RFC 9110 section 12.5.5) or
    // `Vary: sec-ch-ua..` (RFC 8942 section 3.2).
    "user-agent",
    "sec-ch-ua",
    "sec-ch-ua-arch",
    "sec-ch-ua-bitness",
    "sec-ch-ua-form-factors",
    "sec-ch-ua-full-version",
    "sec-ch-ua-full-version-list",
    "sec-ch-ua-mobile",
    "sec-ch-ua-model",
    "sec-ch-ua-platform",
    "sec-ch-ua-platform-version",
    "sec-ch-ua-wow64",
    // Network measurements, different on every request.
    "downlink",
    "ect",
    "rtt",
    "referer",
    // Conditions, evaluated on the result (RFC 9110 section 13). `range` never loads: it is answered from a
    // complete stored body, under the key of the whole, or passes by.
    "if-none-match",
    "if-modified-since",
    "if-range",
    "range",
    // Cache directives (RFC 9111 section 5): clients neither widen reuse nor force reloads.
    "cache-control",
    "pragma",
    // Tracing.
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "uber-trace-id",
    "sentry-trace",
    "x-amzn-trace-id",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "x-datadog-origin",
    "x-datadog-tags",
    "elastic-apm-traceparent",
    "newrelic",
    "x-newrelic-id",
    "x-newrelic-transaction",
    "x-ot-span-context",
    // Request ids and stop-watches.
    "request-id",
    "x-request-id",
    "correlation-id",
    "x-correlation-id",
    "x-trace-id",
    "x-amz-cf-id",
    "x-azure-ref",
    "cf-ray",
    "fly-request-id",
    "x-vercel-id",
    "x-request-start",
    "x-queue-start",
    "x-envoy-attempt-count",
    // The client's address.
    "x-forwarded-for",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "cf-connecting-ip",
    "true-client-ip",
    "fastly-client-ip",
    "fly-client-ip",
];

/// What a request header is to the key, before the operator says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// `Host`, which every key holds, whatever the operator says.
    Host,
    /// `Authorization` and `Proxy-Authorization`.
    Credentials,
    Cookie,
    /// On the closed list of those that no key needs.
    Ignored,
    /// Not on it, and a reason for a request not to take part.
    Forbidding,
    /// Any other: it counts.
    Other,
}

const SPECIAL: [(&str, Role); 10] = [
    ("host", Role::Host),
    ("authorization", Role::Credentials),
    ("proxy-authorization", Role::Credentials),
    ("cookie", Role::Cookie),
    ("if-match", Role::Forbidding),
    ("if-unmodified-since", Role::Forbidding),
    ("expect", Role::Forbidding),
    ("x-http-method-override", Role::Forbidding),
    ("x-method-override", Role::Forbidding),
    ("x-http-method", Role::Forbidding),
];

const NAMED: usize = IGNORED.len() + SPECIAL.len();

/// The names that have a role, numbered.
const fn named(number: usize) -> (&'static str, Role) {
    if number < IGNORED.len() { (IGNORED[number], Role::Ignored) } else { SPECIAL[number - IGNORED.len()] }
}

/// Where the names that have a role are found.
struct Roles {
    seed: u32,
    /// By [`slot`], of which no two names share one: one more than a name's [number](named); zero where none is.
    numbers: [u8; 1 << SLOT_BITS],
}

const SLOT_BITS: u32 = 10;

static ROLES: Roles = roles();

/// Tries seeds until one gives each name a slot of its own.
const fn roles() -> Roles {
    const { assert!(NAMED < u8::MAX as usize) };
    let mut seed: u32 = 1;
    loop {
        let mut numbers = [0; 1 << SLOT_BITS];
        let mut count: u8 = 0;
        while (count as usize) < NAMED {
            let slot = slot(named(count as usize).0.as_bytes(), seed);
            if numbers[slot] != 0 {
                break;
            }
            count += 1;
            numbers[slot] = count;
        }
        if count as usize == NAMED {
            return Roles { seed, numbers };
        }
        seed = seed.wrapping_add(0x9e37_79b8);
    }
}

/// Four bytes of a name, spread over the slots. `name` is not empty.
const fn slot(name: &[u8], seed: u32) -> usize {
    let length = name.len();
    let taken = [length.to_le_bytes()[0], name[0], name[length / 2], name[length - 1]];
    (u32::from_le_bytes(taken).wrapping_mul(seed) >> (u32::BITS - SLOT_BITS)) as usize
}

/// What `name`, a field name in lower case, is to the key. Compares with one name at most; allocates nothing.
#[inline]
pub(crate) fn role(name: &str) -> Role {
    match ROLES.numbers[slot(name.as_bytes(), ROLES.seed)] {
        0 => Role::Other,
        number => match named(usize::from(number) - 1) {
            (known, role) if known == name => role,
            _ => Role::Other,
        },
    }
}

/// Removes what belongs to one connection only, from a response that is to be stored or shared: `Connection` and
/// each field it names (RFC 9110 section 7.6.1), the fields that section lists for senders who do not name them, and
/// the `Proxy-*` credentials (RFC 9111 section 3.1). `Trailer` stays: the trailers do too.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        // Members that are no field names (`\xff`, `a b`) name nothing.
        let named: Vec<HeaderName> = syntax::members(headers, &CONNECTION)
            .filter_map(|member| HeaderName::from_bytes(member).ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [TE, TRANSFER_ENCODING, UPGRADE, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "proxy-authentication-info"] {
        headers.remove(name);
    }
}

/// Removes from trailers that others get what would have kept the response from them, had it stood in the head, and
/// what belongs to one connection. `Authentication-Info` is meant to come in trailers (RFC 9110 section 11.6.3).
pub(crate) fn strip_personal(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    for name in [SET_COOKIE, WWW_AUTHENTICATE] {
        trailers.remove(name);
    }
    for name in ["authentication-info", "clear-site-data"] {
        trailers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::syntax::tests::map;

    fn is_ignored(name: &'static str) -> bool {
        role(name) == Role::Ignored
    }

    #[test]
    fn every_name_of_the_list_is_found() {
        for name in IGNORED {
            assert!(is_ignored(name), "{name}");
        }
    }

    #[test]
    fn the_list_has_no_name_twice() {
        let mut names = IGNORED.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), IGNORED.len());
    }

    #[test]
    fn what_may_tell_answers_apart_is_not_ignored() {
        for name in [
            "accept",
            "accept-encoding",
            "accept-language",
            "accept-charset",
            "authorization",
            "cookie",
            "cf-ipcountry",
            "cf-visitor",
            "content-type",
            "expect",
            "forwarded",
            "from",
            "host",
            "if-match",
            "origin",
            "proxy-authorization",
            "save-data",
            "sec-fetch-dest",
            "sec-fetch-mode",
            "sec-fetch-site",
            "sec-fetch-user",
            "x-api-key",
            "x-csrf-token",
            "x-forwarded-client-cert",
            "x-forwarded-host",
            "x-forwarded-port",
            "x-forwarded-prefix",
            "x-forwarded-proto",
            "x-forwarded-user",
            "x-http-method-override",
            "x-original-url",
            "x-rewrite-url",
            "x-tenant",
        ] {
            assert!(!is_ignored(name), "{name}");
        }
    }

    #[test]
    fn a_name_that_shares_the_slot_of_another_has_no_role() {
        let slot_of = |name: &str| slot(name.as_bytes(), ROLES.seed);
        // Of the four bytes that choose the slot, all are the same.
        for (known, near) in [("host", "hast"), ("cookie", "cxxkie"), ("x-real-ip", "x-raal-ip")] {
            assert_eq!(slot_of(known), slot_of(near), "{near}");
            assert_eq!(role(near), Role::Other, "{near}");
        }
    }

    #[test]
    fn names_near_the_list_split() {
        for name in ["x-b3", "x-b3-tenant", "sec-ch-ua-", "sec-ch-uaa", "dn", "user-agents", "x"] {
            assert!(!is_ignored(name), "{name}");
        }
        let long = HeaderName::from_bytes(&[b'a'; 300]).unwrap();
        assert_eq!(role(long.as_str()), Role::Other);
        for length in 1..60 {
            let name = HeaderName::from_bytes(&vec![b'a'; length]).unwrap();
            assert_eq!(role(name.as_str()), Role::Other, "{length}");
        }
    }

    #[test]
    fn names_are_compared_without_case() {
        assert_eq!(role(HeaderName::from_bytes(b"X-Request-ID").unwrap().as_str()), Role::Ignored);
    }

    fn left(lines: &[(&str, &[u8])]) -> Vec<String> {
        let mut headers = map(lines);
        strip_hop_by_hop(&mut headers);
        let mut names: Vec<_> = headers.keys().map(|name| name.as_str().to_owned()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn fields_of_one_connection_go_and_trailer_stays() {
        let lines: Vec<(&str, &[u8])> = [
            "connection",
            "keep-alive",
            "proxy-connection",
            "te",
            "transfer-encoding",
            "upgrade",
            "proxy-authenticate",
            "proxy-authorization",
            "proxy-authentication-info",
            "trailer",
            "content-type",
        ]
        .map(|name| (name, &b"x"[..]))
        .to_vec();
        assert_eq!(left(&lines), ["content-type", "trailer"]);
    }

    #[test]
    fn fields_named_by_any_connection_line_go() {
        assert_eq!(
            left(&[
                ("connection", b"close, X-One ,,"),
                ("connection", b"\tx-TWO\t"),
                ("connection", b"\xff, a b, x-three"),
                ("x-one", b"1"),
                ("x-two", b"2"),
                ("x-two", b"2 again"),
                ("x-three", b"3"),
                ("x-four", b"4"),
            ]),
            ["x-four"]
        );
    }
}
