//! What a request is about: host, path and query, as far as it takes to find the answers that an unsafe request
//! made out of date (RFC 9111 section 4.4).
//!
//! Comparing is done so that it rather finds one answer too many: hosts without case and default port. Forgetting
//! an answer costs a load, keeping it may be wrong.

use std::borrow::Cow;
use std::hash::Hasher;

use http::header::{CONTENT_LOCATION, HOST, LOCATION};
use http::request::Parts;
use http::{HeaderMap, Uri};

/// The target of a request (RFC 9110 section 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// `http` or `https` where the URI tells.
    pub(crate) scheme: Option<&'a str>,
    /// Host and perhaps port: the URI's authority, else the first `Host`; empty without either.
    pub(crate) host: &'a [u8],
    /// Path and query as they came.
    pub(crate) path_and_query: &'a str,
}

/// The target as the outermost router saw it.
pub(crate) fn target<'a>(parts: &'a Parts, original: Option<&'a Uri>) -> Target<'a> {
    let uri = original.unwrap_or(&parts.uri);
    let authority =
        uri.authority().or_else(|| parts.uri.authority()).map(|authority| authority.as_str().as_bytes());
    let host =
        authority.or_else(|| parts.headers.get(HOST).map(http::HeaderValue::as_bytes)).unwrap_or_default();
    Target {
        scheme: uri.scheme_str(),
        host,
        path_and_query: uri.path_and_query().map_or("/", |path_and_query| path_and_query.as_str()),
    }
}

/// The hashes of a target on whatever host, and on its own, so that equal targets give equal hashes: path and query
/// byte for byte but for an empty path, host without case, user and default port.
pub(crate) fn hash_target<H: Hasher + Clone>(
    host: &[u8],
    path_and_query: &[u8],
    mut hasher: H,
) -> (u64, u64) {
    let path_and_query = &*rooted(path_and_query);
    hasher.write_usize(path_and_query.len());
    hasher.write(path_and_query);
    let anywhere = hasher.clone().finish();
    let host = bare_host(host, None);
    hasher.write_usize(host.len());
    let mut lower = [0; 32];
    for part in host.chunks(lower.len()) {
        let lower = &mut lower[..part.len()];
        lower.copy_from_slice(part);
        lower.make_ascii_lowercase();
        hasher.write(lower);
    }
    (anywhere, hasher.finish())
}

/// Path and query with a path, which is `/` where it is empty (RFC 9110 section 4.2.3).
pub(crate) fn rooted(path_and_query: &[u8]) -> Cow<'_, [u8]> {
    if path_and_query.starts_with(b"?") {
        Cow::Owned([b"/", path_and_query].concat())
    } else {
        Cow::Borrowed(path_and_query)
    }
}

/// Path and query of what `Location` and `Content-Location` of a response point to, where that is of the same
/// origin as the request. Without allocation where there is neither.
pub(crate) fn same_origin_targets(request: &Target<'_>, response: &HeaderMap) -> Vec<String> {
    [LOCATION, CONTENT_LOCATION]
        .iter()
        .flat_map(|name| response.get_all(name))
        .filter_map(|reference| resolve(request, reference.to_str().ok()?.trim_matches([' ', '\t'])))
        .collect()
}

/// `reference` resolved against the request (RFC 3986 section 5.2), as path and query; `None` for another origin.
fn resolve(base: &Target<'_>, reference: &str) -> Option<String> {
    let reference = reference.split('#').next().unwrap_or_default();
    let (scheme, rest) = split_scheme(reference);
    if let Some(scheme) = scheme {
        let is_http = ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
        let is_same = base.scheme.is_none_or(|known| scheme.eq_ignore_ascii_case(known));
        if !is_http || !is_same || !rest.starts_with("//") {
            return None;
        }
    }
    let Some(rest) = rest.strip_prefix("//") else { return Some(resolve_path(base.path_and_query, rest)) };
    let (host, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let scheme = scheme.or(base.scheme);
    let is_same = bare_host(host.as_bytes(), scheme).eq_ignore_ascii_case(bare_host(base.host, scheme));
    // An unknown host is nobody's.
    let is_known = !host.is_empty();
    // A reference with a host has a path of its own, if an empty one.
    let rest = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    (is_same && is_known).then(|| resolve_path("/", &rest))
}

/// The scheme, if `reference` starts with one, and the rest (RFC 3986 section 3.1).
fn split_scheme(reference: &str) -> (Option<&str>, &str) {
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
    };
    match reference.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => (Some(scheme), rest),
        _ => (None, reference),
    }
}

