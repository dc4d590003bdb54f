//! A lease that is held: renewed in the background until it ends, one way or another.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::envelope::seal;
use super::events::Owner;
use super::scripts::{COMMIT, Form, RENEW, integer, run, single, text};
use super::tier::Core;
use super::undone::Orphan;
use crate::coordinate::{Boxed, Lease, Publication, Published};
use crate::error::RemoteKind;

/// How long a key is known to have a value that is not shared since it is too large.
const OVERSIZE_FOR: std::time::Duration = std::time::Duration::from_secs(10);
/// How long a staged value may wait for its commit, which is sent along with it.
const STAGED_MS: u64 = 60_000;

/// A failure, as Redis keeps it.
pub(super) fn kind_text(kind: RemoteKind) -> &'static str {
    match kind {
        RemoteKind::Failed => "failed",
        RemoteKind::Panicked => "panicked",
        RemoteKind::TimedOut => "timed-out",
    }
}

/// Says of a load that its value is not one to share.
pub(super) const LOCAL: &str = "local";

pub(super) fn kind_from(text: &str) -> RemoteKind {
    match text {
        "panicked" => RemoteKind::Panicked,
        "timed-out" => RemoteKind::TimedOut,
        _ => RemoteKind::Failed,
    }
}

/// The moment from which nobody may rely on a lease that was asked for at `sent`: clocks differ a little, and so do
/// the server's idea of now and ours.
fn deadline(core: &Core, sent: Instant) -> Instant {
    let lease = core.config.lease;
    sent + lease.saturating_sub(lease / 100 + std::time::Duration::from_millis(2))
}

/// Who holds what.
pub(super) struct Held {
    pub(super) core: Arc<Core>,
    pub(super) what: Orphan,
    renewal: JoinHandle<()>,
    deadline: watch::Receiver<Instant>,
    ended: bool,
}

impl Held {
    /// Of a lease that was asked for at `sent`, and granted.
    pub(super) fn new(core: &Arc<Core>, what: Orphan, sent: Instant) -> Self {
        core.counters.leases.add();
        let (until, deadline) = watch::channel(deadline(core, sent));
        let renewal = core.runtime.spawn(renew(Arc::clone(core), what.clone(), sent, until));
        Self { core: Arc::clone(core), what, renewal, deadline, ended: false }
    }

    pub(super) fn token(&self) -> u64 {
        self.what.token.unwrap_or_default()
    }

    /// Ready when the lease may be another's.
    pub(super) async fn lost(&self) {
        let mut deadline = self.deadline.clone();
        loop {
            let until = *deadline.borrow_and_update();
            if until <= Instant::now() {
                return;
            }
            match timeout_at(until, deadline.changed()).await {
                Ok(Ok(())) | Err(_) => {}
                // The renewal has ended: the deadline is the last.
                Ok(Err(_)) => sleep_until(until).await,
            }
        }
    }

    /// Gives the lease back; false if it was not held any more, an error if nobody knows.
    pub(super) async fn release(
        mut self,
        kind: &'static str,
        told_for: std::time::Duration,
    ) -> Result<bool, ()> {
        self.end();
        let (core, what) = (Arc::clone(&self.core), self.what.clone());
        drop(self);
        match run(&core.link, |form| single(core.release(form, &what, kind, told_for))).await {
            Ok(answers) => answers.first().and_then(integer).map(|held| held == 1).ok_or(()),
            Err(fault) => {
                core.disown(what, fault);
                Err(())
            }
        }
    }

    /// No renewal is sent from here on. One that was may arrive late: it names its token, and does nothing.
    fn end(&mut self) {
        self.ended = true;
        self.renewal.abort();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.end();
        let (core, what) = (Arc::clone(&self.core), self.what.clone());
        self.core.runtime.spawn(async move {
            let release = |form| single(core.release(form, &what, "", std::time::Duration::ZERO));
            if let Err(fault) = run(&core.link, release).await {
                core.disown(what.clone(), fault);
            }
        });
    }
}

