//! One cache's access to the tier.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::{Instrument, Span};

use super::acquire::{Answer, Question, Silence};
use super::events::{Listener, Owner, new_owner, rest};
use super::keys::{GROUP_SIGN, Place};
use super::lease::{Held, LOCAL, RedisLease, kind_from, orphan};
use super::tier::Tier;
use super::undone::{Orphan, Target};
use crate::coordinate::{Ask, Boxed, Group, Member, Token, Turn};
use crate::event;
use crate::invalidation::Invalidation;

/// How long one who waits for another instance goes without asking, should no event arrive.
pub(super) const POLL: Duration = Duration::from_secs(1);
/// By how much that is lengthened at most, at random, so that those who wait do not ask all at once.
const POLL_JITTER: Duration = Duration::from_millis(50);

/// The time until the next question about a lease that lasts so long.
pub(super) fn poll_after(left: Duration) -> Duration {
    left.min(POLL) + POLL_JITTER.mul_f64(rand::random())
}

pub(super) struct RedisMember {
    tier: Arc<Tier>,
    owner: Owner,
    cache: Arc<str>,
    schema: u32,
    previous_schemas: Vec<u32>,
}

impl RedisMember {
    pub(super) fn new(
        tier: Arc<Tier>,
        owner: Owner,
        cache: Arc<str>,
        schema: u32,
        previous_schemas: Vec<u32>,
    ) -> Self {
        Self { tier, owner, cache, schema, previous_schemas }
    }

    fn place(&self, schema: u32, key: &[u8]) -> Place {
        self.tier.core.place(schema, &self.cache, key)
    }

    /// A group's name among the caches whose epochs are kept: one that no cache can have.
    fn group_name(&self, group: Group) -> Arc<str> {
        format!("{}{GROUP_SIGN}{:x}", self.cache, group.0).into()
    }

    async fn turn(&self, key: &Arc<[u8]>, ask: Ask) -> Turn {
        let core = &self.tier.core;
        let limit = core.config.operation_timeout;
        if !core.link.is_up() {
            return Turn::Alone;
        }
        let group = ask.group.map(|group| self.group_name(group));
        // What Redis has under this key may be what it has yet to be told to drop.
        let told = async {
            core.undone.told(&self.cache, Some(key)).await
                && match &group {
                    Some(group) => core.undone.told(group, None).await,
                    None => true,
                }
        };
        if !timeout(limit, told).await.unwrap_or(false) {
            return Turn::Alone;
        }
        // What was voided as a whole is told by events; without them it has to be asked for.
        if !core.subscription.is_live() && !core.ask_epochs().await {
            return Turn::Alone;
        }
        // Of its own for each flight: asking twice is asking once, and no other flight's lease is taken for its own.
        let owner = new_owner();
        let events: Arc<[u8]> = rest(&self.owner, &self.cache, key).into();
        let listener = Listener::new(&core.waits, &self.cache, key);
        let mine = orphan(self.place(self.schema, key), &owner, None, &events);
        let mut question = Question {
            mine: &mine,
            schema: self.schema,
            key,
            newer_than: ask.newer_than.unwrap_or(0),
            awaited: ask.awaited.unwrap_or(0),
            void: 0,
            reads: true,
        };
        let takes_stale = ask.takes_stale && ask.newer_than.is_none();
        let mut waiting = None;
        let mut until = None;
        loop {
            // Before the question: what happens after the answer is heard.
            let word = listener.next_word();
            let sent = Instant::now();
            question.void = core.epoch(&self.cache);
            if let Some(group) = &group {
                question.void = question.void.max(core.epoch(group));
            }
            let answer = match question.ask(core).await {
                Ok(answer) => answer,
                Err(Silence { is_broken }) => {
                    // A connection that broke may be back before this caller's time is up.
                    let until = *until.get_or_insert(sent + limit);
                    if is_broken && core.link.wait_up(until).await {
                        continue;
                    }
                    return Turn::Alone;
                }
            };
            until = None;
            let (token, left, stale) = match answer {
                Answer::Hit(value) => {
                    let waited = waiting.is_some() || ask.awaited.is_some();
                    return Turn::Hit { value, waited };
                }
                Answer::Refused => return Turn::Alone,
                Answer::Failed(kind) if kind == LOCAL => return Turn::Alone,
                Answer::Failed(kind) => return Turn::Failed(kind_from(&kind)),
                Answer::Lead { token, stale } => {
                    let granted = Orphan { token: Some(token), ..mine.clone() };
                    let held = Held::new(core, granted, sent);
                    let lease = Box::new(RedisLease { held, schema: self.schema, key: Arc::clone(key) });
                    return Turn::Lead { lease, stale };
                }
                Answer::StaleAfter(_, kind) if kind == LOCAL => return Turn::Alone,
                Answer::StaleAfter(value, kind) => {
                    let window = value.stale_while_revalidate.max(value.stale_if_error);
                    let serves = takes_stale && value.stale_since < window;
                    return if serves { Turn::Stale(value) } else { Turn::Failed(kind_from(&kind)) };
                }
                Answer::Stale { value, token, left } => {
                    if takes_stale && value.stale_since < value.stale_while_revalidate {
                        return Turn::Stale(value);
                    }
                    let covers = value.covers_failure() && value.token > question.newer_than;
                    (token, left, covers.then_some(value))
                }
                Answer::Wait { token, left } | Answer::Malformed { held_by: Some((token, left)), .. } => {
                    (token, left, None)
                }
                Answer::Malformed { token, held_by: None } => {
                    // Something newer, then: this caller's own load, if nobody else's.
                    question.newer_than = question.newer_than.max(token);
                    continue;
                }
            };
            if !ask.patience.waits(stale.as_ref()) {
                return Turn::Busy { awaited: token, stale };
            }
            question.awaited = token;
            let waiting = waiting.get_or_insert_with(|| Waiting::begin(&self.cache, token));
            let _ = timeout(poll_after(left), word).instrument(waiting.span.clone()).await;
        }
    }
}

