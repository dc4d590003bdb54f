//! A cache's place on a tier: how its keys and values are written there, and what it hears of other instances' doings.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::engine::CacheFlights;
use super::generations::{MARKS, Mark};
use super::shelf::{Change, Shelf};
use crate::codec::Codec;
use crate::coordinate::{EventSink, Group, Member, Membership, SharedKey, SharedTier, SharedValue, Token};
use crate::flight::{Fault, Key, Value};
use crate::invalidation::Invalidation;
use crate::policy::Lifetime;
use crate::sync::Mutex;
use crate::trouble::Trouble;

/// A tier, and how this cache's keys and values are written there.
pub(super) struct Tiering<K, V> {
    tier: SharedTier,
    codec: Arc<dyn Codec<V>>,
    write: fn(&K, &mut Vec<u8>),
    read: fn(&[u8]) -> Option<K>,
}

impl<K: SharedKey, V> Tiering<K, V> {
    pub(super) fn new(tier: SharedTier, codec: impl Codec<V>) -> Self {
        Self { tier, codec: Arc::new(codec), write: K::write, read: K::read }
    }
}

impl<K, V> Tiering<K, V> {
    pub(super) fn join<E>(
        self,
        flights: &Arc<CacheFlights<K, V, E>>,
        name: Arc<str>,
        schemas: Schemas,
    ) -> Shared<K, V>
    where
        K: Key,
        V: Value,
        E: Fault,
    {
        let flights = Arc::downgrade(flights);
        let sink: Weak<dyn EventSink> = flights;
        let own = Arc::clone(&name);
        let who = Membership { name, schema: schemas.current, previous_schemas: schemas.previous, sink };
        Shared {
            name: own,
            member: self.tier.0.join(who),
            codec: self.codec,
            write: self.write,
            read: self.read,
            trouble: Mutex::new(Trouble::default()),
        }
    }
}

/// The shapes of values that instances of different versions keep.
#[derive(Clone, Debug, Default)]
pub(super) struct Schemas {
    pub(super) current: u32,
    pub(super) previous: Vec<u32>,
}

/// A cache's place on a tier.
pub(crate) struct Shared<K, V> {
    pub(super) name: Arc<str>,
    pub(super) member: Arc<dyn Member>,
    pub(super) codec: Arc<dyn Codec<V>>,
    write: fn(&K, &mut Vec<u8>),
    read: fn(&[u8]) -> Option<K>,
    trouble: Mutex<Trouble>,
}

impl<K, V> fmt::Debug for Shared<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// What an instance keeps of a life that all instances share: it asks again after `cap`. Beyond its freshness here a
/// value is served if a load fails, not before.
pub(crate) fn capped(life: Lifetime, cap: Duration) -> Lifetime {
    let ttl = life.ttl.min(cap);
    let rest = life.ttl.saturating_sub(ttl);
    // Where the cap cuts freshness short, it leaves nothing.
    let stale_while_revalidate = life.stale_while_revalidate.min(cap.saturating_sub(ttl));
    Lifetime { ttl, stale_while_revalidate, stale_if_error: rest + life.stale_if_error }
}

/// What is left of a shared value's life, as the instance that loaded it decided.
pub(crate) fn rest_of(value: &SharedValue) -> Lifetime {
    let left = |window: Duration| window.saturating_sub(value.stale_since);
    Lifetime {
        ttl: value.fresh_for,
        stale_while_revalidate: left(value.stale_while_revalidate),
        stale_if_error: left(value.stale_if_error),
    }
}

/// Groups of keys, as tags' marks are called where instances share them.
pub(super) fn groups(marks: Option<&Arc<[Mark]>>) -> Vec<Group> {
    let mut groups: Vec<_> =
        marks.into_iter().flat_map(|marks| marks.iter()).map(|&mark| Group(mark.into())).collect();
    groups.sort_unstable_by_key(|group| group.0);
    groups.dedup();
    groups
}

/// The marks that these groups are; `None` if one is no mark.
fn marks(groups: &[Group]) -> Option<Arc<[Mark]>> {
    groups.iter().copied().map(mark).collect()
}

fn mark(group: Group) -> Option<Mark> {
    Mark::try_from(group.0).ok().filter(|&mark| usize::from(mark) < MARKS)
}

/// A shared value that this cache can use.
pub(super) struct Opened<V> {
    pub(super) value: V,
    pub(super) marks: Option<Arc<[Mark]>>,
}

impl<K, V: Value> Shared<K, V> {
    pub(super) fn name_of(&self, key: &K) -> Arc<[u8]> {
        let mut name = Vec::new();
        (self.write)(key, &mut name);
        name.into()
    }

    /// Says what is wrong with its values, and not of each. What a codec says of one may hold some of it.
    pub(super) fn complain(&self, what: &'static str) {
        if self.trouble.lock().is_news(what) {
            tracing::warn!(cache = &*self.name, "{what}");
        }
    }

    pub(super) fn capped(&self, life: Lifetime) -> Lifetime {
        capped(life, self.member.local_ttl_cap())
    }