/// Path and query of a reference without host, against those of the base (RFC 3986 section 5.2.2).
fn resolve_path(base: &str, reference: &str) -> String {
    let (base_path, base_query) = split_query(base);
    let (path, query) = split_query(reference);
    let (mut resolved, query) = if path.is_empty() {
        (base_path.to_owned(), query.or(base_query))
    } else if path.starts_with('/') {
        (without_dots(path), query)
    } else {
        let folder = base_path.rfind('/').map_or("/", |slash| &base_path[..=slash]);
        (without_dots(&format!("{folder}{path}")), query)
    };
    if let Some(query) = query {
        resolved.push('?');
        resolved.push_str(query);
    }
    resolved
}

fn split_query(path_and_query: &str) -> (&str, Option<&str>) {
    path_and_query.split_once('?').map_or((path_and_query, None), |(path, query)| (path, Some(query)))
}

/// An absolute path without its `.` and `..` segments (RFC 3986 section 5.2.4).
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                // The path still ends in a slash.
                if is_last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

/// `host` without user information and without the default port of `scheme`; of either scheme if it is unknown.
fn bare_host<'a>(host: &'a [u8], scheme: Option<&str>) -> &'a [u8] {
    let host = host.iter().rposition(|byte| *byte == b'@').map_or(host, |at| &host[at + 1..]);
    let is = |known: &str| scheme.is_none_or(|scheme| scheme.eq_ignore_ascii_case(known));
    let without = |port: &[u8], known| if is(known) { host.strip_suffix(port) } else { None };
    without(b":80", "http")
        .or_else(|| without(b":443", "https"))
        .or_else(|| host.strip_suffix(b":"))
        .unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::syntax::tests::map;
    use http::Request;
    use std::hash::DefaultHasher;

    const BASE: Target<'_> = Target { scheme: None, host: b"Example.com", path_and_query: "/b/c/d;p?q" };

    fn found(base: &Target<'_>, reference: &str) -> Option<String> {
        same_origin_targets(base, &map(&[("location", reference)])).pop()
    }

    fn hash(host: &str, path_and_query: &str) -> u64 {
        hash_target(host.as_bytes(), path_and_query.as_bytes(), DefaultHasher::new()).1
    }

    #[test]
    fn references_resolve_as_in_rfc_3986_section_5_4() {
        for (reference, expected) in [
            ("g", "/b/c/g"),
            ("./g", "/b/c/g"),
            ("g/", "/b/c/g/"),
            ("/g", "/g"),
            ("?y", "/b/c/d;p?y"),
            ("g?y", "/b/c/g?y"),
            ("#s", "/b/c/d;p?q"),
            ("g#s", "/b/c/g"),
            ("g?y#s", "/b/c/g?y"),
            (";x", "/b/c/;x"),
            ("g;x", "/b/c/g;x"),
            ("", "/b/c/d;p?q"),
            (".", "/b/c/"),
            ("./", "/b/c/"),
            ("..", "/b/"),
            ("../", "/b/"),
            ("../g", "/b/g"),
            ("../..", "/"),
            ("../../", "/"),
            ("../../g", "/g"),
            ("../../../g", "/g"),
            ("../../../../g", "/g"),
            ("/./g", "/g"),
            ("/../g", "/g"),
            ("g.", "/b/c/g."),
            (".g", "/b/c/.g"),
            ("g..", "/b/c/g.."),
            ("..g", "/b/c/..g"),
            ("./../g", "/b/g"),
            ("./g/.", "/b/c/g/"),
            ("g/./h", "/b/c/g/h"),
            ("g/../h", "/b/c/h"),
            ("g;x=1/./y", "/b/c/g;x=1/y"),
            ("g;x=1/../y", "/b/c/y"),
            ("g?y/./x", "/b/c/g?y/./x"),
            ("g?y/../x", "/b/c/g?y/../x"),
            ("/a//b", "/a//b"),
            ("./g:h", "/b/c/g:h"),
        ] {
            assert_eq!(found(&BASE, reference).as_deref(), Some(expected), "{reference:?}");
        }
    }

    #[test]
    fn the_same_host_is_the_same_origin() {
        for reference in [
            "http://example.com/x?y",
            "https://EXAMPLE.com/x?y",
            "http://example.com:80/x?y",
            "https://example.com:443/x?y",
            "//example.com/x?y",
            "//example.com:/a/../x?y",
        ] {
            assert_eq!(found(&BASE, reference).as_deref(), Some("/x?y"), "{reference}");
        }
        assert_eq!(found(&BASE, "http://example.com").as_deref(), Some("/"));
        assert_eq!(found(&BASE, "http://example.com?y").as_deref(), Some("/?y"));
    }

    #[test]
    fn another_origin_is_left_alone() {
        for reference in [
            "http://example.org/x",
            "http://example.com.evil/x",
            "http://example.com:8080/x",
            "http://example.com:443/x",
            "https://example.com:80/x",
            "http://example.com@evil/x",
            "//evil/x",
            "///x",
            "ftp://example.com/x",
            "mailto:example.com",
            "http:x",
            "g:h",
        ] {
            assert_eq!(found(&BASE, reference), None, "{reference}");
        }
        let nameless = Target { host: b"", ..BASE };
        assert_eq!(found(&nameless, "///x"), None);
        assert_eq!(found(&nameless, "http://example.com/x"), None);
        assert_eq!(found(&nameless, "/x").as_deref(), Some("/x"));
    }

    #[test]
    fn a_known_scheme_is_compared() {
        let https = Target { scheme: Some("https"), host: b"example.com:443", ..BASE };
        assert_eq!(found(&https, "HTTPS://example.com/x").as_deref(), Some("/x"));
        assert_eq!(found(&https, "//example.com/x").as_deref(), Some("/x"));
        assert_eq!(found(&https, "http://example.com/x"), None);
        assert_eq!(found(&Target { host: b"example.com", ..https }, "http://example.com/x"), None);
    }

    #[test]
    fn both_fields_are_read_and_none_is_none() {
        let both = map(&[("content-location", "/a"), ("location", "/b"), ("link", "/c")]);
        assert_eq!(same_origin_targets(&BASE, &both), ["/b", "/a"]);
        assert_eq!(same_origin_targets(&BASE, &map::<&str>(&[])).capacity(), 0);
        assert!(same_origin_targets(&BASE, &map(&[("location", &b"/\xff"[..])])).is_empty());
    }

    #[test]
    fn the_uri_names_the_host_before_the_header_does() {
        let (parts, ()) = Request::get("http://a/x?y").header("host", "b").body(()).unwrap().into_parts();
        let expected = Target { scheme: Some("http"), host: b"a", path_and_query: "/x?y" };
        assert_eq!(target(&parts, None), expected);

        let (parts, ()) = Request::get("/x").header("host", "b").body(()).unwrap().into_parts();
        assert_eq!(target(&parts, None), Target { scheme: None, host: b"b", path_and_query: "/x" });
        let original = Uri::from_static("/nested/x");
        assert_eq!(target(&parts, Some(&original)).path_and_query, "/nested/x");
    }

    #[test]
    fn hashes_follow_the_target() {
        assert_eq!(hash("Example.com", "/x"), hash("example.COM:80", "/x"));
        assert_eq!(hash("u@example.com", "/x"), hash("example.com:443", "/x"));
        assert_ne!(hash("example.com", "/x"), hash("example.com", "/X"));
        assert_ne!(hash("example.com", "/x"), hash("example.org", "/x"));
        assert_ne!(hash("example.com:8080", "/x"), hash("example.com", "/x"));
        assert_ne!(hash("a", "/b"), hash("a/", "b"));
        let anywhere = |host: &[u8], path: &[u8]| hash_target(host, path, DefaultHasher::new()).0;
        assert_eq!(anywhere(b"a", b"/x"), anywhere(b"b", b"/x"));
        assert_ne!(anywhere(b"a", b"/x"), anywhere(b"a", b"/y"));
    }
}
