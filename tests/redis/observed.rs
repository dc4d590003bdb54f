//! What the metrics and the logs say of a tier.

use stampede_guard::{RedisConfig, RedisLock, RedisTier, StampedeCache};
use tokio::sync::Notify;

use std::sync::Arc;
use std::time::Duration;

use crate::counts::Counts;
use crate::everything::Everything;
use crate::server::{Server, quick, soon, until};

type Cache = StampedeCache<String, String, String>;

async fn waits_and_faults(server: &Server, counts: &Counts) {
    let config = RedisConfig { operation_timeout: Duration::from_millis(100), ..quick() };
    let tier = async || RedisTier::connect(&server.url(), config.clone()).await.unwrap();
    let (one, two) = (tier().await, tier().await);
    let of = |tier: &RedisTier| -> Cache {
        StampedeCache::builder().name("products").redis(tier.clone()).build().unwrap()
    };
    let (a, b) = (of(&one), of(&two));
    let is_open = || f64::from_bits(counts.all()["stampede_redis_circuit_open{namespace=t}"]) > 0.5;
    until("closed", || !is_open()).await;

    let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (starts, goes) = (Arc::clone(&started), Arc::clone(&go));
    let loading = tokio::spawn(async move {
        let load = || async move {
            starts.notify_one();
            goes.notified().await;
            Ok("secret value".to_string())
        };
        a.get_or_load("secret-key".into(), load).await.unwrap();
        a
    });
    soon(started.notified()).await;
    let waiting = tokio::spawn(async move {
        b.get_or_load("secret-key".into(), || async { Ok("unused".into()) }).await.unwrap();
        b
    });
    let asked = || server.command("HGET t:1:0:{products/ksecret-key}:c w").contains('1');
    until("somebody waits", asked).await;
    go.notify_one();
    let (a, _b) = (soon(loading).await.unwrap(), soon(waiting).await.unwrap());
    RedisLock::new(&one).acquire("secret-lock").await.unwrap().release().await.unwrap();

    server.command("RPUSH t:1:0:{products/kbroken}:v x");
    a.get_or_load("broken".into(), || async { Ok("secret value".into()) }).await.unwrap();
    server.freeze();
    a.get_or_load("late".into(), || async { Ok("secret value".into()) }).await.unwrap();
    assert!(is_open());
    server.thaw();
    until("closed", || !is_open()).await;
}

#[test]
fn waits_and_faults_are_counted_and_traced_without_keys_or_values() {
    let (counts, everything) = (Counts::default(), Everything::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&counts, || {
        tracing::subscriber::with_default(everything.clone(), || {
            let server = Server::start();
            runtime.block_on(waits_and_faults(&server, &counts));
        });
    });
    let all = counts.all();
    assert_eq!(all["stampede_requests_total{outcome=shared_wait}"], 1, "{all:?}");
    for some in [
        "stampede_lock_wait_seconds{of=load}",
        "stampede_lock_wait_seconds{of=lock}",
        "stampede_publications_total{result=ok}",
        "stampede_redis_errors_total{kind=refused}",
        "stampede_redis_errors_total{kind=timeout}",
    ] {
        assert!(all.get(some).is_some_and(|&count| count > 0), "{some}: {all:?}");
    }
    let said = everything.0.lock().unwrap();
    let token_of = |span: &str| {
        let after =
            said.split(&format!("name: \"{span}\"")).nth(1).unwrap_or_else(|| panic!("{span}: {said}"));
        after.lines().find_map(|line| line.strip_prefix("token=")).unwrap().to_string()
    };
    assert_eq!(token_of("shared_wait"), token_of("shared_load"), "who waits is led to the load");
    assert!(said.contains("goes on alone") && said.contains("instance shares"), "{said}");
    assert!(said.contains("why=no answer in time"), "{said}");
    // The client's own spans and events are not this crate's.
    for secret in ["secret-key", "secret value", "secret-lock"] {
        assert!(!said.contains(secret) && !all.keys().any(|name| name.contains(secret)), "{secret}: {said}");
    }
}
