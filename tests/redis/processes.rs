//! Instances that are processes: this test binary, started again as a child with work to do.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use std::sync::Arc;

use stampede_guard::{Loaded, Outcome, RedisConfig, RedisLock, RedisTier, StampedeCache};
use tokio::sync::Notify;

use crate::server::{PATIENCE, Server, brief, quick, signal};

const URL: &str = "STAMPEDE_TEST_REDIS";
const LEASE: &str = "STAMPEDE_TEST_LEASE";

/// A process with a cache, which does what it is told line by line.
struct Instance {
    child: Child,
    orders: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Instance {
    fn start(server: &Server) -> Self {
        Self::start_with(server, brief().lease)
    }

    fn start_with(server: &Server, lease: Duration) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "processes::instance", "--ignored", "--nocapture"])
            .env(URL, server.url())
            .env(LEASE, lease.as_millis().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                // The test harness of the child writes, too.
                if let Some(line) = line.split("> ").nth(1) {
                    let _ = sender.send(line.to_string());
                }
            }
        });
        let instance = Self { child, orders, lines };
        assert_eq!(instance.line(), "ready");
        instance
    }

    fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
        self.orders.flush().unwrap();
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the instance answers")
    }

    /// A line that begins so, and the rest of it.
    fn expect(&self, start: &str) -> String {
        let line = self.line();
        line.strip_prefix(start).unwrap_or_else(|| panic!("{start}: {line}")).trim().to_string()
    }

    fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until Redis knows that somebody waits for a load of this key in another instance.
fn waited_for(server: &Server, key: u64) {
    let (read, end) = (format!("HGET t:1:0:{{products/k{key}}}:c w"), Instant::now() + PATIENCE);
    while server.command(&read) != "$1\r\n1\r\n" {
        assert!(Instant::now() < end, "nobody waits for {key}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn micros() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()
}

fn say(line: &str) {
    // Past the harness, which keeps what is printed.
    let mut out = std::io::stdout().lock();
    writeln!(out, "> {line}").unwrap();
    out.flush().unwrap();
}

/// The child. It ends with its standard input.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the other tests"]
async fn instance() {
    let url = std::env::var(URL).expect("the other tests say where Redis is");
    // A herd of processes on a busy machine is no fault.
    let lease = std::env::var(LEASE).ok().and_then(|text| text.parse().ok()).map(Duration::from_millis);
    let lease = lease.expect("the other tests say how long a lease is");
    let config = RedisConfig { operation_timeout: Duration::from_secs(5), lease, ..quick() };
    let tier = RedisTier::connect(&url, config).await.unwrap();
    let cache: StampedeCache<u64, String, String> =
        StampedeCache::builder().jitter(0.0).name("products").redis(tier.clone()).build().unwrap();
    say("ready");
    let go = Arc::new(Notify::new());
    let (orders, mut next) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let _ = orders.send(line);
        }
    });
    while let Some(order) = next.recv().await {
        let words: Vec<_> = order.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        match words[0] {
            // Many callers for many keys at once.
            "herd" => {
                let callers: Vec<_> = (0..number(1))
                    .map(|caller| {
                        let (cache, key) = (cache.clone(), caller % number(2));
                        tokio::spawn(async move {
                            let load = |_| async {
                                tokio::time::sleep(Duration::from_millis(20)).await;
                                Ok(Loaded::new("value".to_string()))
                            };
                            cache.get_or_load_with(key, load).await.unwrap().outcome
                        })
                    })
                    .collect();
                let mut loaded = 0;
                for caller in callers {
                    loaded += usize::from(caller.await.unwrap() == Outcome::Loaded);
                }
                say(&format!("herd {loaded}"));
            }
            // One caller, whose load ends at once or, held, when it is told to.
            "get" | "hold" => {
                let (cache, key, held, go) = (cache.clone(), number(1), words[0] == "hold", Arc::clone(&go));
                tokio::spawn(async move {
                    let load = move |_| async move {
                        say("loading");
                        if held {
                            go.notified().await;
                        }
                        say(&format!("loaded {}", micros()));
                        Ok(Loaded::new(std::process::id().to_string()))
                    };
                    let fetched = cache.get_or_load_with(key, load).await.unwrap();
                    say(&format!("got {} {:?} {}", fetched.value, fetched.outcome, micros()));
                });
            }
            "go" => go.notify_one(),
            "refused" => {
                while tier.stats().superseded == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                say("refused");
            }
            "lock" => {
                let guard = RedisLock::new(&tier).acquire("l").await.unwrap();
                say(&format!("locked {}", guard.token()));
                tokio::spawn(async move {
                    guard.lost().await;
                    say("lost");
                });
            }
            other => panic!("{other}?"),
        }
    }
}

