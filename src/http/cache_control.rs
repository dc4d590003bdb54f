//! `Cache-Control`, read so that nothing malformed widens what a cache may do (RFC 9111 section 5.2).
//!
//! What restricts is found even in broken lines: directives may be separated by commas, semicolons or mere white
//! space; a line need not be UTF-8; a quote without an end counts as `no-store`, because it may hide one.

use std::time::Duration;

use http::HeaderMap;
use http::header::CACHE_CONTROL;

use crate::http::cache_status::Ttl;
use crate::http::syntax::delta_seconds;

/// The directives of a response that matter to a shared cache. `immutable`, `no-transform` and unknown ones are
/// passed over.
#[expect(clippy::struct_excessive_bools, reason = "each is one directive")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ResponseDirectives {
    /// `no-store`, or a line that cannot be read to its end.
    pub(crate) no_store: bool,
    /// `no-cache`, with field names or without.
    pub(crate) no_cache: bool,
    /// `private`, with field names or without.
    pub(crate) private: bool,
    pub(crate) public: bool,
    pub(crate) must_revalidate: bool,
    pub(crate) proxy_revalidate: bool,
    pub(crate) must_understand: bool,
    /// In whole seconds. Zero if malformed or contradicted by a second one: stale from the start, as RFC 9111
    /// section 4.2.1 encourages. The same holds for the other three.
    pub(crate) max_age: Option<Duration>,
    pub(crate) s_maxage: Option<Duration>,
    /// RFC 5861 section 3.
    pub(crate) stale_while_revalidate: Option<Duration>,
    /// RFC 5861 section 4.
    pub(crate) stale_if_error: Option<Duration>,
}

impl ResponseDirectives {
    /// Reads all lines. Allocates nothing.
    pub(crate) fn parse(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        let complete = for_each_directive(headers, |name, argument| {
            if name.eq_ignore_ascii_case(b"no-store") {
                found.no_store = true;
            } else if name.eq_ignore_ascii_case(b"no-cache") {
                found.no_cache = true;
            } else if name.eq_ignore_ascii_case(b"private") {
                found.private = true;
            } else if name.eq_ignore_ascii_case(b"public") {
                found.public = true;
            } else if name.eq_ignore_ascii_case(b"must-revalidate") {
                found.must_revalidate = true;
            } else if name.eq_ignore_ascii_case(b"proxy-revalidate") {
                found.proxy_revalidate = true;
            } else if name.eq_ignore_ascii_case(b"must-understand") {
                found.must_understand = true;
            } else if name.eq_ignore_ascii_case(b"max-age") {
                set_seconds(&mut found.max_age, argument);
            } else if name.eq_ignore_ascii_case(b"s-maxage") {
                set_seconds(&mut found.s_maxage, argument);
            } else if name.eq_ignore_ascii_case(b"stale-while-revalidate") {
                set_seconds(&mut found.stale_while_revalidate, argument);
            } else if name.eq_ignore_ascii_case(b"stale-if-error") {
                set_seconds(&mut found.stale_if_error, argument);
            }
        });
        if !complete {
            found.no_store = true;
            // Nor may `must-understand` lift it again.
            found.must_understand = false;
        }
        found
    }
}

/// The directives of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RequestDirectives {
    pub(crate) only_if_cached: bool,
    pub(crate) no_store: bool,
    pub(crate) no_cache: bool,
    /// In whole seconds; zero if malformed or contradicted.
    pub(crate) max_age: Option<Duration>,
    /// In whole seconds; zero if malformed or contradicted.
    pub(crate) min_fresh: Option<Duration>,
    /// In whole seconds; without an argument, any staleness: `Duration::MAX`. Zero if malformed or contradicted.
    pub(crate) max_stale: Option<Duration>,
}

impl RequestDirectives {
    /// Whether they ask for more than any stored response.
    pub(crate) fn demand(&self) -> bool {
        self.no_cache || self.max_age.is_some() || self.min_fresh.is_some()
    }

    /// Reads all lines. Allocates nothing.
    pub(crate) fn parse(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        let complete = for_each_directive(headers, |name, argument| {
            if name.eq_ignore_ascii_case(b"only-if-cached") {
                found.only_if_cached = true;
            } else if name.eq_ignore_ascii_case(b"no-store") {
                found.no_store = true;
            } else if name.eq_ignore_ascii_case(b"no-cache") {
                found.no_cache = true;
            } else if name.eq_ignore_ascii_case(b"max-age") {
                set_seconds(&mut found.max_age, argument);
            } else if name.eq_ignore_ascii_case(b"min-fresh") {
                set_seconds(&mut found.min_fresh, argument);
            } else if name.eq_ignore_ascii_case(b"max-stale") {
                match argument {
                    None => set(&mut found.max_stale, Duration::MAX),
                    some => set_seconds(&mut found.max_stale, some),
                }
            }
        });
        found.no_store |= !complete;
        found
    }

