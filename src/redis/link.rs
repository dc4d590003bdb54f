//! The connection for commands: one supervisor keeps it, callers use it or learn at once that it is not there.
//!
//! The circuit is open from the first sign that Redis does not answer (a time-out, a broken connection) until it does
//! and everything that was left undone has been made good. While it is open nobody waits for Redis.

use std::fmt::Display;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use redis::{Pipeline, RedisError, ServerError, Value};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::connector::{Connector, Wire};
use super::stats::{Count, Counters};
use crate::coordinate::Boxed;
use crate::event;
use crate::sync::Mutex;
use crate::trouble::Trouble;

/// How often a connection that nobody complains about is tried.
pub(super) const PING_EVERY: Duration = Duration::from_millis(500);
/// How often it may fail to answer before it is replaced.
pub(super) const MISSES: u32 = 2;
/// How long one that timed out may take over what is sent to set things right.
const AFTERMATH: Duration = Duration::from_secs(10);

/// In how many steps a wait for an answer is counted.
const STEPS: u32 = 5;
/// How many times the operation time-out a wait lasts at most, however busy the server or this process is.
const LONGEST: u32 = 4;

/// Why a server that was silent is not trusted.
pub(super) const NO_ANSWER: &str = "no answer in time";

/// What became of an operation that brought no answers.
#[derive(Debug)]
pub(super) enum Fault {
    /// Nothing was sent.
    Down,
    /// It was sent and may be done yet. What must follow it goes through [`Link::after`].
    TimedOut(Late),
    /// It may have been done before the connection broke.
    Broken,
}

/// The connection of an operation that timed out.
pub(super) struct Late(Wire);

impl std::fmt::Debug for Late {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Late").finish_non_exhaustive()
    }
}

struct State {
    wire: Option<Wire>,
    /// Of the connection: what is said of an earlier one does not concern a later.
    generation: u64,
    /// False while the circuit is open.
    trusted: bool,
}

pub(super) struct Link {
    state: Mutex<State>,
    limit: Duration,
    namespace: Arc<str>,
    /// Answers.
    heard: Count,
    /// Wakes the supervisor before its time.
    doubt: Notify,
    up: watch::Sender<bool>,
    counters: Arc<Counters>,
}

/// Makes good what was left undone, and with the link's consent closes the circuit; or says what kept it from that.
pub(super) type Settle = dyn Fn(Wire, u64) -> Boxed<'static, Result<(), String>> + Send + Sync;

impl Link {
    pub(super) fn new(limit: Duration, namespace: Arc<str>, counters: Arc<Counters>) -> Self {
        event::set_circuit(&namespace, true);
        Self {
            state: Mutex::new(State { wire: None, generation: 0, trusted: false }),
            limit,
            namespace,
            heard: Count::default(),
            doubt: Notify::new(),
            up: watch::Sender::new(false),
            counters,
        }
    }

    /// True while the circuit is closed.
    pub(super) fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// Waits for the circuit to close; false if that takes too long.
    pub(super) async fn wait_up(&self, until: Instant) -> bool {
        let mut up = self.up.subscribe();
        matches!(timeout_at(until, up.wait_for(|up| *up)).await, Ok(Ok(_)))
    }

    /// Sends `commands` and waits for their answers, errors among them.
    pub(super) async fn call(&self, commands: &Pipeline) -> Result<Vec<Value>, Fault> {
        let (mut wire, generation) = {
            let state = self.state.lock();
            match &state.wire {
                Some(wire) if state.trusted => (wire.clone(), state.generation),
                _ => return Err(Fault::Down),
            }
        };
        self.counters.operations.add();
        let node = matches!(wire, Wire::Node(_));
        match self.in_time(node, wire.send(commands)).await {
            Ok(Ok(answers)) => {
                if let Some(refusal) = answers.iter().find_map(wrong_server) {
                    self.distrust(generation, true, refusal);
                }
                Ok(answers)
            }
            Ok(Err(error)) => {
                self.counters.broken();
                self.distrust(generation, is_broken(&error), &error);
                Err(Fault::Broken)
            }
            Err(_) => {
                self.counters.timed_out();
                self.distrust(generation, false, &NO_ANSWER);
                Err(Fault::TimedOut(Late(wire)))
            }
        }
    }

    /// What `answer` brings before the server has been silent for `limit`. While a single `node` answers others it is at
    /// work, and this one's turn comes; a process that is too busy to tend its timers gets what it has not read yet.
    /// Neither draws the wait out beyond [`LONGEST`] times the limit.
    async fn in_time<T>(&self, node: bool, answer: impl Future<Output = T>) -> Result<T, Elapsed> {
        let mut answer = pin!(answer);
        let words = || if node { self.heard.get() } else { 0 };
        let (mut heard, mut silent) = (words(), 0);
        for _ in 1..STEPS * LONGEST {
            match timeout(self.limit / STEPS, &mut answer).await {
                Ok(answer) => {
                    self.heard.add();
                    return Ok(answer);
                }
                Err(_) if heard == words() => silent += 1,
                Err(_) => (heard, silent) = (words(), 0),
            }
            if silent == STEPS {
                break;
            }
        }
        timeout(Duration::ZERO, answer).await
    }

    /// Sends `commands` behind an operation that timed out, on its connection: if that one is done yet, so are these,
    /// and in this order.
    pub(super) fn after(runtime: &Handle, late: Late, commands: Pipeline) {
        let Late(mut wire) = late;
        runtime.spawn(async move {
            // Whether it arrives is known to nobody; what must be certain is settled before the circuit closes.
            let _ = timeout(AFTERMATH, wire.send(&commands)).await;
        });
    }

