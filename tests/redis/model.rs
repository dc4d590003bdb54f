//! The scripts against a sequential model: random steps of several owners over several connections, and after each
//! what must hold. Then the same with each of the scripts' checks taken out, which must be seen.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redis::{Connection, Script, Value};

use crate::server::Server;

const ACQUIRE: &str = include_str!("../../src/redis/scripts/acquire.lua");
const COMMIT: &str = include_str!("../../src/redis/scripts/commit.lua");
const RELEASE: &str = include_str!("../../src/redis/scripts/release.lua");
const RENEW: &str = include_str!("../../src/redis/scripts/renew.lua");
const INVALIDATE: &str = include_str!("../../src/redis/scripts/invalidate.lua");
const EPOCH: &str = include_str!("../../src/redis/scripts/epoch.lua");

const KEYS: usize = 3;
const OWNERS: usize = 4;
/// Longer than a test, so that leases end only where a step says so.
const LONG_MS: u64 = 3_600_000;

struct Scripts {
    acquire: Script,
    commit: Script,
    release: Script,
    renew: Script,
    invalidate: Script,
    epoch: Script,
}

impl Scripts {
    fn new(acquire: &str, commit: &str) -> Self {
        Self {
            acquire: Script::new(acquire),
            commit: Script::new(commit),
            release: Script::new(RELEASE),
            renew: Script::new(RENEW),
            invalidate: Script::new(INVALIDATE),
            epoch: Script::new(EPOCH),
        }
    }
}

/// A load that some owner began.
#[derive(Clone)]
struct Load {
    key: usize,
    owner: usize,
    token: u64,
    /// Of the source when it was read.
    version: u64,
    /// Invalidations of the key, and losses of its record together with its value, before it began.
    born: u64,
}

/// What is true of a key.
#[derive(Clone, Default)]
struct Truth {
    version: u64,
    /// No reader may see an older one.
    invalidated_at: u64,
    /// Counts whatever voids the loads under way.
    voided: u64,
    lease: Option<(usize, u64)>,
    greatest_token: u64,
    /// Of the value in Redis.
    stored: Option<u64>,
}

struct World {
    connections: Vec<Connection>,
    scripts: Scripts,
    random: StdRng,
    truths: Vec<Truth>,
    loads: Vec<Load>,
    epoch: u64,
}

fn place(key: usize, part: &str) -> String {
    format!("{{m/k{key}}}:{part}")
}

fn envelope(token: u64, fresh: u32, version: u64) -> Vec<u8> {
    let mut bytes = vec![0xc5, 1, 0, 1, 0, 0, 0, 0];
    bytes.extend_from_slice(&token.to_be_bytes());
    for number in [fresh, 7_200_000, 0, 8] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes.extend_from_slice(&version.to_be_bytes());
    bytes
}

fn number(reply: &[Value], at: usize) -> u64 {
    match &reply[at] {
        Value::Int(number) => number.unsigned_abs(),
        other => panic!("{other:?}"),
    }
}

/// What must hold does not.
type Violation = String;

fn ensure(holds: bool, what: impl FnOnce() -> Violation) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(what()) }
}

impl World {
    fn new(server: &Server, scripts: Scripts, seed: u64) -> Self {
        let client = redis::Client::open(server.url()).unwrap();
        let mut connections: Vec<_> = (0..3).map(|_| client.get_connection().unwrap()).collect();
        redis::cmd("FLUSHALL").exec(&mut connections[0]).unwrap();
        Self {
            connections,
            scripts,
            random: StdRng::seed_from_u64(seed),
            truths: vec![Truth::default(); KEYS],
            loads: Vec::new(),
            epoch: 0,
        }
    }

    fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end)
    }

    /// One of the loads under way, which then is over.
    fn some_load(&mut self) -> Option<Load> {
        let count = self.loads.len();
        (count > 0).then(|| self.below(count)).map(|at| self.loads.swap_remove(at))
    }

    fn step(&mut self) -> Result<(), Violation> {
        let key = self.below(KEYS);
        match self.below(100) {
            0..40 => self.acquire(key),
            40..65 => self.commit(),
            65..70 => self.release(),
            70..75 => self.renew(),
            75..85 => {
                self.invalidate(key);
                Ok(())
            }
            // A lease runs out.
            85..90 => {
                self.truths[key].lease = None;
                let end = "if redis.call('HEXISTS', KEYS[1], 'x') == 1 then redis.call('HSET', KEYS[1], 'x', 1) end";
                self.exec(redis::cmd("EVAL").arg(end).arg(1).arg(place(key, "c")));
                Ok(())
            }
            90..93 => {
                self.truths[key].stored = None;
                self.exec(redis::cmd("UNLINK").arg(place(key, "v")));
                Ok(())
            }
            93..96 => {
                self.truths[key].lease = None;
                self.exec(redis::cmd("UNLINK").arg(place(key, "c")));
                Ok(())
            }
            96..98 => {
                self.exec(&redis::cmd("FLUSHALL"));
                for truth in &mut self.truths {
                    (truth.lease, truth.stored) = (None, None);
                }
                Ok(())
            }
            _ => {
                self.void_all();
                Ok(())
            }
        }
    }

    fn connection(&mut self) -> usize {
        let count = self.connections.len();
        self.below(count)
    }

    fn exec(&mut self, command: &redis::Cmd) {
        let at = self.connection();
        command.exec(&mut self.connections[at]).unwrap();
    }

    fn acquire(&mut self, key: usize) -> Result<(), Violation> {
        let (owner, at) = (self.below(OWNERS), self.connection());
        let newer_than = if self.below(4) == 0 { self.truths[key].stored.unwrap_or(0) } else { 0 };
        let reply: Vec<Value> = self
            .scripts
            .acquire
            .key(place(key, "v"))
            .key(place(key, "c"))
            .arg(owner)
            .arg(LONG_MS)
            .arg(newer_than)
            .arg(0)
            .arg(2 * LONG_MS)
            .arg(self.epoch)
            .invoke(&mut self.connections[at])
            .unwrap();
        let what = match &reply[0] {
            Value::BulkString(what) => what[0],
            other => panic!("{other:?}"),
        };
        let truth = &mut self.truths[key];
        if matches!(what, b'H' | b'S' | b'R') {
            let value: Vec<u8> = redis::cmd("GETRANGE")
                .arg(place(key, "v"))
                .arg(32)
                .arg(-1)
                .query(&mut self.connections[at])
                .unwrap();
            let version = u64::from_be_bytes(value.try_into().unwrap());
            ensure(version >= truth.invalidated_at, || {
                format!("{version} is served, and {} was invalidated", truth.invalidated_at)
            })?;
        }
        if matches!(what, b'L' | b'R') {
            let token = number(&reply, 4);
            // A load from before everything was voided is not waited for, and not published after its lease has gone.
            if truth.lease.is_some_and(|(_, token)| token <= self.epoch) {
                truth.lease = None;
                truth.voided += 1;
            }
            ensure(token > truth.greatest_token, || format!("{token} after {}", truth.greatest_token))?;
            ensure(truth.lease.is_none_or(|(holder, _)| holder == owner), || {
                format!("{owner} was given what {:?} holds", truth.lease)
            })?;
            truth.greatest_token = token;
            truth.lease = Some((owner, token));
            let load = Load { key, owner, token, version: truth.version, born: truth.voided };
            self.loads.push(load);
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Violation> {
        let Some(load) = self.some_load() else { return Ok(()) };
        let at = self.connection();
        let staged = format!("{}:{}", place(load.key, "s"), load.token);
        let fresh = if self.below(3) == 0 { 0 } else { 3_600_000 };
        let connection = &mut self.connections[at];
        let sealed = envelope(load.token, fresh, load.version);
        redis::cmd("SET").arg(&staged).arg(sealed).arg("PX").arg(60_000).exec(connection).unwrap();
        let verdict: String = self
            .scripts
            .commit
            .key(place(load.key, "v"))
            .key(place(load.key, "c"))
            .key(staged)
            .arg(load.owner)
            .arg(load.token)
            .arg("m:ev")
            .arg(2 * LONG_MS)
            .arg(7_200_000)
            .arg("")
            .invoke(connection)
            .unwrap();
        let truth = &mut self.truths[load.key];
        if matches!(verdict.as_str(), "ok" | "late") {
            ensure(load.born == truth.voided, || format!("{} was voided, and is published", load.token))?;
            ensure(truth.stored.is_none_or(|stored| stored < load.token), || {
                format!("{} replaced {:?}", load.token, truth.stored)
            })?;
            truth.stored = Some(load.token);
        }
        let mine = truth.lease == Some((load.owner, load.token));
        // One that ran out and that nobody else took is as good as held.
        let none = truth.lease.is_none();
        ensure(verdict != "ok" || mine || none, || format!("{} was no lease, and is ok", load.token))?;
        if mine {
            truth.lease = None;
        }
        Ok(())
    }

    fn release(&mut self) -> Result<(), Violation> {
        let Some(load) = self.some_load() else { return Ok(()) };
        let at = self.connection();
        let held: u64 = self
            .scripts
            .release
            .key(place(load.key, "c"))
            .arg(load.owner)
            .arg(load.token)
            .arg("")
            .arg(0)
            .arg("m:ev")
            .arg(2 * LONG_MS)
            .arg("")
            .invoke(&mut self.connections[at])
            .unwrap();
        let truth = &mut self.truths[load.key];
        let mine = truth.lease == Some((load.owner, load.token));
        ensure(held == 1 || !mine, || format!("{} could not be released", load.token))?;
        if mine {
            truth.lease = None;
        }
        Ok(())
    }

    fn renew(&mut self) -> Result<(), Violation> {
        let Some(load) = self.some_load() else { return Ok(()) };
        let at = self.connection();
        let held: u64 = self
            .scripts
            .renew
            .key(place(load.key, "c"))
            .arg(load.owner)
            .arg(load.token)
            .arg(LONG_MS)
            .arg(2 * LONG_MS)
            .invoke(&mut self.connections[at])
            .unwrap();
        let truth = &mut self.truths[load.key];
        let mine = truth.lease == Some((load.owner, load.token));
        ensure(held == 1 || !mine, || format!("{} could not be renewed", load.token))?;
        if held == 1 {
            // One that ran out is its holder's again, as long as nobody else took it.
            ensure(truth.lease.is_none() || mine, || {
                format!("{} renewed over {:?}", load.token, truth.lease)
            })?;
            truth.lease = Some((load.owner, load.token));
        }
        self.loads.push(load);
        Ok(())
    }

    /// The source changes, and then everyone is told.
    fn invalidate(&mut self, key: usize) {
        let at = self.connection();
        let truth = &mut self.truths[key];
        truth.version += 1;
        let token: u64 = self
            .scripts
            .invalidate
            .key(place(key, "v"))
            .key(place(key, "c"))
            .arg("m:ev")
            .arg(2 * LONG_MS)
            .arg("")
            .invoke(&mut self.connections[at])
            .unwrap();
        truth.greatest_token = truth.greatest_token.max(token);
        truth.invalidated_at = truth.version;
        truth.voided += 1;
        (truth.lease, truth.stored) = (None, None);
    }

    fn void_all(&mut self) {
        let at = self.connection();
        for truth in &mut self.truths {
            truth.version += 1;
        }
        let token: u64 = self
            .scripts
            .epoch
            .key("m:epochs")
            .arg("")
            .arg("m:ev")
            .arg("")
            .invoke(&mut self.connections[at])
            .unwrap();
        assert!(token > self.epoch);
        self.epoch = token;
        for truth in &mut self.truths {
            // Its readers pass over what is older; a load from before may be published, and is passed over, too.
            truth.invalidated_at = truth.version;
        }
    }
}

/// Steps until something does not hold, or so many.
fn run(server: &Server, scripts: Scripts, seed: u64, steps: usize) -> Result<(), Violation> {
    let mut world = World::new(server, scripts, seed);
    for step in 0..steps {
        world.step().map_err(|violation| format!("seed {seed}, step {step}: {violation}"))?;
    }
    Ok(())
}

#[test]
fn f31_the_scripts_keep_what_they_promise() {
    let server = Server::start();
    let steps = std::env::var("STAMPEDE_TEST_STEPS").map_or(8_000, |text| text.parse().unwrap());
    run(&server, Scripts::new(ACQUIRE, COMMIT), 1, steps).unwrap();
}

/// Takes out the line with this mark.
fn without(script: &str, mark: &str, instead: &str) -> String {
    let mark = format!("-- check: {mark}");
    assert_eq!(script.matches(&mark).count(), 1, "{mark}");
    script
        .lines()
        .map(|line| if line.ends_with(&mark) { instead } else { line })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn f31_each_check_is_needed() {
    let server = Server::start();
    let found =
        |acquire: &str, commit: &str| run(&server, Scripts::new(acquire, commit), 1, 100_000).is_err();
    assert!(found(&without(ACQUIRE, "value floor", "held = true"), COMMIT), "value floor");
    for check in ["birth floor", "void floor"] {
        assert!(found(&without(ACQUIRE, check, ""), COMMIT), "{check}");
    }
    for check in ["record", "invalidation floor", "token compare"] {
        assert!(found(ACQUIRE, &without(COMMIT, check, "")), "{check}");
    }
}
