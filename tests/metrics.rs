//! What is counted for the `metrics` facade.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use stampede_guard::{LoadError, StampedeCache};

/// Keeps counters by name and labels.
#[derive(Default)]
struct Counts(Mutex<HashMap<String, Arc<AtomicU64>>>);

impl Counts {
    fn of(&self, key: &Key) -> Arc<AtomicU64> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::clone(self.0.lock().unwrap().entry(name).or_default())
    }

    fn all(&self) -> HashMap<String, u64> {
        let counts = self.0.lock().unwrap();
        counts.iter().map(|(name, count)| (name.clone(), count.load(Ordering::Relaxed))).collect()
    }
}

impl Recorder for Counts {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.of(key))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.of(key).fetch_add(1, Ordering::Relaxed);
        Histogram::noop()
    }
}

#[test]
fn requests_and_loads_are_counted_without_a_key_in_any_label() {
    let counts = Counts::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    metrics::with_local_recorder(&counts, || {
        runtime.block_on(async {
            let cache: StampedeCache<&str, u64, &str> = StampedeCache::builder().build().unwrap();
            for _ in 0..3 {
                assert_eq!(cache.get_or_load("secret", || async { Ok(1) }).await.unwrap(), 1);
            }
            let failed = cache.get_or_load("other", || async { Err("down") }).await;
            assert!(matches!(failed, Err(LoadError::Failed(_))));
        });
    });
    let expected = [
        ("stampede_requests_total{outcome=hit}", 2),
        ("stampede_requests_total{outcome=loaded}", 1),
        ("stampede_requests_total{outcome=error}", 1),
        ("stampede_loads_total{result=ok}", 1),
        ("stampede_loads_total{result=error}", 1),
        ("stampede_load_seconds{}", 2),
    ];
    let expected = expected.map(|(name, count)| (name.to_owned(), count));
    assert_eq!(counts.all(), HashMap::from(expected));
}
