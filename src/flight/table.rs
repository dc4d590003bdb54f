//! The flights under way, by key: a hash table cut into shards.
//!
//! Nearly every load that is ready at once has been joined by nobody, so a flight begins as an entry that only says
//! whose key is taken: its leader is alone. The first who joins makes the [`Flight`] and leaves it in the entry, where
//! the leader picks it up when its first poll is over. A flight whose leader has yet to do so is never dropped: closed
//! meanwhile, it goes adrift, out of every newcomer's sight and within the leader's.
//!
//! Under a shard's lock no code of users runs but the keys' `Eq`, and nothing has changed when that is called.

use std::borrow::Borrow;
use std::hash::Hash;
use std::num::NonZeroU64;

use hashbrown::HashTable;
use hashbrown::hash_table::{Entry, OccupiedEntry};

use super::lineage::FlightId;
use super::plan::KeySource;
use super::state::Flight;
use crate::sync::{self, Arc, Mutex, RandomState};

/// Where a flight is linked, and its identity among all that ever were under its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    hash: u64,
    number: u64,
}

/// One taken key.
pub(super) enum Linked<K, V, E> {
    /// Nobody has joined.
    Alone(K, Place),
    /// Somebody has, and the leader does not know yet.
    Joined(Arc<Flight<K, V, E>>),
    /// The leader has the flight.
    Known(Arc<Flight<K, V, E>>),
}

impl<K, V, E> Linked<K, V, E> {
    fn key(&self) -> &K {
        match self {
            Self::Alone(key, _) => key,
            Self::Joined(flight) | Self::Known(flight) => &flight.key,
        }
    }

    fn place(&self) -> Place {
        match self {
            Self::Alone(_, place) => *place,
            Self::Joined(flight) | Self::Known(flight) => flight.place,
        }
    }
}

/// What a key's leader holds.
pub(super) enum Hold<K, V, E> {
    /// An entry. Nobody may have joined.
    Entry(Place),
    Flight(Arc<Flight<K, V, E>>),
}

/// What a caller finds under its key.
pub(super) enum Boarded<K, V, E, P> {
    Found(Arc<Flight<K, V, E>>),
    /// With the plan that it brought.
    Led(Hold<K, V, E>, P),
    /// Nothing, and it may not be linked.
    Refused,
}

/// How a leader that held an entry ends.
pub(super) enum PickedUp<K, V, E> {
    /// Nobody joined, and the entry, to be dropped outside the lock, is gone.
    Alone(Linked<K, V, E>),
    Joined(Arc<Flight<K, V, E>>),
}

struct Shard<K, V, E> {
    links: HashTable<Linked<K, V, E>>,
    adrift: Vec<Arc<Flight<K, V, E>>>,
    /// The next flight's.
    number: u64,
    /// Flights that began as an entry. Each is one load.
    loads: u64,
}

/// On cache lines of its own.
#[repr(align(128))]
struct Apart<K, V, E>(Mutex<Shard<K, V, E>>);

pub(super) struct Table<K, V, E> {
    shards: Box<[Apart<K, V, E>]>,
    hasher: RandomState,
    group: NonZeroU64,
}

fn hash_of<K, V, E>(linked: &Linked<K, V, E>) -> u64 {
    linked.place().hash
}

/// The flight under a key, made now if its leader was alone.
fn open<K, V, E>(found: OccupiedEntry<'_, Linked<K, V, E>>) -> Arc<Flight<K, V, E>> {
    match found.get() {
        Linked::Joined(flight) | Linked::Known(flight) => Arc::clone(flight),
        Linked::Alone(..) => replace(found, Linked::Joined),
    }
}

/// The flight under a key, made now if its leader was alone, and linked as `link` says.
fn replace<K, V, E>(
    found: OccupiedEntry<'_, Linked<K, V, E>>,
    link: impl FnOnce(Arc<Flight<K, V, E>>) -> Linked<K, V, E>,
) -> Arc<Flight<K, V, E>> {
    let (linked, vacant) = found.remove();
    let flight = match linked {
        Linked::Alone(key, place) => Flight::joined(key, place),
        Linked::Joined(flight) | Linked::Known(flight) => flight,
    };
    vacant.insert(link(Arc::clone(&flight)));
    flight
}

impl<K, V, E> Table<K, V, E> {
    pub(super) fn new() -> Self {
        // Hands out numbers and orders nothing, so it is no part of the models.
        static GROUPS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let group = GROUPS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let shard = |number| Shard { links: HashTable::new(), adrift: Vec::new(), number, loads: 0 };
        Self {
            shards: (0..sync::shards() as u64).map(|at| Apart(Mutex::new(shard(at)))).collect(),
            hasher: sync::random_state(),
            group: NonZeroU64::new(group).expect("fewer than 2^64 groups"),
        }
    }

    pub(super) fn id(&self, place: Place) -> FlightId {
        FlightId { group: self.group, number: place.number }
    }

    fn shard(&self, hash: u64) -> &Mutex<Shard<K, V, E>> {
        // Neither the lowest bits, which choose the bucket, nor the highest, which tell keys in it apart.
        let bits = usize::try_from(hash >> 40).unwrap_or(0);
        &self.shards[bits & (self.shards.len() - 1)].0
    }

    /// Keys that are taken.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().links.len()).sum()
    }

    /// Loads of flights that began as an entry.
    pub(super) fn loads(&self) -> u64 {
        self.shards.iter().map(|shard| shard.0.lock().loads).sum()
    }
}

impl<K: Hash + Eq, V, E> Table<K, V, E> {
    pub(super) fn hash<Q>(&self, key: &Q) -> u64
    where
        K: Borrow<Q>,
        Q: Hash + ?Sized,
    {
        self.hasher.hash_one(key)
    }

