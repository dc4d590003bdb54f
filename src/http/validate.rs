//! The guard's own validation of what it stores: the conditions it sends, and what the answer makes of the stored
//! headers (RFC 9111 sections 3.2 and 4.3).

use std::time::SystemTime;

use http::header::{
    AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    LAST_MODIFIED,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::http::conditional::entity_tag;
use crate::http::freshness::single_date;
use crate::http::syntax::{single, trim_ows};

/// The conditions by which an origin can tell whether a stored response is still its answer. Only a 200 has any: an
/// origin evaluates conditions where it would answer with success (RFC 9110 section 13.2.1).
#[derive(Debug, Clone)]
pub(crate) struct Validators {
    etag: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
}

impl Validators {
    /// Those of a stored response. `None` if it has neither an entity tag nor a date, each well-formed and alone.
    pub(crate) fn of(status: StatusCode, stored: &HeaderMap) -> Option<Self> {
        if status != StatusCode::OK {
            return None;
        }
        let etag = entity_tag(stored).and(stored.get(ETAG)).cloned();
        let last_modified = single_date(stored, &LAST_MODIFIED).and(stored.get(LAST_MODIFIED)).cloned();
        (etag.is_some() || last_modified.is_some()).then_some(Self { etag, last_modified })
    }

    /// Adds them to a request whose own conditions are gone.
    pub(crate) fn add_to(self, request: &mut HeaderMap) {
        if let Some(etag) = self.etag {
            request.insert(IF_NONE_MATCH, etag);
        }
        if let Some(date) = self.last_modified {
            request.insert(IF_MODIFIED_SINCE, date);
        }
    }
}

/// Whether an answer may speak of the stored response: none of the validators it has is another (RFC 9111 section
/// 4.3.4). Entity tags are compared weakly: one that turned weak is the same representation.
pub(crate) fn agrees(stored: &HeaderMap, answer: &HeaderMap) -> bool {
    let same_tag = !answer.contains_key(ETAG)
        || entity_tag(answer)
            .is_some_and(|(tag, _)| entity_tag(stored).is_some_and(|(known, _)| known == tag));
    let line = |headers| single(headers, &LAST_MODIFIED).ok().flatten();
    let same_date = !answer.contains_key(LAST_MODIFIED)
        || line(answer).is_some_and(|date| line(stored) == Some(date))
        // A stronger validator has spoken.
        || answer.contains_key(ETAG);
    same_tag && same_date
}

/// The stored headers with those of a newer answer in their place: a 304's, or a HEAD's (RFC 9111 section 3.2).
/// What describes the bytes that are stored stays. Both are without fields of one connection.
pub(crate) fn updated(stored: &HeaderMap, answer: &HeaderMap, received: SystemTime) -> HeaderMap {
    const OF_THE_BODY: [HeaderName; 3] = [CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE];
    let is_of_the_body = |name: &HeaderName| {
        OF_THE_BODY.contains(name) || matches!(name.as_str(), "content-digest" | "content-md5" | "digest")
    };
    let mut headers = stored.clone();
    // How old the answer was that these came with.
    headers.remove(AGE);
    headers.remove(DATE);
    for name in answer.keys().filter(|name| !is_of_the_body(name)) {
        headers.remove(name);
        for line in answer.get_all(name) {
            headers.append(name, line.clone());
        }
    }
    date(&mut headers, received);
    headers
}

/// Gives a response without a `Date` the time at which it came (RFC 9110 section 6.6.1).
pub(crate) fn date(headers: &mut HeaderMap, received: SystemTime) {
    if !headers.contains_key(DATE)
        && let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(received))
    {
        headers.insert(DATE, date);
    }
}

/// What the answer to a HEAD tells of the stored response of a GET (RFC 9111 section 4.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Both have the same validator: it is the same response.
    Confirmed,
    /// Nothing speaks against that, and nothing for it: bodies of one length are not one body.
    Unconfirmed,
    /// A validator differs, or the length that it tells.
    Another,
}

