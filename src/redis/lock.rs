//! The lock itself: a lease without a value.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout_at};

use super::acquire::{Answer, Question, Silence};
use super::events::{Listener, new_owner, rest};
use super::keys::LOCKS;
use super::lease::{Held, orphan};
use super::member::poll_after;
use super::tier::{RedisTier, Tier};
use super::undone::Orphan;
use crate::event;
use crate::sync::Mutex;

/// A lock that at most one holder in all instances has at a time, with a fencing token for what it protects.
///
/// No lock over a network is mutual exclusion for certain: a holder may be paused beyond its lease, and a failover may
/// lose the lock's record. So each holder has a [token](LockGuard::token) greater than that of any before it. Pass it
/// to whatever the lock protects, and let that refuse what comes with a lower one:
/// `UPDATE stock SET .., token = $1 WHERE id = 42 AND token < $1`.
///
/// The lease is [`RedisConfig::lease`](crate::RedisConfig::lease), renewed every third of it, for
/// [`RedisConfig::max_hold`](crate::RedisConfig::max_hold) at most. Callers in one process queue among themselves, so
/// one of them asks Redis. Without Redis there is no lock: unlike a cache, it does not go on alone.
///
/// ```no_run
/// use stampede_guard::{RedisConfig, RedisLock, RedisTier};
///
/// # async fn reserve() -> Result<(), Box<dyn std::error::Error>> {
/// # let tier = RedisTier::connect("redis://localhost", RedisConfig::default()).await?;
/// let lock = RedisLock::new(&tier);
/// let guard = lock.acquire("stock:42").await?;
/// let token = guard.token();
/// tokio::select! {
///     () = guard.lost() => return Err("the lock may be another's now".into()),
///     () = update_stock(token) => {}
/// }
/// guard.release().await?;
/// # Ok(())
/// # }
/// # async fn update_stock(_: u64) {}
/// ```
#[derive(Clone)]
pub struct RedisLock {
    tier: Arc<Tier>,
    queues: Arc<Mutex<Queues>>,
    wait_limit: Option<Duration>,
}

/// Where the callers of this process wait for each other, for each name.
type Queues = HashMap<Arc<[u8]>, Weak<tokio::sync::Mutex<()>>>;

/// Why there is no lock, or no word of its release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Redis did not answer, or answered with an error. Whether the lock is held is not known; if it is, it ends with
    /// its lease.
    #[error("Redis is out of reach, too slow or refused; a lock it may have granted ends with its lease")]
    Unavailable,
    /// It was another's for the whole [`wait_limit`](RedisLock::wait_limit).
    #[error("the lock was held by others for the whole wait limit of {after:?}")]
    TimedOut {
        /// The limit that was set.
        after: Duration,
    },
    /// The lease had ended before the release: another holder may have had the lock meanwhile.
    #[error("the lock had been lost before it was released")]
    Lost,
}

impl fmt::Debug for RedisLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLock").field("wait_limit", &self.wait_limit).finish_non_exhaustive()
    }
}

impl RedisLock {
    /// Locks on `tier`. Each name is one lock in the tier's namespace.
    ///
    /// Callers queue among the clones of one `RedisLock`; two made separately meet in Redis.
    #[must_use]
    pub fn new(tier: &RedisTier) -> Self {
        Self { tier: Arc::clone(&tier.0), queues: Arc::default(), wait_limit: None }
    }

    /// How long [`acquire`](Self::acquire) waits for other holders. Default: `None`, as long as it takes.
    #[must_use]
    pub fn wait_limit(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.wait_limit = limit.into();
        self
    }

    /// The lock, as soon as nobody else has it.
    ///
    /// # Errors
    ///
    /// [`LockError::Unavailable`] without Redis, [`LockError::TimedOut`] after [`wait_limit`](Self::wait_limit).
    ///
    /// # Cancel safety
    ///
    /// A caller whose future is dropped leaves the queue. If Redis was granting it the lock, that lock is given back.
    pub async fn acquire(&self, name: &str) -> Result<LockGuard, LockError> {
        let since = Instant::now();
        let answer = self.acquire_in_time(name).await;
        event::count_lock_wait("lock", since.elapsed());
        answer
    }

    async fn acquire_in_time(&self, name: &str) -> Result<LockGuard, LockError> {
        let Some(after) = self.wait_limit else { return self.wait(name).await };
        // Further than a clock reaches is no limit.
        match Instant::now().checked_add(after) {
            None => self.wait(name).await,
            Some(until) => match timeout_at(until, self.wait(name)).await {
                Ok(granted) => granted,
                Err(_) => Err(LockError::TimedOut { after }),
            },
        }
    }

