//! What keys, values and errors must be, under one name each. The public items spell it out.

use std::hash::Hash;

/// A key, in a map that threads share.
pub(crate) trait Key: Hash + Eq + Clone + Send + Sync + 'static {}
impl<T: Hash + Eq + Clone + Send + Sync + 'static> Key for T {}

/// A value, of which everyone who waits gets a clone.
pub(crate) trait Value: Clone + Send + Sync + 'static {}
impl<T: Clone + Send + Sync + 'static> Value for T {}

/// A loader's error, shared by everyone who waits.
pub(crate) trait Fault: Send + Sync + 'static {}
impl<T: Send + Sync + 'static> Fault for T {}