    pub(super) fn invalidate(&self, key: &K) -> Invalidation {
        self.member.invalidate(self.name_of(key))
    }

    pub(super) fn invalidate_all(&self) -> Invalidation {
        self.member.invalidate_all()
    }

    pub(super) fn invalidate_tag(&self, mark: Mark) -> Invalidation {
        self.member.invalidate_group(Group(mark.into()))
    }

    /// The value and its tags' marks; `None` if it is in another format or damaged, or if one of its tags was
    /// invalidated since its load began.
    pub(super) async fn open(&self, value: &SharedValue) -> Option<Opened<V>> {
        if value.codec != self.codec.id() {
            self.member.count_malformed();
            self.complain("another codec made values of a cache; give each shape a `schema` of its own");
            return None;
        }
        let (marks, groups) = (marks(&value.groups)?, &value.groups);
        if !groups.is_empty() && self.member.is_void(groups, value.token).await {
            return None;
        }
        let decoded = catch_unwind(AssertUnwindSafe(|| self.codec.decode(&value.payload)));
        let Ok(Ok(decoded)) = decoded else {
            self.member.count_malformed();
            self.complain("values of a cache cannot be decoded; give each shape a `schema` of its own");
            return None;
        };
        Some(Opened { value: decoded, marks: (!marks.is_empty()).then_some(marks) })
    }
}

/// Drops what is on the shelf unless its load was later than the one of this token.
pub(super) fn drop_up_to<K: Key, V: Value>(shelf: &Shelf<K, V>, key: &K, token: Token) {
    remove_up_to(shelf, key, token);
    shelf.announce();
}

fn remove_up_to<K: Key, V: Value>(shelf: &Shelf<K, V>, key: &K, token: Token) {
    if shelf.token_of(key).is_some_and(|there| there <= token) {
        shelf.remove(key);
    }
}

impl<K, V, E> EventSink for CacheFlights<K, V, E>
where
    K: Key,
    V: Value,
    E: Fault,
{
    fn invalidated(&self, key: &[u8], up_to: Token) {
        let Some(key) = self.hook.shared().and_then(|shared| (shared.read)(key)) else { return };
        let shelf = &self.hook.shelf;
        let change = Change::none();
        self.overrule(&key, || remove_up_to(shelf, &key, up_to));
        shelf.made(change);
    }

    fn replaced(&self, key: &[u8], by: Token) {
        if let Some(key) = self.hook.shared().and_then(|shared| (shared.read)(key)) {
            drop_up_to(&self.hook.shelf, &key, by.saturating_sub(1));
        }
    }

    fn group_invalidated(&self, group: Group) {
        if let Some(mark) = mark(group) {
            self.hook.shelf.generations.invalidate(mark);
        }
    }

    fn all_doubtful(&self) {
        self.hook.shelf.clear();
        self.forget_all();
        self.hook.shelf.announce();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(ttl: u64, revalidate: u64, if_error: u64) -> Lifetime {
        let secs = Duration::from_secs;
        Lifetime { ttl: secs(ttl), stale_while_revalidate: secs(revalidate), stale_if_error: secs(if_error) }
    }

    #[test]
    fn beyond_the_cap_a_value_stands_in_for_failures_alone() {
        let cap = Duration::from_secs(30);
        assert_eq!(capped(life(10, 5, 7), cap), life(10, 5, 7));
        assert_eq!(capped(life(28, 5, 7), cap), life(28, 2, 7));
        assert_eq!(capped(life(30, 5, 7), cap), life(30, 0, 7));
        assert_eq!(capped(life(100, 5, 7), cap), life(30, 0, 77));
        assert_eq!(capped(life(0, 50, 60), cap), life(0, 30, 60));
    }

    #[test]
    fn what_is_left_of_a_value_is_within_the_windows_that_came_with_it() {
        let secs = Duration::from_secs;
        let value = |fresh, stale| SharedValue {
            payload: Vec::new(),
            codec: 0,
            token: 1,
            fresh_for: secs(fresh),
            stale_since: secs(stale),
            age: secs(0),
            stale_while_revalidate: secs(10),
            stale_if_error: secs(20),
            cost: secs(0),
            groups: Vec::new(),
        };
        assert_eq!(rest_of(&value(5, 0)), life(5, 10, 20));
        assert_eq!(rest_of(&value(0, 4)), life(0, 6, 16));
        assert_eq!(rest_of(&value(0, 15)), life(0, 0, 5));
    }

    #[test]
    fn tags_become_groups_and_come_back() {
        let tags: Arc<[Mark]> = [7, 3, 7].into();
        assert_eq!(groups(Some(&tags)), [Group(3), Group(7)]);
        assert_eq!(marks(&groups(Some(&tags))).as_deref(), Some(&[3, 7][..]));
        for foreign in [4_096, 65_536 + 3] {
            assert_eq!(marks(&[Group(3), Group(foreign)]), None, "{foreign}");
        }
    }
}
