//! What each metric counts, for a recorder that shows it.

#[cfg(feature = "redis")]
use metrics::describe_gauge;
use metrics::{Unit, describe_counter, describe_histogram};

/// Tells the installed `metrics` recorder what each of this crate's metrics counts and in which unit, as an exporter
/// shows it (the `# HELP` lines of Prometheus). Call it once, after the recorder is installed; metrics are recorded
/// whether or not it is called.
///
/// ```
/// // After the exporter's own `install`:
/// stampede_guard::describe_metrics();
/// ```
pub fn describe_metrics() {
    describe_counter!(
        "stampede_requests_total",
        "Calls of a cache and requests of a guard, by what became of them"
    );
    describe_counter!("stampede_loads_total", "Loads that ended, by how: ok, error or dropped");
    describe_histogram!("stampede_load_seconds", Unit::Seconds, "How long loads took");
    describe_histogram!("stampede_waiters", Unit::Count, "How many callers waited when a flight ended");
    describe_counter!("stampede_refreshes_total", "Loads in the background, early ones included");
    describe_histogram!(
        "stampede_stale_age_seconds",
        Unit::Seconds,
        "The age of values that were served past their freshness"
    );
    describe_counter!("stampede_shed_total", "Calls that found no place, by the cap that was reached");
    #[cfg(feature = "redis")]
    describe_redis();
}

#[cfg(feature = "redis")]
fn describe_redis() {
    describe_gauge!("stampede_redis_circuit_open", "1 while callers go on without Redis");
    describe_gauge!("stampede_redis_subscribed", "1 while events of other instances arrive");
    describe_counter!("stampede_redis_errors_total", "Operations on Redis that failed, by how");
    describe_counter!(
        "stampede_publications_total",
        "Values for the other instances, by what became of them: ok, superseded or local"
    );
    describe_histogram!(
        "stampede_lock_wait_seconds",
        Unit::Seconds,
        "Waits for another instance's load or for a lock"
    );
}
