//! A tier in memory that fails as it is told to.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::coordinate::{
    Ask, Boxed, Coordinator, EventSink, Group, Lease, Member, Membership, Publication, Published, SharedTier,
    SharedValue, Token, Turn,
};
use crate::error::RemoteKind;
use crate::invalidation::{Invalidation, Undelivered};
use crate::sync::Mutex;

/// How long one who waits for another instance goes without asking, should no word reach it.
const POLL: Duration = Duration::from_secs(1);
/// How long a caller waits for its instance's invalidations to arrive before it goes on alone.
const PATIENCE: Duration = Duration::from_millis(250);

/// What goes wrong on a [`ChaosTier`]. The default is nothing.
#[derive(Clone, Debug)]
pub struct Chaos {
    /// How long a message is on its way at most, in each direction. Default: zero.
    pub delay: Duration,
    /// The share of messages that get lost, 0 to 1: before the tier has done what they ask for, or after. Default: 0.
    pub errors: f64,
    /// The share of events that do not reach an instance, 0 to 1. It is stale for
    /// [`local_ttl_cap`](Self::local_ttl_cap) at most. Default: 0.
    pub lost_events: f64,
    /// The share of leases that end while their load runs, 0 to 1, so that another instance may load as well.
    /// Default: 0.
    pub lost_leases: f64,
    /// How long an instance serves a value without asking again. Default: 30 s.
    pub local_ttl_cap: Duration,
}

impl Default for Chaos {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            errors: 0.0,
            lost_events: 0.0,
            lost_leases: 0.0,
            local_ttl_cap: Duration::from_secs(30),
        }
    }
}

/// A tier in memory, for tests of what a service does when its instances share one and it misbehaves.
///
/// Each cache that is built on it is an instance of its own, as if in another process. What goes wrong is drawn from a
/// seed, in the order in which things happen. Its time is Tokio's, so `tokio::time::pause` makes delays take none.
///
/// ```
/// use std::time::Duration;
/// use stampede_guard::test_util::{Chaos, ChaosTier};
/// use stampede_guard::{Loaded, Outcome, StampedeCache};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let tier = ChaosTier::new(1, Chaos { delay: Duration::from_millis(5), ..Chaos::default() });
/// let instance = || StampedeCache::<u64, u64>::builder().name("products").redis(tier.clone()).build();
/// let (one, two) = (instance()?, instance()?);
/// one.get_or_load(7, || async { Ok(1) }).await?;
/// tier.settled().await;
/// let fetched = two.get_or_load_with(7, |_| async { Ok(Loaded::new(2)) }).await?;
/// assert_eq!((fetched.value, fetched.outcome), (1, Outcome::SharedHit));
///
/// // From here on nothing reaches the tier: each instance loads for itself.
/// tier.set(Chaos { errors: 1.0, ..Chaos::default() });
/// assert_eq!(two.get_or_load(8, || async { Ok(2) }).await?, 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ChaosTier(Arc<Store>);

/// What a [`ChaosTier`] holds and did: a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChaosStats {
    /// Messages that instances sent, each with its answer.
    pub operations: u64,
    /// Messages and answers that got lost.
    pub errors: u64,
    /// Events that got lost.
    pub lost_events: u64,
    /// Leases given.
    pub leases: u64,
    /// Leases that ended while their load ran.
    pub lost_leases: u64,
    /// Values published.
    pub published: u64,
    /// Values not published since something newer was known of their keys.
    pub superseded: u64,
    /// Values that an instance could not read.
    pub malformed: u64,
    /// Leases held now.
    pub held: u64,
    /// Callers that now wait for another instance.
    pub waiting: u64,
    /// Messages, answers and events that are on their way now.
    pub under_way: u64,
}

impl fmt::Debug for ChaosTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChaosTier").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl From<ChaosTier> for SharedTier {
    fn from(tier: ChaosTier) -> Self {
        Self(tier.0)
    }
}

