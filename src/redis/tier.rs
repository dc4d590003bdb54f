//! The tier: one pair of connections and what all caches and locks on it share.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::{Pipeline, RedisError, Value};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::config::{RedisConfig, RedisTierError};
use super::connector::{Connector, Wire};
use super::envelope::Bounds;
use super::events::{Event, Owner, Subscription, Waits, What, rest, token};
use super::keys::{Place, channel, epoch_of, epochs};
use super::link::{Fault, Link, NO_ANSWER};
use super::member::RedisMember;
use super::scripts::{
    EPOCH, EPOCHS, Form, INVALIDATE, RELEASE, integer, introduce, is_unknown, run, single, text,
};
use super::stats::{Counters, RedisStats};
use super::subscriber::subscribe;
use super::undone::{Invalidate, Orphan, Target, Undone};
use crate::coordinate::{Coordinator, EventSink, Member, Membership, SharedTier};
use crate::invalidation::Invalidation;
use crate::sync::Mutex;
use crate::trouble::Trouble;

/// A Redis server, cluster or Sentinel group that the instances of a service share.
///
/// Give it to [`StampedeCacheBuilder::redis`](crate::StampedeCacheBuilder::redis), and one flight spans all instances:
/// of all callers in all processes that miss one key, one runs the loader, and the others get its value. Values are
/// kept in Redis beside each instance's memory, and an invalidation reaches every instance. While Redis is out of
/// reach each instance goes on alone.
///
/// A clone is a cheap handle to the same connections; they close with the last handle and the last cache on it.
///
/// ```no_run
/// use stampede_guard::{RedisConfig, RedisTier, StampedeCache};
///
/// # async fn start() -> Result<(), Box<dyn std::error::Error>> {
/// let config = RedisConfig { namespace: "shop".into(), ..RedisConfig::default() };
/// let tier = RedisTier::connect("redis://localhost", config).await?;
/// let products: StampedeCache<u64, String> =
///     StampedeCache::builder().name("products").redis(tier.clone()).build()?;
/// # drop(products); Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisTier(pub(super) Arc<Tier>);

