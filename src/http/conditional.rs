//! The client's own conditions, evaluated on the result instead of by the handler (RFC 9110 section 13).

use http::header::{
    CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, TRAILER, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName, Response, StatusCode};

use crate::http::freshness::single_date;
use crate::http::syntax::trim_ows;

/// The conditions taken from one request. Without any, empty and without an allocation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Conditionals(Option<Box<HeaderMap>>);

impl Conditionals {
    /// Whether the client has what is stored already: see [`not_modified`].
    pub(crate) fn not_modified(&self, status: StatusCode, stored: &HeaderMap) -> bool {
        self.0.as_ref().is_some_and(|request| not_modified(request, status, stored, &DATE))
    }
}

impl Conditionals {
    /// Turns a response that came for this client, and that it has already, into a 304, with this for a body.
    pub(crate) fn apply<B>(&self, response: &mut Response<B>, nothing: impl FnOnce() -> B) {
        let (status, headers) = (response.status(), response.headers());
        if self.0.as_ref().is_some_and(|request| not_modified(request, status, headers, &LAST_MODIFIED)) {
            reduce_to_304(response.headers_mut());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            *response.body_mut() = nothing();
        }
    }

    /// Puts the conditions back, for a request that runs for its own client alone.
    pub(crate) fn restore(self, headers: &mut HeaderMap) {
        if let Some(taken) = self.0 {
            headers.extend(*taken);
        }
    }
}

/// Takes `If-None-Match` and `If-Modified-Since` out of the headers of a load, so that its answer is one for
/// everybody. `If-Range` stays: without `Range` it means nothing, and requests with `Range` never load.
pub(crate) fn take_conditionals(headers: &mut HeaderMap) -> Conditionals {
    let mut taken = None;
    for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE] {
        // An entry makes room for itself, whether or not it is filled.
        if !headers.contains_key(&name) {
            continue;
        }
        if let http::header::Entry::Occupied(lines) = headers.entry(&name) {
            let taken: &mut Box<HeaderMap> = taken.get_or_insert_default();
            for line in lines.remove_entry_mult().1 {
                taken.append(&name, line);
            }
        }
    }
    Conditionals(taken)
}

/// Whether a request with these headers is answered by 304 from a stored response: only a 200 is. `If-None-Match`
/// is compared weakly; `If-Modified-Since` has a say only without it (RFC 9110 section 13.2.2), against
/// `Last-Modified`, or where there is none `or_else`: `Date` for what is stored (RFC 9111 section 4.3.2), nothing for
/// what is not (RFC 9110 section 13.1.3). What is malformed never matches.
fn not_modified(request: &HeaderMap, status: StatusCode, stored: &HeaderMap, or_else: &HeaderName) -> bool {
    if status != StatusCode::OK {
        return false;
    }
    if request.contains_key(IF_NONE_MATCH) {
        return none_match_fails(request, stored);
    }
    // More than one line is ignored, even where they agree (RFC 9110 section 13.1.3).
    if request.get_all(IF_MODIFIED_SINCE).iter().count() > 1 {
        return false;
    }
    let changed = if stored.contains_key(LAST_MODIFIED) { &LAST_MODIFIED } else { or_else };
    match (single_date(request, &IF_MODIFIED_SINCE), single_date(stored, changed)) {
        (Some(since), Some(modified)) => modified <= since,
        _ => false,
    }
}

/// Whether `If-None-Match` names the stored entity tag, or any (RFC 9110 section 13.1.2).
fn none_match_fails(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let lines = || request.get_all(IF_NONE_MATCH).iter().map(|line| trim_ows(line.as_bytes()));
    // `*` stands alone or is malformed.
    if lines().eq([b"*"]) {
        return true;
    }
    let Some((tag, _)) = entity_tag(stored) else { return false };
    lines().any(|line| lists(line, tag))
}

/// The opaque tag of a response that has one entity tag, quotes included, and whether it is weak.
pub(crate) fn entity_tag(headers: &HeaderMap) -> Option<(&[u8], bool)> {
    let mut tags = headers.get_all(ETAG).iter();
    let (Some(line), None) = (tags.next(), tags.next()) else { return None };
    let line = trim_ows(line.as_bytes());
    match split_tag(line) {
        Some((tag, [])) => Some((tag, line.starts_with(b"W/"))),
        _ => None,
    }
}