impl ChaosTier {
    /// # Panics
    ///
    /// Outside a Tokio runtime with time.
    #[must_use]
    pub fn new(seed: u64, chaos: Chaos) -> Self {
        let state = State {
            chaos,
            random: StdRng::seed_from_u64(seed),
            records: HashMap::new(),
            epochs: HashMap::new(),
            members: Vec::new(),
            last: 0,
            stats: ChaosStats::default(),
        };
        Self(Arc::new(Store {
            state: Mutex::new(state),
            changed: Notify::new(),
            under_way: watch::Sender::new(0),
            runtime: Handle::current(),
        }))
    }

    /// What goes wrong from here on.
    pub fn set(&self, chaos: Chaos) {
        self.0.state.lock().chaos = chaos;
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> ChaosStats {
        let state = self.0.state.lock();
        let now = Instant::now();
        let held = state.records.values().filter(|record| record.holder(now).is_some()).count() as u64;
        ChaosStats { held, under_way: *self.0.under_way.borrow(), ..state.stats }
    }

    /// Waits until nothing is on its way: values that were loaded are published, invalidations have reached every
    /// instance that they reach at all.
    ///
    /// # Cancel safety
    ///
    /// It can be dropped and called again.
    pub async fn settled(&self) {
        let mut under_way = self.0.under_way.subscribe();
        // What is about to be sent is sent first.
        tokio::task::yield_now().await;
        // The sender is in `self`.
        let _ = under_way.wait_for(|count| *count == 0).await;
    }
}

type Place = (Arc<str>, u32, Arc<[u8]>);

struct Store {
    state: Mutex<State>,
    /// Something was published, given back or voided.
    changed: Notify,
    under_way: watch::Sender<u64>,
    runtime: Handle,
}

struct State {
    chaos: Chaos,
    random: StdRng,
    records: HashMap<Place, Record>,
    /// The tokens up to which a cache, or a group of its keys, is void.
    epochs: HashMap<(Arc<str>, Option<Group>), Token>,
    members: Vec<Listening>,
    last: Token,
    stats: ChaosStats,
}

struct Listening {
    name: Arc<str>,
    id: u64,
    sink: Weak<dyn EventSink>,
}

/// All that is known of a key.
#[derive(Default)]
struct Record {
    value: Option<Kept>,
    holder: Option<Holder>,
    /// Up to this token everything is void.
    floor: Token,
    /// How the load of this token ended; `None`: its value is not one to share.
    failed: Option<(Token, Option<RemoteKind>)>,
    awaited: bool,
}

struct Kept {
    what: Publication,
    token: Token,
    at: Instant,
}

#[derive(Clone, Copy)]
struct Holder {
    token: Token,
    /// Of a lease that is to be lost.
    until: Option<Instant>,
}

impl Record {
    fn holder(&self, now: Instant) -> Option<Holder> {
        self.holder.filter(|holder| holder.until.is_none_or(|end| now < end))
    }
}

impl Kept {
    fn read(&self, now: Instant) -> Option<SharedValue> {
        let age = now - self.at;
        if age >= self.what.lives() {
            return None;
        }
        Some(SharedValue {
            payload: self.what.payload.clone(),
            codec: self.what.codec,
            token: self.token,
            fresh_for: self.what.fresh.saturating_sub(age),
            stale_since: age.saturating_sub(self.what.fresh),
            age,
            stale_while_revalidate: self.what.stale_while_revalidate,
            stale_if_error: self.what.stale_if_error,
            cost: self.what.cost,
            groups: self.what.groups.clone(),
        })
    }
}

impl State {
    fn next_token(&mut self) -> Token {
        self.last += 1;
        self.last
    }

    fn draw(&mut self, share: f64) -> bool {
        share > 0.0 && self.random.random::<f64>() < share
    }

    fn delay(&mut self) -> Duration {
        let share = self.random.random();
        self.chaos.delay.mul_f64(share)
    }

