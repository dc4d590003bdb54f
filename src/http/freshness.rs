//! How long a response is fresh by its own word, and how old it is on arrival (RFC 9111 section 4.2).
//!
//! `now` is the time of day at which the response head arrived.

use std::time::{Duration, SystemTime};

use http::header::{AGE, DATE, EXPIRES, LAST_MODIFIED};
use http::{HeaderMap, HeaderName};

use crate::http::cache_control::ResponseDirectives;
use crate::http::syntax::{MAX_DELTA_SECONDS, delta_seconds, single, trim_ows};

/// The longest lifetime: 2^31 seconds, so that sums of lifetimes and times stay far from overflow.
pub(crate) const MAX_LIFETIME: Duration = Duration::from_secs(MAX_DELTA_SECONDS);

/// The total freshness lifetime, counted from generation: `s-maxage`, else `max-age`, else `Expires` minus `Date`
/// (RFC 9111 section 4.2.1). `None` if the response says nothing. Zero if what it says is malformed or contradicts
/// itself, as `Expires: 0` does: stale already.
pub(crate) fn explicit_lifetime(
    headers: &HeaderMap,
    directives: &ResponseDirectives,
    now: SystemTime,
) -> Option<Duration> {
    directives.s_maxage.or(directives.max_age).or_else(|| expires_lifetime(headers, now))
}

fn expires_lifetime(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let expires = match single(headers, &EXPIRES) {
        Ok(None) => return None,
        Ok(Some(line)) => parse_date(line),
        Err(_) => None,
    };
    let lifetime = expires.and_then(|expires| expires.duration_since(generated(headers, now)).ok());
    Some(lifetime.unwrap_or_default().min(MAX_LIFETIME))
}

/// The longest lifetime that is guessed.
const MAX_GUESS: Duration = Duration::from_secs(24 * 60 * 60);

/// A `share` of the time from `Last-Modified` to `Date`, at most a day (RFC 9111 section 4.2.2). `None` where that is
/// nothing.
pub(crate) fn heuristic_lifetime(headers: &HeaderMap, share: f64, now: SystemTime) -> Option<Duration> {
    let modified = single_date(headers, &LAST_MODIFIED)?;
    let unchanged = generated(headers, now).duration_since(modified).ok()?.min(MAX_LIFETIME);
    let lifetime = unchanged.mul_f64(share).min(MAX_GUESS);
    (!lifetime.is_zero()).then_some(lifetime)
}

/// How old the response is on arrival: the greater of `Age` and what `Date` tells (RFC 9111 section 4.2.3). The time
/// the handler took counts as nothing: a handler works on the answer it has not yet generated.
///
/// `Age`: the first member of the first line; anything but digits is passed over (RFC 9111 section 5.1).
/// `Date`: whole seconds. Less than two of them are within its resolution and count as nothing; otherwise one
/// answer in ten of a handler that takes 100 ms would arrive a second old.
pub(crate) fn apparent_age(headers: &HeaderMap, now: SystemTime) -> Duration {
    let by_age = headers
        .get(AGE)
        .and_then(|line| line.as_bytes().split(|byte| *byte == b',').next())
        .and_then(|member| delta_seconds(trim_ows(member)))
        .map_or(Duration::ZERO, Duration::from_secs);
    let by_date = now.duration_since(generated(headers, now)).unwrap_or_default().as_secs();
    let by_date = Duration::from_secs(if by_date < 2 { 0 } else { by_date });
    by_age.max(by_date).min(MAX_LIFETIME)
}

/// The `Date` of the response; `now` if it has none, or none that can be believed (RFC 9110 section 6.6.1). That
/// errs on no side: `Expires` minus `now` is what is left of the lifetime.
fn generated(headers: &HeaderMap, now: SystemTime) -> SystemTime {
    single_date(headers, &DATE).unwrap_or(now)
}

/// The date in a field that may stand only once; `None` if absent, malformed or contradicted.
pub(crate) fn single_date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    single(headers, name).ok().flatten().and_then(parse_date)
}

/// An HTTP date in any of its three formats (RFC 9110 section 5.6.7), in any case (RFC 9111 section 4.2).
fn parse_date(line: &[u8]) -> Option<SystemTime> {
    let line = std::str::from_utf8(line).ok()?;
    let parsed = httpdate::parse_http_date(line);
    parsed.or_else(|_| httpdate::parse_http_date(&in_proper_case(line))).ok()
}