    /// The connection of an operation whose caller has gone, unless it has been given up.
    pub(super) fn late(&self) -> Option<Late> {
        self.state.lock().wire.clone().map(Late)
    }

    /// Opens the circuit; a connection that is `gone` is replaced without another try.
    fn distrust(&self, generation: u64, gone: bool, why: &dyn Display) {
        let mut state = self.state.lock();
        if state.generation != generation {
            return;
        }
        state.trusted = false;
        // A cluster's connection replaces those to its nodes by itself.
        if gone && matches!(state.wire, Some(Wire::Node(_))) {
            state.wire = None;
        }
        self.set_up(Err(why));
        drop(state);
        self.doubt.notify_one();
    }

    /// Closes the circuit, unless that connection has been replaced.
    pub(super) fn trust(&self, generation: u64) {
        let mut state = self.state.lock();
        if state.generation == generation && state.wire.is_some() {
            state.trusted = true;
            self.set_up(Ok(()));
        }
    }

    /// Up, or not and why. Called with the state locked, so that what is told of it is in the order of its changes.
    fn set_up(&self, up: Result<(), &dyn Display>) {
        if self.up.send_replace(up.is_ok()) == up.is_ok() {
            return;
        }
        event::set_circuit(&self.namespace, up.is_err());
        match up {
            Ok(()) => tracing::info!(namespace = &*self.namespace, "Redis answers; this instance shares"),
            Err(why) => tracing::warn!(
                namespace = &*self.namespace,
                why = %why,
                "Redis does not answer; this instance goes on alone"
            ),
        }
    }

    fn install(&self, wire: Wire) -> u64 {
        self.counters.connections.add();
        let mut state = self.state.lock();
        state.generation += 1;
        state.wire = Some(wire);
        state.trusted = false;
        state.generation
    }

    fn uninstall(&self, generation: u64) {
        self.distrust(generation, true, &"its connection was given up");
        self.state.lock().wire = None;
    }

    fn is_gone(&self, generation: u64) -> bool {
        let state = self.state.lock();
        state.generation != generation || state.wire.is_none()
    }

    /// Keeps a connection, from now on to the end of time. `first` is one that is there already.
    pub(super) async fn supervise(
        self: Arc<Self>,
        connector: Arc<Connector>,
        settle: Box<Settle>,
        mut first: Option<Wire>,
    ) {
        let (mut pause, mut trouble) = (Pause::new(), Trouble::default());
        loop {
            let wire = match first.take() {
                Some(wire) => Ok(wire),
                None => match timeout(connector.timeout(), connector.commands()).await {
                    Ok(made) => made.map_err(|error| error.to_string()),
                    Err(_) => Err(NO_ANSWER.into()),
                },
            };
            let why = match wire {
                Err(why) => why,
                Ok(wire) => {
                    let generation = self.install(wire.clone());
                    let settled = settle(wire.clone(), generation).await;
                    if settled.is_ok() {
                        pause = Pause::new();
                        trouble.over();
                        self.watch(wire, generation, &*settle).await;
                    }
                    self.uninstall(generation);
                    match settled {
                        Ok(()) => continue,
                        Err(why) => why,
                    }
                }
            };
            if trouble.is_news(&why) {
                tracing::warn!(
                    namespace = &*self.namespace,
                    why,
                    "Redis is not back; this instance goes on alone"
                );
            }
            pause.wait().await;
        }
    }

    /// Tries the connection until it is to be replaced.
    async fn watch(&self, mut wire: Wire, generation: u64, settle: &Settle) {
        let node = matches!(wire, Wire::Node(_));
        let mut misses = 0;
        loop {
            // After a miss the next try is due at once.
            if misses == 0 {
                let _ = timeout(PING_EVERY, self.doubt.notified()).await;
            }
            if self.is_gone(generation) {
                return;
            }
            match self.in_time(node, wire.ping()).await {
                // This also makes good what failed while the circuit was closed.
                Ok(Ok(())) if settle(wire.clone(), generation).await.is_ok() => misses = 0,
                Ok(_) => return,
                Err(_) => {
                    self.distrust(generation, false, &NO_ANSWER);
                    misses += 1;
                    if misses == MISSES {
                        return;
                    }
                }
            }
        }
    }
}

/// True if the connection is of no more use.
fn is_broken(error: &RedisError) -> bool {
    error.is_unrecoverable_error() || error.is_connection_dropped()
}

/// Why another server is to be asked, if it is: this one has lost its role or is not ready.
fn wrong_server(answer: &Value) -> Option<&ServerError> {
    match answer {
        Value::ServerError(error)
            if matches!(error.code(), "READONLY" | "MASTERDOWN" | "LOADING" | "NOAUTH") =>
        {
            Some(error)
        }
        _ => None,
    }
}

/// The pauses between attempts to connect: from 20 ms, doubling to 250 ms, each shortened by up to half at random.
pub(super) struct Pause(Duration);

impl Pause {
    pub(super) fn new() -> Self {
        Self(Duration::from_millis(20))
    }

    pub(super) async fn wait(&mut self) {
        sleep(self.0.mul_f64(1.0 - rand::random::<f64>() / 2.0)).await;
        self.0 = (self.0 * 2).min(Duration::from_millis(250));
    }
}
