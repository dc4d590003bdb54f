//! Cookies one by one: which of them count, and which a request may carry without being anybody's.
//!
//! A cookie may be left out of the key only if it is beyond doubt the one that the operator named. Servers read
//! odd cookies differently (some split at commas, some honour quotes), so a pair that does not follow
//! RFC 6265 section 4.1.1 to the letter is treated as unknown.

use http::HeaderMap;
use http::header::COOKIE;

use crate::http::syntax::trim_ows;
use crate::http::writer::{KeyTooLong, KeyWriter};

/// The operator's word on cookies. Names are compared with case, as RFC 6265 section 5.3 does.
#[derive(Debug, Clone, Default)]
pub(crate) struct CookieRule {
    ignored: Vec<String>,
    keyed: Vec<String>,
}

impl CookieRule {
    /// Adds cookies on which no answer depends.
    pub(crate) fn ignore(&mut self, names: impl IntoIterator<Item = impl Into<String>>) {
        extend_set(&mut self.ignored, names);
    }

    /// Adds cookies whose value is part of the key. A cookie both keyed and ignored is keyed.
    pub(crate) fn key(&mut self, names: impl IntoIterator<Item = impl Into<String>>) {
        extend_set(&mut self.keyed, names);
    }

    /// Cookies left out of the key, sorted.
    pub(crate) fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Cookies that are part of the key, sorted.
    pub(crate) fn keyed(&self) -> &[String] {
        &self.keyed
    }

    /// Whether the operator named any cookie.
    pub(crate) fn is_empty(&self) -> bool {
        self.ignored.is_empty() && self.keyed.is_empty()
    }

    /// Whether every cookie of the request is keyed or ignored. True without cookies.
    pub(crate) fn covers(&self, headers: &HeaderMap) -> bool {
        pairs(headers).all(|pair| {
            let Some((name, value)) = split(pair) else { return false };
            contains(&self.keyed, name)
                || (contains(&self.ignored, name) && value.iter().copied().all(is_cookie_octet))
        })
    }

    /// Whether the request carries a cookie that is part of its key.
    pub(crate) fn keys_any_of(&self, headers: &HeaderMap) -> bool {
        !self.keyed.is_empty()
            && pairs(headers).filter_map(split).any(|(name, _)| contains(&self.keyed, name))
    }

    /// Writes the values of the keyed cookies: by name, and for one name in the order of the request, which
    /// decides whom a server believes when a cookie stands twice.
    pub(crate) fn write(&self, headers: &HeaderMap, key: &mut KeyWriter) -> Result<(), KeyTooLong> {
        for keyed in &self.keyed {
            let values = || pairs(headers).filter_map(split).filter(|(name, _)| *name == keyed.as_bytes());
            key.count(values().count())?;
            for (_, value) in values() {
                key.field(value)?;
            }
        }
        Ok(())
    }
}

fn extend_set(set: &mut Vec<String>, names: impl IntoIterator<Item = impl Into<String>>) {
    set.extend(names.into_iter().map(Into::into));
    set.sort_unstable();
    set.dedup();
}

fn contains(set: &[String], name: &[u8]) -> bool {
    set.iter().any(|member| member.as_bytes() == name)
}

/// The pairs of all `Cookie` lines (HTTP/2 may split them, RFC 9113 section 8.2.3), trimmed, empty ones left out.
fn pairs(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
        .map(trim_ows)
        .filter(|pair| !pair.is_empty())
}

/// Name and value. `None` without a `=`: servers disagree on whether that is a name or a value.
fn split(pair: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    Some((&pair[..equals], &pair[equals + 1..]))
}

/// `cookie-octet` of RFC 6265 section 4.1.1: visible ASCII without quote, comma, semicolon and backslash.
fn is_cookie_octet(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::syntax::tests::map;

    fn rule(ignored: &[&str], keyed: &[&str]) -> CookieRule {
        let mut rule = CookieRule::default();
        rule.ignore(ignored.iter().copied());
        rule.key(keyed.iter().copied());
        rule
    }

    fn covers(rule: &CookieRule, cookie: &str) -> bool {
        rule.covers(&map(&[("cookie", cookie)]))
    }

    fn written(rule: &CookieRule, lines: &[&str]) -> Vec<u8> {
        let lines: Vec<_> = lines.iter().map(|line| ("cookie", *line)).collect();
        let mut key = KeyWriter::new();
        rule.write(&map(&lines), &mut key).unwrap();
        key.written().to_vec()
    }

    #[test]
    fn only_named_cookies_are_covered() {
        let rule = rule(&["_ga", "_gid"], &[]);
        assert!(covers(&rule, "_ga=GA1.2.3; _gid=x=y"));
        assert!(covers(&rule, " ; _ga=1;; "));
        assert!(!covers(&rule, "_ga=1; session=s"));
        assert!(!covers(&rule, "_GA=1"));
        assert!(!covers(&rule, "_gat=1"));
    }

    #[test]
    fn every_line_is_looked_at() {
        let rule = rule(&["_ga"], &[]);
        assert!(!rule.covers(&map(&[("cookie", "_ga=1"), ("cookie", "session=s")])));
    }

    #[test]
    fn an_ignored_cookie_that_servers_may_read_as_more_is_not_covered() {
        let rule = rule(&["_ga"], &[]);
        for odd in ["_ga=1,session=s", "_ga=\"1", "_ga=1 session=s", "_ga", "=_ga", "_ga =1", "_ga=\u{e9}"] {
            assert!(!covers(&rule, odd), "{odd}");
        }
    }

    #[test]
    fn keyed_cookies_are_written_in_one_order() {
        let rule = rule(&["_ga"], &["b", "a"]);
        assert!(covers(&rule, "a=\"odd, but keyed\"; _ga=1; b=2"));
        assert_eq!(written(&rule, &["b=2; _ga=1; a=1"]), written(&rule, &["a=1", "_ga=7; b=2"]));
        assert_ne!(written(&rule, &["a=1; b=2"]), written(&rule, &["a=2; b=1"]));
        assert_ne!(written(&rule, &["a=1; a=2"]), written(&rule, &["a=2; a=1"]));
        assert_ne!(written(&rule, &["a=1"]), written(&rule, &["a=1; b="]));
    }

    #[test]
    fn a_keyed_cookie_is_a_principal() {
        let rule = rule(&["_ga"], &["session"]);
        assert!(rule.keys_any_of(&map(&[("cookie", "_ga=1; session=s")])));
        assert!(!rule.keys_any_of(&map(&[("cookie", "_ga=1")])));
    }

    #[test]
    fn keyed_wins_over_ignored() {
        let rule = rule(&["a"], &["a"]);
        assert_ne!(written(&rule, &["a=1"]), written(&rule, &["a=2"]));
        assert!(covers(&rule, "a=x,y"));
    }
}