/// What every handle shares. The tasks below it do not hold it, and end with it.
pub(super) struct Tier {
    pub(super) core: Arc<Core>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Tier {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

pub(super) struct Core {
    pub(super) config: RedisConfig,
    pub(super) link: Arc<Link>,
    pub(super) counters: Arc<Counters>,
    pub(super) waits: Waits,
    pub(super) subscription: Subscription,
    pub(super) undone: Undone,
    pub(super) channel: String,
    refusals: Mutex<Trouble>,
    members: Mutex<Vec<Listening>>,
    /// The tokens up to which all of a cache is void; under the empty name, all of the namespace.
    epochs: Mutex<HashMap<Arc<str>, u64>>,
    /// The connection that was last made ready.
    ready: AtomicU64,
    /// Where work goes on whose caller may be anywhere, or gone.
    pub(super) runtime: Handle,
}

/// A cache that is told what others do.
struct Listening {
    name: Arc<str>,
    owner: Owner,
    sink: Weak<dyn EventSink>,
}

impl fmt::Debug for RedisTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisTier").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl From<RedisTier> for SharedTier {
    fn from(tier: RedisTier) -> Self {
        Self(tier.0)
    }
}

impl RedisTier {
    /// Connects to Redis 6.0 or later, or Valkey. The URL is one of
    ///
    /// - `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS (feature `redis-tls`);
    /// - `redis+unix:///path[?db=database]`;
    /// - `redis-cluster://[user:password@]host:port,host:port,..`, or `rediss-cluster://` (feature `redis-cluster`);
    /// - `redis-sentinel://[user:password@]host:port,host:port,../master[/database]` (feature `redis-sentinel`).
    ///   `rediss-sentinel://` for TLS to servers and sentinels. The sentinels' own credentials are
    ///   `RedisConfig::sentinel_credentials`.
    ///
    /// A server that is out of reach is no error: every instance serves, alone, and is joined to the others within a
    /// second of the server's return.
    ///
    /// # Errors
    ///
    /// What no later attempt would change: a setting outside its range, a wrong URL, wrong credentials, missing
    /// permissions, an unsupported server.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime with time and I/O.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind if the future is dropped.
    pub async fn connect(url: &str, config: RedisConfig) -> Result<Self, RedisTierError> {
        config.check()?;
        let connector = Arc::new(Connector::new(url, &config)?);
        let first = match timeout(connector.timeout(), first_contact(&connector)).await {
            Ok(Ok(wire)) => Ok(wire),
            Ok(Err(error)) => match connector.lasting(&error) {
                Some(refusal) => return Err(refusal),
                None => Err(error.to_string()),
            },
            Err(_) => Err(NO_ANSWER.into()),
        };
        if let Err(why) = &first {
            if let Ok(Some(refusal)) = timeout(connector.timeout(), connector.refusal()).await {
                return Err(refusal);
            }
            if connector.answers_without_tls().await {
                return Err(RedisTierError::Tls("the server answers without it".into()));
            }
            tracing::warn!(
                namespace = config.namespace.as_str(),
                why = %why,
                "Redis is out of reach; this instance goes on alone until it answers"
            );
        }
        let counters = Arc::new(Counters::default());
        let limit = config.operation_timeout;
        let core = Arc::new(Core {
            link: Arc::new(Link::new(limit, config.namespace.as_str().into(), Arc::clone(&counters))),
            counters,
            waits: Waits::default(),
            subscription: Subscription::default(),
            undone: Undone::default(),
            channel: channel(&config.namespace),
            refusals: Mutex::new(Trouble::default()),
            members: Mutex::new(Vec::new()),
            epochs: Mutex::new(HashMap::new()),
            ready: AtomicU64::new(0),
            runtime: Handle::current(),
            config,
        });
        let is_there = first.is_ok();
        let begun = Arc::new(Notify::new());
        let settling = Arc::clone(&core);
        let settle = Box::new(move |wire, generation| {
            let core = Arc::clone(&settling);
            Box::pin(async move { core.settle(wire, generation).await }) as _
        });
        let commands = Arc::clone(&core.link).supervise(Arc::clone(&connector), settle, first.ok());
        let events = subscribe(Arc::clone(&core), Arc::clone(&connector), Arc::clone(&begun));
        let tasks = [tokio::spawn(commands), tokio::spawn(events)];
        let tier = Self(Arc::new(Tier { core, tasks }));
        if is_there {
            // So that the first caller need not wait for it nor go without, and no event is missed from here on.
            let until = Instant::now() + connector.timeout();
            let _ = timeout_at(until, begun.notified()).await;
            tier.0.core.link.wait_up(until).await;
        }
        Ok(tier)
    }

    /// What happened so far: a snapshot.
    #[must_use]
    pub fn stats(&self) -> RedisStats {
        let core = &self.0.core;
        let counters = &core.counters;
        RedisStats {
            circuit_open: !core.link.is_up(),
            subscribed: core.subscription.is_live(),
            operations: counters.operations.get(),
            timeouts: counters.timeouts.get(),
            errors: counters.errors.get(),
            connections: counters.connections.get(),
            leases: counters.leases.get(),
            published: counters.published.get(),
            superseded: counters.superseded.get(),
            kept_local: counters.kept_local.get(),
            malformed: counters.malformed.get(),
            pending_invalidations: core.undone.pending() as u64,
        }
    }
}

/// A connection whose server knows the scripts.
async fn first_contact(connector: &Connector) -> Result<Wire, RedisError> {
    let mut wire = connector.commands().await?;
    introduce(&mut wire).await?;
    Ok(wire)
}

impl Coordinator for Tier {
    fn has_own_namespace(&self) -> bool {
        self.core.config.namespace != RedisConfig::default().namespace
    }

