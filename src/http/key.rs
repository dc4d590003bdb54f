//! The key of a request: two requests share one only if a handler could not tell them apart by anything that
//! counts.
//!
//! Bytes are taken as they came. Nothing is normalised, decoded or lower-cased: a handler may see the difference.

use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Uri};

use crate::http::rule::KeyRule;
use crate::http::vary::VarySpec;
use crate::http::writer::{KeyTooLong, KeyWriter};

/// GET and HEAD never share a key; whoever answers a HEAD from a GET asks for the GET's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum MethodClass {
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// A gRPC call with one message, which its `extra` holds.
    #[cfg_attr(not(feature = "grpc"), allow(dead_code))]
    Unary,
}

impl MethodClass {
    /// The class under which answers are stored that do for this one.
    pub(crate) fn stored(self) -> Self {
        match self {
            Self::Get | Self::Head => Self::Get,
            Self::Unary => Self::Unary,
        }
    }
}

/// What a key is made of, apart from the rule.
pub(crate) struct KeyInput<'a> {
    /// The method.
    pub(crate) class: MethodClass,
    /// The request as this layer sees it.
    pub(crate) parts: &'a Parts,
    /// Those of its header lines that count.
    pub(crate) lines: &'a Lines<'a>,
    /// The URI as the outermost router saw it: without it two nested routers would share keys.
    pub(crate) original: Option<&'a Uri>,
    /// Goes up when everything stored is to be forgotten.
    pub(crate) generation: u64,
    /// The headers that the last response under this key named in `Vary`, [without](VarySpec::without_keyed) those
    /// that the rule keys.
    pub(crate) vary: &'a VarySpec,
    /// What the operator's own function adds.
    pub(crate) extra: &'a [u8],
}

impl KeyInput<'_> {
    /// Writes the whole key, in place of what is there.
    ///
    /// In this order: fingerprint, generation, class, both URIs, headers (`Host` among them), cookies, the headers of
    /// `vary`, `extra`; each field length-prefixed, each repetition counted. Allocates nothing.
    ///
    /// # Errors
    /// [`KeyTooLong`] beyond [`MAX_KEY_BYTES`](crate::http::writer::MAX_KEY_BYTES); nothing is written then.
    pub(crate) fn write(&self, rule: &KeyRule, key: &mut KeyWriter) -> Result<(), KeyTooLong> {
        key.clear();
        let written = self.write_fields(rule, key);
        if written.is_err() {
            key.clear();
        }
        written
    }

    fn write_fields(&self, rule: &KeyRule, key: &mut KeyWriter) -> Result<(), KeyTooLong> {
        let Self { parts, extra, .. } = self;
        key.fixed(rule.fingerprint().to_be_bytes())?;
        key.fixed(self.generation.to_be_bytes())?;
        key.fixed([match self.class {
            MethodClass::Get => b'G',
            MethodClass::Head => b'H',
            MethodClass::Unary => b'U',
        }])?;
        write_uri(&parts.uri, key)?;
        match self.original {
            None => key.fixed([b'-'])?,
            Some(original) if same_bytes(original, &parts.uri) => key.fixed([b'='])?,
            Some(original) => {
                key.fixed([b'+'])?;
                write_uri(original, key)?;
            }
        }
        self.lines.write(key)?;
        rule.cookies().write(&parts.headers, key)?;
        self.vary.write(&parts.headers, key)?;
        key.field(extra)
    }
}

/// A key as other instances know it: without the generation, which each counts for itself.
#[cfg(feature = "redis")]
pub(crate) fn without_generation(key: &[u8]) -> Vec<u8> {
    const AT: std::ops::Range<usize> = 8..16;
    [&key[..AT.start], &key[AT.end..]].concat()
}

fn write_uri(uri: &Uri, key: &mut KeyWriter) -> Result<(), KeyTooLong> {
    key.optional(uri.scheme_str().map(str::as_bytes))?;
    key.optional(uri.authority().map(|authority| authority.as_str().as_bytes()))?;
    key.field(uri.path().as_bytes())?;
    key.optional(uri.query().map(str::as_bytes))
}

/// `Uri`'s own equality ignores case in the authority.
fn same_bytes(a: &Uri, b: &Uri) -> bool {
    a.path() == b.path()
        && a.query() == b.query()
        && a.scheme_str() == b.scheme_str()
        && a.authority().map(Authority::as_str) == b.authority().map(Authority::as_str)
}

/// How many header lines are kept without an allocation.
const ON_STACK: usize = 16;

/// Name and value of one header line.
type Line<'a> = (&'a str, &'a [u8]);

/// The header lines of a request that count.
pub(crate) struct Lines<'a> {
    some: [Line<'a>; ON_STACK],
    filled: usize,
    /// All of them, once they are more.
    many: Vec<Line<'a>>,
}

impl<'a> Lines<'a> {
    pub(crate) fn new() -> Self {
        Self { some: [("", b""); ON_STACK], filled: 0, many: Vec::new() }
    }

    /// Those of a request.
    pub(crate) fn of(rule: &KeyRule, headers: &'a HeaderMap) -> Self {
        let mut lines = Self::new();
        for (name, value) in headers.iter().filter(|(name, _)| rule.keys(name)) {
            lines.push(name.as_str(), value);
        }
        lines.sort();
        lines
    }

    #[inline]
    pub(crate) fn push(&mut self, name: &'a str, value: &'a HeaderValue) {
        let line = (name, value.as_bytes());
        if let Some(place) = self.some.get_mut(self.filled) {
            *place = line;
            self.filled += 1;
        } else {
            if self.many.is_empty() {
                self.many.extend_from_slice(&self.some);
            }
            self.many.push(line);
        }
    }

    /// In one order whatever the order in the request, lines of one name in theirs.
    pub(crate) fn sort(&mut self) {
        let lines = if self.many.is_empty() { &mut self.some[..self.filled] } else { &mut self.many[..] };
        // A map gives the lines of one name in their order, and this sort keeps it. Most names differ in length, which is
        // sooner compared.
        lines.sort_by_key(|(name, _)| (name.len(), *name));
    }

    fn write(&self, key: &mut KeyWriter) -> Result<(), KeyTooLong> {
        let lines = if self.many.is_empty() { &self.some[..self.filled] } else { &self.many[..] };
        key.count(lines.len())?;
        for (name, value) in lines {
            key.field(name.as_bytes())?;
            key.field(value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
