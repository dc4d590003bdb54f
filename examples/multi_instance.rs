//! Several processes of one service behind a guard, which share handler runs and pages on Redis.
//!
//! Starts a Redis server of its own (or takes one with `--redis URL`) and real processes of a small axum service,
//! drives a herd at all of them at once, kills the one whose handler runs, stops Redis and starts it again, and prints
//! what each phase cost. It fails if one of them cost more than is promised:
//!
//! ```sh
//! cargo run --release --features redis --example multi_instance
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, put};
use clap::Parser;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use stampede_guard::{RedisConfig, RedisTier, StampedeGuard};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

#[derive(Parser)]
struct Options {
    /// A Redis to use; without it, one is started. A given one is not stopped half-way.
    #[arg(long)]
    redis: Option<String>,
    /// Processes of the service.
    #[arg(long, default_value_t = 4)]
    instances: usize,
    /// Requests each of them gets at once.
    #[arg(long, default_value_t = 100)]
    clients: usize,
    /// Keys these requests ask for.
    #[arg(long, default_value_t = 20)]
    keys: usize,
    /// Be one of the processes.
    #[arg(long, hide = true)]
    instance: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    match &options.redis {
        Some(url) if options.instance => serve(url).await,
        _ => conduct(&options).await,
    }
}

// The service.

async fn serve(url: &str) -> Result<()> {
    let config = RedisConfig {
        namespace: "example".into(),
        // Short, so that the one who dies is soon replaced.
        lease: Duration::from_secs(1),
        ..RedisConfig::default()
    };
    let tier = RedisTier::connect(url, config).await?;
    let guard = StampedeGuard::builder()
        .name("products")
        .redis(tier.clone())
        .ttl(Duration::from_secs(30))
        // Tells each client what became of its request: what the other process counts.
        .cache_status("guard")
        // Says how slow the database is to be this time, and nothing about the answer.
        .ignore_header(TAKES)
        .build()?;
    let app = axum::Router::new()
        .route("/products/{id}", get(product))
        .layer(guard.clone())
        // What comes after the layer is not guarded.
        .route("/forgotten/{id}", put(forget))
        .with_state(guard)
        .route("/shared", get(move || async move { (!tier.stats().circuit_open).to_string() }));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?.port());
    axum::serve(listener, app).await?;
    Ok(())
}

const TAKES: &str = "x-takes-ms";

async fn product(Path(id): Path<String>, headers: HeaderMap) -> String {
    let takes = headers.get(TAKES).and_then(|takes| takes.to_str().ok()?.parse().ok()).unwrap_or(30);
    tokio::time::sleep(Duration::from_millis(takes)).await;
    format!("product {id}")
}

/// Drops a page in all instances, and waits until Redis knows, so that whoever asks any instance after this answer is not
/// served the old one from there. A write to the page itself would drop it, too, and would not wait.
async fn forget(
    State(guard): State<StampedeGuard>,
    Path(id): Path<String>,
) -> Result<&'static str, StatusCode> {
    let invalidation = guard.invalidate(format!("/products/{id}")).map_err(|_| StatusCode::BAD_REQUEST)?;
    Ok(if invalidation.await.is_ok() { "done" } else { "queued" })
}

// The conductor.

/// A process that ends with its handle.
struct Process {
    child: Child,
    port: u16,
}

