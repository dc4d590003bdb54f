//! A response body held once and read by many, from its first frame on.
//!
//! One task writes frames; each reader keeps its place. A recording ends complete, or failed, or *elsewhere*: it
//! grew past its limit and the rest belongs to the one client whose request it was.

use std::ops::{Deref, Range};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use tower::BoxError;

use super::budget::Room;
use super::page::weight_of;
use crate::http::headers::strip_personal;
use crate::sync::{AtomicU64, AtomicUsize, Mutex, OnceLock, Ordering};

/// Why a body ended early, for all who read it. Its [`source`](std::error::Error::source) is what the handler's body
/// said, if it said anything.
///
/// ```
/// use stampede_guard::BrokenBody;
/// use tower::BoxError;
///
/// fn broke_off(error: &BoxError) -> bool {
///     error.is::<BrokenBody>()
/// }
/// # assert!(!broke_off(&"another".into()));
/// ```
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
}

/// How a recording ended.
#[derive(Clone, Debug)]
pub(super) enum End {
    Complete,
    Failed(BrokenBody),
    Elsewhere(Outgrown),
}

/// What a body did not fit into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outgrown {
    /// What one body may have: the next one of its kind will hardly fit either.
    Limit,
    /// What the bodies under way left of the budget.
    Budget,
}

/// Frames that are smaller on average are put together at the end, in a buffer of just their size: a frame may be a
/// slice that keeps a whole read buffer alive.
const SMALL_FRAME: u64 = 4 * 1024;

/// A complete body. No frame is empty.
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
    /// The numbers of readers that went.
    free: Vec<usize>,
    /// Who writes, to be told when nobody reads any more.
    writer: Option<Waker>,
    /// What it holds of what all bodies that are not stored may hold.
    room: Option<Room>,
    /// Who waits for the end, and is no reason for it to come.
    #[cfg(feature = "redis")]
    watcher: Option<Waker>,
}