/// A date as it ought to be written: zones in capitals, days and months with their first letter.
fn in_proper_case(line: &str) -> String {
    let mut proper = line.to_ascii_lowercase().replace("gmt", "GMT");
    let mut is_within_word = false;
    for (at, letter) in line.char_indices() {
        let is_letter = letter.is_ascii_alphabetic();
        if is_letter && !is_within_word {
            proper[at..=at].make_ascii_uppercase();
        }
        is_within_word = is_letter;
    }
    proper
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::http::syntax::tests::map;
    use std::time::UNIX_EPOCH;

    /// Sun, 06 Nov 1994 08:49:37 GMT.
    pub(crate) fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(784_111_777)
    }

    /// [`now`] moved by so many seconds, as HTTP writes it.
    pub(crate) fn date(offset: i64) -> String {
        let moved = Duration::from_secs(offset.unsigned_abs());
        httpdate::fmt_http_date(if offset < 0 { now() - moved } else { now() + moved })
    }

    fn lifetime(lines: &[(&str, &str)]) -> Option<u64> {
        let headers = map(lines);
        explicit_lifetime(&headers, &ResponseDirectives::parse(&headers), now())
            .map(|lifetime| lifetime.as_secs())
    }

    fn age(lines: &[(&str, &str)]) -> u64 {
        apparent_age(&map(lines), now()).as_secs()
    }

    #[test]
    fn s_maxage_beats_max_age_beats_expires() {
        let expires = date(30);
        assert_eq!(
            lifetime(&[("cache-control", "max-age=10, s-maxage=20"), ("expires", &expires)]),
            Some(20)
        );
        assert_eq!(lifetime(&[("cache-control", "max-age=10"), ("expires", &expires)]), Some(10));
        assert_eq!(lifetime(&[("cache-control", "public"), ("expires", &expires)]), Some(30));
        assert_eq!(lifetime(&[("cache-control", "public")]), None);
        assert_eq!(lifetime(&[("cache-control", "max-age=x"), ("expires", &expires)]), Some(0));
    }

    #[test]
    fn dates_are_read_in_any_case() {
        for line in [
            "sun, 06 nov 1994 08:50:07 gmt",
            "SUN, 06 NOV 1994 08:50:07 GMT",
            "Sun, 06 Nov 1994 08:50:07 gMt",
            "sunday, 06-nov-94 08:50:07 gmt",
            "SUN NOV  6 08:50:07 1994",
        ] {
            assert_eq!(lifetime(&[("expires", line)]), Some(30), "{line}");
        }
        for line in
            ["sun, 06 nov 1994 08:50:07 utc", "sun, 06 növ 1994 08:50:07 gmt", "sun 06 nov 1994", "gmt"]
        {
            assert_eq!(lifetime(&[("expires", line)]), Some(0), "{line}");
        }
    }

    #[test]
    fn expires_counts_from_date() {
        assert_eq!(lifetime(&[("expires", &date(30)), ("date", &date(-10))]), Some(40));
        assert_eq!(lifetime(&[("expires", &date(-5)), ("date", &date(-10))]), Some(5));
        assert_eq!(lifetime(&[("expires", &date(-5))]), Some(0));
    }

    #[test]
    fn a_date_that_cannot_be_believed_counts_as_now() {
        assert_eq!(lifetime(&[("expires", &date(30)), ("date", "yesterday")]), Some(30));
        assert_eq!(lifetime(&[("expires", &date(30)), ("date", &date(-1)), ("date", &date(-2))]), Some(30));
        assert_eq!(age(&[("date", "yesterday")]), 0);
    }

    #[test]
    fn malformed_or_contradictory_expires_is_stale() {
        for bad in ["0", "-1", "", "Sun, 06 Nov 2094 08:49:37", "Sun, 06 Nov 2094 08:49:37 EST"] {
            assert_eq!(lifetime(&[("expires", bad)]), Some(0), "{bad:?}");
        }
        assert_eq!(lifetime(&[("expires", &date(30)), ("expires", &date(31))]), Some(0));
        assert_eq!(lifetime(&[("expires", &date(30)), ("expires", &date(30))]), Some(30));
    }

    #[test]
    fn all_three_date_formats_are_read() {
        for format in
            ["Sun, 06 Nov 1994 08:49:47 GMT", "Sunday, 06-Nov-94 08:49:47 GMT", "Sun Nov  6 08:49:47 1994"]
        {
            assert_eq!(lifetime(&[("expires", format)]), Some(10), "{format}");
        }
    }

    #[test]
    fn lifetimes_are_capped() {
        assert_eq!(lifetime(&[("expires", "Fri, 31 Dec 9999 23:59:59 GMT")]), Some(1 << 31));
    }

    #[test]
    fn a_guess_is_a_share_of_the_time_without_a_change_and_at_most_a_day() {
        let guess =
            |lines: &[(&str, &str)]| heuristic_lifetime(&map(lines), 0.1, now()).map(|guess| guess.as_secs());
        assert_eq!(guess(&[("last-modified", &date(-1_000))]), Some(100));
        assert_eq!(guess(&[("last-modified", &date(-1_000)), ("date", &date(-500))]), Some(50));
        assert_eq!(guess(&[("last-modified", &date(-100_000_000))]), Some(86_400));
        for nothing in [date(0), date(5), "yesterday".into()] {
            assert_eq!(guess(&[("last-modified", &nothing)]), None, "{nothing}");
        }
        assert_eq!(guess(&[]), None);
    }

    #[test]
    fn age_is_the_first_number_or_nothing() {
        assert_eq!(age(&[("age", " 5 ")]), 5);
        assert_eq!(age(&[("age", "5, 7")]), 5);
        assert_eq!(age(&[("age", "5"), ("age", "7")]), 5);
        for bad in ["", "-5", "5s", "5.0", "x, 5", "\"5\""] {
            assert_eq!(age(&[("age", bad)]), 0, "{bad}");
        }
        assert_eq!(age(&[("age", "99999999999999999999")]), 1 << 31);
    }

    #[test]
    fn the_greater_of_age_and_date_counts() {
        assert_eq!(age(&[("age", "5"), ("date", &date(-9))]), 9);
        assert_eq!(age(&[("age", "9"), ("date", &date(-5))]), 9);
        assert_eq!(age(&[("date", &date(60))]), 0);
    }

    #[test]
    fn less_than_two_seconds_of_date_count_as_nothing() {
        let received =
            |millis| apparent_age(&map(&[("date", date(0))]), now() + Duration::from_millis(millis));
        assert_eq!(received(1_999), Duration::ZERO);
        assert_eq!(received(2_000), Duration::from_secs(2));
    }
}