    fn join(self: Arc<Self>, who: Membership) -> Arc<dyn Member> {
        let owner = super::events::new_owner();
        let listening = Listening { name: Arc::clone(&who.name), owner: Arc::clone(&owner), sink: who.sink };
        let mut members = self.core.members.lock();
        members.retain(|member| member.sink.strong_count() > 0);
        members.push(listening);
        drop(members);
        Arc::new(RedisMember::new(self, owner, who.name, who.schema, who.previous_schemas))
    }
}

/// An invalidation on its way. Dropped before Redis has said that it did it, by a dying runtime too, it tells those who
/// wait for that word; it stays to be done.
struct Sending {
    core: Arc<Core>,
    invalidate: Invalidate,
    is_done: bool,
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.is_done {
            self.core.undone.failed(&self.invalidate);
        }
    }
}

/// Tells a cache of others' doings. What it does about them may run code of its user, down to the destructors of values.
/// If that panics, nobody knows how much was done, so all is doubtful; those who listen beside it are told all the same.
fn tell(sink: Arc<dyn EventSink>, what: impl FnOnce(&(dyn EventSink + 'static))) {
    if catch_unwind(AssertUnwindSafe(|| what(&*sink))).is_err() {
        let _ = catch_unwind(AssertUnwindSafe(|| sink.all_doubtful()));
    }
    // It may be the last that holds the cache.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(sink)));
}

/// What Redis answers within `limit`, or why it does not.
pub(super) async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = redis::RedisResult<T>>,
) -> Result<T, String> {
    match timeout(limit, answer).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(NO_ANSWER.into()),
    }
}

impl Core {
    pub(super) fn bounds(&self) -> Bounds {
        Bounds { bytes: self.config.max_value_bytes, compress_over: self.config.compress_over }
    }

