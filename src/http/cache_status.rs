//! `Cache-Status`: how a cache came by its answer, told to the client (RFC 9211).

use std::fmt::Write;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// The field's name.
pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why a request went on to the origin (RFC 9211 section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forward {
    /// The cache was told not to handle it.
    Bypass,
    /// Its method is not one that is answered from the store.
    Method,
    /// Nothing is stored for its URI.
    UriMiss,
    /// What is stored for its URI is for other request headers.
    VaryMiss,
    /// The client asked for it.
    Request,
    /// What is stored is stale.
    Stale,
}

impl Forward {
    fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Request => "request",
            Self::Stale => "stale",
        }
    }
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Store,
    Origin(Forward),
    /// The cache itself, and why (RFC 9211 section 2.8).
    Cache(&'static str),
}

/// What one cache did with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheStatus {
    pub(crate) source: Source,
    /// The status that the origin answered with, where that is known.
    pub(crate) status: Option<StatusCode>,
    /// Whether the answer is stored.
    pub(crate) stored: bool,
    /// Whether the request shared another's way to the origin.
    pub(crate) collapsed: bool,
    /// What is left of the freshness lifetime; how long it is over, if negative.
    pub(crate) ttl: Option<Ttl>,
}

/// A freshness lifetime's rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ttl {
    /// Fresh for so long.
    Left(Duration),
    /// Stale for so long.
    Over(Duration),
}

impl CacheStatus {
    /// An answer from the store.
    pub(crate) fn hit(ttl: Ttl) -> Self {
        Self { ttl: Some(ttl), ..Self::from(Source::Store) }
    }

    /// An answer from the origin.
    pub(crate) fn forwarded(why: Forward, status: StatusCode) -> Self {
        Self { status: Some(status), ..Self::from(Source::Origin(why)) }
    }

    /// An answer of the cache's own, for want of another. `why` is a token.
    pub(crate) fn refused(why: &'static str) -> Self {
        Self::from(Source::Cache(why))
    }

    fn from(source: Source) -> Self {
        Self { source, status: None, stored: false, collapsed: false, ttl: None }
    }

    /// The same of a request that went to the handler first, or waited for one that did, and in vain.
    pub(crate) fn after(self, why: Forward, collapsed: bool) -> Self {
        Self { source: Source::Origin(why), collapsed, ..self }
    }

    /// Adds a member to the field, behind those of caches nearer to the origin (RFC 9211 section 2).
    pub(crate) fn add_to(self, headers: &mut HeaderMap, name: &CacheName) {
        if let Ok(value) = HeaderValue::try_from(self.write(name)) {
            headers.append(CACHE_STATUS, value);
        }
    }

    fn write(self, name: &CacheName) -> String {
        let mut out = name.0.to_string();
        let (parameter, why) = match self.source {
            Source::Store => ("; hit", ""),
            Source::Origin(why) => ("; fwd=", why.as_str()),
            Source::Cache(why) => ("; detail=", why),
        };
        out.push_str(parameter);
        out.push_str(why);
        // Writing to a string does not fail.
        if let Some(status) = self.status {
            let _ = write!(out, "; fwd-status={}", status.as_u16());
        }
        match self.ttl {
            Some(Ttl::Left(left)) => drop(write!(out, "; ttl={}", left.as_secs())),
            Some(Ttl::Over(over)) => drop(write!(out, "; ttl=-{}", over.as_secs())),
            None => {}
        }
        for (is_set, parameter) in [(self.stored, "; stored"), (self.collapsed, "; collapsed")] {
            if is_set {
                out.push_str(parameter);
            }
        }
        out
    }
}

/// The name by which a cache is known, as the field has it: a token, or a string in quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CacheName(Box<str>);

impl CacheName {
    /// `None` if it is empty or has anything but printable ASCII.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let is_token = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '*')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte));
        if is_token {
            return Some(Self(name.into()));
        }
        let is_printable = !name.is_empty() && name.bytes().all(|byte| matches!(byte, 0x20..=0x7e));
        is_printable.then(|| Self(format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(status: CacheStatus) -> String {
        status.write(&CacheName::new("shop").unwrap())
    }

    #[test]
    fn members_read_as_in_rfc_9211() {
        let secs = Duration::from_secs;
        assert_eq!(written(CacheStatus::hit(Ttl::Left(secs(376)))), "shop; hit; ttl=376");
        assert_eq!(written(CacheStatus::hit(Ttl::Over(secs(412)))), "shop; hit; ttl=-412");
        assert_eq!(written(CacheStatus::refused("too-slow")), "shop; detail=too-slow");
        let miss = CacheStatus::forwarded(Forward::UriMiss, StatusCode::OK);
        assert_eq!(
            written(CacheStatus { stored: true, ttl: Some(Ttl::Left(secs(5))), ..miss }),
            "shop; fwd=uri-miss; fwd-status=200; ttl=5; stored"
        );
        assert_eq!(
            written(CacheStatus { collapsed: true, ..miss }),
            "shop; fwd=uri-miss; fwd-status=200; collapsed"
        );
    }

    #[test]
    fn a_member_goes_behind_those_of_others() {
        let mut headers = HeaderMap::new();
        headers.append(CACHE_STATUS, HeaderValue::from_static("origin; hit"));
        CacheStatus::hit(Ttl::Left(Duration::ZERO)).add_to(&mut headers, &CacheName::new("shop").unwrap());
        let lines: Vec<_> = headers.get_all(CACHE_STATUS).iter().collect();
        assert_eq!(lines, ["origin; hit", "shop; hit; ttl=0"]);
    }

    #[test]
    fn a_name_is_a_token_or_quoted() {
        let name = |name| CacheName::new(name).map(|name| name.0.into_string());
        assert_eq!(name("shop.example/1").as_deref(), Some("shop.example/1"));
        assert_eq!(name("my \"shop\"").as_deref(), Some("\"my \\\"shop\\\"\""));
        assert_eq!(name("1st").as_deref(), Some("\"1st\""));
        for bad in ["", "a\nb", "\u{fc}"] {
            assert_eq!(name(bad), None, "{bad:?}");
        }
    }
}