#[derive(Debug)]
pub(super) struct Recording {
    /// Set once complete: from then on nobody takes the lock.
    whole: OnceLock<Whole>,
    growing: Mutex<Growing>,
    /// The length it will have, where the head or the body told.
    expected: Option<u64>,
    /// How many pages have it: a store may count its bytes as long as there is one.
    pages: AtomicUsize,
    /// What its trailers weigh, known before it ends.
    trailers: AtomicU64,
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
        let growing = Mutex::new(Growing::default());
        let (pages, trailers) = (AtomicUsize::new(0), AtomicU64::new(0));
        Arc::new(Self { whole: OnceLock::new(), growing, expected, pages, trailers })
    }

    /// Makes it hold this room, which grows with it.
    pub(super) fn in_room(&self, room: Room) {
        self.growing.lock().room = Some(room);
    }

    /// A body that is all there.
    #[cfg(feature = "redis")]
    pub(super) fn complete(body: Bytes, trailers: Option<HeaderMap>) -> Arc<Self> {
        let recording = Self::new(None);
        recording.push(body);
        recording.weigh_trailers(trailers.as_ref());
        recording.finish(End::Complete, trailers);
        recording
    }

    /// All of a complete body in one piece; of another, nothing.
    #[cfg(feature = "redis")]
    pub(super) fn whole_body(&self) -> Bytes {
        match self.whole.get().map_or(&[][..], |whole| &whole.frames) {
            [] => Bytes::new(),
            [one] => one.clone(),
            frames => frames.concat().into(),
        }
    }

    /// Waits for the end, one at a time, without being one who reads.
    #[cfg(feature = "redis")]
    pub(super) async fn ended(&self) -> End {
        std::future::poll_fn(|cx| {
            let mut growing = self.growing.lock();
            if let Some(end) = &growing.end {
                return Poll::Ready(end.clone());
            }
            let old = growing.watcher.replace(cx.waker().clone());
            drop(growing);
            drop(old);
            Poll::Pending
        })
        .await
    }

    /// The length, if a client may be told: announced, or known by now. Where trailers follow, only what the handler
    /// announced: in HTTP/1.1 a length would leave no room for them.
    pub(super) fn length(&self) -> Option<u64> {
        self.expected
            .or_else(|| self.whole.get().filter(|whole| whole.trailers.is_none()).map(|whole| whole.length))
    }

    /// The length of a body that is complete and has no trailers.
    pub(super) fn whole_length(&self) -> Option<u64> {
        self.whole.get().filter(|whole| whole.trailers.is_none()).map(|whole| whole.length)
    }

    /// The trailers of a complete body.
    #[cfg(any(feature = "grpc", feature = "redis"))]
    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        self.whole.get().and_then(|whole| whole.trailers.as_ref())
    }

    /// The pieces of a complete body; of another, none.
    #[cfg(feature = "grpc")]
    pub(super) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.whole.get().into_iter().flat_map(|whole| &whole.frames).map(|frame| &frame[..])
    }

    /// These bytes of a complete body; of another, none.
    pub(super) fn part(&self, part: Range<u64>) -> Vec<Bytes> {
        let mut cut = Vec::new();
        let mut start = 0;
        for frame in self.whole.get().map_or(&[][..], |whole| &whole.frames) {
            let end = start + frame.len() as u64;
            // Within one frame, which is no longer than memory.
            let within = |place: u64| usize::try_from(place.clamp(start, end) - start).unwrap_or(frame.len());
            let range = within(part.start)..within(part.end);
            if !range.is_empty() {
                cut.push(frame.slice(range));
            }
            start = end;
        }
        cut
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

    /// Takes note of the trailers that it is about to end with.
    pub(super) fn weigh_trailers(&self, trailers: Option<&HeaderMap>) {
        self.trailers.store(trailers.map_or(0, weight_of), Ordering::Release);
    }

    /// What its trailers count towards the bytes stored.
    pub(super) fn trailer_weight(&self) -> u64 {
        self.trailers.load(Ordering::Acquire)
    }

    /// Keeps it from being given up meanwhile. `None` if a new reader would not get the body from here.
    pub(super) fn hold(self: &Arc<Self>) -> Option<Hold> {
        if self.whole.get().is_some() {
            return Some(Hold::Whole);
        }
        let mut growing = self.growing.lock();
        if matches!(growing.end, Some(End::Failed(_) | End::Elsewhere(_))) {
            return None;
        }
        let number = growing.attach();
        drop(growing);
        Some(Hold::Growing(Reader::at(self, Some(number))))
    }

    /// Ends it for want of readers. False if there are some after all: then `writer` is woken when the last one goes.
    pub(super) fn give_up(&self, writer: &Waker) -> bool {
        let mut growing = self.growing.lock();
        let read = growing.reading() > 0;
        let old = if read { growing.writer.replace(writer.clone()) } else { None };
        if !read {
            growing.end.get_or_insert(End::Failed(BrokenBody::unexplained()));
        }
        let herd = if read { Vec::new() } else { growing.waiting() };
        drop(growing);
        drop(old);
        wake(herd);
        !read
    }

    /// Whether somebody reads. If so, `writer` is woken when the last reader goes.
    pub(super) fn has_readers(&self, writer: &Waker) -> bool {
        let mut growing = self.growing.lock();
        let reading = growing.reading() > 0;
        let old = if reading { growing.writer.replace(writer.clone()) } else { None };
        drop(growing);
        drop(old);
        reading
    }

    /// Adds a frame. False if it is more than there is room for.
    pub(super) fn push(&self, frame: Bytes) -> bool {
        if frame.is_empty() {
            return true;
        }
        let mut growing = self.growing.lock();
        growing.length += frame.len() as u64;
        growing.frames.push(frame);
        let length = growing.length;
        let fits = growing.room.as_mut().is_none_or(|room| room.grow_to(length));
        let herd = growing.waiting();
        drop(growing);
        wake(herd);
        fits
    }

    /// Ends the recording, unless it has ended. Only its writer does.
    pub(super) fn finish(&self, end: End, trailers: Option<HeaderMap>) {
        let joined = if let End::Complete = end { self.joined() } else { None };
        let mut growing = self.growing.lock();
        if growing.end.is_some() {
            return;
        }
        if let End::Complete = end {
            let frames = std::mem::take(&mut growing.frames);
            let frames = joined.map_or(frames, |joined| vec![joined]);
            let _ = self.whole.set(Whole { frames, trailers, length: growing.length });
            if self.pages.load(Ordering::Acquire) > 0 {
                growing.release();
            }
        }
        growing.end = Some(end);
        let herd = growing.waiting();
        drop(growing);
        wake(herd);
    }

    /// Small frames, in one piece.
    fn joined(&self) -> Option<Bytes> {
        let growing = self.growing.lock();
        if growing.length >= growing.frames.len() as u64 * SMALL_FRAME {
            return None;
        }
        // The copy is made outside the lock: nobody but the writer, which waits for it here, adds to the frames.
        let frames = growing.frames.clone();
        drop(growing);
        Some(frames.concat().into())
    }

    fn poll_next(&self, place: &Place, reader: Option<usize>, cx: &mut Context<'_>) -> Poll<Next> {
        if let Some(whole) = self.whole.get() {
            return Poll::Ready(whole.next(place));
        }
        let mut growing = self.growing.lock();
        if let Some(frame) = growing.frames.get(place.frame) {
            return Poll::Ready(Next::Data(frame.clone()));
        }
        match &growing.end {
            Some(End::Failed(why)) => Poll::Ready(Next::Broken(why.clone())),
            Some(End::Elsewhere(_)) => Poll::Ready(Next::Elsewhere),
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
    fn next(&self, place: &Place) -> Next {
        match (&*self.frames, &self.trailers) {
            // One piece may have been several when the reader began.
            ([one], _) if place.read < self.length => Next::Data(one.slice(place.offset()..)),
            (frames, _) if place.read < self.length => Next::Data(frames[place.frame].clone()),
            (_, Some(trailers)) if !place.has_trailers => Next::Trailers(trailers.clone()),
            _ => Next::End,
        }
    }
}

impl Growing {
    /// The number of one reader more.
    fn attach(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.readers.push(None);
            self.readers.len() - 1
        })
    }

    fn release(&mut self) {
        if let Some(room) = &mut self.room {
            room.release();
        }
    }

    fn reading(&self) -> usize {
        self.readers.len() - self.free.len()
    }

    fn waiting(&mut self) -> Vec<Waker> {
        let waiting = self.readers.iter_mut().filter_map(Option::take);
        #[cfg(feature = "redis")]
        let waiting = waiting.chain(self.watcher.take_if(|_| self.end.is_some()));
        waiting.collect()
    }
}

