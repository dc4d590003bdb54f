//! Finds the header that makes every key its own, so that an operator learns why nothing is shared.

use std::hash::{BuildHasher, Hash};

use http::{HeaderMap, HeaderName};

use crate::http::rule::KeyRule;
use crate::sync::{AtomicUsize, Mutex, Ordering, RandomState};

/// One miss in this many is looked at.
const SAMPLE: usize = 8;
/// A header is judged by this many samples of it.
const ENOUGH: usize = 64;
/// No more headers than this are followed.
const NAMES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Uniques {
    misses: AtomicUsize,
    hasher: RandomState,
    seen: Mutex<Vec<Samples>>,
}

#[derive(Debug)]
struct Samples {
    name: HeaderName,
    values: Vec<u64>,
    taken: usize,
    is_unique: bool,
}

impl Uniques {
    /// Looks at a miss now and then. Names a header, once, if hardly any of its values came twice.
    pub(super) fn miss(&self, rule: &KeyRule, headers: &HeaderMap) {
        if !self.misses.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE) {
            return;
        }
        let mut found = Vec::new();
        let mut seen = self.seen.lock();
        for name in headers.keys().filter(|name| **name != http::header::HOST && rule.keys(name)) {
            let value = self.hash(headers, name);
            let place = seen.iter().position(|samples| samples.name == *name);
            let samples = match place {
                Some(place) => &mut seen[place],
                None if seen.len() < NAMES => {
                    let name = name.clone();
                    seen.push(Samples { name, values: Vec::new(), taken: 0, is_unique: false });
                    let last = seen.len() - 1;
                    &mut seen[last]
                }
                None => continue,
            };
            if samples.taken < ENOUGH {
                samples.taken += 1;
                if !samples.values.contains(&value) {
                    samples.values.push(value);
                }
                if samples.taken == ENOUGH && samples.values.len() * 10 >= ENOUGH * 9 {
                    samples.is_unique = true;
                    found.push(samples.name.clone());
                }
            }
        }
        drop(seen);
        for name in found {
            tracing::warn!(
                header = name.as_str(),
                "this header makes nearly every key unique, so hardly any request is shared: \
                 leave it out of the key with ignore_header(), or name the headers that count with key_headers()"
            );
        }
    }

    /// The headers found so far.
    pub(super) fn names(&self) -> Vec<String> {
        let seen = self.seen.lock();
        seen.iter().filter(|samples| samples.is_unique).map(|samples| samples.name.to_string()).collect()
    }

    fn hash(&self, headers: &HeaderMap, name: &HeaderName) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for value in headers.get_all(name) {
            value.as_bytes().hash(&mut hasher);
        }
        std::hash::Hasher::finish(&hasher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_is_never_the_same_twice_is_named_and_no_other() {
        let uniques = Uniques::default();
        for request in 0..SAMPLE * ENOUGH {
            let mut headers = HeaderMap::new();
            headers.insert("x-nonce", request.into());
            headers.insert("x-tenant", (request % 7).into());
            headers.insert("x-request-id", request.into());
            uniques.miss(&KeyRule::default(), &headers);
        }
        assert_eq!(uniques.names(), ["x-nonce"]);
    }
}
