//! An entry in a store.

use std::mem::needs_drop;

use crate::cache::entry::Entry;
use crate::deferred;

/// An entry and its weight, which is the same whenever the store asks. Wherever the store drops it, the value's own
/// destructor runs under no lock.
#[derive(Clone)]
pub(in crate::cache) struct Kept<V> {
    /// Until it is taken out.
    entry: Option<Entry<V>>,
    weight: u32,
    /// [`deferred::dispose`]; known to whoever made it, where a type that is not `'static` may be named, too.
    dispose: fn(V),
}

impl<V: 'static> Kept<V> {
    pub(in crate::cache) fn new(entry: Entry<V>, weight: u32) -> Self {
        Self { entry: Some(entry), weight, dispose: deferred::dispose }
    }
}

impl<V> Kept<V> {
    pub(super) fn weight(&self) -> u32 {
        self.weight
    }

    #[inline]
    pub(in crate::cache) fn entry(&self) -> Option<&Entry<V>> {
        self.entry.as_ref()
    }

    #[inline]
    pub(in crate::cache) fn into_entry(mut self) -> Option<Entry<V>> {
        self.entry.take()
    }

    #[inline]
    pub(in crate::cache) fn into_value(self) -> Option<V> {
        self.into_entry().map(|entry| entry.value)
    }
}

impl<V> Drop for Kept<V> {
    #[inline]
    fn drop(&mut self) {
        if needs_drop::<V>()
            && let Some(entry) = self.entry.take()
        {
            (self.dispose)(entry.value);
        }
    }
}
