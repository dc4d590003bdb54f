//! What a finished response to a unary call is.

use http::HeaderMap;

use super::frame::is_one_message;
use super::status::{Code, Status};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// One message and the status 0 behind it: good for those who ask later.
    Message,
    /// A status without a use for those who ask later: an error, or 0 without a message before it.
    Status(Status),
    /// More or less than one message: no unary call.
    Stream,
    /// The status is missing: it broke off.
    Truncated,
}

/// `headers` are those at its head; with a status among them they are all there is.
pub(crate) fn answer<'a>(
    headers: &HeaderMap,
    body: impl IntoIterator<Item = &'a [u8]>,
    trailers: Option<&HeaderMap>,
) -> Answer {
    if let Some(status) = Status::of(headers) {
        return Answer::Status(status);
    }
    match trailers.and_then(Status::of) {
        None => Answer::Truncated,
        Some(Status::Is(Code::Ok)) if is_one_message(body) => Answer::Message,
        Some(Status::Is(Code::Ok)) => Answer::Stream,
        Some(status) => Answer::Status(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::syntax::tests::map;

    #[test]
    fn only_one_message_with_its_status_behind_it_is_for_later() {
        const MESSAGE: &[u8] = &[0, 0, 0, 0, 1, 7];
        let ok = map(&[("grpc-status", "0")]);
        let not_found = map(&[("grpc-status", "5")]);
        let none = HeaderMap::new();
        let zero = Status::Is(Code::Ok);
        for (headers, body, trailers, expected) in [
            (&none, &[MESSAGE][..], Some(&ok), Answer::Message),
            (&none, &[MESSAGE, MESSAGE], Some(&ok), Answer::Stream),
            (&none, &[], Some(&ok), Answer::Stream),
            (&none, &[&MESSAGE[..5]], Some(&ok), Answer::Stream),
            (&none, &[MESSAGE], Some(&not_found), Answer::Status(Status::Error)),
            (&none, &[], Some(&not_found), Answer::Status(Status::Error)),
            (&none, &[MESSAGE], Some(&none), Answer::Truncated),
            (&none, &[MESSAGE], None, Answer::Truncated),
            (&not_found, &[], None, Answer::Status(Status::Error)),
            (&ok, &[MESSAGE], Some(&ok), Answer::Status(zero)),
        ] {
            assert_eq!(answer(headers, body.iter().copied(), trailers), expected, "{body:?} {trailers:?}");
        }
    }
}