    /// The flight under `key`.
    pub(super) fn find<Q>(&self, key: &Q) -> Option<Arc<Flight<K, V, E>>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.find_hashed(self.hash(key), key)
    }

    pub(super) fn find_hashed<Q>(&self, hash: u64, key: &Q) -> Option<Arc<Flight<K, V, E>>>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let mut shard = self.shard(hash).lock();
        shard.links.find_entry(hash, |linked| linked.key().borrow() == key).ok().map(open)
    }

    /// What `count` says of the flight under `key`; nothing while its leader is alone.
    pub(super) fn look<Q, T: Default>(&self, key: &Q, count: impl FnOnce(&Flight<K, V, E>) -> T) -> T
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.hash(key);
        let shard = self.shard(hash).lock();
        let flight = match shard.links.find(hash, |linked| linked.key().borrow() == key) {
            Some(Linked::Joined(flight) | Linked::Known(flight)) => Arc::clone(flight),
            Some(Linked::Alone(..)) | None => return T::default(),
        };
        drop(shard);
        count(&flight)
    }

    /// The flight under the key, or else a new one that `make` links, if it is `admitted`; both are called under the
    /// lock. `key` is the owned key, unless the caller's own is; only what a leader brought is taken.
    #[inline]
    pub(super) fn board<S, P>(
        &self,
        hash: u64,
        brought: &mut Option<(S, P)>,
        key: Option<K>,
        admitted: impl FnOnce() -> bool,
        make: impl FnOnce(K, Place) -> (Linked<K, V, E>, Hold<K, V, E>),
    ) -> Boarded<K, V, E, P>
    where
        S: KeySource<K>,
        K: Borrow<S::Query>,
    {
        let Some(query) = brought.as_ref().map(|(source, _)| source.query()) else { return Boarded::Refused };
        let mut shard = self.shard(hash).lock();
        let shard = &mut *shard;
        let vacant = match shard.links.entry(hash, |linked| linked.key().borrow() == query, hash_of) {
            Entry::Occupied(found) => return Boarded::Found(open(found)),
            Entry::Vacant(vacant) => vacant,
        };
        let Some((source, plan)) = brought.take_if(|_| admitted()) else { return Boarded::Refused };
        let place = Place { hash, number: shard.number };
        shard.number += self.shards.len() as u64;
        let (linked, hold) = make(key.unwrap_or_else(|| source.into_key()), place);
        if matches!(linked, Linked::Alone(..)) {
            shard.loads += 1;
        }
        vacant.insert(linked);
        Boarded::Led(hold, plan)
    }

    /// The flight under `key`, or `None` after `write` was called while none could be linked.
    #[cfg(feature = "cache")]
    pub(super) fn find_or<Q>(&self, key: &Q, write: impl FnOnce()) -> Option<Arc<Flight<K, V, E>>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.hash(key);
        let mut shard = self.shard(hash).lock();
        if let Ok(found) = shard.links.find_entry(hash, |linked| linked.key().borrow() == key) {
            return Some(open(found));
        }
        write();
        None
    }
}

/// By identity: no key is compared.
impl<K, V, E> Table<K, V, E> {
    /// A leader's flight, which ends: the entry goes, or else becomes the flight that was joined. `ended` is called under
    /// the lock if it goes.
    #[inline]
    pub(super) fn pick_up(&self, place: Place, ended: impl FnOnce()) -> PickedUp<K, V, E> {
        let mut shard = self.shard(place.hash).lock();
        let shard = &mut *shard;
        let Ok(found) = shard.links.find_entry(place.hash, |linked| linked.place() == place) else {
            return PickedUp::Joined(shard.adrift(place));
        };
        if !matches!(found.get(), Linked::Alone(..)) {
            return PickedUp::Joined(replace(found, Linked::Known));
        }
        ended();
        PickedUp::Alone(found.remove().0)
    }

    /// A leader's flight, which goes on: made now if nobody has joined.
    pub(super) fn go_on(&self, place: Place) -> Arc<Flight<K, V, E>> {
        let mut shard = self.shard(place.hash).lock();
        let shard = &mut *shard;
        match shard.links.find_entry(place.hash, |linked| linked.place() == place) {
            Ok(found) => replace(found, Linked::Known),
            Err(_) => shard.adrift(place),
        }
    }

    /// Takes a flight out, and calls `ended` under the lock if it was there.
    pub(super) fn unlink(&self, place: Place, ended: impl FnOnce()) -> bool {
        let mut shard = self.shard(place.hash).lock();
        let shard = &mut *shard;
        let Ok(found) = shard.links.find_entry(place.hash, |linked| linked.place() == place) else {
            return false;
        };
        ended();
        if let (Linked::Joined(flight), _) = found.remove() {
            shard.adrift.push(flight);
        }
        true
    }

    /// All flights.
    #[cfg(feature = "cache")]
    pub(super) fn all(&self) -> Vec<Arc<Flight<K, V, E>>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.0.lock();
            let places: Vec<_> = shard.links.iter().map(Linked::place).collect();
            for place in places {
                let found = shard.links.find_entry(place.hash, |linked| linked.place() == place);
                all.extend(found.ok().map(open));
            }
        }
        all
    }
}

impl<K, V, E> Shard<K, V, E> {
    /// The closed flight of a leader that finds no entry any more.
    fn adrift(&mut self, place: Place) -> Arc<Flight<K, V, E>> {
        let at = self.adrift.iter().position(|flight| flight.place == place);
        self.adrift.swap_remove(at.expect("an entry stays until its leader has been there"))
    }
}
