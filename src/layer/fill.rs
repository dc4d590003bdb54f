//! What writes a recording: it reads the handler's body as fast as it comes, up to a limit.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use tokio::sync::oneshot;
use tokio::time::Sleep;
use tower::BoxError;

use super::recording::{BrokenBody, End, Recording};
use crate::sync::Arc;

/// Called once, with the end of the recording.
pub(super) type AtEnd = Box<dyn FnOnce(&End) + Send>;

/// The future that fills a recording.
pub(super) struct Fill<R> {
    /// `None` once it has been read to its end or moved on.
    body: Option<Pin<Box<R>>>,
    recording: Arc<Recording>,
    limit: u64,
    /// Where the body goes if it outgrows the limit.
    rest: Option<oneshot::Sender<Pin<Box<R>>>>,
    at_end: Option<AtEnd>,
    /// Whether it goes on with nobody reading, and for how long.
    keep: bool,
    patience: Option<Duration>,
    unread: Option<Pin<Box<Sleep>>>,
}

impl<R> Fill<R>
where
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    pub(super) fn new(body: R, recording: &Arc<Recording>, limit: u64) -> Self {
        let recording = Arc::clone(recording);
        let body = Some(Box::pin(body));
        Self { body, recording, limit, rest: None, at_end: None, keep: true, patience: None, unread: None }
    }

    /// Hands the body on if it outgrows the limit.
    pub(super) fn rest(mut self, rest: oneshot::Sender<Pin<Box<R>>>) -> Self {
        self.rest = Some(rest);
        self
    }

    /// Goes on in a task. With nobody reading, it ends at once unless `keep`, and then after `patience`.
    pub(super) fn detach(mut self, keep: bool, patience: Option<Duration>, at_end: AtEnd) -> Self {
        self.keep = keep;
        self.patience = patience;
        self.at_end = Some(at_end);
        self
    }

    fn end(&mut self, end: &End, trailers: Option<http::HeaderMap>) {
        self.recording.finish(end.clone(), trailers);
        if let Some(at_end) = self.at_end.take() {
            at_end(end);
        }
    }

    /// True while somebody reads, or the store wants the body and it is not too slow in coming.
    fn is_wanted(&mut self, cx: &mut Context<'_>) -> bool {
        if self.recording.has_readers(cx.waker()) {
            self.unread = None;
            return true;
        }
        let Some(patience) = self.patience else { return self.keep };
        let unread = self.unread.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        self.keep && unread.as_mut().poll(cx).is_pending()
    }

    /// Reads on until the body has to be waited for. Ready at the end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(body) = &mut self.body {
            let Poll::Ready(frame) = body.as_mut().poll_frame(cx) else {
                return Poll::Pending;
            };
            match frame.map(|frame| frame.map(http_body::Frame::into_data)) {
                None => {
                    self.body = None;
                    self.complete(None);
                }
                Some(Err(error)) => {
                    self.body = None;
                    self.end(&End::Failed(BrokenBody::new(error)), None);
                }
                Some(Ok(Ok(data))) => {
                    let length = self.recording.recorded() + data.len() as u64;
                    self.recording.push(data);
                    if length > self.limit {
                        self.move_on();
                    }
                }
                Some(Ok(Err(frame))) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.body = None;
                        self.complete(Some(trailers));
                    }
                }
            }
        }
        Poll::Ready(())
    }

    /// A body is complete only if it is as long as was said.
    fn complete(&mut self, trailers: Option<http::HeaderMap>) {
        let recorded = self.recording.recorded();
        match self.recording.length() {
            Some(length) if length != recorded => {
                let why = format!("{recorded} bytes came, {length} were announced");
                self.end(&End::Failed(BrokenBody::new(why)), None);
            }
            _ => self.end(&End::Complete, trailers),
        }
    }

    fn move_on(&mut self) {
        let body = self.body.take();
        self.end(&End::Elsewhere, None);
        if let (Some(body), Some(rest)) = (body, self.rest.take()) {
            // A client that has gone away takes its body with it.
            let _ = rest.send(body);
        }
    }
}

impl<R> Future for Fill<R>
where
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.poll_fill(cx).is_ready() {
            return Poll::Ready(());
        }
        if this.is_wanted(cx) {
            return Poll::Pending;
        }
        this.body = None;
        this.end(&End::Failed(BrokenBody::unexplained()), None);
        Poll::Ready(())
    }
}

impl<R> Drop for Fill<R> {
    fn drop(&mut self) {
        if self.body.is_some() {
            let end = End::Failed(BrokenBody::unexplained());
            self.recording.finish(end.clone(), None);
            if let Some(at_end) = self.at_end.take() {
                at_end(&end);
            }
        }
    }
}
