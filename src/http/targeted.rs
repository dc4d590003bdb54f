//! Targeted cache control: directives for a kind of cache, in a field of their own (RFC 9213).

use std::time::Duration;

use http::{HeaderMap, HeaderName};
use sfv::{BareItem, Dictionary, Item, ListEntry, Parser};

use crate::http::cache_control::ResponseDirectives;
use crate::http::syntax::MAX_DELTA_SECONDS;

/// The directives of the first of these fields that a response has, if it is a valid and not an empty dictionary.
/// `Cache-Control` and `Expires` have no say then (RFC 9213 section 2.2).
///
/// A directive whose value is of another type than it should be makes its whole field invalid: what the origin means
/// is anybody's guess then, and the other fields are plain.
pub(crate) fn directives(headers: &HeaderMap, fields: &[HeaderName]) -> Option<ResponseDirectives> {
    fields.iter().find_map(|field| parse(headers, field))
}

fn parse(headers: &HeaderMap, field: &HeaderName) -> Option<ResponseDirectives> {
    let lines: Vec<&[u8]> = headers.get_all(field).iter().map(http::HeaderValue::as_bytes).collect();
    let members: Dictionary = Parser::new(&lines.join(&b", "[..])).parse().ok()?;
    if members.is_empty() {
        return None;
    }
    let mut found = ResponseDirectives::default();
    for (name, value) in &members {
        let value = match value {
            ListEntry::Item(Item { bare_item, .. }) => Some(bare_item),
            ListEntry::InnerList(_) => None,
        };
        match name.as_str() {
            "no-store" => found.no_store = is_set(value),
            "no-cache" => found.no_cache = is_set(value),
            "private" => found.private = is_set(value),
            "public" => found.public = is_set(value),
            "must-revalidate" => found.must_revalidate = is_set(value),
            "proxy-revalidate" => found.proxy_revalidate = is_set(value),
            "must-understand" => found.must_understand = is_set(value),
            "max-age" => found.max_age = Some(seconds(value)?),
            "s-maxage" => found.s_maxage = Some(seconds(value)?),
            "stale-while-revalidate" => found.stale_while_revalidate = Some(seconds(value)?),
            "stale-if-error" => found.stale_if_error = Some(seconds(value)?),
            _ => {}
        }
    }
    Some(found)
}

/// Field names, as `private="x"` has them, do not weaken a directive.
fn is_set(value: Option<&BareItem>) -> bool {
    value.and_then(BareItem::as_boolean).unwrap_or(true)
}

fn seconds(value: Option<&BareItem>) -> Option<Duration> {
    let seconds = i64::from(value?.as_integer()?);
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0).min(MAX_DELTA_SECONDS)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::syntax::tests::map;

    const FIELDS: [HeaderName; 2] =
        [HeaderName::from_static("shop-cache-control"), HeaderName::from_static("cdn-cache-control")];

    fn of(lines: &[(&str, &str)]) -> Option<ResponseDirectives> {
        directives(&map(lines), &FIELDS)
    }

    fn cdn(line: &str) -> Option<ResponseDirectives> {
        of(&[("cdn-cache-control", line)])
    }

    #[test]
    fn every_directive_is_read() {
        let all = cdn(
            "no-store, no-cache, private=\"x\", public, must-revalidate, proxy-revalidate, must-understand, \
             max-age=1, s-maxage=2;x, stale-while-revalidate=3, stale-if-error=4, other=(1 2)",
        );
        let expected = ResponseDirectives {
            no_store: true,
            no_cache: true,
            private: true,
            public: true,
            must_revalidate: true,
            proxy_revalidate: true,
            must_understand: true,
            max_age: Some(Duration::from_secs(1)),
            s_maxage: Some(Duration::from_secs(2)),
            stale_while_revalidate: Some(Duration::from_secs(3)),
            stale_if_error: Some(Duration::from_secs(4)),
        };
        assert_eq!(all, Some(expected));
        assert_eq!(cdn("no-store=?0"), Some(ResponseDirectives::default()));
    }

    #[test]
    fn the_first_field_that_is_valid_counts() {
        let max_age =
            |lines: &[(&str, &str)]| of(lines).and_then(|found| found.max_age).map(|age| age.as_secs());
        let cdn = ("cdn-cache-control", "max-age=2");
        assert_eq!(max_age(&[cdn, ("shop-cache-control", "max-age=1")]), Some(1));
        for invalid in
            ["", "max-age=\"1\"", "max-age=1, &", "max-age =1", "max-age= 1", "Max-Age=1", "max-age"]
        {
            assert_eq!(max_age(&[cdn, ("shop-cache-control", invalid)]), Some(2), "{invalid:?}");
        }
        assert_eq!(of(&[("cache-control", "max-age=1")]), None);
    }

    #[test]
    fn lines_are_one_dictionary_and_the_last_of_a_name_counts() {
        let found = of(&[("cdn-cache-control", "max-age=1, private"), ("cdn-cache-control", "max-age=2")]);
        let found = found.unwrap();
        assert!(found.private && found.max_age == Some(Duration::from_secs(2)));
    }

    #[test]
    fn seconds_are_held_in_range() {
        let max_age = |line| cdn(line).unwrap().max_age.unwrap().as_secs();
        assert_eq!(max_age("max-age=99999999999"), MAX_DELTA_SECONDS);
        assert_eq!(max_age("max-age=-1"), 0);
    }
}
