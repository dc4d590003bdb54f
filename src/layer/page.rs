//! What the guard keeps under a key, and the responses made of it.

use std::sync::Arc;
use std::time::Duration;

use http::header::{AGE, CACHE_CONTROL, CONTENT_LENGTH, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::body::{GuardBody, Rest};
use super::recording::{Reader, Recording};
use crate::clock::{Tick, Timeline};
use crate::http::conditional::{Conditionals, reduce_to_304};
use crate::http::key::MethodClass;
use crate::http::vary::VarySpec;
use crate::http::verdict::is_event_stream;
use crate::sync::Mutex;

/// A whole key.
pub(super) type PageKey = Arc<[u8]>;

/// What a flight brings and the shelf holds.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    /// A response that whoever has the key may have. Those who waited for it hold a reader, so that its body does not
    /// end for want of one before they have theirs.
    Page(Arc<Page>, Option<Arc<Reader>>),
    /// Responses under this key depend on more: look under the key with these headers in it.
    Varies(Arc<Signpost>),
    /// Responses under this key are each client's own. Nobody waits for another's.
    Private,
}

/// Where the variants of a key are found.
#[derive(Debug)]
pub(super) struct Signpost {
    pub(super) spec: VarySpec,
    /// Hashes of the variants that were stored.
    variants: Mutex<Vec<u64>>,
}

impl Signpost {
    pub(super) fn new(spec: VarySpec) -> Self {
        Self { spec, variants: Mutex::new(Vec::new()) }
    }

    /// Whether the variant is one of at most `max`.
    pub(super) fn admit(&self, variant: u64, max: usize) -> bool {
        let mut variants = self.variants.lock();
        if variants.contains(&variant) {
            return true;
        }
        let room = variants.len() < max;
        if room {
            variants.push(variant);
        }
        room
    }
}

/// A response that may be given to others.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) status: StatusCode,
    /// Without hop-by-hop fields, with a place for `Age`.
    headers: HeaderMap,
    pub(super) recording: Arc<Recording>,
    received: Tick,
    /// How old it was then.
    age: Duration,
    /// The key under which those who may have it ask, and the headers beyond the rule that went into it.
    pub(super) key: PageKey,
    pub(super) spec: VarySpec,
}

impl Page {
    pub(super) fn new(
        status: StatusCode,
        mut headers: HeaderMap,
        recording: Arc<Recording>,
        received: Tick,
        age: Duration,
        (key, spec): (PageKey, VarySpec),
    ) -> Self {
        headers.insert(AGE, HeaderValue::from_static("0"));
        Self { status, headers, recording, received, age, key, spec }
    }

    pub(super) fn time_since_head(&self, timeline: &Timeline) -> Duration {
        timeline.now().since(self.received)
    }

    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        self.received > other.received
    }

    pub(super) fn is_event_stream(&self) -> bool {
        is_event_stream(&self.headers)
    }

    /// What it counts towards the bytes stored, its key excluded.
    pub(super) fn weight(&self) -> u64 {
        let headers: usize =
            self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        headers as u64 + self.recording.length().unwrap_or_else(|| self.recording.recorded())
    }

    /// The answer to one client, read from the start.
    pub(super) fn respond<R>(
        &self,
        class: MethodClass,
        conditionals: &Conditionals,
        timeline: &Timeline,
    ) -> Response<GuardBody<R>> {
        let mut headers = self.headers.clone();
        let age = self.age + self.time_since_head(timeline);
        headers.insert(AGE, seconds(age.as_secs()));
        let unchanged = conditionals.not_modified(self.status, &self.headers);
        let body = if unchanged {
            reduce_to_304(&mut headers);
            GuardBody::left_out()
        } else if class == MethodClass::Head {
            if let (Some(length), false) = (self.recording.length(), headers.contains_key(CONTENT_LENGTH)) {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
            }
            GuardBody::left_out()
        } else {
            GuardBody::shared(Reader::new(&self.recording), None)
        };
        let mut response = Response::new(body);
        *response.status_mut() = if unchanged { StatusCode::NOT_MODIFIED } else { self.status };
        *response.headers_mut() = headers;
        response
    }
}

/// The leader's own answer, whose body others may read along: the handler's head, untouched.
pub(super) fn respond_to_leader<R>(
    head: http::response::Parts,
    recording: &Arc<Recording>,
    rest: Option<Rest<R>>,
) -> Response<GuardBody<R>> {
    Response::from_parts(head, GuardBody::shared(Reader::new(recording), rest))
}

/// The guard's own word, where there is no handler's.
pub(super) fn refusal<R>(status: StatusCode) -> Response<GuardBody<R>> {
    let mut response = Response::new(GuardBody::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Small ages without an allocation: they are what a hot page has.
fn seconds(seconds: u64) -> HeaderValue {
    const SMALL: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    match usize::try_from(seconds).ok().and_then(|seconds| SMALL.get(seconds)) {
        Some(digit) => HeaderValue::from_static(digit),
        None => HeaderValue::from(seconds),
    }
}