fn wake(herd: Vec<Waker>) {
    for waker in herd {
        waker.wake();
    }
}

/// How far a reader has come.
#[derive(Debug, Default)]
struct Place {
    frame: usize,
    read: u64,
    has_trailers: bool,
}

impl Place {
    /// Within a single frame, which is never longer than memory.
    fn offset(&self) -> usize {
        usize::try_from(self.read).unwrap_or(usize::MAX)
    }
}

/// What keeps a recording from being given up.
#[derive(Debug)]
pub(super) enum Hold {
    /// It is complete.
    Whole,
    Growing(Reader),
}

/// A recording, as a page has it.
#[derive(Debug)]
pub(super) struct Recorded(Arc<Recording>);

impl Recorded {
    pub(super) fn new(recording: &Arc<Recording>) -> Self {
        recording.pages.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(recording))
    }
}

impl Deref for Recorded {
    type Target = Arc<Recording>;

    fn deref(&self) -> &Arc<Recording> {
        &self.0
    }
}

impl Drop for Recorded {
    /// A body that no store counts any more counts again among those that are under way, until nobody reads it.
    fn drop(&mut self) {
        let was_last = self.0.pages.fetch_sub(1, Ordering::AcqRel) == 1;
        if was_last && Arc::strong_count(&self.0) > 1 {
            let mut growing = self.0.growing.lock();
            let Growing { length, end: Some(End::Complete), room: Some(room), .. } = &mut *growing else {
                return;
            };
            room.hold(*length);
        }
    }
}

/// One who reads a recording, or waits for its end. It goes on for as long as there is one.
#[derive(Debug)]
pub(super) struct Reader {
    recording: Arc<Recording>,
    place: Place,
    /// Its number while the recording grows.
    number: Option<usize>,
    /// Whether it reads for the client whose request it was.
    owns: bool,
}

impl Reader {
    pub(super) fn new(recording: &Arc<Recording>) -> Self {
        let is_whole = recording.whole.get().is_some();
        let number = (!is_whole).then(|| recording.growing.lock().attach());
        Self::at(recording, number)
    }

    fn at(recording: &Arc<Recording>, number: Option<usize>) -> Self {
        Self { recording: Arc::clone(recording), place: Place::default(), number, owns: false }
    }

    /// Whether the recording has ended.
    pub(super) fn is_over(&self) -> bool {
        self.recording.end().is_some()
    }

    /// The reader of the client whose request it was: it gets the trailers as they came.
    pub(super) fn own(recording: &Arc<Recording>) -> Self {
        let mut reader = Self::new(recording);
        reader.owns = true;
        reader
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let mut next = self.recording.poll_next(&self.place, self.number, cx);
        match &mut next {
            Poll::Ready(Next::Data(frame)) => {
                self.place.frame += 1;
                self.place.read += frame.len() as u64;
            }
            Poll::Ready(Next::Trailers(trailers)) => {
                self.place.has_trailers = true;
                if !self.owns {
                    strip_personal(trailers);
                }
            }
            _ => {}
        }
        next
    }

