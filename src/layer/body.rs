//! `GuardBody`, the response body that leaves the guard.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use tokio::sync::oneshot;
use tower::BoxError;

use super::guard::PageSeat;
use super::recording::{BrokenBody, Next, Reader};

/// The rest of a body that outgrew its recording.
pub(super) type Rest<R> = oneshot::Receiver<Pin<Box<R>>>;

/// The body of a response that passed a [`StampedeGuard`](crate::StampedeGuard): the handler's own, streamed
/// through; or one that several clients share, each frame held once.
///
/// A service of one's own around a guarded one names it like this:
///
/// ```
/// use axum::body::Body;
/// use http::{Request, Response};
/// use stampede_guard::GuardBody;
/// use tower::Service;
///
/// fn serves<S>(service: S) -> S
/// where
///     S: Service<Request<Body>, Response = Response<GuardBody<Body>>>,
/// {
///     service
/// }
/// # let _ = serves::<stampede_guard::GuardService<axum::routing::Route>>;
/// ```
///
/// Its error is a [`BoxError`]: the handler's own, or a [`BrokenBody`] where a shared body broke off.
#[pin_project]
pub struct GuardBody<R>(#[pin] Kind<R>);

#[pin_project(project = KindProjection)]
enum Kind<R> {
    Empty,
    /// Left out of a response that would have one, as to a HEAD. Its length is not zero but unsaid.
    LeftOut,
    /// Pieces of a stored body, and how many bytes of them are left.
    Part(std::vec::IntoIter<Bytes>, u64),
    Own(#[pin] R),
    Moved(Pin<Box<R>>),
    Shared {
        reader: Reader,
        rest: Option<Rest<R>>,
        /// Its client waits for the body, which the flight is not done with.
        seat: Option<Box<PageSeat>>,
    },
}

impl<R> std::fmt::Debug for GuardBody<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &self.0 {
            Kind::Empty | Kind::LeftOut => "empty",
            Kind::Own(_) | Kind::Moved(_) => "own",
            Kind::Part(..) | Kind::Shared { .. } => "shared",
        };
        f.debug_tuple("GuardBody").field(&kind).finish()
    }
}

impl<R> GuardBody<R> {
    pub(super) fn empty() -> Self {
        Self(Kind::Empty)
    }

    pub(super) fn left_out() -> Self {
        Self(Kind::LeftOut)
    }

    pub(super) fn part(pieces: Vec<Bytes>) -> Self {
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self(Kind::Part(pieces.into_iter(), length))
    }

    pub(super) fn own(body: R) -> Self {
        Self(Kind::Own(body))
    }

    pub(super) fn shared(reader: Reader, rest: Option<Rest<R>>) -> Self {
        Self(Kind::Shared { reader, rest, seat: None })
    }

    /// Holds on to the place in the flight whose body this is, while that is not complete.
    pub(super) fn hold(&mut self, place: impl FnOnce() -> Option<PageSeat>) {
        if let Kind::Shared { reader, seat, .. } = &mut self.0
            && !reader.is_over()
        {
            *seat = place().map(Box::new);
        }
    }
}

impl<R> Body for GuardBody<R>
where
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut kind = self.project().0;
        loop {
            let body = match kind.as_mut().project() {
                KindProjection::Empty | KindProjection::LeftOut => return Poll::Ready(None),
                KindProjection::Part(pieces, left) => {
                    let piece = pieces.next();
                    *left -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
                    return Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))));
                }
                KindProjection::Own(body) => {
                    return body.poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into)));
                }
                KindProjection::Moved(body) => {
                    let frame = body.as_mut().poll_frame(cx);
                    return frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)));
                }
                KindProjection::Shared { reader, rest, .. } => match reader.poll_next(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Next::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Poll::Ready(Next::Trailers(trailers)) => {
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                    Poll::Ready(Next::End) => return Poll::Ready(None),
                    Poll::Ready(Next::Broken(why)) => Err(why),
                    Poll::Ready(Next::Elsewhere) => match rest {
                        None => Err(BrokenBody::unexplained()),
                        Some(rest) => match Pin::new(rest).poll(cx) {
                            Poll::Pending => return Poll::Pending,
                            Poll::Ready(body) => body.map_err(BrokenBody::new),
                        },
                    },
                },
            };
            match body {
                Ok(body) => kind.set(Kind::Moved(body)),
                Err(why) => {
                    kind.set(Kind::Empty);
                    return Poll::Ready(Some(Err(why.into())));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty | Kind::LeftOut => true,
            Kind::Part(_, left) => *left == 0,
            Kind::Own(body) => body.is_end_stream(),
            Kind::Moved(body) => body.is_end_stream(),
            Kind::Shared { reader, .. } => reader.is_at_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::LeftOut => SizeHint::new(),
            Kind::Part(_, left) => SizeHint::with_exact(*left),
            Kind::Own(body) => body.size_hint(),
            Kind::Moved(body) => body.size_hint(),
            Kind::Shared { reader, .. } => reader.left().map_or_else(SizeHint::new, SizeHint::with_exact),
        }
    }
}
