//! N callers wait for one cold key; the time from the end of the load to the last caller served.
//!
//! The floor is the same number of tasks woken by a bare `tokio::sync::Notify`, which shares no value.

use std::future::Future;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use stampede_guard::SingleFlight;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, oneshot};

/// Spawns `callers` tasks, waits until `ready` says that all wait, calls `release`, and returns how long after
/// that the last was done.
async fn herd<F>(
    callers: usize,
    call: impl Fn() -> F,
    ready: impl Fn() -> bool,
    release: impl FnOnce(),
) -> Duration
where
    F: Future<Output = ()> + Send + 'static,
{
    let waiting = Arc::new(AtomicUsize::new(callers));
    let (last, served) = oneshot::channel();
    let last = Arc::new(std::sync::Mutex::new(Some(last)));
    for _ in 0..callers {
        let (call, waiting, last) = (call(), waiting.clone(), last.clone());
        tokio::spawn(async move {
            call.await;
            if waiting.fetch_sub(1, Ordering::SeqCst) == 1 {
                let last = last.lock().unwrap().take().unwrap();
                last.send(Instant::now()).unwrap();
            }
        });
    }
    // With this, a task that panics ends the wait below.
    drop(last);
    while !ready() {
        tokio::task::yield_now().await;
    }
    let released = Instant::now();
    release();
    served.await.unwrap() - released
}

async fn single_flight(callers: usize) -> Duration {
    let flights: SingleFlight<u64, u64> = SingleFlight::new();
    let (open, gate) = oneshot::channel();
    // The first caller polled leads, whichever that is: its load takes the gate.
    let gate = Arc::new(std::sync::Mutex::new(Some(gate)));
    let call = || {
        let (flights, gate) = (flights.clone(), gate.clone());
        async move {
            let load = || async move {
                let gate = gate.lock().unwrap().take().unwrap();
                Ok(gate.await.unwrap())
            };
            black_box(flights.run(1, load).await.unwrap());
        }
    };
    let release = || open.send(black_box(7)).unwrap();
    herd(callers, call, || flights.waiters(&1) == callers, release).await
}

#[cfg(feature = "cache")]
async fn cache(callers: usize) -> Duration {
    let cache: stampede_guard::StampedeCache<u64, u64> =
        stampede_guard::StampedeCache::builder().build().unwrap();
    let (open, gate) = oneshot::channel();
    let gate = Arc::new(std::sync::Mutex::new(Some(gate)));
    let call = || {
        let (cache, gate) = (cache.clone(), gate.clone());
        async move {
            let load = || async move {
                let gate = gate.lock().unwrap().take().unwrap();
                Ok(gate.await.unwrap())
            };
            black_box(cache.get_or_load(1, load).await.unwrap());
        }
    };
    let joined = || cache.stats().flights.coalesced == callers as u64 - 1;
    herd(callers, call, joined, || open.send(black_box(7)).unwrap()).await
}

async fn notify(callers: usize) -> Duration {
    let (bell, waiting) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let call = || {
        let (bell, waiting) = (bell.clone(), waiting.clone());
        async move {
            let mut rung = std::pin::pin!(bell.notified());
            rung.as_mut().enable();
            waiting.fetch_add(1, Ordering::SeqCst);
            rung.await;
        }
    };
    herd(callers, call, || waiting.load(Ordering::SeqCst) == callers, || bell.notify_waiters()).await
}

fn measure<F: Future<Output = Duration>>(runtime: &Runtime, times: u64, herd: impl Fn() -> F) -> Duration {
    (0..times).map(|_| runtime.block_on(herd())).sum()
}

fn benches(c: &mut Criterion) {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let mut group = c.benchmark_group("herd");
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    for callers in [10, 100, 1_000, 10_000, 100_000] {
        group.throughput(Throughput::Elements(callers as u64));
        let id = |name| BenchmarkId::new(name, callers);
        group.bench_function(id("single_flight"), |b| {
            b.iter_custom(|times| measure(&runtime, times, || single_flight(callers)));
        });
        #[cfg(feature = "cache")]
        group.bench_function(id("cache"), |b| {
            b.iter_custom(|times| measure(&runtime, times, || cache(callers)));
        });
        group.bench_function(id("floor: notify"), |b| {
            b.iter_custom(|times| measure(&runtime, times, || notify(callers)));
        });
    }
    group.finish();
}

criterion_group!(group, benches);
criterion_main!(group);
