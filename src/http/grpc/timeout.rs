//! `grpc-timeout`: how long a caller waits.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// What is kept of a caller's time for the way back: a tenth, and no more than this.
const RESERVE: Duration = Duration::from_millis(20);

/// How long the caller waits, if it says so: at most eight digits and a unit.
pub(crate) fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(GRPC_TIMEOUT)?.as_bytes();
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits.iter().fold(0_u64, |count, digit| count * 10 + u64::from(digit - b'0'));
    let timeout = match unit {
        b'H' => Duration::from_secs(count * 3_600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    };
    Some(timeout)
}

/// How long the guard lets a caller wait. At the very end nobody hears the answer any more: the caller has given up,
/// and so has the server in front of the guard.
pub(crate) fn patience(headers: &HeaderMap) -> Option<Duration> {
    grpc_timeout(headers).map(|timeout| timeout.saturating_sub((timeout / 10).min(RESERVE)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::syntax::tests::map;

    fn parsed(value: &str) -> Option<Duration> {
        grpc_timeout(&map(&[("grpc-timeout", value)]))
    }

    #[test]
    fn every_unit_counts() {
        for (value, expected) in [
            ("1H", Duration::from_secs(3_600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("4m", Duration::from_millis(4)),
            ("5u", Duration::from_micros(5)),
            ("6n", Duration::from_nanos(6)),
            ("0S", Duration::ZERO),
            ("99999999H", Duration::from_secs(99_999_999 * 3_600)),
        ] {
            assert_eq!(parsed(value), Some(expected), "{value}");
        }
    }

    #[test]
    fn what_is_no_timeout_is_none() {
        for value in ["", "S", "1", "1s", "123456789S", "-1S", "+1S", "1.5S", " 1S", "1 S"] {
            assert_eq!(parsed(value), None, "{value:?}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn the_way_back_takes_a_tenth_and_not_more_than_its_most() {
        let patience = |value| patience(&map(&[("grpc-timeout", value)]));
        assert_eq!(patience("100m"), Some(Duration::from_millis(90)));
        assert_eq!(patience("10S"), Some(Duration::from_millis(9_980)));
        assert_eq!(patience("0m"), Some(Duration::ZERO));
    }
}
