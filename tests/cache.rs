//! The cache, by the promises it makes, over each store.

#![allow(clippy::duplicate_mod)] // the same promises, once for each store

#[path = "cache"]
mod moka {
    use stampede_guard::Moka as Tested;

    mod callbacks;
    mod promises;
}

#[cfg(feature = "quick-cache")]
#[path = "cache"]
mod quick_cache {
    use stampede_guard::QuickCache as Tested;

    mod callbacks;
    mod promises;
}