impl Process {
    fn signal(&self, name: &str) -> Result<()> {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status()?;
        if status.success() { Ok(()) } else { Err("kill failed".into()) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn redis_server() -> Result<Process> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let child = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning"])
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| {
            format!("redis-server cannot be started ({error}): install it, or give --redis URL")
        })?;
    let server = Process { child, port };
    for _ in 0..500 {
        if tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok() {
            return Ok(server);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err("redis-server does not answer".into())
}

fn instance(redis: &str) -> Result<Process> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--instance", "--redis", redis])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let mut process = Process { child, port: 0 };
    process.port = line.trim().parse().map_err(|_| "the instance did not start")?;
    Ok(process)
}

/// The answer, and what the guard says became of the request.
async fn ask(port: u16, method: &str, path: &str, takes: Option<u64>) -> Result<(String, String)> {
    let stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    // All processes are one service.
    let mut request = hyper::Request::builder().method(method).uri(path).header("host", "localhost");
    if let Some(takes) = takes {
        request = request.header(TAKES, takes);
    }
    let response = sender.send_request(request.body(Empty::<bytes::Bytes>::new())?).await?;
    let said = response.headers().get("cache-status").and_then(|said| said.to_str().ok()).unwrap_or_default();
    let outcome = match said {
        _ if !response.status().is_success() => format!("error: {}", response.status()),
        hit if hit.contains("; hit") => "hit".into(),
        collapsed if collapsed.contains("; collapsed") => "coalesced".into(),
        _ => "run".into(),
    };
    let body = response.into_body().collect().await?.to_bytes();
    Ok((String::from_utf8_lossy(&body).into_owned(), outcome))
}

async fn get_outcome(port: u16, path: String) -> Result<String> {
    Ok(ask(port, "GET", &path, None).await?.1)
}

/// What a herd saw.
#[derive(Default)]
struct Tally {
    outcomes: BTreeMap<String, usize>,
    took: Vec<Duration>,
}

impl Tally {
    fn count(&self, outcome: &str) -> usize {
        self.outcomes.get(outcome).copied().unwrap_or(0)
    }

    fn errors(&self) -> usize {
        self.outcomes.iter().filter(|(outcome, _)| outcome.starts_with("error")).map(|(_, count)| count).sum()
    }

    fn took(&self, share: f64) -> Duration {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let at = (self.took.len() as f64 * share) as usize;
        self.took.get(at.min(self.took.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// All instances at once, `clients` requests each.
async fn herd(instances: &[Process], options: &Options) -> Result<Tally> {
    let mut requests = tokio::task::JoinSet::new();
    for instance in instances {
        for client in 0..options.clients {
            let (port, path) = (instance.port, format!("/products/{}", client % options.keys));
            requests.spawn(async move {
                let started = Instant::now();
                let outcome = get_outcome(port, path).await.unwrap_or_else(|error| format!("error: {error}"));
                (outcome, started.elapsed())
            });
        }
    }
    let mut tally = Tally::default();
    while let Some(done) = requests.join_next().await {
        let (outcome, took) = done?;
        *tally.outcomes.entry(outcome).or_default() += 1;
        tally.took.push(took);
    }
    tally.took.sort();
    Ok(tally)
}

async fn forget_all(instances: &[Process], keys: usize) -> Result<()> {
    for key in 0..keys {
        ask(instances[0].port, "PUT", &format!("/forgotten/{key}"), None).await?;
    }
    Ok(())
}

fn report(phase: &str, tally: &Tally, keys: usize) {
    #[allow(clippy::cast_precision_loss)]
    let per_key = tally.count("run") as f64 / keys as f64;
    println!(
        "{phase:<34} {:>8} {:>6} {:>9.2} {:>7} {:>7} {:>6} {:>9.1} {:>9.1}",
        tally.took.len(),
        tally.count("run"),
        per_key,
        tally.count("coalesced"),
        tally.count("hit"),
        tally.errors(),
        tally.took(0.5).as_secs_f64() * 1e3,
        tally.took(0.99).as_secs_f64() * 1e3,
    );
}

fn expect(holds: bool, what: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(format!("not as promised: {what}").into()) }
}

/// Waits until all instances say that they share, or that they do not.
async fn shared(instances: &[Process], wanted: bool) -> Result<Duration> {
    let started = Instant::now();
    for instance in instances {
        while ask(instance.port, "GET", "/shared", None).await?.0 != wanted.to_string() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(started.elapsed())
}

async fn conduct(options: &Options) -> Result<()> {
    let server = if options.redis.is_none() { Some(redis_server().await?) } else { None };
    let url = match (&options.redis, &server) {
        (Some(url), _) => url.clone(),
        (None, Some(server)) => format!("redis://127.0.0.1:{}", server.port),
        (None, None) => return Err("there is no Redis".into()),
    };
    let mut instances = (0..options.instances.max(2)).map(|_| instance(&url)).collect::<Result<Vec<_>>>()?;
    let keys = options.keys.max(1);
    println!(
        "{} processes, {} requests to each at once, {keys} pages, a handler run takes 30 ms",
        instances.len(),
        options.clients
    );
    println!(
        "{:<34} {:>8} {:>6} {:>9} {:>7} {:>7} {:>6} {:>9} {:>9}",
        "phase", "requests", "runs", "runs/key", "waited", "hits", "errors", "p50 (ms)", "p99 (ms)"
    );
    forget_all(&instances, keys).await?;
    let tally = herd(&instances, options).await?;
    report("cold: nobody has anything", &tally, keys);
    expect(tally.count("run") == keys.min(options.clients), "one handler run a page, over all processes")?;
    let tally = herd(&instances, options).await?;
    report("warm", &tally, keys);
    expect(tally.count("run") == 0, "no runs")?;
    forget_all(&instances, keys).await?;
    let tally = herd(&instances, options).await?;
    report("each key invalidated in one process", &tally, keys);

    // The process whose handler runs dies; another one takes over when its lease ends.
    let leader = instances.swap_remove(0);
    let (port, path) = (leader.port, "/products/slow");
    let dying = tokio::spawn(async move { ask(port, "GET", path, Some(60_000)).await.is_err() });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let waiting: Vec<_> =
        instances.iter().map(|one| tokio::spawn(get_outcome(one.port, path.to_string()))).collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    leader.signal("KILL")?;
    let killed = Instant::now();
    let mut runs = 0;
    for waiter in waiting {
        runs += usize::from(waiter.await?? == "run");
    }
    let took = killed.elapsed();
    expect(dying.await?, "the killed process answers nothing")?;
    println!("the process that runs is killed:    another took over, in {took:.0?}; {runs} run");
    expect(runs == 1, "one run after the takeover")?;

    let Some(server) = server else {
        println!("Redis was given, so it is not stopped");
        return Ok(());
    };
    server.signal("STOP")?;
    // The first caller of each process pays for finding out.
    let started = Instant::now();
    for instance in &instances {
        ask(instance.port, "GET", "/products/another", None).await?;
    }
    println!("Redis is stopped:                   noticed in {:.0?} for all processes", started.elapsed());
    forget_all(&instances, keys).await?;
    let tally = herd(&instances, options).await?;
    report("Redis stopped", &tally, keys);
    expect(tally.errors() == 0, "no errors without Redis")?;
    expect(tally.count("run") <= keys * instances.len(), "at most a run a page and process")?;
    server.signal("CONT")?;
    let took = shared(&instances, true).await?;
    println!("Redis goes on:                      joined again in {took:.0?}");
    expect(took < Duration::from_secs(5), "joined again")?;
    forget_all(&instances, keys).await?;
    let tally = herd(&instances, options).await?;
    report("Redis back", &tally, keys);
    expect(tally.count("run") == keys.min(options.clients), "one run a page again")
}
