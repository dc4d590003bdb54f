//! A request that takes part, on its way from the store to a flight.

use http::request::Parts;

use super::address::Address;
use super::guard::Guarded;
use crate::http::cache_control::RequestDirectives;
use crate::http::conditional::Conditionals;
use crate::http::key::MethodClass;
use crate::http::vary::VarySpec;
use crate::http::verdict::RequestFacts;

/// What a request that takes part asks for, its head and its body aside: those stay where they are until they are needed.
pub(super) struct Asking {
    pub(super) conditionals: Conditionals,
    pub(super) directives: RequestDirectives,
    pub(super) facts: RequestFacts,
    pub(super) extra: Vec<u8>,
    pub(super) generation: u64,
    pub(super) spec: VarySpec,
}

impl Asking {
    pub(super) fn address(&self, guard: &Guarded, parts: &Parts, class: MethodClass) -> Option<Address> {
        Address::of(guard, parts, class, self.generation, &self.extra, &self.spec)
    }
}
