//! Made of `proto/*.proto` by `scripts/protos`.
#![allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub, dead_code)]

pub(crate) mod inventory {
    include!("generated/inventory.rs");
}

pub(crate) mod interop {
    include!("generated/interop.rs");
}
