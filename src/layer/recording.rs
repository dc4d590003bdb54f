//! A response body held once and read by many, from its first frame on.
//!
//! One task writes frames; each reader keeps its place. A recording ends complete, or failed, or *elsewhere*: it
//! grew past its limit and the rest belongs to the one client whose request it was.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use tower::BoxError;

use crate::sync::{Mutex, OnceLock};

/// Why a body ended early, for all who read it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the response body broke off")]
pub struct BrokenBody {
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl BrokenBody {
    pub(super) fn new(error: impl Into<BoxError>) -> Self {
        Self { source: Some(Arc::from(error.into())) }
    }

    pub(super) fn unexplained() -> Self {
        Self { source: None }
    }

    /// What the handler's body said.
    #[must_use]
    pub fn cause(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        self.source.as_deref()
    }
}

/// How a recording ended.
#[derive(Clone, Debug)]
pub(super) enum End {
    Complete,
    Failed(BrokenBody),
    Elsewhere,
}

/// A complete body.
#[derive(Debug)]
struct Whole {
    frames: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    length: u64,
}

#[derive(Debug, Default)]
struct Growing {
    frames: Vec<Bytes>,
    length: u64,
    end: Option<End>,
    /// Readers by number; a reader that waits has its waker here.
    readers: Vec<Option<Waker>>,
    reading: usize,
    /// Who writes, to be told when nobody reads any more.
    writer: Option<Waker>,
}

#[derive(Debug)]
pub(super) struct Recording {
    /// Set once complete: from then on nobody takes the lock.
    whole: OnceLock<Whole>,
    growing: Mutex<Growing>,
    /// The length it will have, where the head or the body told.
    expected: Option<u64>,
}

/// What comes next for a reader.
pub(super) enum Next {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    Broken(BrokenBody),
    /// The rest has to be read from the original.
    Elsewhere,
}

impl Recording {
    pub(super) fn new(expected: Option<u64>) -> Arc<Self> {
        Arc::new(Self { whole: OnceLock::new(), growing: Mutex::new(Growing::default()), expected })
    }

    /// The length, if it is known.
    pub(super) fn length(&self) -> Option<u64> {
        self.whole.get().map(|whole| whole.length).or(self.expected)
    }

    pub(super) fn recorded(&self) -> u64 {
        self.whole.get().map_or_else(|| self.growing.lock().length, |whole| whole.length)
    }

    pub(super) fn end(&self) -> Option<End> {
        if self.whole.get().is_some() { Some(End::Complete) } else { self.growing.lock().end.clone() }
    }

    /// Whether a new reader gets the body from here, as far as it is known.
    pub(super) fn is_sound(&self) -> bool {
        matches!(self.end(), None | Some(End::Complete))
    }

    /// Whether somebody reads. If so, `writer` is woken when the last reader goes.
    pub(super) fn has_readers(&self, writer: &Waker) -> bool {
        let mut growing = self.growing.lock();
        let old = if growing.reading > 0 { growing.writer.replace(writer.clone()) } else { None };
        let reading = growing.reading > 0;
        drop(growing);
        drop(old);
        reading
    }

    pub(super) fn push(&self, frame: Bytes) {
        let mut growing = self.growing.lock();
        growing.length += frame.len() as u64;
        growing.frames.push(frame);
        let herd = growing.waiting();
        drop(growing);
        wake(herd);
    }

    /// Ends the recording, unless it has ended.
    pub(super) fn finish(&self, end: End, trailers: Option<HeaderMap>) {
        let mut growing = self.growing.lock();
        if growing.end.is_some() {
            return;
        }
        if let End::Complete = end {
            let frames = std::mem::take(&mut growing.frames);
            let _ = self.whole.set(Whole { frames, trailers, length: growing.length });
        }
        growing.end = Some(end);
        let herd = growing.waiting();
        drop(growing);
        wake(herd);
    }

    fn poll_next(&self, place: usize, reader: Option<usize>, cx: &mut Context<'_>) -> Poll<Next> {
        if let Some(whole) = self.whole.get() {
            return Poll::Ready(whole.next(place));
        }
        let mut growing = self.growing.lock();
        if let Some(frame) = growing.frames.get(place) {
            return Poll::Ready(Next::Data(frame.clone()));
        }
        match &growing.end {
            Some(End::Failed(why)) => Poll::Ready(Next::Broken(why.clone())),
            Some(End::Elsewhere) => Poll::Ready(Next::Elsewhere),
            Some(End::Complete) => {
                drop(growing);
                self.whole.get().map_or(Poll::Pending, |whole| Poll::Ready(whole.next(place)))
            }
            None => {
                let waker = reader.and_then(|reader| growing.readers.get_mut(reader));
                let old = waker.and_then(|waker| waker.replace(cx.waker().clone()));
                drop(growing);
                drop(old);
                Poll::Pending
            }
        }
    }
}

impl Whole {
    fn next(&self, place: usize) -> Next {
        match (self.frames.get(place), &self.trailers) {
            (Some(frame), _) => Next::Data(frame.clone()),
            (None, Some(trailers)) if place == self.frames.len() => Next::Trailers(trailers.clone()),
            (None, _) => Next::End,
        }
    }
}

impl Growing {
    fn waiting(&mut self) -> Vec<Waker> {
        self.readers.iter_mut().filter_map(Option::take).collect()
    }
}

fn wake(herd: Vec<Waker>) {
    for waker in herd {
        waker.wake();
    }
}

/// One client's place in a recording.
#[derive(Debug)]
pub(super) struct Reader {
    recording: Arc<Recording>,
    place: usize,
    read: u64,
    /// Its number while the recording grows.
    number: Option<usize>,
    /// Whether the recording goes on for it.
    counts: bool,
}

impl Reader {
    pub(super) fn new(recording: &Arc<Recording>) -> Self {
        let number = if recording.whole.get().is_some() {
            None
        } else {
            let mut growing = recording.growing.lock();
            growing.readers.push(None);
            growing.reading += 1;
            Some(growing.readers.len() - 1)
        };
        Self { recording: Arc::clone(recording), place: 0, read: 0, number, counts: true }
    }

    /// A reader for whose sake alone nothing is recorded.
    pub(super) fn watch(recording: &Arc<Recording>) -> Self {
        let mut watcher = Self::new(recording);
        watcher.counts = false;
        if watcher.number.is_some() {
            recording.growing.lock().reading -= 1;
        }
        watcher
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let next = self.recording.poll_next(self.place, self.number, cx);
        match &next {
            Poll::Ready(Next::Data(frame)) => {
                self.place += 1;
                self.read += frame.len() as u64;
            }
            Poll::Ready(Next::Trailers(_)) => self.place += 1,
            _ => {}
        }
        next
    }

    /// The bytes still to come, if the length is known.
    pub(super) fn left(&self) -> Option<u64> {
        self.recording.length().map(|length| length.saturating_sub(self.read))
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.recording.whole.get().is_some_and(|whole| matches!(whole.next(self.place), Next::End))
    }

    /// Waits for the end of the recording.
    pub(super) async fn ended(&mut self) -> End {
        std::future::poll_fn(|cx| {
            loop {
                if let Some(end) = self.recording.end() {
                    return Poll::Ready(end);
                }
                if self.poll_next(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let mut growing = self.recording.growing.lock();
            growing.reading -= usize::from(self.counts);
            let waker = growing.readers.get_mut(number).and_then(Option::take);
            let writer = if growing.reading == 0 { growing.writer.take() } else { None };
            drop(growing);
            drop(waker);
            if let Some(writer) = writer {
                writer.wake();
            }
        }
    }
}
