//! The few pieces of header grammar that several modules read (RFC 9110 section 5.6), on bytes: a header value
//! need not be UTF-8, and a line that is not must not hide what stands beside it.

use http::{HeaderMap, HeaderName};

/// `bytes` without optional white space (space and tab) at either end (RFC 9110 section 5.6.3).
pub(crate) fn trim_ows(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The members of a list of plain tokens, over all lines of `name`: split at commas, trimmed, empty ones left
/// out (RFC 9110 section 5.6.1). Not for lists whose members may be quoted.
pub(crate) fn members<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(trim_ows)
        .filter(|member| !member.is_empty())
}

/// The words of a field, over all its lines, whatever stands between them: white space or commas.
pub(crate) fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let between = |byte: &u8| matches!(byte, b',' | b' ' | b'\t');
    headers
        .get_all(name)
        .iter()
        .flat_map(move |line| line.as_bytes().split(between))
        .filter(|word| !word.is_empty())
}

/// The value of a field that may stand only once. `Ok(None)` when absent, `Err` when lines contradict each other.
pub(crate) fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a [u8]>, Conflict> {
    let mut lines = headers.get_all(name).iter().map(|line| trim_ows(line.as_bytes()));
    let Some(first) = lines.next() else { return Ok(None) };
    if lines.all(|line| line == first) { Ok(Some(first)) } else { Err(Conflict) }
}

/// A field that may stand once stands several times, with different values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conflict;

/// Non-negative whole seconds (RFC 9111 section 1.2.2), at most [`MAX_DELTA_SECONDS`]; `None` if `bytes` is
/// anything but digits.
pub(crate) fn delta_seconds(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = bytes.iter().fold(0_u64, |value, digit| {
        // Held at the cap on every step, so the product cannot overflow.
        (value * 10 + u64::from(digit - b'0')).min(MAX_DELTA_SECONDS)
    });
    Some(value)
}

/// What an overflowing number of seconds counts as: 2^31 (RFC 9111 section 1.2.2), about 68 years.
pub(crate) const MAX_DELTA_SECONDS: u64 = 1 << 31;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use http::HeaderValue;
    use http::header::{CONNECTION, EXPIRES};

    /// A header map of these lines, in this order. Values are raw bytes.
    pub(crate) fn map<V: AsRef<[u8]>>(lines: &[(&str, V)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
            headers.append(name, HeaderValue::from_bytes(value.as_ref()).expect("a header value"));
        }
        headers
    }

    #[test]
    fn members_come_from_every_line_without_empties() {
        let headers = map(&[("connection", "a ,,\tb"), ("connection", ""), ("connection", " c,")]);
        assert_eq!(members(&headers, &CONNECTION).collect::<Vec<_>>(), [b"a", b"b", b"c"]);
    }

    #[test]
    fn words_are_kept_apart_by_space_or_comma() {
        let headers = map(&[("connection", "a, b\tc"), ("connection", " d,,e ")]);
        assert_eq!(words(&headers, &CONNECTION).collect::<Vec<_>>(), [b"a", b"b", b"c", b"d", b"e"]);
    }

    #[test]
    fn single_takes_repeats_and_refuses_contradictions() {
        assert_eq!(single(&map::<&str>(&[]), &EXPIRES), Ok(None));
        assert_eq!(single(&map(&[("expires", "a"), ("expires", " a")]), &EXPIRES), Ok(Some(&b"a"[..])));
        assert_eq!(single(&map(&[("expires", "a"), ("expires", "b")]), &EXPIRES), Err(Conflict));
    }

    #[test]
    fn delta_seconds_are_digits_only_and_capped() {
        assert_eq!(delta_seconds(b"0"), Some(0));
        assert_eq!(delta_seconds(b"0060"), Some(60));
        assert_eq!(delta_seconds(b"2147483649"), Some(MAX_DELTA_SECONDS));
        assert_eq!(delta_seconds(&[b'9'; 400]), Some(MAX_DELTA_SECONDS));
        for bad in ["", "-1", "+1", "1.5", "60s", " 60", "\"60\"", "\u{661}"] {
            assert_eq!(delta_seconds(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