#[test]
fn f01_processes_that_are_asked_for_the_same_cold_keys_load_each_once() {
    const KEYS: usize = 200;
    let server = Server::start();
    let processes = std::env::var("STAMPEDE_TEST_PROCESSES").map_or(8, |text| text.parse().unwrap());
    let mut instances: Vec<_> =
        (0..processes).map(|_| Instance::start_with(&server, quick().lease)).collect();
    for instance in &mut instances {
        instance.tell(&format!("herd 4000 {KEYS}"));
    }
    let loads: usize =
        instances.iter().map(|instance| instance.expect("herd").parse::<usize>().unwrap()).sum();
    assert_eq!(loads, KEYS);
}

#[test]
fn f02_another_takes_over_from_a_leader_that_is_killed() {
    let server = Server::start();
    let (mut one, mut two) = (Instance::start(&server), Instance::start(&server));
    one.tell("hold 1");
    one.expect("loading");
    two.tell("get 1");
    waited_for(&server, 1);
    one.signal("KILL");
    let lease_end = u128::from(server.lease_end("t:1:0:{products/k1}:c"));
    two.expect("loading");
    let over = (micros() / 1_000).saturating_sub(lease_end);
    println!("takeover {over} ms after the lease's end");
    // By its end, or as soon after it as this machine lets it, and not by some time-out.
    assert!(over < 4 * brief().lease.as_millis(), "{over}");
    assert!(two.expect("loaded").parse::<u128>().is_ok());
    two.expect("got");
}

#[test]
fn f03_a_leader_that_was_stopped_beyond_its_lease_publishes_nothing() {
    let server = Server::start();
    let (mut one, mut two) = (Instance::start(&server), Instance::start(&server));
    one.tell("lock");
    let token: u64 = one.expect("locked").parse().unwrap();
    one.tell("hold 1");
    one.expect("loading");
    one.signal("STOP");
    two.tell("get 1");
    two.expect("loading");
    two.expect("loaded");
    let got = two.expect("got");
    let value = got.split(' ').next().unwrap().to_string();
    two.tell("lock");
    assert!(two.expect("locked").parse::<u64>().unwrap() > token);
    one.tell("go");
    one.signal("CONT");
    // Both, in whichever order; its own caller still gets what it loaded.
    let mut lines: Vec<_> = (0..3).map(|_| one.line().split(' ').next().unwrap().to_string()).collect();
    lines.sort();
    assert_eq!(lines, ["got", "loaded", "lost"]);
    one.tell("refused");
    one.expect("refused");
    two.tell("get 1");
    assert!(two.expect("got").starts_with(&value), "the newer value is kept");
}

#[test]
fn a_waiter_in_another_process_is_woken_when_the_value_is_there() {
    let server = Server::start();
    let (mut one, mut two) = (Instance::start(&server), Instance::start(&server));
    let rounds = std::env::var("STAMPEDE_TEST_ROUNDS").map_or(5, |text| text.parse().unwrap());
    let mut delays = Vec::new();
    for key in 0..rounds {
        one.tell(&format!("hold {key}"));
        one.expect("loading");
        two.tell(&format!("get {key}"));
        waited_for(&server, key);
        one.tell("go");
        let loaded: u128 = one.expect("loaded").parse().unwrap();
        one.expect("got");
        let got = two.expect("got");
        let mut got = got.split(' ');
        assert_eq!(got.next().unwrap(), one.child.id().to_string());
        assert_eq!(got.next(), Some("SharedWait"));
        delays.push(got.next().unwrap().parse::<u128>().unwrap().saturating_sub(loaded));
    }
    delays.sort_unstable();
    println!(
        "woken after {:?} us (median), {:?} us at most",
        delays[delays.len() / 2],
        delays.last().unwrap()
    );
    // Far less than a poll: it was told.
    assert!(delays[delays.len() / 2] < 500_000, "{delays:?}");
}
