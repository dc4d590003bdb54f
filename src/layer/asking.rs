//! A request that takes part, on its way from the store to a flight.

use std::sync::Arc;

use http::Request;
use http::request::Parts;

use super::address::Address;
use super::guard::Guarded;
use super::page::Reply;
use super::trip::Trip;
use crate::cache::Entry;
use crate::http::cache_control::RequestDirectives;
use crate::http::conditional::Conditionals;
use crate::http::key::MethodClass;
use crate::http::vary::VarySpec;
use crate::http::verdict::RequestFacts;

/// A request that takes part, taken apart.
pub(super) struct Asking<B> {
    pub(super) parts: Parts,
    pub(super) body: B,
    pub(super) conditionals: Conditionals,
    pub(super) directives: RequestDirectives,
    pub(super) facts: RequestFacts,
    pub(super) extra: Vec<u8>,
    pub(super) generation: u64,
    pub(super) spec: VarySpec,
}

impl<B> Asking<B> {
    pub(super) fn address(&self, guard: &Guarded, class: MethodClass) -> Option<Address> {
        Address::of(guard, &self.parts, class, self.generation, &self.extra, &self.spec)
    }

    pub(super) fn trip<S>(
        self,
        guard: &Arc<Guarded>,
        inner: S,
        class: MethodClass,
        fallback: Option<Entry<Reply>>,
    ) -> Option<Trip<S, B>> {
        let address = self.address(guard, class)?;
        // A GET under way answers a HEAD as well.
        let joins = match class {
            MethodClass::Get | MethodClass::Unary => None,
            MethodClass::Head => self.address(guard, MethodClass::Get).map(|address| address.key),
        };
        Some(Trip {
            guard: Arc::clone(guard),
            inner,
            request: Request::from_parts(self.parts, self.body),
            conditionals: self.conditionals,
            facts: self.facts,
            address,
            joins,
            fallback,
        })
    }
}