async fn renew(core: Arc<Core>, what: Orphan, since: Instant, until: watch::Sender<Instant>) {
    let config = &core.config;
    let mut next = since;
    loop {
        next = (next + config.lease / 3).max(Instant::now());
        if next > since + config.max_hold {
            return;
        }
        sleep_until(next).await;
        let sent = Instant::now();
        let command = |form| {
            let mut call = RENEW.call(form, &[what.place.control()]);
            call.arg(&*what.owner).arg(what.token).arg(Core::millis(config.lease)).arg(core.control_life());
            single(call)
        };
        match run(&core.link, command).await.map(|answers| answers.first().and_then(integer)) {
            Ok(Some(1)) => drop(until.send_replace(deadline(&core, sent))),
            // It is another's.
            Ok(Some(_)) => {
                until.send_replace(sent);
                return;
            }
            // Until the deadline there is time to try again.
            Ok(None) | Err(_) => {}
        }
    }
}

/// The lease of a load.
pub(super) struct RedisLease {
    pub(super) held: Held,
    pub(super) schema: u32,
    pub(super) key: Arc<[u8]>,
}

impl RedisLease {
    fn end_with(self, kind: &'static str, told_for: std::time::Duration) {
        let runtime = self.held.core.runtime.clone();
        runtime.spawn(async move {
            // Without a word from Redis the lease ends by itself.
            let _ = self.held.release(kind, told_for).await;
        });
    }
}

impl Lease for RedisLease {
    fn token(&self) -> u64 {
        self.held.token()
    }

    fn publish(mut self: Box<Self>, what: Publication) -> Boxed<'static, Published> {
        Box::pin(async move {
            let core = Arc::clone(&self.held.core);
            let token = self.held.token();
            let Some(sealed) = seal(&self.key, self.schema, token, &what, core.bounds()) else {
                core.counters.kept_local();
                // Its waiters load for themselves, and so do those who come in the next seconds.
                let _ = self.held.release(LOCAL, OVERSIZE_FOR).await;
                return Published::Unknown;
            };
            self.held.end();
            let held = self.held.what.clone();
            let place = held.place.clone();
            let commands = |form: Form| {
                let staged = place.staged(token);
                let mut pipeline = redis::pipe();
                pipeline.cmd("SET").arg(&staged).arg(&sealed[..]).arg("PX").arg(STAGED_MS);
                let mut commit = COMMIT.call(form, &[place.value(), place.control(), staged]);
                commit.arg(&*held.owner).arg(token).arg(&core.channel).arg(core.control_life());
                commit.arg(super::envelope::millis(what.lives()).max(1)).arg(&*held.rest);
                pipeline.add_command(commit);
                pipeline
            };
            match run(&core.link, commands).await {
                Ok(answers) => match answers.get(1).and_then(text) {
                    Some("ok" | "late") => {
                        core.counters.published();
                        Published::Yes
                    }
                    Some("old" | "inv" | "gone") => {
                        core.counters.superseded();
                        Published::Superseded
                    }
                    // Redis could not take it, for want of memory perhaps: nobody is to wait for it.
                    _ => {
                        core.refused(&answers);
                        let give_back = |form| single(core.release(form, &held, "", OVERSIZE_FOR));
                        if let Err(fault) = run(&core.link, give_back).await {
                            core.disown(held.clone(), fault);
                        }
                        Published::Unknown
                    }
                },
                Err(fault) => {
                    core.disown(held.clone(), fault);
                    Published::Unknown
                }
            }
        })
    }

    fn fail(self: Box<Self>, kind: RemoteKind) {
        let told_for = self.held.core.config.error_backoff;
        self.end_with(kind_text(kind), told_for);
    }

    fn keep_local(self: Box<Self>) {
        self.held.core.counters.kept_local();
        self.end_with(LOCAL, std::time::Duration::ZERO);
    }
}

/// What a script is told of a lease.
pub(super) fn orphan(
    place: super::keys::Place,
    owner: &Owner,
    token: Option<u64>,
    rest: &Arc<[u8]>,
) -> Orphan {
    Orphan { place, owner: Arc::clone(owner), token, rest: Arc::clone(rest) }
}
