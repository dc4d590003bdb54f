//! `grpc-status`: what came of a call, as a caller is told.

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};

pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The codes that the guard itself gives or goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Ok = 0,
    Unknown = 2,
    DeadlineExceeded = 4,
    ResourceExhausted = 8,
    Internal = 13,
    Unavailable = 14,
}

impl Code {
    const ALL: [Self; 6] = [
        Self::Ok,
        Self::Unknown,
        Self::DeadlineExceeded,
        Self::ResourceExhausted,
        Self::Internal,
        Self::Unavailable,
    ];
}

/// A status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// One of those that matter here.
    Is(Code),
    /// An error like the others, or one that cannot be read.
    Error,
}

impl Status {
    /// The status in these headers or trailers, if there is one.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(GRPC_STATUS).iter();
        let (value, None) = (lines.next()?, lines.next()) else { return Some(Self::Error) };
        let code = Code::ALL.into_iter().find(|code| *value == (*code as u8).to_string());
        Some(code.map_or(Self::Error, Self::Is))
    }

    /// Whether it tells of the server's trouble, not of an answer: an old answer may be served in its place.
    pub(crate) fn is_trouble(self) -> bool {
        !matches!(self, Self::Error | Self::Is(Code::Ok))
    }
}

/// `google.rpc.Status` with a `google.rpc.RetryInfo` of one second, in base64: what clients read of
/// `grpc-status-details-bin`.
const RETRY_IN_A_SECOND: &str =
    "CAgSEHRvbyBtYW55IHdhaXRlcnMaMAoodHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLlJldHJ5SW5mbxIECgIIAQ";

/// The head of a reply that is a status and nothing else.
pub(crate) fn trailers_only(code: Code, message: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(GRPC_STATUS, HeaderValue::from(code as u16));
    headers.insert("grpc-message", HeaderValue::from_static(message));
    if code == Code::ResourceExhausted {
        // What retry policies read, in milliseconds (gRFC A6), and what callers read.
        headers.insert("grpc-retry-pushback-ms", HeaderValue::from_static("1000"));
        headers.insert("grpc-status-details-bin", HeaderValue::from_static(RETRY_IN_A_SECOND));
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::syntax::tests::map;

    fn status(value: &str) -> Option<Status> {
        Status::of(&map(&[("grpc-status", value)]))
    }

    #[test]
    fn only_zero_is_ok() {
        assert_eq!(status("0"), Some(Status::Is(Code::Ok)));
        for value in ["1", "5", "16", "17", "256", "-0", "+0", "00", "", "ok", "0 "] {
            assert_eq!(status(value), Some(Status::Error), "{value:?}");
        }
        for twice in [["0", "0"], ["0", "5"]] {
            let lines = twice.map(|value| ("grpc-status", value));
            assert_eq!(Status::of(&map(&lines)), Some(Status::Error), "{twice:?}");
        }
        assert_eq!(Status::of(&HeaderMap::new()), None);
    }

    #[test]
    fn trouble_is_what_an_old_answer_may_stand_in_for() {
        let troubles: Vec<_> =
            (0..20).filter(|code| status(&code.to_string()).is_some_and(Status::is_trouble)).collect();
        assert_eq!(troubles, [2, 4, 8, 13, 14]);
    }
}
