//! A part of a complete stored body, asked for by `Range` (RFC 9110 section 14).

use std::ops::Range;

use http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, IF_RANGE, LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::http::conditional::entity_tag;
use crate::http::freshness::single_date;
use crate::http::syntax::{single, trim_ows};

/// What a request with `Range` gets of a stored body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Share {
    /// All of it: its `If-Range` names another representation.
    Whole,
    /// 206, these bytes; never none.
    Part(Range<u64>),
    /// 416: it ends before they begin.
    Nothing,
}

/// What a request with `Range` gets of a stored 200 of `length` bytes. `None` if the origin has to answer: several
/// ranges, another unit, or a `Range` that is malformed.
pub(crate) fn share(request: &HeaderMap, stored: &HeaderMap, length: u64) -> Option<Share> {
    let line = single(request, &RANGE).ok().flatten()?;
    let asked = parse(line)?;
    if request.contains_key(IF_RANGE) && !if_range_holds(request, stored) {
        return Some(Share::Whole);
    }
    let part = match asked {
        Asked::Between(first, last) => first..last.map_or(length, |last| last.saturating_add(1).min(length)),
        Asked::Last(count) => length.saturating_sub(count)..length,
    };
    Some(if part.is_empty() { Share::Nothing } else { Share::Part(part) })
}

enum Asked {
    /// From, to and with.
    Between(u64, Option<u64>),
    /// So many at the end.
    Last(u64),
}

/// One range of bytes (RFC 9110 section 14.1.2).
fn parse(line: &[u8]) -> Option<Asked> {
    let (unit, range) = line.split_at_checked(6)?;
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return None;
    }
    let range = std::str::from_utf8(trim_ows(range)).ok()?;
    let (first, last) = range.split_once('-')?;
    match (first, last) {
        ("", count) => number(count).map(Asked::Last),
        (first, "") => Some(Asked::Between(number(first)?, None)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Asked::Between(first, Some(last)))
        }
    }
}

/// Digits only; what overflows is beyond every body.
fn number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

/// Whether `If-Range` names the stored representation: by a strong entity tag, or by a date that is that of
/// `Last-Modified` and at least one second before `Date` (RFC 9110 sections 13.1.5 and 8.8.2.2).
fn if_range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Ok(Some(condition)) = single(request, &IF_RANGE) else { return false };
    if condition.ends_with(b"\"") {
        let is_strong = entity_tag(stored).is_some_and(|(_, is_weak)| !is_weak);
        return is_strong && stored.get(ETAG).is_some_and(|tag| trim_ows(tag.as_bytes()) == condition);
    }
    let modified = single_date(stored, &LAST_MODIFIED);
    let is_strong = modified.zip(single_date(stored, &DATE)).is_some_and(|(modified, date)| modified < date);
    is_strong && single_date(request, &IF_RANGE) == modified
}

/// Fields about a representation, and how long and to whom it may be served.
const OF_THE_BODY: [&str; 15] = [
    "age",
    "cdn-cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-location",
    "content-type",
    "digest",
    "etag",
    "expires",
    "last-modified",
    "pragma",
    "repr-digest",
    "surrogate-control",
    "trailer",
];

