//! Which metadata tells one call from another.

use http::{HeaderMap, HeaderName};

use super::timeout::GRPC_TIMEOUT;

const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Whether the key of a call holds `name`, where the protocol settles that: what says how to read the message does,
/// whatever headers an operator names. How long a caller waits and how often it has tried do not.
/// `grpc-accept-encoding` comes in in an order of its own, see [`accepted`]. What only HTTP gives a meaning is metadata
/// like any other.
pub(crate) fn settled(name: &HeaderName) -> Option<bool> {
    match name.as_str() {
        "content-type" | "grpc-encoding" | "te" | "cache-control" | "pragma" | "referer"
        | "if-none-match" | "if-modified-since" | "if-range" => Some(true),
        "grpc-accept-encoding" | "grpc-timeout" | "grpc-previous-rpc-attempts" => Some(false),
        _ => None,
    }
}

/// Whether a call on behalf of several carries `name` although its key does not hold it as it is.
pub(crate) fn is_carried(name: &HeaderName) -> bool {
    *name == GRPC_ACCEPT_ENCODING
}

/// Takes from a call what is its caller's own and says nothing to the handler that others would not want said.
pub(crate) fn make_common(headers: &mut HeaderMap) {
    headers.remove(GRPC_TIMEOUT);
}

/// The encodings that a caller can read, sorted, each once. `identity` goes without saying.
pub(crate) fn accepted(headers: &HeaderMap) -> Vec<u8> {
    let lines = headers.get_all(GRPC_ACCEPT_ENCODING).iter();
    let names = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii));
    let mut names: Vec<_> = names.filter(|name| !name.is_empty() && *name != b"identity").collect();
    names.sort_unstable();
    names.dedup();
    names.join(&b',')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::syntax::tests::map;

    #[test]
    fn the_order_of_encodings_does_not_matter() {
        let accepted = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("grpc-accept-encoding", *line)).collect();
            accepted(&map(&lines))
        };
        assert_eq!(accepted(&["gzip, zstd"]), b"gzip,zstd");
        assert_eq!(accepted(&["zstd,identity", " gzip ,,gzip"]), b"gzip,zstd");
        assert_eq!(accepted(&["identity"]), accepted(&[]));
        assert_ne!(accepted(&["gzip"]), accepted(&["zstd"]));
    }
}
