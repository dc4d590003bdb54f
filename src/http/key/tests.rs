//! Keys: what splits them and what does not, by example and by generated neighbours.

use super::*;
use crate::http::syntax::tests::map;
use crate::http::vary::Vary;
use crate::http::writer::MAX_KEY_BYTES;
use http::header::HOST;
use http::{HeaderName, Request};
use proptest::prelude::*;

/// A request in plain words, and what of it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Case {
    head: bool,
    uri: String,
    original: Option<String>,
    headers: Vec<(String, String)>,
    generation: u64,
    extra: Vec<u8>,
}

impl Case {
    fn get(uri: &str) -> Self {
        Self { head: false, uri: uri.into(), original: None, headers: vec![], generation: 0, extra: vec![] }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    fn original(mut self, uri: &str) -> Self {
        self.original = Some(uri.into());
        self
    }

    fn try_key(&self, rule: &KeyRule, vary: &str) -> Result<Vec<u8>, KeyTooLong> {
        let Vary::Names(vary) = VarySpec::parse(&map(&[("vary", vary)])) else { panic!("any") };
        let (mut parts, ()) = Request::get(&self.uri).body(()).unwrap().into_parts();
        let lines: Vec<_> = self.headers.iter().map(|(name, value)| (name.as_str(), value)).collect();
        parts.headers = map(&lines);
        let original = self.original.as_ref().map(|uri| uri.parse::<Uri>().unwrap());
        let mut key = KeyWriter::new();
        key.field(b"left over").unwrap();
        let class = if self.head { MethodClass::Head } else { MethodClass::Get };
        let input = KeyInput {
            class,
            parts: &parts,
            lines: &Lines::of(rule, &parts.headers),
            original: original.as_ref(),
            generation: self.generation,
            vary: &vary.without_keyed(rule),
            extra: &self.extra,
        };
        let result = input.write(rule, &mut key);
        result.map(|()| key.written().to_vec()).inspect_err(|_| assert!(key.written().is_empty()))
    }

    fn key(&self) -> Vec<u8> {
        self.try_key(&KeyRule::default(), "").unwrap()
    }
}

#[test]
fn the_uri_counts_byte_for_byte() {
    let uris = [
        "/a",
        "/a?",
        "/a/",
        "/A",
        "/%61",
        "/a?q",
        "/a?q=1&r=2",
        "/a?r=2&q=1",
        "//a",
        "/b/../a",
        "http://h/a",
        "https://h/a",
        "http://H/a",
        "http://h:80/a",
    ];
    for (i, one) in uris.iter().enumerate() {
        for other in &uris[..i] {
            assert_ne!(Case::get(one).key(), Case::get(other).key(), "{one} {other}");
            let (one, other) = (Case::get("/").original(one), Case::get("/").original(other));
            assert_ne!(one.key(), other.key(), "{one:?} {other:?}");
        }
    }
}

#[test]
fn the_original_uri_counts_beside_the_uri() {
    let nested = Case::get("/x").original("/one/x").key();
    assert_ne!(nested, Case::get("/x").original("/two/x").key());
    assert_ne!(nested, Case::get("/y").original("/one/x").key());
    assert_ne!(nested, Case::get("/one/x").original("/x").key());
    assert_ne!(Case::get("/x").original("/x").key(), Case::get("/x").key());
    assert_ne!(Case::get("/x?a").original("/x?a").key(), Case::get("/x?a").original("/x?b").key());
    assert_ne!(
        Case::get("http://h/").original("http://h/").key(),
        Case::get("http://h/").original("http://H/").key()
    );
}

#[test]
fn host_authority_class_generation_and_extra_count() {
    let base = Case::get("/");
    assert_ne!(base.key(), base.clone().with("host", "a").key());
    assert_ne!(base.clone().with("host", "a").key(), base.clone().with("host", "A").key());
    assert_ne!(
        base.clone().with("host", "a").with("host", "b").key(),
        base.clone().with("host", "b").with("host", "a").key()
    );
    assert_ne!(
        Case::get("http://a/").with("host", "b").key(),
        Case::get("http://b/").with("host", "a").key()
    );
    assert_ne!(base.key(), Case { head: true, ..base.clone() }.key());
    assert_ne!(base.key(), Case { generation: 1, ..base.clone() }.key());
    assert_ne!(base.key(), Case { extra: b"tenant".to_vec(), ..base.clone() }.key());
}

#[test]
fn host_counts_even_in_the_classic_key() {
    let rule = KeyRule::default().key_headers([]).ignore_header(HOST);
    let (a, b) = (Case::get("/").with("host", "a"), Case::get("/").with("host", "b"));
    assert_ne!(a.try_key(&rule, ""), b.try_key(&rule, ""));
}

#[test]
fn unknown_headers_split_and_ignored_ones_do_not() {
    let base = Case::get("/");
    assert_ne!(base.key(), base.clone().with("x-tenant", "a").key());
    assert_ne!(base.clone().with("x-tenant", "a").key(), base.clone().with("x-tenant", "b").key());
    assert_eq!(base.key(), base.clone().with("user-agent", "a").key());
}

#[test]
fn the_order_of_names_does_not_split_and_that_of_lines_does() {
    let one = Case::get("/").with("x-a", "1").with("x-b", "2").with("x-a", "3");
    let other = Case::get("/").with("x-b", "2").with("x-a", "1").with("x-a", "3");
    let turned = Case::get("/").with("x-a", "3").with("x-b", "2").with("x-a", "1");
    assert_eq!(one.key(), other.key());
    assert_ne!(one.key(), turned.key());
    assert_ne!(Case::get("/").with("x-a", "1").key(), Case::get("/").with("x-a", "1").with("x-a", "1").key());
}

#[test]
fn many_headers_sort_like_few() {
    let names: Vec<String> = (0..ON_STACK + 8).map(|i| format!("x-{i}")).collect();
    let up = names.iter().fold(Case::get("/"), |case, name| case.with(name, name));
    let down = names.iter().rev().fold(Case::get("/"), |case, name| case.with(name, name));
    assert_eq!(up.key(), down.key());
    assert_ne!(up.key(), up.clone().with("x-0", "again").key());
}

#[test]
fn vary_splits_by_headers_that_the_rule_leaves_out() {
    let rule = KeyRule::default();
    let (a, b) = (Case::get("/").with("user-agent", "a"), Case::get("/").with("user-agent", "b"));
    assert_eq!(a.try_key(&rule, "accept"), b.try_key(&rule, "accept"));
    assert_ne!(a.try_key(&rule, "user-agent"), b.try_key(&rule, "user-agent"));
    let ignoring = KeyRule::default().ignore_header(HeaderName::from_static("x-a"));
    let (a, b) = (Case::get("/").with("x-a", "a"), Case::get("/").with("x-a", "b"));
    assert_eq!(a.try_key(&ignoring, ""), b.try_key(&ignoring, ""));
    assert_ne!(a.try_key(&ignoring, "x-a"), b.try_key(&ignoring, "x-a"));
}

#[test]
fn keyed_cookies_split_and_ignored_ones_do_not() {
    let rule = KeyRule::default().ignore_cookies(["_ga"]).key_cookies(["session"]);
    let key = |cookie: &str| Case::get("/").with("cookie", cookie).try_key(&rule, "cookie").unwrap();
    assert_eq!(key("_ga=1; session=s"), key("session=s; _ga=2"));
    assert_ne!(key("session=s"), key("session=t"));
}

#[test]
fn rules_do_not_share_keys() {
    let case = Case::get("/").with("accept", "a");
    let other = KeyRule::default().ignore_header(HeaderName::from_static("x-never-sent"));
    assert_ne!(case.try_key(&KeyRule::default(), ""), case.try_key(&other, ""));
}

#[test]
fn a_key_over_the_cap_is_refused() {
    let long = "x".repeat(MAX_KEY_BYTES);
    for case in [
        Case::get(&format!("/{long}")),
        Case::get("/").with("x-a", &long),
        Case::get("/").with("host", &long),
        Case { extra: long.clone().into(), ..Case::get("/") },
    ] {
        assert_eq!(case.try_key(&KeyRule::default(), ""), Err(KeyTooLong));
    }
    let ignored = Case::get("/").with("user-agent", &long);
    assert!(ignored.try_key(&KeyRule::default(), "").is_ok());
    assert_eq!(ignored.try_key(&KeyRule::default(), "user-agent"), Err(KeyTooLong));
}

/// What of a case counts under the default rule, put in a form that can be compared without a key.
fn meaning(case: &Case) -> Case {
    let mut case = case.clone();
    case.headers.retain(|(name, _)| name != "rtt");
    case.headers.sort_by(|a, b| a.0.cmp(&b.0));
    case
}

/// Few letters and short fields, so that pairs often come close to one another.
fn cases() -> impl Strategy<Value = Case> {
    let uri = "(http://a|http://b|http://A)?/[ab]{0,2}(\\?[ab]{0,2})?";
    let header = ("host|rtt|x-a|x-b|x-ab|a", "[ab, ]{0,3}");
    (
        any::<bool>(),
        uri,
        prop::option::of(uri),
        prop::collection::vec(header, 0..5),
        0..2_u64,
        prop::collection::vec(0..2_u8, 0..3),
    )
        .prop_map(|(head, uri, original, headers, generation, extra)| Case {
            head,
            uri,
            original,
            headers,
            generation,
            extra,
        })
}

/// A case and a neighbour of it: the same but for one part, or with its headers in another order.
fn neighbours() -> impl Strategy<Value = (Case, Case)> {
    (cases(), cases(), 0..7_u8).prop_map(|(one, other, part)| {
        let mut near = one.clone();
        match part {
            0 => near.head = other.head,
            1 => near.uri = other.uri,
            2 => near.original = other.original,
            3 => near.headers = other.headers,
            4 => near.generation = other.generation,
            5 => near.extra = other.extra,
            _ => near.headers.reverse(),
        }
        (one, near)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn keys_are_equal_exactly_when_requests_mean_the_same((one, other) in neighbours()) {
        prop_assert_eq!(one.key() == other.key(), meaning(&one) == meaning(&other));
    }

    #[test]
    fn no_key_is_the_beginning_of_another((one, other) in neighbours()) {
        let (one, other) = (one.key(), other.key());
        prop_assert!(one == other || !other.starts_with(&one));
    }

    #[test]
    fn values_named_by_vary_split_exactly_when_they_differ(
        one in prop::collection::vec("[ab, ]{0,3}", 0..3),
        other in prop::collection::vec("[ab, ]{0,3}", 0..3),
    ) {
        let case = |values: &[String]| {
            values.iter().fold(Case::get("/"), |case, value| case.with("rtt", value))
                .try_key(&KeyRule::default(), "rtt").unwrap()
        };
        let normal = |values: &[String]| -> Option<Vec<String>> {
            let joined = values.join(",");
            (!values.is_empty()).then(|| joined.split(',').map(|member| member.trim().to_owned()).collect())
        };
        prop_assert_eq!(case(&one) == case(&other), normal(&one) == normal(&other));
    }
}
