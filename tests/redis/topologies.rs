//! More than one server: a cluster, a failover, Sentinel.

use std::time::{Duration, Instant};

use stampede_guard::{
    Outcome, RedisConfig, RedisCredentials, RedisLock, RedisTier, RedisTierError, StampedeCache,
};

use crate::calls::{Cache, cache, fetch, published};
use crate::proxy::Proxy;
use crate::server::{PATIENCE, Server, free_port, quick, soon, until};

/// A master that sends a replica its data at once.
const PROMPT: &[&str] = &["--repl-diskless-sync-delay", "0"];

async fn connect(url: &str) -> RedisTier {
    let config = RedisConfig { operation_timeout: Duration::from_millis(500), ..quick() };
    RedisTier::connect(url, config).await.unwrap()
}

/// Three masters, each with a replica.
struct Cluster(Vec<Server>);

impl Cluster {
    async fn start() -> Self {
        let nodes: Vec<_> = (0..6)
            .map(|_| {
                let bus = free_port().to_string();
                let server = Server::start_with(&[
                    "--cluster-enabled",
                    "yes",
                    "--cluster-port",
                    &bus,
                    "--cluster-node-timeout",
                    "700",
                    "--cluster-require-full-coverage",
                    "no",
                    "--repl-diskless-sync-delay",
                    "0",
                ]);
                (server, bus)
            })
            .collect();
        for (at, slots) in ["0 5460", "5461 10922", "10923 16383"].iter().enumerate() {
            assert_eq!(nodes[at].0.command(&format!("CLUSTER ADDSLOTSRANGE {slots}")), "+OK\r\n");
        }
        for (at, (node, _)) in nodes.iter().enumerate() {
            node.command(&format!("CLUSTER SET-CONFIG-EPOCH {}", at + 1));
        }
        for (node, bus) in &nodes[1..] {
            let met = nodes[0].0.command(&format!("CLUSTER MEET 127.0.0.1 {} {bus}", node.port));
            assert_eq!(met, "+OK\r\n");
        }
        let know =
            |count| nodes.iter().all(|(node, _)| node.command("CLUSTER NODES").lines().count() > count);
        until("they know each other", || know(6)).await;
        for at in 0..3 {
            let master = nodes[at].0.command("CLUSTER MYID");
            let master = master.lines().nth(1).unwrap();
            until("it follows", || {
                nodes[at + 3].0.command(&format!("CLUSTER REPLICATE {master}")) == "+OK\r\n"
            })
            .await;
        }
        until("the cluster is whole", || {
            nodes.iter().all(|(node, _)| {
                node.command("CLUSTER INFO").contains("cluster_state:ok")
                    && node.command("CLUSTER NODES").matches("slave").count() == 3
            })
        })
        .await;
        until("replicas follow", || {
            nodes[3..]
                .iter()
                .all(|(node, _)| node.command("INFO replication").contains("master_link_status:up"))
        })
        .await;
        Self(nodes.into_iter().map(|(node, _)| node).collect())
    }

    fn url(&self) -> String {
        let nodes: Vec<_> = self.0.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis-cluster://{}", nodes.join(","))
    }
}

#[tokio::test]
async fn f21_and_f24_a_cluster_serves_loses_a_master_and_serves_again() {
    let mut cluster = Cluster::start().await;
    let (one, two) = (connect(&cluster.url()).await, connect(&cluster.url()).await);

    // Every slot, and keys that try to leave theirs.
    let of = |tier: &RedisTier| -> Cache<Vec<u8>> {
        StampedeCache::builder().name("bytes").redis(tier.clone()).build().unwrap()
    };
    let (a, b) = (of(&one), of(&two));
    let odd = [b"}x".to_vec(), b"{a}".to_vec(), vec![], vec![255, 0], vec![b'k'; 10_240]];
    let keys: Vec<_> = odd.into_iter().chain((0..30_u8).map(|n| vec![n])).collect();
    for (at, key) in keys.iter().enumerate() {
        soon(a.get_or_load(key.clone(), || async { Ok("value".into()) })).await.unwrap();
        published(&one, at as u64 + 1).await;
        let read = soon(b.get_or_load_with(key.clone(), |_| async { Err("own load".to_string()) })).await;
        assert_eq!(read.unwrap().outcome, Outcome::SharedHit, "{key:?}");
    }
    for key in &keys {
        soon(a.invalidate(&key[..])).await.unwrap();
        until("dropped", || b.get(key).is_none()).await;
    }
    assert_eq!(one.stats().errors + two.stats().errors, 0);

    cluster.0[0].kill();
    let c = cache(&one);
    let longest = Duration::from_millis(500) + Duration::from_secs(2);
    for key in 0..20 {
        let started = Instant::now();
        fetch(&c, key, "value").await;
        assert!(started.elapsed() < longest, "{key}: {:?}", started.elapsed());
    }
    // Its replica takes over, and every key is shared again.
    let until_all = Instant::now() + PATIENCE;
    let mut key = 1_000;
    let mut in_a_row = 0;
    while in_a_row < 20 {
        assert!(Instant::now() < until_all, "it did not recover: {:?}", one.stats());
        key += 1;
        let before = one.stats().published;
        fetch(&c, key, "value").await;
        let shared = async { published(&one, before + 1).await };
        let shared = tokio::time::timeout(Duration::from_millis(300), shared).await.is_ok();
        in_a_row = if shared { in_a_row + 1 } else { 0 };
    }
    let d = cache(&two);
    let mut read = Outcome::Loaded;
    while read != Outcome::SharedHit {
        assert!(Instant::now() < until_all, "it did not recover: {:?}", two.stats());
        soon(d.invalidate(&0)).await.ok();
        read = fetch(&d, key, "own").await.1;
        key -= 1;
    }
}

