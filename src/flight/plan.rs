//! What a caller brings to a flight: a key and a way to load.

use std::borrow::Borrow;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project::pin_project;

use crate::error::LoadError;
use crate::sync::Arc;

/// A key, owned or borrowed, that a leader turns into an owned one.
pub(crate) trait KeySource<K> {
    /// What the maps are searched with.
    type Query: std::hash::Hash + Eq + ?Sized;
    /// Whether [`into_key`](Self::into_key) only moves, so that it may be called under a lock.
    const OWNED: bool;
    fn query(&self) -> &Self::Query;
    /// Its clone; called of a key that is not owned, outside any lock.
    fn to_key(&self) -> K;
    fn into_key(self) -> K;
}

/// A key given by value.
pub(crate) struct Owned<K>(pub(crate) K);

impl<K: std::hash::Hash + Eq + Clone> KeySource<K> for Owned<K> {
    type Query = K;
    const OWNED: bool = true;

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
    const OWNED: bool = false;

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

/// A load on its way.
pub(crate) type BoxLoad<V, E> = Pin<Box<dyn Future<Output = Result<V, LoadError<E>>> + Send>>;

/// How a caller would load, should it lead.
pub(crate) trait Plan<K, V, E> {
    /// What a leader keeps of it in its own hands.
    type Kept: Default;

    /// Asked of a new leader before it loads: a flight that landed since the caller looked may have left the
    /// value behind.
    fn recheck(&mut self, _key: &K) -> Option<V> {
        None
    }

    /// The load, which outlives its caller; what that one keeps goes into `kept`.
    fn load(self, kept: &mut Self::Kept) -> BoxLoad<V, E>;
}

impl<K, V, E, F, Fut> Plan<K, V, E> for F
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<V, E>> + Send + 'static,
{
    type Kept = ();

    fn load(self, (): &mut ()) -> BoxLoad<V, E> {
        Box::pin(Shared(self()))
    }
}

/// A load whose error is put where all who wait can share it.
#[pin_project]
struct Shared<Fut>(#[pin] Fut);

impl<V, E, Fut: Future<Output = Result<V, E>>> Future for Shared<Fut> {
    type Output = Result<V, LoadError<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().0.poll(cx).map_err(|error| LoadError::Failed(Arc::new(error)))
    }
}
