//! What the guard keeps under a key, and the responses made of it.

use std::sync::Arc;
use std::time::Duration;

use http::header::{AGE, CONTENT_LENGTH};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::body::{GuardBody, Rest};
use super::guard::Tagged;
use super::recording::{End, Reader, Recorded, Recording};
use crate::cache::Mark;
use crate::clock::Tick;
use crate::http::conditional::{Conditionals, reduce_to_304};
use crate::http::key::MethodClass;
use crate::http::range::{self, Share};
use crate::http::validate::Validators;
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
    Private(Because),
    /// The same, but the last of them serves each client for which the origin says that it still holds.
    Checked(Arc<Page>),
}

/// What showed that responses are each client's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Because {
    /// Their head.
    Head,
    /// Their body, which was too long or took too long: others would have waited in vain.
    Body,
}

impl Reply {
    /// The response itself, if this is one.
    pub(super) fn page(&self) -> Option<&Arc<Page>> {
        match self {
            Self::Page(page, _) | Self::Checked(page) => Some(page),
            Self::Varies(_) | Self::Private(_) => None,
        }
    }
}

/// Where the variants of a key are found.
#[derive(Debug)]
pub(super) struct Signpost {
    pub(super) spec: VarySpec,
    /// Keys of the variants that were stored, the one stored last at the end.
    variants: Mutex<Vec<PageKey>>,
}

impl Signpost {
    pub(super) fn new(spec: VarySpec) -> Self {
        Self { spec, variants: Mutex::new(Vec::new()) }
    }

    /// Counts a variant in. The one that makes room for it, if there are `max` already, has to leave the store: were
    /// the newcomer turned away instead, a client that makes up variants would shut all others out.
    pub(super) fn admit(&self, variant: &PageKey, max: usize) -> Option<PageKey> {
        let mut variants = self.variants.lock();
        variants.retain(|known| known != variant);
        variants.push(Arc::clone(variant));
        (variants.len() > max).then(|| variants.remove(0))
    }

    /// What it counts towards the bytes stored, its own key excluded.
    pub(super) fn weight(&self) -> u64 {
        self.variants.lock().iter().map(|variant| variant.len() as u64).sum()
    }
}

/// A response that may be given to others.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) status: StatusCode,
    /// Without hop-by-hop fields, with a place for `Age`.
    pub(super) headers: HeaderMap,
    pub(super) recording: Recorded,
    pub(super) received: Tick,
    /// How old it was then.
    pub(super) age: Duration,
    /// Whether it must not be served stale, whatever clients allow.
    pub(super) revalidate: bool,
    pub(super) tags: Option<Arc<[Mark]>>,
    /// The key under which those who may have it ask, and the headers beyond the rule that went into it.
    pub(super) key: PageKey,
    pub(super) spec: VarySpec,
}

impl Page {
    /// The page, with a place for `Age`, which each answer fills.
    pub(super) fn with_age(mut self) -> Arc<Self> {
        self.headers.insert(AGE, HeaderValue::from_static("0"));
        Arc::new(self)
    }

    /// Whether all of it is there.
    pub(super) fn is_complete(&self) -> bool {
        matches!(self.recording.end(), Some(End::Complete))
    }

    /// What the origin can tell by whether it still holds, once all of it is there.
    pub(super) fn validators(&self) -> Option<Validators> {
        Validators::of(self.status, &self.headers)
    }

    pub(super) fn age(&self, now: Tick) -> Duration {
        self.age + self.time_since_head(now)
    }