/// Turns the head of a stored 200 into that of the answer to a request with `Range`.
pub(crate) fn reduce(share: &Share, length: u64, headers: &mut HeaderMap) -> StatusCode {
    let (status, range, left) = match share {
        Share::Whole => return StatusCode::OK,
        Share::Part(part) => {
            let range = format!("bytes {}-{}/{length}", part.start, part.end - 1);
            (StatusCode::PARTIAL_CONTENT, range, part.end - part.start)
        }
        Share::Nothing => (StatusCode::RANGE_NOT_SATISFIABLE, format!("bytes */{length}"), 0),
    };
    // Digests of all of the content (RFC 9530 section 2), which this is not.
    for name in ["content-digest", "content-md5"] {
        headers.remove(name);
    }
    if *share == Share::Nothing {
        // An error of this cache's own making: what is said of the body does not go for it, nor for how long.
        for name in OF_THE_BODY {
            headers.remove(name);
        }
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if let Ok(range) = HeaderValue::try_from(range) {
        headers.insert(CONTENT_RANGE, range);
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(left));
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::freshness::tests::date;
    use crate::http::syntax::tests::map;

    fn of(range: &str) -> Option<Share> {
        share(&map(&[("range", range)]), &HeaderMap::new(), 10)
    }

    #[test]
    fn one_range_of_bytes_is_cut_out() {
        for (range, part) in [
            ("bytes=0-0", 0..1),
            ("bytes=2-5", 2..6),
            ("BYTES=2-5", 2..6),
            ("bytes= 2-5 ", 2..6),
            ("bytes=2-", 2..10),
            ("bytes=9-99", 9..10),
            ("bytes=-3", 7..10),
            ("bytes=-99", 0..10),
            ("bytes=0-99999999999999999999999", 0..10),
            ("bytes=0-18446744073709551615", 0..10),
        ] {
            assert_eq!(of(range), Some(Share::Part(part)), "{range}");
        }
    }

    #[test]
    fn a_digest_of_all_of_the_content_is_not_that_of_a_part() {
        let names = ["content-digest", "content-md5", "repr-digest", "digest", "etag"];
        for (share, left) in
            [(Share::Part(0..2), &names[2..]), (Share::Nothing, &[][..]), (Share::Whole, &names)]
        {
            let mut headers = map(&names.map(|name| (name, "x")));
            reduce(&share, 10, &mut headers);
            let there: Vec<_> = names.into_iter().filter(|name| headers.contains_key(*name)).collect();
            assert_eq!(there, left, "{share:?}");
        }
    }

    #[test]
    fn what_lies_beyond_the_end_cannot_be_had() {
        for range in ["bytes=10-", "bytes=10-11", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(of(range), Some(Share::Nothing), "{range}");
        }
        assert_eq!(share(&map(&[("range", "bytes=-1")]), &HeaderMap::new(), 0), Some(Share::Nothing));
    }

    #[test]
    fn the_origin_answers_what_is_more_or_malformed() {
        for range in [
            "bytes=0-1,3-4",
            "items=0-1",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=5-2",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=1 -2",
            "0-1",
        ] {
            assert_eq!(of(range), None, "{range}");
        }
        let twice = map(&[("range", "bytes=0-1"), ("range", "bytes=3-4")]);
        assert_eq!(share(&twice, &HeaderMap::new(), 10), None);
    }

    fn if_range(condition: &str, stored: &[(&str, &str)]) -> bool {
        let request = map(&[("range", "bytes=0-1"), ("if-range", condition)]);
        match share(&request, &map(stored), 10) {
            Some(Share::Part(part)) => part == (0..2),
            Some(Share::Whole) => false,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn if_range_is_compared_strongly() {
        assert!(if_range("\"a\"", &[("etag", "\"a\"")]));
        assert!(!if_range("\"b\"", &[("etag", "\"a\"")]));
        assert!(!if_range("W/\"a\"", &[("etag", "W/\"a\"")]));
        assert!(!if_range("\"a\"", &[("etag", "W/\"a\"")]));
        assert!(!if_range("\"a\"", &[]));
        let (then, now) = (date(-60), date(0));
        let stored = [("last-modified", then.as_str()), ("date", now.as_str())];
        assert!(if_range(&then, &stored));
        assert!(!if_range(&now, &stored));
        assert!(!if_range(&then, &stored[..1]), "without a date nobody knows whether it was the last change");
        assert!(!if_range(&then, &[("last-modified", &then), ("date", &then)]));
        assert!(!if_range("yesterday", &stored));
    }

    #[test]
    fn the_head_says_which_part_it_is() {
        let reduced = |share| {
            let mut headers = map(&[("content-length", "10"), ("etag", "\"a\"")]);
            let status = reduce(&share, 10, &mut headers);
            (status.as_u16(), headers)
        };
        let head = |length: &str, range: &str| {
            map(&[("content-length", length), ("etag", "\"a\""), ("content-range", range)])
        };
        assert_eq!(reduced(Share::Part(2..6)), (206, head("4", "bytes 2-5/10")));
        let nothing =
            [("content-length", "0"), ("cache-control", "no-store"), ("content-range", "bytes */10")];
        assert_eq!(reduced(Share::Nothing), (416, map(&nothing)));
        assert_eq!(reduced(Share::Whole).0, 200);
    }
}