#[tokio::test]
async fn f22_a_promoted_replica_gives_greater_tokens_and_the_first_holder_learns_of_it() {
    let master = Server::start_with(PROMPT);
    let replica = Server::start();
    let proxy = Proxy::to(master.addr()).await;
    let one = connect(&proxy.url()).await;
    let lock = RedisLock::new(&one);
    lock.acquire("l").await.unwrap().release().await.unwrap();
    replica.command(&format!("REPLICAOF 127.0.0.1 {}", master.port));
    until("it follows", || replica.command("EXISTS t:1:0:{~lock/kl}:c") == ":1\r\n").await;
    // From here on the replica hears nothing.
    replica.command("REPLICAOF NO ONE");
    let first = lock.acquire("l").await.unwrap();
    let two = connect(&replica.url()).await;
    let second = soon(RedisLock::new(&two).acquire("l")).await.unwrap();
    assert!(second.token() > first.token());
    proxy.retarget(replica.addr());
    soon(first.lost()).await;
    second.release().await.unwrap();
}

#[tokio::test]
async fn sentinels_have_credentials_of_their_own() {
    let master = Server::start();
    master.command("ACL SETUSER shop on >data ~* &* +@all");
    let sentinel = Server::sentinel(master.port);
    sentinel.command("ACL SETUSER watcher on >sentinel ~* &* +@all");
    sentinel.command("ACL SETUSER default off");
    let url = format!("redis-sentinel://shop:data@127.0.0.1:{}/mymaster", sentinel.port);
    let credentials = |password: &str| RedisConfig {
        sentinel_credentials: Some(RedisCredentials {
            user: Some("watcher".into()),
            password: password.into(),
        }),
        ..quick()
    };
    let tier = RedisTier::connect(&url, credentials("sentinel")).await.unwrap();
    assert!(!tier.stats().circuit_open);
    assert!(master.command("CLIENT LIST").contains("user=shop"));
    let without = RedisTier::connect(&url, quick()).await;
    assert!(without.is_err() || without.is_ok_and(|tier| tier.stats().circuit_open));
    let shown = format!("{:?}", credentials("hunter2"));
    assert!(shown.contains("watcher") && !shown.contains("hunter2"), "{shown}");
}

#[tokio::test]
async fn what_a_cluster_or_a_sentinel_does_not_accept_is_said() {
    let node = Server::start_with(&["--cluster-enabled", "yes", "--cluster-port", &free_port().to_string()]);
    node.command("CLUSTER ADDSLOTSRANGE 0 16383");
    until("it is whole", || node.command("CLUSTER INFO").contains("cluster_state:ok")).await;
    node.command("CONFIG SET requirepass right");
    let refused = async |url: String| RedisTier::connect(&url, quick()).await.unwrap_err();
    let error = refused(format!("redis-cluster://:wrong@127.0.0.1:{}", node.port)).await;
    assert!(matches!(error, RedisTierError::Credentials(_)), "{error}");
    let error = refused(format!("redis-cluster://127.0.0.1:{}", node.port)).await;
    assert!(matches!(error, RedisTierError::Credentials(_)), "{error}");

    let master = Server::start();
    let sentinel = Server::sentinel(master.port);
    master.command("CONFIG SET requirepass right");
    let error = refused(format!("redis-sentinel://:wrong@127.0.0.1:{}/mymaster", sentinel.port)).await;
    assert!(matches!(error, RedisTierError::Credentials(_)), "{error}");
}

#[tokio::test]
async fn f23_sentinel_names_the_new_master() {
    let mut master = Server::start_with(PROMPT);
    let follow = format!("127.0.0.1 {}", master.port);
    let replica = Server::start_with(&["--replicaof", &follow, "--repl-diskless-sync-delay", "0"]);
    until("it follows", || replica.command("INFO replication").contains("master_link_status:up")).await;
    let sentinel = Server::sentinel(master.port);
    until("it knows the replica", || {
        sentinel.command("SENTINEL REPLICAS mymaster").contains("role-reported")
    })
    .await;
    let url = format!("redis-sentinel://127.0.0.1:{}/mymaster", sentinel.port);
    let (one, two) = (connect(&url).await, connect(&url).await);
    let (a, b) = (cache(&one), cache(&two));
    fetch(&a, 1, "first").await;
    published(&one, 1).await;
    assert_eq!(fetch(&b, 1, "unused").await, ("first".into(), Outcome::SharedHit));
    master.kill();
    assert_eq!(fetch(&a, 2, "alone").await.0, "alone");
    until("the replica is promoted", || replica.command("ROLE").contains("master")).await;
    until("both are there", || {
        [&one, &two].iter().all(|tier| !tier.stats().circuit_open && tier.stats().subscribed)
    })
    .await;
    // A connection that was made while the roles changed may have to be given up once more.
    let mut shared = Outcome::Loaded;
    for key in 100.. {
        if shared == Outcome::SharedHit {
            break;
        }
        assert!(key < 1_000, "it does not share again");
        let before = one.stats().published;
        fetch(&a, key, "shared").await;
        let published = tokio::time::timeout(Duration::from_millis(300), published(&one, before + 1));
        if published.await.is_ok() {
            shared = fetch(&b, key, "own").await.1;
        }
    }
    // A master that is demoted under its clients answers, and is left all the same.
    replica.command("REPLICAOF 127.0.0.1 1");
    assert_eq!(fetch(&a, 4, "alone").await.0, "alone");
    until("it is left", || one.stats().circuit_open).await;
    replica.command("REPLICAOF NO ONE");
    until("it is back", || !one.stats().circuit_open).await;
}
