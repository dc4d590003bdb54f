//! `Vary`: which request headers a response depends on beyond the key (RFC 9110 section 12.5.5).

use std::sync::Arc;

use http::header::{ACCEPT_LANGUAGE, VARY};
use http::{HeaderMap, HeaderName};

use crate::http::rule::KeyRule;
use crate::http::syntax::{members, trim_ows};
use crate::http::writer::{KeyTooLong, KeyWriter};

/// What a response says in `Vary`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Vary {
    /// On something no request header tells: `*` among the members, or a member that is no field name.
    Any,
    /// On these headers, perhaps on none.
    Names(VarySpec),
}

/// Names of request headers: sorted, lower case, each once. `None` without any: all threads would count the copies of one
/// empty list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct VarySpec(Option<Arc<[HeaderName]>>);

impl VarySpec {
    /// Reads all `Vary` lines of a response.
    pub(crate) fn parse(headers: &HeaderMap) -> Vary {
        if !headers.contains_key(VARY) {
            return Vary::Names(Self::default());
        }
        // `*` would be a valid field name, so it is looked for by itself.
        let names = members(headers, &VARY).map(|member| match member {
            b"*" => None,
            name => HeaderName::from_bytes(name).ok(),
        });
        names.collect::<Option<Vec<_>>>().map_or(Vary::Any, |names| Vary::Names(Self::new(names)))
    }

    pub(crate) fn new(mut names: Vec<HeaderName>) -> Self {
        names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        Self((!names.is_empty()).then(|| names.into()))
    }

    /// The names, sorted.
    pub(crate) fn names(&self) -> &[HeaderName] {
        self.0.as_deref().unwrap_or_default()
    }

    /// Whether the key alone tells everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether the names of `other` are all among these.
    pub(crate) fn contains(&self, other: &Self) -> bool {
        other.names().iter().all(|name| self.names().contains(name))
    }

    /// These names and those of `other`.
    pub(crate) fn with(&self, other: &Self) -> Self {
        if self.contains(other) {
            return self.clone();
        }
        Self::new(self.names().iter().chain(other.names()).cloned().collect())
    }

    /// Without the names that `rule` keys anyway.
    pub(crate) fn without_keyed(&self, rule: &KeyRule) -> Self {
        if !self.names().iter().any(|name| rule.settles(name)) {
            return self.clone();
        }
        Self::new(self.names().iter().filter(|name| !rule.settles(name)).cloned().collect())
    }

    /// Writes the names and the values that the request has for them, normalised as RFC 9111 section 4.1 allows: the
    /// lines of one field joined, white space around commas left out, languages without case.
    pub(crate) fn write(&self, headers: &HeaderMap, key: &mut KeyWriter) -> Result<(), KeyTooLong> {
        key.count(self.names().len())?;
        for name in self.names() {
            key.field(name.as_str().as_bytes())?;
            // No line and an empty line differ.
            let mut lines = headers.get_all(name).iter();
            let is_plain = |line: &[u8]| !line.contains(&b',') && *name != ACCEPT_LANGUAGE;
            match (lines.next(), lines.next()) {
                (None, _) => key.optional(None)?,
                (Some(line), None) if is_plain(line.as_bytes()) => {
                    key.optional(Some(trim_ows(line.as_bytes())))?;
                }
                _ => key.optional(Some(&normal(headers, name)))?,
            }
        }
        Ok(())
    }
}