    fn epoch(&self, name: &Arc<str>, group: Option<Group>) -> Token {
        self.epochs.get(&(Arc::clone(name), group)).copied().unwrap_or(0)
    }
}

/// Counts something as on its way.
struct Trip(Arc<Store>);

impl Trip {
    fn begin(store: &Arc<Store>) -> Self {
        store.under_way.send_modify(|count| *count += 1);
        Self(Arc::clone(store))
    }
}

impl Drop for Trip {
    fn drop(&mut self) {
        self.0.under_way.send_modify(|count| *count -= 1);
    }
}

/// How a lease ended that brought no value.
#[derive(Clone, Copy)]
enum End {
    GivenBack,
    Failed(RemoteKind),
    KeptLocal,
}

/// A message or its answer got lost.
struct Lost;

impl Store {
    /// One direction of a message.
    async fn travel(self: &Arc<Self>) -> Result<(), Lost> {
        let (delay, lost) = {
            let mut state = self.state.lock();
            let lost = state.chaos.errors;
            let lost = state.draw(lost);
            state.stats.errors += u64::from(lost);
            (state.delay(), lost)
        };
        if !delay.is_zero() {
            sleep(delay).await;
        }
        if lost { Err(Lost) } else { Ok(()) }
    }

    /// A message, what is done about it, and the answer.
    async fn ask<T>(self: &Arc<Self>, act: impl FnOnce() -> T) -> Result<T, (Lost, Option<T>)> {
        let _trip = Trip::begin(self);
        self.state.lock().stats.operations += 1;
        self.travel().await.map_err(|lost| (lost, None))?;
        let answer = act();
        match self.travel().await {
            Ok(()) => Ok(answer),
            Err(lost) => Err((lost, Some(answer))),
        }
    }

    /// Tells the other instances of that cache.
    fn publish_event(
        self: &Arc<Self>,
        name: &Arc<str>,
        from: u64,
        event: impl Fn(&dyn EventSink) + Clone + Send + 'static,
    ) {
        let mut state = self.state.lock();
        state.members.retain(|member| member.sink.strong_count() > 0);
        let others = state.members.iter().filter(|member| member.name == *name && member.id != from);
        let sinks: Vec<_> = others.filter_map(|member| member.sink.upgrade()).collect();
        for sink in sinks {
            let share = state.chaos.lost_events;
            let (lost, delay) = (state.draw(share), state.delay());
            if lost {
                state.stats.lost_events += 1;
                continue;
            }
            let (event, trip) = (event.clone(), Trip::begin(self));
            self.runtime.spawn(async move {
                sleep(delay).await;
                event(&*sink);
                drop(trip);
            });
        }
    }

