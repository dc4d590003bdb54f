//! The form in which instances of a service pass a response on to each other.
//!
//! Version 1; numbers are big-endian, lengths come before what they measure:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version: 1 |
//! | 1 | flags: 1 must not be served stale, 2 has trailers |
//! | 2 | status |
//! | 8 | ms since it was generated, as of when this was written |
//! | 4, n | its key, in full |
//! | 2, (2, n)* | request headers that its `Vary` put into the key, sorted |
//! | 2, (2, n, 4, n)* | header lines in their order: name and value |
//! | 2, (2, n, 4, n)* | trailer lines, if it has any |
//! | 4, n | body, and nothing behind it |
//!
//! It holds a duration and no instant: how long it stays fresh from here, how long it may be served after that, what it is
//! voided with, and how long ago it was written, is the tier's to say, whose clock alone counts. What is read is untrusted: each length is held against what is left before anything
//! is allocated for it, and whatever is wrong makes it no response at all.
//!
//! A version is never changed; `tests/wire_compat` has a snapshot of each.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::http::freshness::MAX_LIFETIME;
use crate::http::vary::VarySpec;
use crate::http::writer::MAX_KEY_BYTES;

/// The version that is written.
pub(crate) const VERSION: u8 = 1;

const REVALIDATE: u8 = 1;
const TRAILERS: u8 = 2;

/// A whole response, and what those who serve it have to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Under which it may be served, in full.
    pub(crate) key: Bytes,
    /// The request headers beyond the rule that are in the key.
    pub(crate) vary: VarySpec,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) body: Bytes,
    /// How old it was when this was written.
    pub(crate) age: Duration,
    /// Whether it must not be served stale, whatever clients allow.
    pub(crate) revalidate: bool,
}

impl Stored {
    /// `None` if it has no such form, for the sheer number or length of something.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(self.body.len() + self.key.len() + 1_024);
        let mut flags = 0;
        if self.revalidate {
            flags |= REVALIDATE;
        }
        if self.trailers.is_some() {
            flags |= TRAILERS;
        }
        out.extend_from_slice(&[VERSION, flags]);
        out.extend_from_slice(&self.status.as_u16().to_be_bytes());
        let age = u64::try_from(self.age.min(MAX_LIFETIME).as_millis()).ok()?;
        out.extend_from_slice(&age.to_be_bytes());
        put(&mut out, &self.key)?;
        count(&mut out, self.vary.names().len())?;
        for name in self.vary.names() {
            put_name(&mut out, name)?;
        }
        put_lines(&mut out, &self.headers)?;
        if let Some(trailers) = &self.trailers {
            put_lines(&mut out, trailers)?;
        }
        put(&mut out, &self.body)?;
        Some(out)
    }

    /// What [`encode`](Self::encode) made `bytes` of, in this version or an earlier one. `None` if there is no such
    /// response.
    pub(crate) fn decode(bytes: Bytes) -> Option<Self> {
        let mut input = Input(bytes);
        let [VERSION, flags] = input.fixed()? else { return None };
        if flags & !(REVALIDATE | TRAILERS) != 0 {
            return None;
        }
        let status = StatusCode::from_u16(u16::from_be_bytes(input.fixed()?)).ok()?;
        let age = input.span()?;
        let key = input.bytes()?;
        if key.len() > MAX_KEY_BYTES {
            return None;
        }
        let vary = input.vary()?;
        let headers = input.lines()?;
        let trailers = if flags & TRAILERS == 0 { None } else { Some(input.lines()?) };
        let body = input.bytes()?;
        let revalidate = flags & REVALIDATE != 0;
        input.0.is_empty().then_some(Self { key, vary, status, headers, trailers, body, age, revalidate })
    }
}

fn count(out: &mut Vec<u8>, count: usize) -> Option<()> {
    out.extend_from_slice(&u16::try_from(count).ok()?.to_be_bytes());
    Some(())
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    out.extend_from_slice(&u32::try_from(bytes.len()).ok()?.to_be_bytes());
    out.extend_from_slice(bytes);
    Some(())
}

fn put_name(out: &mut Vec<u8>, name: &HeaderName) -> Option<()> {
    count(out, name.as_str().len())?;
    out.extend_from_slice(name.as_str().as_bytes());
    Some(())
}

fn put_lines(out: &mut Vec<u8>, lines: &HeaderMap) -> Option<()> {
    count(out, lines.len())?;
    for (name, value) in lines {
        put_name(out, name)?;
        put(out, value.as_bytes())?;
    }
    Some(())
}

/// What is left to read. Nothing is copied out of it but names and values of headers.
struct Input(Bytes);

impl Input {
    fn take(&mut self, length: usize) -> Option<Bytes> {
        (length <= self.0.len()).then(|| self.0.split_to(length))
    }

    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.as_ref().try_into().ok()
    }

    fn short(&mut self) -> Option<usize> {
        self.fixed().map(u16::from_be_bytes).map(usize::from)
    }

    fn bytes(&mut self) -> Option<Bytes> {
        let length = u32::from_be_bytes(self.fixed()?);
        self.take(usize::try_from(length).ok()?)
    }

    fn span(&mut self) -> Option<Duration> {
        let span = Duration::from_millis(u64::from_be_bytes(self.fixed()?));
        (span <= MAX_LIFETIME).then_some(span)
    }

    /// As it is written: in lower case.
    fn name(&mut self) -> Option<HeaderName> {
        let length = self.short()?;
        let bytes = self.take(length)?;
        HeaderName::from_bytes(&bytes).ok().filter(|name| name.as_str().as_bytes() == bytes)
    }

    /// How many of something follow that takes so many bytes at least.
    fn count(&mut self, least: usize) -> Option<usize> {
        let count = self.short()?;
        (count * least <= self.0.len()).then_some(count)
    }

    fn vary(&mut self) -> Option<VarySpec> {
        let names: Vec<_> = (0..self.count(3)?).map(|_| self.name()).collect::<Option<_>>()?;
        let is_sorted = names.windows(2).all(|pair| pair[0].as_str() < pair[1].as_str());
        is_sorted.then(|| VarySpec::new(names))
    }

    fn lines(&mut self) -> Option<HeaderMap> {
        let count = self.count(7)?;
        let mut lines = HeaderMap::new();
        for _ in 0..count {
            let name = self.name()?;
            let value = HeaderValue::from_maybe_shared(self.bytes()?).ok()?;
            // More than a map can hold is an error, not a panic.
            lines.try_append(name, value).ok()?;
        }
        Some(lines)
    }
}

#[cfg(test)]
mod tests;