/// All lines of a field as one, its members next to each other. What stands in quotes stays.
fn normal(headers: &HeaderMap, name: &HeaderName) -> Vec<u8> {
    let mut out = Vec::new();
    for (place, line) in headers.get_all(name).iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        let (mut quoted, mut escaped) = (false, false);
        for (place, member) in line
            .as_bytes()
            .split(|byte| {
                let separates = *byte == b',' && !quoted;
                if *byte == b'"' && !escaped {
                    quoted = !quoted;
                }
                escaped = quoted && *byte == b'\\' && !escaped;
                separates
            })
            .enumerate()
        {
            if place > 0 {
                out.push(b',');
            }
            out.extend_from_slice(trim_ows(member));
        }
    }
    if *name == ACCEPT_LANGUAGE {
        out.make_ascii_lowercase();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::syntax::tests::map;

    fn spec(lines: &[(&str, &[u8])]) -> Option<Vec<String>> {
        match VarySpec::parse(&map(lines)) {
            Vary::Any => None,
            Vary::Names(spec) => Some(spec.names().iter().map(ToString::to_string).collect()),
        }
    }

    fn written(vary: &str, request: &[(&str, &str)]) -> Vec<u8> {
        let Vary::Names(spec) = VarySpec::parse(&map(&[("vary", vary)])) else { panic!("any") };
        let mut key = KeyWriter::new();
        spec.write(&map(request), &mut key).unwrap();
        key.written().to_vec()
    }

    #[test]
    fn names_are_sorted_lower_case_and_once() {
        assert_eq!(spec(&[]).unwrap(), Vec::<String>::new());
        assert_eq!(spec(&[("vary", b" ,, ")]).unwrap(), Vec::<String>::new());
        assert_eq!(
            spec(&[("vary", b"User-Agent ,accept,"), ("vary", b"\tACCEPT"), ("vary", b"")]).unwrap(),
            ["accept", "user-agent"]
        );
    }

    #[test]
    fn a_star_anywhere_is_any() {
        assert_eq!(spec(&[("vary", b"*")]), None);
        assert_eq!(spec(&[("vary", b"accept"), ("vary", b"origin , * ")]), None);
    }

    #[test]
    fn a_member_that_is_no_name_is_any() {
        for bad in [&b"accept encoding"[..], b"accept, \xff", b"a;b", b"\"accept\""] {
            assert_eq!(spec(&[("vary", bad)]), None, "{bad:?}");
        }
    }

    #[test]
    fn values_split_and_absent_is_not_empty() {
        let absent = written("user-agent", &[]);
        let empty = written("user-agent", &[("user-agent", "")]);
        let one = written("user-agent", &[("user-agent", "a")]);
        assert!(absent != empty && empty != one && absent != one);
    }

    #[test]
    fn white_space_around_members_does_not_split() {
        for same in [" a\t", "a"] {
            assert_eq!(written("x", &[("x", same)]), written("x", &[("x", "a")]), "{same:?}");
        }
        for same in ["1, 2", " 1 ,\t2 ", "1,2"] {
            assert_eq!(written("x", &[("x", same)]), written("x", &[("x", "1,2")]), "{same:?}");
        }
        for other in ["1 2", "1,2,", ",1,2", "2,1", "1,2,2"] {
            assert_ne!(written("x", &[("x", other)]), written("x", &[("x", "1,2")]), "{other:?}");
        }
        assert_ne!(written("x", &[("x", "a b")]), written("x", &[("x", "a  b")]));
    }

    #[test]
    fn what_stands_in_quotes_stays() {
        for (one, other) in [("\"a, b\"", "\"a,b\""), ("\"\\\", b\"", "\"\\\",b\"")] {
            assert_ne!(written("x", &[("x", one)]), written("x", &[("x", other)]), "{one}");
        }
        assert_eq!(written("x", &[("x", "\"a\" , b")]), written("x", &[("x", "\"a\",b")]));
    }

    #[test]
    fn lines_are_joined_in_their_order() {
        let joined = written("x", &[("x", "1, 2")]);
        assert_eq!(written("x", &[("x", "1"), ("x", "2")]), joined);
        assert_ne!(written("x", &[("x", "2"), ("x", "1")]), joined);
    }

    #[test]
    fn languages_have_no_case_and_others_do() {
        let language = |value| written("accept-language", &[("accept-language", value)]);
        assert_eq!(language("eN, De"), language("en,de"));
        assert_ne!(language("de, en"), language("en, de"), "a handler may take the first");
        assert_ne!(written("x", &[("x", "A")]), written("x", &[("x", "a")]));
    }

    #[test]
    fn a_value_cannot_move_to_another_name() {
        assert_ne!(written("x, y", &[("x", "a")]), written("x, y", &[("y", "a")]));
        assert_ne!(written("x, y", &[("x", "y")]), written("x, y", &[("y", "y")]));
        assert_ne!(written("x", &[]), written("y", &[]));
    }

    #[test]
    fn keyed_names_are_dropped() {
        let Vary::Names(spec) = VarySpec::parse(&map(&[("vary", "accept, user-agent, cookie, host")])) else {
            panic!("any")
        };
        let left = |rule: KeyRule| -> Vec<String> {
            spec.without_keyed(&rule).names().iter().map(ToString::to_string).collect()
        };
        assert_eq!(left(KeyRule::default()), ["cookie", "user-agent"]);
        assert_eq!(left(KeyRule::default().ignore_cookies(["_ga"])), ["user-agent"]);
        assert_eq!(left(KeyRule::default().key_headers([])), ["accept", "cookie", "user-agent"]);
    }
}
