//! What a caller brings to a flight: a key and a way to load.

use std::borrow::Borrow;

/// A key, owned or borrowed, that a leader turns into an owned one.
pub(crate) trait KeySource<K> {
    /// What the maps are searched with.
    type Query: std::hash::Hash + Eq + ?Sized;
    fn query(&self) -> &Self::Query;
    fn to_key(&self) -> K;
    fn into_key(self) -> K;
}

/// A key given by value.
pub(crate) struct Owned<K>(pub(crate) K);

impl<K: std::hash::Hash + Eq + Clone> KeySource<K> for Owned<K> {
    type Query = K;

    fn query(&self) -> &K {
        &self.0
    }

    fn to_key(&self) -> K {
        self.0.clone()
    }

    fn into_key(self) -> K {
        self.0
    }
}

/// A key given by reference.
pub(crate) struct Borrowed<'a, Q: ?Sized>(pub(crate) &'a Q);

impl<K, Q> KeySource<K> for Borrowed<'_, Q>
where
    K: Borrow<Q>,
    Q: ToOwned<Owned = K> + std::hash::Hash + Eq + ?Sized,
{
    type Query = Q;

    fn query(&self) -> &Q {
        self.0
    }

    fn to_key(&self) -> K {
        self.0.to_owned()
    }

    fn into_key(self) -> K {
        self.0.to_owned()
    }
}

/// How a caller would load, should it lead.
pub(crate) trait Plan<V, E> {
    /// The load, which outlives its caller.
    type Load: Future<Output = Result<V, E>> + Send + 'static;

    /// Asked of a new leader before it loads: a flight that landed since the caller looked may have left the
    /// value behind.
    fn recheck(&mut self) -> Option<V> {
        None
    }

    fn load(self) -> Self::Load;
}

impl<V, E, F, Fut> Plan<V, E> for F
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<V, E>> + Send + 'static,
{
    type Load = Fut;

    fn load(self) -> Fut {
        self()
    }
}