/// Whether the list of entity tags in `line` holds `tag`. A malformed member is passed over up to the next comma.
fn lists(mut line: &[u8], tag: &[u8]) -> bool {
    loop {
        line = trim_ows(line);
        let after = match split_tag(line) {
            Some((listed, after)) => {
                let after = trim_ows(after);
                let is_whole = after.is_empty() || after.starts_with(b",");
                if is_whole && listed == tag {
                    return true;
                }
                after
            }
            None => line,
        };
        let Some(comma) = after.iter().position(|byte| *byte == b',') else { return false };
        line = &after[comma + 1..];
    }
}

/// The opaque tag, quotes included, of the entity tag that `bytes` starts with, and what follows it (RFC 9110
/// section 8.8.3). Weakness is dropped: the comparison is weak.
fn split_tag(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let opaque = bytes.strip_prefix(b"W/").unwrap_or(bytes);
    let inner = opaque.strip_prefix(b"\"")?;
    let end = inner.iter().position(|byte| *byte == b'"')?;
    let is_tag_byte = |byte: &u8| matches!(byte, 0x21 | 0x23..=0x7e | 0x80..=0xff);
    inner[..end].iter().all(is_tag_byte).then(|| opaque.split_at(end + 2))
}

/// Turns the headers of a 200 into those of the 304 for it (RFC 9110 section 15.4.5).
///
/// Out go the framing and what describes a body; `Last-Modified` only where an `ETag` is the better validator. All
/// else stays: what that section demands (`Cache-Control`, `Content-Location`, `Date`, `ETag`, `Expires`, `Vary`),
/// `Age`, and fields for the client rather than the body (CORS, security policies).
pub(crate) fn reduce_to_304(headers: &mut HeaderMap) {
    const BODY: [HeaderName; 7] = [
        CONTENT_ENCODING,
        CONTENT_LANGUAGE,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        CONTENT_TYPE,
        TRAILER,
        TRANSFER_ENCODING,
    ];
    for name in &BODY {
        headers.remove(name);
    }
    for name in ["content-digest", "repr-digest", "digest", "content-md5"] {
        headers.remove(name);
    }
    if headers.contains_key(ETAG) {
        headers.remove(LAST_MODIFIED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::freshness::tests::date;
    use crate::http::syntax::tests::map;

    fn fails(request: &[(&str, &str)], stored: &[(&str, &str)]) -> bool {
        not_modified(&map(request), StatusCode::OK, &map(stored), &DATE)
    }

    fn matches(if_none_match: &str, etag: &str) -> bool {
        fails(&[("if-none-match", if_none_match)], &[("etag", etag)])
    }

    #[test]
    fn entity_tags_are_compared_weakly() {
        assert!(matches("\"a\"", "\"a\""));
        assert!(matches("W/\"a\"", "\"a\""));
        assert!(matches("\"a\"", "W/\"a\""));
        assert!(matches("W/\"a\"", "W/\"a\""));
        assert!(!matches("\"a\"", "\"b\""));
        assert!(!matches("\"a\"", "\"A\""));
        assert!(!matches("\"a\"", "\"ab\"") && !matches("\"ab\"", "\"a\""));
        assert!(matches("\"\"", "\"\""));
    }

    #[test]
    fn any_member_of_any_line_matches() {
        assert!(matches("\"x\" , W/\"a\",\"y\"", "\"a\""));
        assert!(matches(",, \"a\"", "\"a\""));
        assert!(matches("\"x,y\", \"a\"", "\"x,y\""));
        assert!(!matches("\"x,a\"", "\"a\""));
        assert!(fails(&[("if-none-match", "\"x\""), ("if-none-match", "\"a\"")], &[("etag", "\"a\"")]));
    }

    #[test]
    fn a_star_alone_matches_anything_stored() {
        assert!(fails(&[("if-none-match", " * ")], &[]));
        assert!(!matches("*, \"b\"", "\"a\""));
        assert!(!fails(&[("if-none-match", "*"), ("if-none-match", "\"b\"")], &[("etag", "\"a\"")]));
    }

    #[test]
    fn malformed_tags_never_match() {
        for bad in ["a", "'a'", "\"a", "a\"", "w/\"a\"", "W/ \"a\"", "\"a\"b", "\"a b\"", "", "x\"a\""] {
            assert!(!matches(bad, "\"a\""), "{bad:?}");
            assert!(!matches("\"a\"", bad), "{bad:?}");
            assert!(!matches(bad, bad), "{bad:?}");
        }
        assert!(!fails(&[("if-none-match", "\"a\"")], &[("etag", "\"a\""), ("etag", "\"a\"")]));
        assert!(!fails(&[("if-none-match", "\"a\"")], &[]));
    }

    #[test]
    fn a_malformed_member_does_not_hide_the_next() {
        assert!(matches("nonsense, \"a\"", "\"a\""));
        assert!(matches("\"b\" rubbish, \"a\"", "\"a\""));
        assert!(!matches("\"a\" rubbish, \"b\"", "\"a\""));
    }

    #[test]
    fn if_modified_since_is_inclusive() {
        let since = |offset| fails(&[("if-modified-since", &date(offset))], &[("last-modified", &date(0))]);
        assert!(since(0) && since(1));
        assert!(!since(-1));
    }

    #[test]
    fn without_last_modified_date_tells() {
        let since = |offset| fails(&[("if-modified-since", &date(offset))], &[("date", &date(0))]);
        assert!(since(0) && since(1));
        assert!(!since(-1));
        assert!(!fails(&[("if-modified-since", &date(0))], &[("date", &date(0)), ("last-modified", "x")]));
    }

    #[test]
    fn if_modified_since_needs_two_good_dates() {
        let now = date(0);
        assert!(!fails(&[("if-modified-since", "now")], &[("last-modified", &now)]));
        assert!(!fails(&[("if-modified-since", &now)], &[("last-modified", "now")]));
        for second in [now.as_str(), &date(9)] {
            let twice = [("if-modified-since", now.as_str()), ("if-modified-since", second)];
            assert!(!fails(&twice, &[("last-modified", &now)]));
        }
    }

    #[test]
    fn if_none_match_silences_if_modified_since() {
        let now = date(0);
        let stored = [("etag", "\"a\""), ("last-modified", now.as_str())];
        assert!(!fails(&[("if-none-match", "\"b\""), ("if-modified-since", &now)], &stored));
        assert!(!fails(&[("if-none-match", ""), ("if-modified-since", &now)], &stored));
        assert!(fails(&[("if-none-match", "\"a\""), ("if-modified-since", &date(-9))], &stored));
    }

    #[test]
    fn only_a_200_is_answered_by_304() {
        let (request, stored) = (map(&[("if-none-match", "*")]), map::<&str>(&[]));
        assert!(not_modified(&request, StatusCode::OK, &stored, &DATE));
        for status in [203, 301, 404, 500] {
            let status = StatusCode::from_u16(status).unwrap();
            assert!(!not_modified(&request, status, &stored, &DATE), "{status}");
        }
    }

    #[test]
    fn without_conditions_nothing_is_taken_and_nothing_fails() {
        let mut headers = map(&[("accept", "a"), ("if-range", "\"a\"")]);
        let before = headers.clone();
        let taken = take_conditionals(&mut headers);
        assert!(taken.0.is_none());
        assert_eq!(headers, before);
        assert!(!taken.not_modified(StatusCode::OK, &map(&[("etag", "\"a\"")])));
    }

    #[test]
    fn every_line_of_the_conditions_is_taken() {
        let now = date(0);
        let mut headers = map(&[
            ("if-none-match", "\"a\""),
            ("accept", "x"),
            ("if-none-match", "\"b\""),
            ("if-modified-since", &now),
        ]);
        let taken = take_conditionals(&mut headers);
        assert_eq!(headers, map(&[("accept", "x")]));
        for etag in ["\"a\"", "\"b\""] {
            assert!(taken.not_modified(StatusCode::OK, &map(&[("etag", etag)])));
        }
        assert!(!taken.not_modified(StatusCode::OK, &map(&[("etag", "\"c\""), ("last-modified", &now)])));

        let taken = take_conditionals(&mut map(&[("if-modified-since", &now)]));
        assert!(taken.not_modified(StatusCode::OK, &map(&[("last-modified", &now)])));
    }

    #[test]
    fn a_304_keeps_what_guides_caches_and_drops_what_describes_the_body() {
        let lines = |names: &[&'static str]| map(&names.iter().map(|name| (*name, "x")).collect::<Vec<_>>());
        let kept = [
            "access-control-allow-origin",
            "age",
            "cache-control",
            "content-location",
            "date",
            "etag",
            "expires",
            "vary",
        ];
        let dropped = [
            "content-digest",
            "content-encoding",
            "content-language",
            "content-length",
            "content-md5",
            "content-range",
            "content-type",
            "digest",
            "last-modified",
            "repr-digest",
            "trailer",
            "transfer-encoding",
        ];
        let mut headers = lines(&[&kept[..], &dropped].concat());
        reduce_to_304(&mut headers);
        assert_eq!(headers, lines(&kept));
    }

    #[test]
    fn a_304_without_an_entity_tag_keeps_last_modified() {
        let mut headers = map(&[("last-modified", "x")]);
        reduce_to_304(&mut headers);
        assert!(headers.contains_key(LAST_MODIFIED));
    }
}