    /// Whether a client that is heard lets itself be served a response of this age, with so much freshness left, that
    /// is good enough for others (RFC 9111 section 5.2.1).
    pub(crate) fn allow(&self, age: Duration, ttl: Ttl, must_revalidate: bool) -> bool {
        let is_young = self.max_age.is_none_or(|most| age <= most);
        let stays_fresh = match ttl {
            Ttl::Left(left) => self.min_fresh.is_none_or(|least| left >= least),
            Ttl::Over(_) => self.min_fresh.is_none(),
        };
        let takes_old = !must_revalidate && self.max_age.is_some() && self.takes_stale(ttl);
        !self.no_cache && stays_fresh && (is_young || takes_old)
    }

    /// Whether a client that is heard takes a response that is stale for so long.
    pub(crate) fn takes_stale(&self, ttl: Ttl) -> bool {
        match ttl {
            Ttl::Left(_) => false,
            Ttl::Over(over) => self.max_stale.is_some_and(|most| over <= most),
        }
    }
}

fn set_seconds(slot: &mut Option<Duration>, argument: Option<&[u8]>) {
    set(slot, Duration::from_secs(argument.and_then(delta_seconds).unwrap_or(0)));
}

/// The first value, or zero once a second one differs.
fn set(slot: &mut Option<Duration>, value: Duration) {
    *slot = match *slot {
        Some(former) if former != value => Some(Duration::ZERO),
        _ => Some(value),
    };
}

/// Calls `visit` with the name and the argument of every directive, a quoted argument without its quotes (escapes
/// inside left as they are: no argument that is read may hold one). False if a quote has no end, or begins where none
/// may: nobody can say what is inside of it.
fn for_each_directive(headers: &HeaderMap, mut visit: impl FnMut(&[u8], Option<&[u8]>)) -> bool {
    headers.get_all(CACHE_CONTROL).iter().all(|line| {
        let mut rest = line.as_bytes();
        loop {
            rest = skip(rest, is_separator);
            if rest.is_empty() {
                return true;
            }
            let name;
            (name, rest) = split_word(rest);
            if name.contains(&b'"') {
                return false;
            }
            let after_space = skip(rest, is_space);
            let [b'=', value @ ..] = after_space else {
                visit(name, None);
                continue;
            };
            let value = skip(value, is_space);
            let argument;
            if let [b'"', quoted @ ..] = value {
                let Some(end) = closing_quote(quoted) else {
                    visit(name, Some(value));
                    return false;
                };
                (argument, rest) = (&quoted[..end], &quoted[end + 1..]);
            } else {
                (argument, rest) = split_argument(value);
                if argument.contains(&b'"') {
                    return false;
                }
            }
            visit(name, Some(argument));
        }
    })
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn is_separator(byte: u8) -> bool {
    // A stray `=` separates too: the loop must advance, and what follows must be read.
    is_space(byte) || matches!(byte, b',' | b';' | b'=')
}

fn skip(bytes: &[u8], what: impl Fn(u8) -> bool) -> &[u8] {
    let start = bytes.iter().position(|byte| !what(*byte)).unwrap_or(bytes.len());
    &bytes[start..]
}

/// Up to the next separator, and the rest.
fn split_word(bytes: &[u8]) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.iter().position(|byte| is_separator(*byte)).unwrap_or(bytes.len()))
}

/// An unquoted argument may hold a `=`, but none is a number then.
fn split_argument(bytes: &[u8]) -> (&[u8], &[u8]) {
    let ends = |byte: &u8| is_space(*byte) || matches!(byte, b',' | b';');
    bytes.split_at(bytes.iter().position(ends).unwrap_or(bytes.len()))
}