    pub(super) fn time_since_head(&self, now: Tick) -> Duration {
        now.since(self.received)
    }

    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        self.received > other.received
    }

    pub(super) fn is_event_stream(&self) -> bool {
        is_event_stream(&self.headers)
    }

    /// What it counts towards the bytes stored, its key excluded.
    pub(super) fn weight(&self) -> u64 {
        let body = self.recording.length().unwrap_or_else(|| self.recording.recorded());
        body.saturating_add(weight_of(&self.headers)).saturating_add(self.recording.trailer_weight())
    }

    /// The answer to one client, read from the start.
    pub(super) fn respond<R>(
        &self,
        class: MethodClass,
        conditionals: &Conditionals,
        now: Tick,
    ) -> Response<GuardBody<R>> {
        if class == MethodClass::Unary {
            // To the byte, trailers included.
            let body = GuardBody::shared(Reader::own(&self.recording), None);
            return self.tagged(with_head(self.status, self.headers.clone(), body));
        }
        let mut headers = self.aged_headers(now);
        let unchanged = conditionals.not_modified(self.status, &self.headers);
        let body = if unchanged {
            reduce_to_304(&mut headers);
            GuardBody::left_out()
        } else if class == MethodClass::Head {
            // A 204 tells no length (RFC 9110 section 8.6).
            if let (Some(length), false) = (self.recording.length(), headers.contains_key(CONTENT_LENGTH))
                && self.status != StatusCode::NO_CONTENT
            {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
            }
            GuardBody::left_out()
        } else {
            GuardBody::shared(Reader::new(&self.recording), None)
        };
        self.tagged(with_head(if unchanged { StatusCode::NOT_MODIFIED } else { self.status }, headers, body))
    }

    fn tagged<B>(&self, mut response: Response<B>) -> Response<B> {
        if let Some(tags) = &self.tags {
            response.extensions_mut().insert(Tagged(Arc::clone(tags)));
        }
        response
    }

    /// The answer to a client that asks for a part. `None` if the origin has to answer.
    pub(super) fn respond_in_part<R>(
        &self,
        request: &HeaderMap,
        conditionals: &Conditionals,
        now: Tick,
    ) -> Option<Response<GuardBody<R>>> {
        let length = self.recording.whole_length().filter(|_| self.status == StatusCode::OK)?;
        let share = range::share(request, &self.headers, length)?;
        if conditionals.not_modified(self.status, &self.headers) || share == Share::Whole {
            return Some(self.respond(MethodClass::Get, conditionals, now));
        }
        let mut headers = self.aged_headers(now);
        let status = range::reduce(&share, length, &mut headers);
        let body = match share {
            Share::Part(part) => GuardBody::part(self.recording.part(part)),
            Share::Whole | Share::Nothing => GuardBody::empty(),
        };
        Some(with_head(status, headers, body))
    }

    fn aged_headers(&self, now: Tick) -> HeaderMap {
        let mut headers = self.headers.clone();
        let age = self.age(now).as_secs();
        // What fills the place already.
        if age > 0 {
            headers.insert(AGE, seconds(age));
        }
        headers
    }
}

/// What fields count towards the bytes stored.
pub(super) fn weight_of(fields: &HeaderMap) -> u64 {
    fields.iter().map(|(name, value)| (name.as_str().len() + value.len() + 32) as u64).sum()
}

pub(super) fn with_head<R>(
    status: StatusCode,
    headers: HeaderMap,
    body: GuardBody<R>,
) -> Response<GuardBody<R>> {
    let mut head = Response::new(()).into_parts().0;
    (head.status, head.headers) = (status, headers);
    Response::from_parts(head, body)
}

/// The leader's own answer, whose body others may read along: the handler's head, untouched.
pub(super) fn respond_to_leader<R>(
    head: http::response::Parts,
    recording: &Arc<Recording>,
    rest: Option<Rest<R>>,
) -> Response<GuardBody<R>> {
    Response::from_parts(head, GuardBody::shared(Reader::own(recording), rest))
}

/// Small ages without an allocation: they are what a hot page has.
fn seconds(seconds: u64) -> HeaderValue {
    const SMALL: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    match usize::try_from(seconds).ok().and_then(|seconds| SMALL.get(seconds)) {
        Some(digit) => HeaderValue::from_static(digit),
        None => HeaderValue::from(seconds),
    }
}
