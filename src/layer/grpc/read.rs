//! Reads the one message of a call, or gives the body back as it was.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::{Instant, timeout_at};

use super::body::Read;
use crate::http::grpc::frame::{OneMessage, Stand};

/// How long a call is waited for that is not whole: a caller that is to hear something before it says more does not
/// make a unary call.
pub(super) const CALL_WAIT: Duration = Duration::from_secs(10);

/// The message with its prefix, if that is all there is, within `cap` bytes. Else what was read, and the rest.
pub(super) async fn read<B>(body: B, cap: u64) -> Result<Bytes, Read<B>>
where
    B: Body<Data = Bytes>,
{
    let mut body = Box::pin(body);
    let mut frames = VecDeque::new();
    let mut message = OneMessage::within(cap);
    let limit = Instant::now() + CALL_WAIT;
    loop {
        let ended = if body.is_end_stream() {
            Ok(None)
        } else {
            timeout_at(limit, poll_fn(|cx| body.as_mut().poll_frame(cx))).await
        };
        match ended {
            Ok(Some(Ok(frame))) => {
                let stand = frame.data_ref().map_or(Stand::Other, |data| message.push(data));
                frames.push_back(Ok(frame));
                if stand != Stand::Other {
                    continue;
                }
            }
            Ok(Some(Err(error))) => {
                frames.push_back(Err(error));
                return Err(Read { frames, rest: None });
            }
            Ok(None) if message.stand() == Stand::Whole => return Ok(joined(frames)),
            // It ended too early, or is too slow.
            Ok(None) | Err(_) => {}
        }
        return Err(Read { frames, rest: Some(body) });
    }
}

fn joined<E>(frames: VecDeque<Result<Frame<Bytes>, E>>) -> Bytes {
    let mut pieces: Vec<_> =
        frames.into_iter().flatten().filter_map(|frame| frame.into_data().ok()).collect();
    match (pieces.pop(), pieces.is_empty()) {
        (Some(only), true) => only,
        (last, _) => {
            pieces.extend(last);
            pieces.concat().into()
        }
    }
}

#[cfg(test)]
mod tests;