    pub(super) fn millis(span: Duration) -> u64 {
        u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn control_life(&self) -> u64 {
        Self::millis(self.config.control_life())
    }

    pub(super) fn place(&self, schema: u32, cache: &str, key: &[u8]) -> Place {
        Place::new(&self.config.namespace, schema, cache, key)
    }

    /// Tokens up to this one are void for the cache.
    pub(super) fn epoch(&self, cache: &str) -> u64 {
        let epochs = self.epochs.lock();
        let of = |name: &str| epochs.get(name).copied().unwrap_or(0);
        of("").max(of(cache))
    }

    fn raise_epoch(&self, cache: &str, token: u64) {
        let mut epochs = self.epochs.lock();
        let epoch = epochs.entry(cache.into()).or_default();
        *epoch = token.max(*epoch);
    }

    fn sinks(&self, concerned: impl Fn(&Listening) -> bool) -> Vec<Arc<dyn EventSink>> {
        // Cloned out of the lock: what a cache does with an event may run code of its user.
        let members = self.members.lock();
        members.iter().filter(|member| concerned(member)).filter_map(|member| member.sink.upgrade()).collect()
    }

    /// Anything may have happened unheard.
    pub(super) fn gap(&self) {
        for sink in self.sinks(|_| true) {
            tell(sink, EventSink::all_doubtful);
        }
        self.waits.wake_all();
    }

    pub(super) fn hear(&self, message: &[u8]) {
        let Some(event) = Event::read(message) else { return };
        let (cache, group) = epoch_of(event.cache);
        // A cache has done to itself what it tells others.
        let others = |member: &Listening| {
            *member.owner != *event.owner && (cache.is_empty() || *member.name == *cache)
        };
        match event.what {
            What::Released => {}
            What::Published => {
                for sink in self.sinks(others) {
                    tell(sink, |sink| sink.replaced(event.key, event.token));
                }
            }
            What::Invalidated => {
                for sink in self.sinks(others) {
                    tell(sink, |sink| sink.invalidated(event.key, event.token));
                }
            }
            What::Epoch => {
                self.raise_epoch(event.cache, event.token);
                for sink in self.sinks(others) {
                    tell(sink, |sink| match group {
                        Some(group) => sink.group_invalidated(group),
                        None => sink.all_doubtful(),
                    });
                }
            }
        }
        self.waits.wake(event.cache, event.key);
    }

    /// Redis answered with an error.
    pub(super) fn refused(&self, answers: &[Value]) {
        self.counters.refused();
        let code = answers.iter().find_map(|answer| match answer {
            Value::ServerError(error) => Some(error.code()),
            _ => None,
        });
        let code = code.unwrap_or("none");
        if self.refusals.lock().is_news(code) {
            let namespace = self.config.namespace.as_str();
            tracing::warn!(namespace, code, "Redis refuses what it is told; those keys go on without it");
        }
    }

    /// Learns what was voided as a whole while this instance did not listen.
    pub(super) async fn read_epochs(&self, wire: &mut Wire) -> Result<(), String> {
        let answers = in_time(self.config.operation_timeout, wire.send(&self.epochs(Form::Code))).await?;
        if self.learn_epochs(&answers) { Ok(()) } else { Err("it does not say what is void".into()) }
    }

    /// The same on behalf of a caller.
    pub(super) async fn ask_epochs(&self) -> bool {
        run(&self.link, |form| self.epochs(form)).await.is_ok_and(|answers| self.learn_epochs(&answers))
    }

    fn epochs(&self, form: Form) -> Pipeline {
        single(EPOCHS.call(form, &[epochs(&self.config.namespace)]))
    }

    fn learn_epochs(&self, answers: &[Value]) -> bool {
        match answers.first() {
            Some(Value::Array(found)) => {
                for pair in found.chunks_exact(2) {
                    if let (Some(cache), Some(up_to)) = (text(&pair[0]), text(&pair[1]).and_then(token)) {
                        self.raise_epoch(cache, up_to);
                    }
                }
                true
            }
            // A server that is not ready; or something else's key, which has nothing to say.
            Some(Value::ServerError(error)) => error.code() == "WRONGTYPE",
            _ => true,
        }
    }

    /// Closes the circuit once the server knows the scripts, no lease is held by nobody, and everything is invalidated that
    /// was by now. What comes meanwhile does not keep it open: whoever asks for what it concerns waits for it.
    async fn settle(&self, mut wire: Wire, generation: u64) -> Result<(), String> {
        let limit = self.config.operation_timeout;
        if self.ready.load(Ordering::Acquire) != generation {
            in_time(limit, introduce(&mut wire)).await?;
            self.read_epochs(&mut wire).await?;
            self.ready.store(generation, Ordering::Release);
        }
        let mut orphans: Vec<_> = self.undone.take_orphans().into_iter().collect();
        while !orphans.is_empty() {
            let some = orphans.len().saturating_sub(wire.at_once());
            let release = |form, orphan: &Orphan| self.release(form, orphan, "", Duration::ZERO);
            if let Err(why) = self.replay(&mut wire, &orphans[some..], release).await {
                for orphan in orphans {
                    self.undone.add_orphan(orphan);
                }
                return Err(why);
            }
            orphans.truncate(some);
        }
        let told = self.invalidate_after(0, &mut wire).await?;
        self.link.trust(generation);
        // Those that came while it was open were not sent.
        self.invalidate_after(told, &mut wire).await.map(drop)
    }

    /// Does what was invalidated after the one of this number. Returns the number of the last.
    async fn invalidate_after(&self, number: u64, wire: &mut Wire) -> Result<u64, String> {
        let due = self.undone.after(number);
        let last = due.iter().map(|invalidate| invalidate.number).max().unwrap_or(number);
        for (at, some) in due.chunks(wire.at_once()).enumerate() {
            let command = |form, invalidate: &Invalidate| self.invalidation(form, invalidate);
            let answers = match self.replay(wire, some, command).await {
                Ok(answers) => answers,
                Err(why) => {
                    for invalidate in &due[at * wire.at_once()..] {
                        self.undone.not_replayed(invalidate);
                    }
                    return Err(why);
                }
            };
            for (invalidate, answer) in some.iter().zip(&answers) {
                match integer(answer) {
                    Some(token) => self.invalidated(invalidate, token),
                    // It stays, its key is not read meanwhile, and the next ping tries again.
                    None => self.undone.refused(invalidate),
                }
            }
        }
        Ok(last)
    }

    /// Sends the commands that make good `what`, all at once.
    async fn replay<T>(
        &self,
        wire: &mut Wire,
        what: &[T],
        command: impl Fn(Form, &T) -> redis::Cmd,
    ) -> Result<Vec<Value>, String> {
        let commands = |form| {
            let mut pipeline = redis::pipe();
            for one in what {
                pipeline.add_command(command(form, one));
            }
            pipeline
        };
        let limit = self.config.operation_timeout;
        let answers = in_time(limit, wire.send(&commands(Form::Digest))).await?;
        // Those that were done are done again.
        let forgotten = answers.iter().any(is_unknown);
        if forgotten { in_time(limit, wire.send(&commands(Form::Code))).await } else { Ok(answers) }
    }

    /// Sends an invalidation that was noted; what comes of it is known by its handle.
    pub(super) fn invalidate(
        self: &Arc<Self>,
        target: Target,
        owner: Owner,
        places: Arc<[Place]>,
    ) -> Invalidation {
        let (answer, told) = oneshot::channel();
        let invalidate = self.undone.add(target, owner, places, answer);
        let mut sending = Sending { core: Arc::clone(self), invalidate, is_done: false };
        self.runtime.spawn(async move {
            let Sending { core, invalidate, is_done } = &mut sending;
            let sent = run(&core.link, |form| single(core.invalidation(form, invalidate))).await;
            let Ok(answers) = sent else { return };
            match answers.first().and_then(integer) {
                Some(token) => {
                    *is_done = true;
                    core.invalidated(invalidate, token);
                }
                None => core.undone.refused(invalidate),
            }
        });
        Invalidation::pending(told)
    }

    fn invalidated(&self, invalidate: &Invalidate, token: i64) {
        if invalidate.target.key.is_none() {
            self.raise_epoch(&invalidate.target.cache, token.unsigned_abs());
        }
        self.undone.done(invalidate);
    }

    fn invalidation(&self, form: Form, invalidate: &Invalidate) -> redis::Cmd {
        let target = &invalidate.target;
        if let Some(key) = &target.key {
            let names = invalidate.places.iter().flat_map(|place| [place.value(), place.control()]);
            let mut call = INVALIDATE.call(form, &names.collect::<Vec<_>>());
            call.arg(&self.channel).arg(self.control_life());
            call.arg(rest(&invalidate.owner, &target.cache, key));
            call
        } else {
            let mut call = EPOCH.call(form, &[epochs(&self.config.namespace)]);
            call.arg(&*target.cache).arg(&self.channel);
            call.arg(rest(&invalidate.owner, &target.cache, &[]));
            call
        }
    }

    /// A failure of this kind is told for that long.
    pub(super) fn release(&self, form: Form, held: &Orphan, kind: &str, told_for: Duration) -> redis::Cmd {
        let mut call = RELEASE.call(form, &[held.place.control()]);
        call.arg(&*held.owner).arg(held.token.map_or_else(String::new, |token| token.to_string()));
        call.arg(kind)
            .arg(Self::millis(told_for))
            .arg(&self.channel)
            .arg(self.control_life())
            .arg(&*held.rest);
        call
    }

    /// An operation that may have left this lease behind has failed.
    pub(super) fn disown(&self, orphan: Orphan, fault: Fault) {
        if let Fault::TimedOut(late) = fault {
            Link::after(&self.runtime, late, single(self.release(Form::Code, &orphan, "", Duration::ZERO)));
        }
        self.undone.add_orphan(orphan);
    }
}