/// One who waits for a load in another instance.
struct Waiting {
    span: Span,
    since: Instant,
}

impl Waiting {
    /// The token leads to the load: it is in the span that the load runs in, in its instance.
    fn begin(cache: &str, token: Token) -> Self {
        let span = tracing::debug_span!("shared_wait", cache, token);
        Self { span, since: Instant::now() }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        event::count_lock_wait("load", self.since.elapsed());
    }
}

impl Member for RedisMember {
    fn enter<'a>(&'a self, key: &'a Arc<[u8]>, ask: Ask) -> Boxed<'a, Turn> {
        Box::pin(self.turn(key, ask))
    }

    fn invalidate(&self, key: Arc<[u8]>) -> Invalidation {
        let schemas = std::iter::once(&self.schema).chain(&self.previous_schemas);
        let places = schemas.map(|&schema| self.place(schema, &key)).collect();
        let target = Target { cache: Arc::clone(&self.cache), key: Some(key) };
        self.tier.core.invalidate(target, Arc::clone(&self.owner), places)
    }

    fn invalidate_all(&self) -> Invalidation {
        let target = Target { cache: Arc::clone(&self.cache), key: None };
        self.tier.core.invalidate(target, Arc::clone(&self.owner), Arc::default())
    }

    fn invalidate_group(&self, group: Group) -> Invalidation {
        let target = Target { cache: self.group_name(group), key: None };
        self.tier.core.invalidate(target, Arc::clone(&self.owner), Arc::default())
    }

    fn is_void<'a>(&'a self, groups: &'a [Group], token: Token) -> Boxed<'a, bool> {
        Box::pin(async move {
            let core = &self.tier.core;
            for group in groups {
                let name = self.group_name(*group);
                let told = timeout(core.config.operation_timeout, core.undone.told(&name, None));
                if !told.await.unwrap_or(false) || core.epoch(&name) >= token {
                    return true;
                }
            }
            false
        })
    }

    fn takes(&self, bytes: u64) -> bool {
        let bounds = self.tier.core.bounds();
        bounds.compress_over.is_some() || bytes <= bounds.bytes as u64
    }

    fn count_malformed(&self) {
        self.tier.core.counters.malformed();
    }

    fn local_ttl_cap(&self) -> Duration {
        let core = &self.tier.core;
        // Without Redis this instance is alone: asking its origin more often would help nobody.
        if core.subscription.is_live() || !core.link.is_up() {
            core.config.local_ttl_cap
        } else {
            core.config.unsubscribed_ttl_cap.min(core.config.local_ttl_cap)
        }
    }
}