    /// The bytes still to come, if the length may be told.
    pub(super) fn left(&self) -> Option<u64> {
        self.recording.length().map(|length| length.saturating_sub(self.place.read))
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.recording.whole.get().is_some_and(|whole| matches!(whole.next(&self.place), Next::End))
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
            let waker = growing.readers.get_mut(number).and_then(Option::take);
            growing.free.push(number);
            let writer = if growing.reading() == 0 { growing.writer.take() } else { None };
            drop(growing);
            drop(waker);
            if let Some(writer) = writer {
                writer.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_that_come_and_go_take_no_room() {
        let recording = Recording::new(Some(1));
        let _stays = Reader::new(&recording);
        for _ in 0..1_000 {
            let mut reader = Reader::new(&recording);
            assert!(reader.poll_next(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        let growing = recording.growing.lock();
        assert_eq!((growing.readers.len(), growing.reading()), (2, 1));
    }

    #[test]
    fn a_recording_is_given_up_only_where_nobody_reads() {
        let recording = Recording::new(Some(2));
        let held = recording.hold().unwrap();
        assert!(matches!(held, Hold::Growing(_)));
        assert!(!recording.give_up(Waker::noop()) && recording.is_sound());
        drop(held);
        assert!(recording.give_up(Waker::noop()));
        assert!(recording.hold().is_none(), "nobody begins to read what was given up");
        recording.finish(End::Complete, None);
        assert!(!recording.is_sound(), "it has ended");
    }

    #[test]
    fn bytes_count_while_they_are_read_and_no_page_has_them() {
        let budget = super::super::budget::Budget::new(10);
        let is_full = || !budget.open().grow_to(6);
        let recording = Recording::new(Some(6));
        recording.in_room(budget.open());
        let page = Recorded::new(&recording);
        let reader = Reader::new(&recording);
        assert!(recording.push(Bytes::from_static(b"sixfix")));
        assert!(is_full(), "on its way");
        recording.finish(End::Complete, None);
        assert!(!is_full(), "a store counts it");
        let confirmed = Recorded::new(&recording);
        drop(page);
        assert!(!is_full(), "another page has it");
        drop(confirmed);
        drop(recording);
        assert!(is_full(), "it is read");
        drop(reader);
        assert!(!is_full());
    }

    #[test]
    fn a_part_is_cut_from_the_frames_it_touches() {
        let recording = Recording::new(None);
        let frame = |letter| Bytes::from(vec![letter; 5_000]);
        for letter in *b"abc" {
            recording.push(frame(letter));
        }
        assert!(recording.part(0..1).is_empty(), "it may yet break off");
        recording.finish(End::Complete, None);
        let lengths =
            |part| recording.part(part).iter().map(|piece| (piece[0], piece.len())).collect::<Vec<_>>();
        assert_eq!(lengths(4_999..10_001), [(b'a', 1), (b'b', 5_000), (b'c', 1)]);
        assert_eq!(lengths(5_000..10_000), [(b'b', 5_000)]);
        assert_eq!(lengths(14_999..15_000), [(b'c', 1)]);
        assert_eq!(lengths(0..15_000).len(), 3);
    }

    #[test]
    fn a_reader_goes_on_where_it_was_when_small_frames_are_put_together() {
        let recording = Recording::new(None);
        let mut reader = Reader::new(&recording);
        let mut cx = Context::from_waker(Waker::noop());
        for frame in ["one", "", "two", "three"] {
            recording.push(Bytes::from_static(frame.as_bytes()));
        }
        assert!(matches!(reader.poll_next(&mut cx), Poll::Ready(Next::Data(frame)) if frame == "one"));
        recording.finish(End::Complete, None);
        assert!(matches!(reader.poll_next(&mut cx), Poll::Ready(Next::Data(frame)) if frame == "twothree"));
        assert!(matches!(reader.poll_next(&mut cx), Poll::Ready(Next::End)));
        let mut late = Reader::new(&recording);
        assert_eq!(late.left(), Some(11));
        assert!(matches!(late.poll_next(&mut cx), Poll::Ready(Next::Data(frame)) if frame == "onetwothree"));
        assert!(late.is_at_end());
    }
}