pub(crate) fn heard(stored: &HeaderMap, length: Option<u64>, answer: &HeaderMap) -> Heard {
    let said = answer.get(CONTENT_LENGTH).map(|said| trim_ows(said.as_bytes()));
    let same_length =
        said.is_none_or(|said| length.is_some_and(|length| said == length.to_string().as_bytes()));
    if !same_length || !agrees(stored, answer) {
        return Heard::Another;
    }
    // What the answer has of these agrees. A date does not speak for a response that has a tag.
    let by_tag = answer.contains_key(ETAG);
    let by_date = !stored.contains_key(ETAG) && single_date(answer, &LAST_MODIFIED).is_some();
    if by_tag || by_date { Heard::Confirmed } else { Heard::Unconfirmed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::freshness::tests::{date as at, now};
    use crate::http::syntax::tests::map;

    fn sent(status: u16, stored: &[(&str, &str)]) -> Option<HeaderMap> {
        let mut request = HeaderMap::new();
        Validators::of(StatusCode::from_u16(status).unwrap(), &map(stored))?.add_to(&mut request);
        Some(request)
    }

    #[test]
    fn both_validators_are_sent_as_they_came() {
        let then = at(-5);
        let stored = [("etag", "W/\"a\""), ("last-modified", then.as_str())];
        let expected = map(&[("if-none-match", "W/\"a\""), ("if-modified-since", &then)]);
        assert_eq!(sent(200, &stored).unwrap(), expected);
    }

    #[test]
    fn what_is_malformed_or_no_200_is_not_validated() {
        for bad in [[("etag", "a")], [("last-modified", "yesterday")], [("x", "y")]] {
            assert!(sent(200, &bad).is_none(), "{bad:?}");
        }
        assert!(sent(200, &[("etag", "\"a\""), ("etag", "\"b\"")]).is_none());
        assert!(sent(404, &[("etag", "\"a\"")]).is_none());
    }

    #[test]
    fn an_answer_with_another_validator_is_about_something_else() {
        let (then, later) = (at(-5), at(0));
        let stored = map(&[("etag", "\"a\""), ("last-modified", &then)]);
        let agrees = |lines: &[(&str, &str)]| agrees(&stored, &map(lines));
        assert!(agrees(&[]));
        assert!(agrees(&[("etag", "\"a\"")]) && agrees(&[("etag", "W/\"a\"")]));
        assert!(agrees(&[("last-modified", &then)]));
        assert!(!agrees(&[("etag", "\"b\"")]) && !agrees(&[("etag", "a")]));
        assert!(!agrees(&[("last-modified", &later)]));
        assert!(agrees(&[("etag", "\"a\""), ("last-modified", &later)]));
    }

    #[test]
    fn an_update_replaces_fields_and_leaves_those_of_the_body() {
        let stored = map(&[
            ("age", "0"),
            ("content-encoding", "gzip"),
            ("content-length", "5"),
            ("date", &at(-60)),
            ("x", "1"),
            ("x", "2"),
            ("y", "1"),
        ]);
        let answer = map(&[
            ("cache-control", "max-age=5"),
            ("content-encoding", "br"),
            ("content-length", "7"),
            ("x", "3"),
            ("x", "4"),
        ]);
        let expected = map(&[
            ("cache-control", "max-age=5"),
            ("content-encoding", "gzip"),
            ("content-length", "5"),
            ("date", &at(0)),
            ("x", "3"),
            ("x", "4"),
            ("y", "1"),
        ]);
        assert_eq!(updated(&stored, &answer, now()), expected);
        let dated = updated(&stored, &map(&[("date", at(-2).as_str()), ("age", "7")]), now());
        assert_eq!(
            dated,
            map(&[
                ("content-encoding", "gzip"),
                ("content-length", "5"),
                ("x", "1"),
                ("x", "2"),
                ("y", "1"),
                ("date", &at(-2)),
                ("age", "7"),
            ])
        );
    }

    #[test]
    fn a_head_confirms_by_a_validator_alone() {
        let (then, later) = (at(-5), at(0));
        let told =
            |stored: &[(&str, &str)], answer: &[(&str, &str)]| heard(&map(stored), Some(5), &map(answer));
        let (tag, date) = (("etag", "\"a\""), ("last-modified", then.as_str()));
        assert_eq!(told(&[tag], &[tag]), Heard::Confirmed);
        assert_eq!(told(&[tag, date], &[tag]), Heard::Confirmed);
        assert_eq!(told(&[date], &[date, ("content-length", "5")]), Heard::Confirmed);
        for (stored, answer) in [(&[][..], &[][..]), (&[tag], &[]), (&[tag, date], &[date]), (&[date], &[])] {
            assert_eq!(told(stored, answer), Heard::Unconfirmed, "{stored:?} {answer:?}");
        }
        for (stored, answer) in [(&[][..], &[tag][..]), (&[date], &[tag, date]), (&[], &[date])] {
            assert_eq!(told(stored, answer), Heard::Another, "{stored:?} {answer:?}");
        }
        assert_eq!(told(&[], &[("content-length", "5")]), Heard::Unconfirmed);
        assert_eq!(told(&[tag], &[("etag", "\"b\"")]), Heard::Another);
        assert_eq!(told(&[date], &[("last-modified", &later)]), Heard::Another);
        for length in ["6", "x"] {
            assert_eq!(told(&[tag], &[tag, ("content-length", length)]), Heard::Another);
        }
        assert_eq!(heard(&map(&[tag]), None, &map(&[tag, ("content-length", "5")])), Heard::Another);
    }
}
