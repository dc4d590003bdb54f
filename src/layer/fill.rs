//! What writes a recording: it reads the handler's body as fast as it comes, up to a limit.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};
use tower::BoxError;

use super::guard::Guarded;
use super::recording::{BrokenBody, End, Outgrown, Recording};
use crate::sync::Arc;

/// This many frames are read in one poll at most: a body that never has to be waited for keeps nobody waiting.
const TURN: usize = 32;

/// What the store wants of a body.
pub(super) struct Keep {
    guard: Arc<Guarded>,
    /// Called once, with the end of the body, or with a failure if the store gives it up.
    at_end: Box<dyn FnOnce(&End) + Send>,
    /// Goes on with nobody reading and holds one of the `max_abandoned` places.
    unattended: bool,
}

impl Keep {
    pub(super) fn new(guard: &Arc<Guarded>, at_end: impl FnOnce(&End) + Send + 'static) -> Self {
        Self { guard: Arc::clone(guard), at_end: Box::new(at_end), unattended: false }
    }

    /// Whether the body may go on: with nobody reading, only as one of so many.
    fn may_go_on(&mut self, read: bool) -> bool {
        let flights = self.guard.flights();
        if read && std::mem::take(&mut self.unattended) {
            flights.leave_unattended();
        } else if !read && !self.unattended {
            self.unattended = flights.enter_unattended();
        }
        read || self.unattended
    }

    fn end(self, end: &End) {
        if self.unattended {
            self.guard.flights().leave_unattended();
        }
        (self.at_end)(end);
    }
}

/// The future that fills a recording, one frame at a time.
pub(super) struct Fill<R> {
    /// `None` once it has been read to its end or moved on.
    body: Option<Pin<Box<R>>>,
    recording: Arc<Recording>,
    limit: u64,
    /// Where the body goes if it outgrows the limit.
    rest: Option<oneshot::Sender<Pin<Box<R>>>>,
    keep: Option<Keep>,
    /// For how long the store waits: with somebody reading, for the next frame; with nobody, for the end.
    patience: Option<Duration>,
    waited: Option<Pin<Box<Sleep>>>,
}

impl<R> Fill<R>
where
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    pub(super) fn new(body: R, recording: &Arc<Recording>, limit: u64) -> Self {
        let recording = Arc::clone(recording);
        let body = Some(Box::pin(body));
        Self { body, recording, limit, rest: None, keep: None, patience: None, waited: None }
    }

    /// Hands the body on if it outgrows the limit.
    pub(super) fn rest(mut self, rest: oneshot::Sender<Pin<Box<R>>>) -> Self {
        self.rest = Some(rest);
        self
    }

    /// Goes on in a task, with nobody reading only if somebody keeps it.
    pub(super) fn detach(mut self, keep: Option<Keep>, patience: Option<Duration>) -> Self {
        self.keep = keep;
        self.patience = patience;
        self
    }

    fn end(&mut self, end: End, trailers: Option<http::HeaderMap>) {
        // Its destructor is code of others: by then everybody knows of the end.
        let body = self.body.take();
        self.recording.weigh_trailers(trailers.as_ref());
        // The store before those who wait: whoever learns of the end finds there what it came to.
        if let Some(keep) = self.keep.take() {
            keep.end(&end);
        }
        self.recording.finish(end, trailers);
        drop(body);
    }

    /// True while somebody reads, or the store wants the body and it is not too slow in coming. A body that is too
    /// slow is left to those who read it already.
    fn is_wanted(&mut self, has_grown: bool, cx: &mut Context<'_>) -> bool {
        let read = self.recording.has_readers(cx.waker());
        let Some(keep) = &mut self.keep else { return read };
        let may_go_on = keep.may_go_on(read) && !self.is_too_slow(has_grown && read, cx);
        if !may_go_on && let Some(keep) = self.keep.take() {
            keep.end(&End::Failed(BrokenBody::unexplained()));
        }
        read || self.keep.is_some()
    }

    fn is_too_slow(&mut self, starts_anew: bool, cx: &mut Context<'_>) -> bool {
        let Some(patience) = self.patience else { return false };
        let waited = self.waited.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        if starts_anew {
            waited.as_mut().reset(Instant::now() + patience);
        }
        waited.as_mut().poll(cx).is_ready()
    }

    /// Reads on until the body has to be waited for. Ready at the end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut turn = 0;
        while let Some(body) = &mut self.body {
            if turn == TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            turn += 1;
            let Poll::Ready(frame) = body.as_mut().poll_frame(cx) else {
                return Poll::Pending;
            };
            match frame.map(|frame| frame.map(http_body::Frame::into_data)) {
                None => self.complete(None),
                Some(Err(error)) => self.end(End::Failed(BrokenBody::new(error)), None),
                Some(Ok(Ok(data))) => {
                    let length = self.recording.recorded() + data.len() as u64;
                    let fits = self.recording.push(data);
                    if length > self.limit {
                        self.move_on(Outgrown::Limit);
                    } else if !fits {
                        self.move_on(Outgrown::Budget);
                    }
                }
                Some(Ok(Err(frame))) => {
                    if let Ok(trailers) = frame.into_trailers() {
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
                self.end(End::Failed(BrokenBody::new(why)), None);
            }
            _ => self.end(End::Complete, trailers),
        }
    }

    fn move_on(&mut self, outgrown: Outgrown) {
        let body = self.body.take();
        self.end(End::Elsewhere(outgrown), None);
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
        let before = this.recording.recorded();
        if this.poll_fill(cx).is_ready() {
            return Poll::Ready(());
        }
        let has_grown = this.recording.recorded() > before;
        // Somebody may have begun to read since it was asked for.
        if this.is_wanted(has_grown, cx) || !this.recording.give_up(cx.waker()) {
            return Poll::Pending;
        }
        this.end(End::Failed(BrokenBody::unexplained()), None);
        Poll::Ready(())
    }
}

impl<R> Drop for Fill<R> {
    fn drop(&mut self) {
        if self.body.is_some() {
            let end = End::Failed(BrokenBody::unexplained());
            if let Some(keep) = self.keep.take() {
                keep.end(&end);
            }
            self.recording.finish(end, None);
        }
    }
}