    /// Ends that lease, if it is held.
    fn end(&self, place: &Place, token: Token, how: End) {
        let mut state = self.state.lock();
        let record = state.records.entry(place.clone()).or_default();
        if record.holder.is_some_and(|holder| holder.token == token) {
            record.holder = None;
            record.failed = match how {
                End::GivenBack => None,
                End::Failed(kind) => Some((token, Some(kind))),
                End::KeptLocal => Some((token, None)),
            };
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

impl Coordinator for Store {
    fn has_own_namespace(&self) -> bool {
        true
    }

    fn join(self: Arc<Self>, who: Membership) -> Arc<dyn Member> {
        let id = {
            let mut state = self.state.lock();
            let id = state.next_token();
            state.members.push(Listening { name: Arc::clone(&who.name), id, sink: who.sink });
            id
        };
        let schemas = std::iter::once(who.schema).chain(who.previous_schemas).collect();
        let pending = Arc::new(watch::Sender::new(0));
        Arc::new(ChaosMember { store: self, name: who.name, id, schemas, pending })
    }
}

/// One instance's access.
struct ChaosMember {
    store: Arc<Store>,
    name: Arc<str>,
    id: u64,
    /// The first one is its own.
    schemas: Vec<u32>,
    /// Invalidations that the tier has not confirmed.
    pending: Arc<watch::Sender<usize>>,
}

/// What the tier makes of a question.
enum Verdict {
    Turn(Turn),
    /// For the load of this token.
    Wait(Token, Option<SharedValue>),
}

/// Counts a caller that waits.
struct Waiting<'a>(&'a Store);

impl<'a> Waiting<'a> {
    fn begin(store: &'a Store) -> Self {
        store.state.lock().stats.waiting += 1;
        Self(store)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state.lock().stats.waiting -= 1;
    }
}

impl ChaosMember {
    async fn told(&self) -> bool {
        let mut pending = self.pending.subscribe();
        let told = async move { pending.wait_for(|count| *count == 0).await.is_ok() };
        timeout(PATIENCE, told).await.unwrap_or(false)
    }

    async fn turn(&self, key: &Arc<[u8]>, ask: Ask) -> Turn {
        let place = (Arc::clone(&self.name), self.schemas[0], Arc::clone(key));
        let (mut awaited, mut waited) = (ask.awaited.unwrap_or(0), ask.awaited.is_some());
        loop {
            // Before the question: what happens after the answer is heard.
            let changed = self.store.changed.notified();
            // What the tier has may be what it has yet to be told to drop.
            if !self.told().await {
                return Turn::Alone;
            }
            // A lease whose answer got lost is given back with it.
            let Ok(verdict) = self.store.ask(|| self.judge(&place, ask, awaited, waited)).await else {
                return Turn::Alone;
            };
            match verdict {
                Verdict::Turn(turn) => return turn,
                Verdict::Wait(token, stale) if !ask.patience.waits(stale.as_ref()) => {
                    return Turn::Busy { awaited: token, stale };
                }
                Verdict::Wait(token, _) => (awaited, waited) = (token, true),
            }
            let _waiting = Waiting::begin(&self.store);
            let _ = timeout(POLL, changed).await;
        }
    }

    fn judge(&self, place: &Place, ask: Ask, awaited: Token, waited: bool) -> Verdict {
        let now = Instant::now();
        let mut state = self.store.state.lock();
        let epoch = state.epoch(&self.name, None);
        let epoch = epoch.max(ask.group.map_or(0, |group| state.epoch(&self.name, Some(group))));
        let record = state.records.entry(place.clone()).or_default();
        let floor = record.floor.max(epoch);
        let value = record.value.as_ref().filter(|kept| kept.token > floor).and_then(|kept| kept.read(now));
        let newer_than = ask.newer_than.unwrap_or(0);
        if let Some(value) = &value
            && !value.fresh_for.is_zero()
            && value.token > newer_than
        {
            return Verdict::Turn(Turn::Hit { value: value.clone(), waited });
        }
        if let Some(holder) = record.holder(now) {
            record.awaited = true;
            return match value {
                Some(value)
                    if ask.takes_stale
                        && ask.newer_than.is_none()
                        && value.stale_since < value.stale_while_revalidate =>
                {
                    Verdict::Turn(Turn::Stale(value))
                }
                value => {
                    let covers = |value: &SharedValue| value.covers_failure() && value.token > newer_than;
                    Verdict::Wait(holder.token, value.filter(covers))
                }
            };
        }
        if let Some((token, kind)) = record.failed
            && token == awaited
            && value.is_none()
        {
            return Verdict::Turn(kind.map_or(Turn::Alone, Turn::Failed));
        }
        let token = state.next_token();
        let share = state.chaos.lost_leases;
        let lost = state.draw(share);
        let until = lost.then(|| now + state.delay());
        state.stats.leases += 1;
        state.stats.lost_leases += u64::from(lost);
        let record = state.records.entry(place.clone()).or_default();
        record.holder = Some(Holder { token, until });
        record.failed = None;
        drop(state);
        let lease =
            ChaosLease { store: Arc::clone(&self.store), place: place.clone(), member: self.id, token };
        Verdict::Turn(Turn::Lead { lease: Box::new(lease), stale: value })
    }

    /// Has the tier do something, however often that takes.
    fn tell(&self, act: impl Fn(&Arc<Store>) + Send + Sync + 'static) -> Invalidation {
        let (answer, told) = oneshot::channel();
        let (store, pending) = (Arc::clone(&self.store), Arc::clone(&self.pending));
        pending.send_modify(|count| *count += 1);
        let trip = Trip::begin(&store);
        self.store.runtime.spawn(async move {
            let mut answer = Some(answer);
            while store.ask(|| act(&store)).await.is_err() {
                // Most handles are dropped.
                if let Some(answer) = answer.take() {
                    let _ = answer.send(Err(Undelivered(())));
                }
                sleep(PATIENCE).await;
            }
            pending.send_modify(|count| *count -= 1);
            if let Some(answer) = answer {
                let _ = answer.send(Ok(()));
            }
            drop(trip);
        });
        Invalidation::pending(told)
    }

    fn tell_epoch(&self, group: Option<Group>) -> Invalidation {
        let (name, from) = (Arc::clone(&self.name), self.id);
        self.tell(move |store| {
            let mut state = store.state.lock();
            let token = state.next_token();
            state.epochs.insert((Arc::clone(&name), group), token);
            drop(state);
            store.changed.notify_waiters();
            store.publish_event(&name, from, move |sink| match group {
                Some(group) => sink.group_invalidated(group),
                None => sink.all_doubtful(),
            });
        })
    }
}

impl Member for ChaosMember {
    fn takes(&self, _bytes: u64) -> bool {
        true
    }

    fn enter<'a>(&'a self, key: &'a Arc<[u8]>, ask: Ask) -> Boxed<'a, Turn> {
        Box::pin(self.turn(key, ask))
    }

    fn invalidate(&self, key: Arc<[u8]>) -> Invalidation {
        let (name, from, schemas) = (Arc::clone(&self.name), self.id, self.schemas.clone());
        self.tell(move |store| {
            let mut state = store.state.lock();
            let token = state.next_token();
            for &schema in &schemas {
                let place = (Arc::clone(&name), schema, Arc::clone(&key));
                state.records.insert(place, Record { floor: token, ..Record::default() });
            }
            drop(state);
            store.changed.notify_waiters();
            let key = Arc::clone(&key);
            store.publish_event(&name, from, move |sink| sink.invalidated(&key, token));
        })
    }

    fn invalidate_all(&self) -> Invalidation {
        self.tell_epoch(None)
    }

    fn invalidate_group(&self, group: Group) -> Invalidation {
        self.tell_epoch(Some(group))
    }

    fn is_void<'a>(&'a self, groups: &'a [Group], token: Token) -> Boxed<'a, bool> {
        Box::pin(async move {
            let told = self.told().await;
            let state = self.store.state.lock();
            !told || groups.iter().any(|&group| state.epoch(&self.name, Some(group)) >= token)
        })
    }

    fn count_malformed(&self) {
        self.store.state.lock().stats.malformed += 1;
    }

    fn local_ttl_cap(&self) -> Duration {
        self.store.state.lock().chaos.local_ttl_cap
    }
}

/// The right to load. Dropped, it is given back.
struct ChaosLease {
    store: Arc<Store>,
    place: Place,
    member: u64,
    token: Token,
}

impl Drop for ChaosLease {
    fn drop(&mut self) {
        self.store.end(&self.place, self.token, End::GivenBack);
    }
}

impl ChaosLease {
    fn commit(&self, what: Publication) -> Published {
        let mut state = self.store.state.lock();
        let record = state.records.entry(self.place.clone()).or_default();
        let older = record.value.as_ref().map(|kept| kept.token);
        if self.token <= record.floor || older.is_some_and(|there| there >= self.token) {
            state.stats.superseded += 1;
            return Published::Superseded;
        }
        record.value = Some(Kept { what, token: self.token, at: Instant::now() });
        let heard = std::mem::take(&mut record.awaited) || older.is_some();
        state.stats.published += 1;
        drop(state);
        if heard {
            let (name, _, key) = self.place.clone();
            let token = self.token;
            self.store.publish_event(&name, self.member, move |sink| sink.replaced(&key, token));
        }
        Published::Yes
    }
}

impl Lease for ChaosLease {
    fn token(&self) -> Token {
        self.token
    }

    fn publish(self: Box<Self>, what: Publication) -> Boxed<'static, Published> {
        let trip = Trip::begin(&self.store);
        Box::pin(async move {
            let answer = self.store.ask(|| self.commit(what)).await;
            drop(trip);
            answer.unwrap_or(Published::Unknown)
        })
    }

    fn fail(self: Box<Self>, kind: RemoteKind) {
        self.store.end(&self.place, self.token, End::Failed(kind));
    }

    fn keep_local(self: Box<Self>) {
        self.store.end(&self.place, self.token, End::KeptLocal);
    }
}
