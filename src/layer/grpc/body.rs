//! `RequestBody`, what the service behind a `GrpcStampedeGuard` reads.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

/// The body of a request that passed a [`GrpcStampedeGuard`](crate::GrpcStampedeGuard): the client's own, with what the
/// guard has read of it in front; or the one message of a call that is made for several clients.
///
/// Frames come in the order in which the client sent them, trailers included, and so does an error. axum's and tonic's
/// services take any body; one of one's own names it like this:
///
/// ```
/// use axum::body::Body;
/// use http::{Request, Response};
/// use stampede_guard::RequestBody;
/// use tower::Service;
///
/// fn serves<S>(service: S) -> S
/// where
///     S: Service<Request<RequestBody<Body>>, Response = Response<Body>>,
/// {
///     service
/// }
/// # let _ = serves::<axum::routing::Route>;
/// ```
#[pin_project]
pub struct RequestBody<B: Body>(#[pin] Kind<B>);

#[pin_project(project = KindProjection)]
enum Kind<B: Body> {
    Untouched(#[pin] B),
    Message(Option<Bytes>),
    Replayed(Read<B>),
}

/// What was read of a body, and the rest of it.
pub(super) struct Read<B: Body> {
    pub(super) frames: VecDeque<Result<Frame<B::Data>, B::Error>>,
    /// `None` after its end.
    pub(super) rest: Option<Pin<Box<B>>>,
}

impl<B: Body> fmt::Debug for RequestBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Kind::Untouched(_) => "untouched",
            Kind::Message(_) => "message",
            Kind::Replayed(_) => "replayed",
        };
        f.debug_tuple("RequestBody").field(&kind).finish()
    }
}

impl<B: Body> RequestBody<B> {
    pub(super) fn untouched(body: B) -> Self {
        Self(Kind::Untouched(body))
    }

    pub(super) fn message(message: Bytes) -> Self {
        Self(Kind::Message(Some(message)))
    }

    pub(super) fn replayed(read: Read<B>) -> Self {
        Self(Kind::Replayed(read))
    }
}

impl<B: Body<Data = Bytes>> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().0.project() {
            KindProjection::Untouched(body) => body.poll_frame(cx),
            KindProjection::Message(message) => {
                Poll::Ready(message.take().map(|bytes| Ok(Frame::data(bytes))))
            }
            KindProjection::Replayed(Read { frames, rest }) => match (frames.pop_front(), rest) {
                (Some(frame), _) => Poll::Ready(Some(frame)),
                (None, Some(rest)) => rest.as_mut().poll_frame(cx),
                (None, None) => Poll::Ready(None),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Untouched(body) => body.is_end_stream(),
            Kind::Message(message) => message.is_none(),
            Kind::Replayed(Read { frames, rest }) => {
                frames.is_empty() && rest.as_ref().is_none_or(Body::is_end_stream)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Untouched(body) => body.size_hint(),
            Kind::Message(message) => {
                SizeHint::with_exact(message.as_ref().map_or(0, |message| message.len() as u64))
            }
            Kind::Replayed(Read { frames, rest }) => {
                let frames = frames.iter().flatten().filter_map(Frame::data_ref);
                let read: u64 = frames.map(|data| data.len() as u64).sum();
                let rest = rest.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint);
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower().saturating_add(read));
                if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(read)) {
                    hint.set_upper(upper);
                }
                hint
            }
        }
    }
}
