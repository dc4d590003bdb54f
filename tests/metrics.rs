//! What is counted for the `metrics` facade.

#[path = "support/counts.rs"]
mod counts;

use std::collections::HashMap;

use counts::Counts;
use stampede_guard::{LoadError, StampedeCache};

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