/// Where the quoted string that starts before `bytes` ends (RFC 9110 section 5.6.4).
fn closing_quote(bytes: &[u8]) -> Option<usize> {
    let mut escaped = false;
    bytes.iter().position(|byte| {
        let closes = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        closes
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::syntax::tests::map;

    fn response(lines: &[&[u8]]) -> ResponseDirectives {
        let lines: Vec<_> = lines.iter().map(|line| ("cache-control", *line)).collect();
        ResponseDirectives::parse(&map(&lines))
    }

    fn of(line: &str) -> ResponseDirectives {
        response(&[line.as_bytes()])
    }

    fn request(line: &str) -> RequestDirectives {
        RequestDirectives::parse(&map(&[("cache-control", line)]))
    }

    #[expect(clippy::unnecessary_wraps, reason = "compared with fields that are optional")]
    fn secs(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    #[test]
    fn every_directive_is_read_without_case() {
        let all =
            of("No-Store, NO-CACHE, private, Public, must-revalidate, proxy-revalidate, must-understand, \
             max-age=1, S-MAXAGE=2, stale-while-revalidate=3, stale-if-error=4, immutable");
        let expected = ResponseDirectives {
            no_store: true,
            no_cache: true,
            private: true,
            public: true,
            must_revalidate: true,
            proxy_revalidate: true,
            must_understand: true,
            max_age: secs(1),
            s_maxage: secs(2),
            stale_while_revalidate: secs(3),
            stale_if_error: secs(4),
        };
        assert_eq!(all, expected);
    }

    #[test]
    fn nothing_is_read_from_nothing() {
        for nothing in ["", ",", " ; , =", "foo, bar=baz, x-private, max-age-x=5, nostore"] {
            assert_eq!(of(nothing), ResponseDirectives::default(), "{nothing:?}");
        }
        assert_eq!(response(&[]), ResponseDirectives::default());
    }

    #[test]
    fn lines_add_up() {
        let both = response(&[b"max-age=5", b", private"]);
        assert!(both.private && both.max_age == secs(5));
    }

    #[test]
    fn field_names_do_not_weaken_a_directive() {
        let named = of("private=\"set-cookie, x\", no-cache=\"set-cookie\", max-age=5");
        assert!(named.private && named.no_cache && named.max_age == secs(5));
        assert!(of("no-cache=set-cookie").no_cache);
        assert!(of("no-store=1").no_store);
    }

    #[test]
    fn what_stands_in_quotes_is_no_directive() {
        let quoted = of(r#"ext="private, \", no-store, max-age=9", max-age=5"#);
        assert_eq!(quoted, ResponseDirectives { max_age: secs(5), ..Default::default() });
    }

    #[test]
    fn a_quote_without_an_end_is_no_store() {
        for open in [r#"max-age=60, ext="private"#, r#"ext="a\", max-age=60"#, "private=\""] {
            assert!(of(open).no_store, "{open}");
        }
        assert!(of("private=\"").private);
        assert!(!of("must-understand, ext=\"").must_understand);
    }

    #[test]
    fn broken_separators_hide_nothing() {
        for broken in [
            "public; private",
            "public private",
            "max-age = 60 private",
            "max-age=60;private",
            "ext=\"a\"private",
            "==private",
            "max-age=\"1\" private",
        ] {
            assert!(of(broken).private, "{broken}");
        }
        assert!(response(&[b"\xff, private"]).private);
        assert!(response(&[b"\xff", b"private"]).private);
    }

    #[test]
    fn seconds_may_be_quoted() {
        assert_eq!(of("max-age=\"60\"").max_age, secs(60));
        assert_eq!(of("max-age = 60").max_age, secs(60));
    }

    #[test]
    fn malformed_seconds_are_none_at_all() {
        for bad in
            ["max-age", "max-age=", "max-age=-5", "max-age=1.5", "max-age=5s", "max-age=\"5", "max-age=0x5"]
        {
            assert_eq!(of(bad).max_age, secs(0), "{bad}");
        }
        assert_eq!(of("max-age=5=6").max_age, secs(0));
        assert_eq!(of("s-maxage=x, max-age=5").s_maxage, secs(0));
        assert_eq!(of("stale-while-revalidate").stale_while_revalidate, secs(0));
    }

    #[test]
    fn seconds_beyond_the_cap_are_the_cap() {
        assert_eq!(of("max-age=99999999999999999999999").max_age, secs(1 << 31));
    }

    #[test]
    fn contradictions_are_stale_and_repeats_are_not() {
        assert_eq!(of("max-age=5, max-age=5").max_age, secs(5));
        assert_eq!(of("max-age=5, max-age=6").max_age, secs(0));
        assert_eq!(response(&[b"max-age=6", b"max-age=5", b"max-age=6"]).max_age, secs(0));
    }

    #[test]
    fn a_client_that_is_heard_limits_age_and_freshness() {
        let (age, secs) = (Duration::from_secs(10), Duration::from_secs);
        let fresh = |line| request(line).allow(age, Ttl::Left(secs(20)), false);
        for allowed in ["", "max-age=10", "min-fresh=20", "max-stale", "no-store", "max-age=60, min-fresh=5"]
        {
            assert!(fresh(allowed), "{allowed}");
        }
        for refused in
            ["no-cache", "max-age=9", "max-age=0", "min-fresh=21", "max-age=x", "max-age=9, max-stale"]
        {
            assert!(!fresh(refused), "{refused}");
        }
        let stale = |line, must| request(line).allow(age, Ttl::Over(secs(5)), must);
        assert!(stale("", false) && stale("max-age=9, max-stale=5", false));
        assert!(!stale("min-fresh=0", false) && !stale("max-age=9, max-stale=4", false));
        assert!(!stale("max-age=9, max-stale=5", true));
        assert!(request("max-stale=5").takes_stale(Ttl::Over(secs(5))));
        assert!(request("max-stale").takes_stale(Ttl::Over(secs(500))));
        assert!(!request("max-stale=4").takes_stale(Ttl::Over(secs(5))));
        assert!(!request("").takes_stale(Ttl::Over(secs(0))));
    }

    #[test]
    fn requests_are_read_alike() {
        let all = request("ONLY-IF-CACHED, no-store, no-cache, max-age=1, min-fresh=2, max-stale=3");
        assert!(all.only_if_cached && all.no_store && all.no_cache);
        assert_eq!((all.max_age, all.min_fresh, all.max_stale), (secs(1), secs(2), secs(3)));
        assert_eq!(request("max-stale").max_stale, Some(Duration::MAX));
        assert_eq!(request("max-stale=x").max_stale, secs(0));
        assert_eq!(request("private, must-revalidate"), RequestDirectives::default());
    }
}