    /// The lock, if nobody has it.
    ///
    /// # Errors
    ///
    /// [`LockError::Unavailable`] without Redis.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(&self, name: &str) -> Result<Option<LockGuard>, LockError> {
        let key: Arc<[u8]> = name.as_bytes().into();
        let Ok(place) = self.queue(&key).try_lock_owned() else { return Ok(None) };
        match Attempt::new(&self.tier, key, place).ask().await? {
            Asked::Granted(guard) => Ok(Some(guard)),
            Asked::Taken { .. } => Ok(None),
        }
    }

    fn queue(&self, key: &Arc<[u8]>) -> Arc<tokio::sync::Mutex<()>> {
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.get(key).and_then(Weak::upgrade) {
            return queue;
        }
        // Names that nobody waits for or holds any more go when the map would grow.
        if queues.len() == queues.capacity() {
            queues.retain(|_, queue| queue.strong_count() > 0);
        }
        let queue = Arc::default();
        queues.insert(Arc::clone(key), Arc::downgrade(&queue));
        queue
    }

    async fn wait(&self, name: &str) -> Result<LockGuard, LockError> {
        let key: Arc<[u8]> = name.as_bytes().into();
        let place = self.queue(&key).lock_owned().await;
        let tier = Arc::clone(&self.tier);
        let cache = Arc::from(LOCKS);
        let listener = Listener::new(&tier.core.waits, &cache, &key);
        let mut attempt = Attempt::new(&self.tier, Arc::clone(&key), place);
        loop {
            let word = listener.next_word();
            match attempt.ask().await? {
                Asked::Granted(guard) => return Ok(guard),
                Asked::Taken { again, left } => {
                    attempt = again;
                    let _ = tokio::time::timeout(poll_after(left), word).await;
                }
            }
        }
    }
}

/// One caller's way to a lock, first in its process's queue.
struct Attempt {
    tier: Arc<Tier>,
    key: Arc<[u8]>,
    place: OwnedMutexGuard<()>,
}

enum Asked {
    Granted(LockGuard),
    Taken { again: Attempt, left: Duration },
}

impl Attempt {
    fn new(tier: &Arc<Tier>, key: Arc<[u8]>, place: OwnedMutexGuard<()>) -> Self {
        Self { tier: Arc::clone(tier), key, place }
    }

    async fn ask(self) -> Result<Asked, LockError> {
        let core = &self.tier.core;
        // Of its own for each: two holders are never one to Redis.
        let owner = new_owner();
        let events: Arc<[u8]> = rest(&owner, LOCKS, &self.key).into();
        let mine = orphan(core.place(0, LOCKS, &self.key), &owner, None, &events);
        let question = Question {
            mine: &mine,
            schema: 0,
            key: &self.key,
            newer_than: 0,
            awaited: 0,
            void: 0,
            reads: false,
        };
        let sent = Instant::now();
        match question.ask(core).await {
            Ok(Answer::Lead { token, .. }) => {
                let held = Held::new(core, Orphan { token: Some(token), ..mine }, sent);
                Ok(Asked::Granted(LockGuard { held, _tier: self.tier, _place: self.place }))
            }
            Ok(Answer::Wait { left, .. }) => Ok(Asked::Taken { again: self, left }),
            Ok(_) | Err(Silence { .. }) => Err(LockError::Unavailable),
        }
    }
}

/// A lock that is held. Dropped, it is released in the background.
#[must_use = "dropped, the lock is released at once"]
pub struct LockGuard {
    held: Held,
    /// The connections live as long as the lock.
    _tier: Arc<Tier>,
    /// Given back last: the next caller of this process then finds the lock released or on the way.
    _place: OwnedMutexGuard<()>,
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard").field("token", &self.token()).finish_non_exhaustive()
    }
}

impl LockGuard {
    /// The fencing token: greater than that of every holder before this one, less than 2^53.
    ///
    /// It is the server's clock in microseconds, or one more than the last token if that is greater. So it grows even
    /// if the lock's record is lost, and across a failover unless the new master's clock is behind.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.held.token()
    }

    /// Ready when the lock may be another's: a renewal was refused, or the lease ran out without one that was
    /// answered. Never ready before that.
    ///
    /// # Cancel safety
    ///
    /// It can be dropped and called again.
    pub async fn lost(&self) {
        self.held.lost().await;
    }

    /// Gives the lock back, and waits for Redis's word.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if it was not held any more, [`LockError::Unavailable`] if Redis did not say.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped after its first poll, the lock may or may not be released before its lease ends.
    pub async fn release(self) -> Result<(), LockError> {
        match self.held.release("", Duration::ZERO).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(LockError::Lost),
            Err(()) => Err(LockError::Unavailable),
        }
    }
}
