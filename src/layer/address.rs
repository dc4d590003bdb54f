//! The keys of one request.

use std::sync::Arc;

use http::request::Parts;

use super::guard::Guarded;
use super::look::with_scratch;
use super::page::PageKey;
use crate::http::key::{KeyInput, Lines, MethodClass};
use crate::http::rule::KeyRule;
use crate::http::vary::VarySpec;

/// Which of the keys of a request a load is for.
#[derive(Clone, Debug)]
pub(super) struct Address {
    /// Without any header that only `Vary` names.
    pub(super) base: PageKey,
    /// With those of `spec`.
    pub(super) key: PageKey,
    pub(super) spec: VarySpec,
    /// What the operator's function added.
    pub(super) extra: Vec<u8>,
    /// The generation of the request's target.
    pub(super) generation: u64,
    pub(super) class: MethodClass,
}

impl Address {
    /// The keys of a request. `None` if one is too long.
    pub(super) fn of(
        guard: &Guarded,
        parts: &Parts,
        class: MethodClass,
        generation: u64,
        extra: &[u8],
        spec: &VarySpec,
    ) -> Option<Self> {
        let rule = &guard.settings.rule;
        let asked = Asked { parts, class, generation, extra };
        let base = asked.key(rule, &VarySpec::default())?;
        let key = if spec.is_empty() { Arc::clone(&base) } else { asked.key(rule, spec)? };
        Some(Self { base, key, spec: spec.clone(), extra: extra.to_vec(), generation, class })
    }

    /// The key of the same request with other headers in it. `None` if it is too long.
    pub(super) fn under(&self, rule: &KeyRule, parts: &Parts, spec: &VarySpec) -> Option<PageKey> {
        let Self { class, generation, extra, .. } = self;
        Asked { parts, class: *class, generation: *generation, extra }.key(rule, spec)
    }
}

/// What of a request goes into its keys.
struct Asked<'a> {
    parts: &'a Parts,
    class: MethodClass,
    generation: u64,
    extra: &'a [u8],
}

impl Asked<'_> {
    fn key(&self, rule: &KeyRule, vary: &VarySpec) -> Option<PageKey> {
        let Self { parts, class, generation, extra } = *self;
        let original = original_uri(parts);
        let lines = &Lines::of(rule, &parts.headers);
        let input = KeyInput { class, parts, lines, original, generation, vary, extra };
        with_scratch(|scratch| input.write(rule, scratch).ok().map(|()| scratch.written().into()))
    }
}

pub(super) fn original_uri(parts: &Parts) -> Option<&http::Uri> {
    parts.extensions.get::<axum::extract::OriginalUri>().map(|original| &original.0)
}
