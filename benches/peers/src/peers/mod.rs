//! Ours and the others, each through the call its documentation recommends.

mod flights;
mod floors;
mod http;
mod stores;

use crate::load::Load;

pub use flights::{AsyncSingleflight, Coalesce, OurFlights, RsSingleflight, SingleflightAsync};
pub use floors::{Map, QuickMap, Slots, Spawn};
pub use http::{Body, Hitbox, Origin, OurGuard, TowerHttpCache, hitbox_layer, tower_http_cache_layer};
pub use stores::{Foyer, MokaGetWith, MokaTryGetWith, OurCache, OurQuickCache, OurQuickForEver, QuickCache};

/// Concurrent calls for one key share a load.
pub trait Peer<L: Load>: Send + Sync + Sized + 'static {
    const NAME: &'static str;
    /// What the library's own future yields.
    type Raw: Send;

    /// `keys` is how many keys it may keep, if it keeps any.
    fn new(load: L, keys: usize) -> Self;

    /// What a call holds of the caller's: a closure with the loader and the key, unless it is given the load itself.
    fn loader_bytes() -> usize {
        size_of::<(L, u64)>()
    }

    /// The library's own future, with nothing around it.
    fn call(&self, key: u64) -> impl Future<Output = Self::Raw> + Send;

    /// The value, or what its caller got instead.
    fn verdict(raw: Self::Raw) -> Result<u64, String>;
}
