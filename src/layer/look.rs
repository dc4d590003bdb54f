//! Looks for what the store has for a request.

use std::cell::RefCell;

use http::request::Parts;

use super::address::original_uri;
use super::guard::Guarded;
use super::page::Reply;
use crate::cache::Entry;
use crate::http::key::{KeyInput, Lines, MethodClass};
use crate::http::vary::VarySpec;
use crate::http::writer::KeyWriter;

/// What the store has for a request.
pub(super) struct Found {
    pub(super) entry: Option<Entry<Reply>>,
    /// The headers beyond the rule that its key has.
    pub(super) spec: VarySpec,
}

thread_local! {
    static SCRATCH: RefCell<KeyWriter> = const { RefCell::new(KeyWriter::new()) };
}

/// Lends a place to write keys to: a hit needs no key of its own, and others one allocation.
pub(super) fn with_scratch<T>(write: impl FnOnce(&mut KeyWriter) -> T) -> T {
    SCRATCH.with_borrow_mut(write)
}

/// Looks under the key without the headers that only `Vary` names, and from there where a signpost points.
/// `None` if the key is too long.
pub(super) fn look(
    guard: &Guarded,
    parts: &Parts,
    lines: &Lines<'_>,
    class: MethodClass,
    generation: u64,
    extra: &[u8],
) -> Option<Found> {
    with_scratch(|scratch| {
        let original = original_uri(parts);
        let mut spec = VarySpec::default();
        loop {
            let input = KeyInput { class, parts, lines, original, generation, vary: &spec, extra };
            input.write(&guard.settings.rule, scratch).ok()?;
            let entry = guard.shelf().find(scratch.written());
            match entry.as_ref().map(|entry| &entry.value) {
                Some(Reply::Varies(signpost)) if spec.is_empty() && guard.still_points(entry.as_ref()) => {
                    spec = signpost.spec.clone();
                }
                _ => return Some(Found { entry, spec }),
            }
        }
    })
}
