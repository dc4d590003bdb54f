//! The herd: one task and one kept-alive HTTP/1 connection for each client.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::server::micros;

/// A client gives up on a request after this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause of a client between two requests of a timed phase.
const THINK_MILLIS: std::ops::RangeInclusive<u64> = 10..=50;

/// What the clients do, all of them at once.
#[derive(Clone)]
pub(crate) enum Plan {
    /// Client `n` asks for the products of list `n`, one after the other.
    Lists(Arc<Vec<Vec<Arc<str>>>>),
    /// Each asks for random ones of these products until the time is over.
    Until(Arc<Vec<Arc<str>>>, Instant),
}

/// What all clients saw.
#[derive(Default)]
pub(crate) struct Seen {
    /// One for each request, errors included; sorted.
    pub(crate) latencies: Vec<Duration>,
    pub(crate) errors: usize,
    pub(crate) first_error: Option<String>,
    /// The greatest age of an answer when its client had it.
    pub(crate) oldest: Duration,
}

impl Seen {
    fn add(&mut self, latency: Duration, answer: Result<Duration, String>) {
        self.latencies.push(latency);
        match answer {
            Ok(age) => self.oldest = self.oldest.max(age),
            Err(error) => {
                self.errors += 1;
                self.first_error.get_or_insert(error);
            }
        }
    }

    fn merge(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.oldest = self.oldest.max(other.oldest);
    }
}

pub(crate) struct Client {
    sender: SendRequest<Empty<Bytes>>,
    host: String,
    epoch: Instant,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, epoch: Instant) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // Ends when the sender is dropped; what goes wrong before that, the sender reports.
        tokio::spawn(connection);
        Ok(Self { sender, host: address.to_string(), epoch })
    }

    /// Asks for a product; gives the age of the answer. An answer about another product is an error.
    pub(crate) async fn get(&mut self, id: &str) -> Result<Duration, String> {
        match tokio::time::timeout(PATIENCE, self.exchange(id)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {PATIENCE:?}")),
        }
    }

    async fn exchange(&mut self, id: &str) -> Result<Duration, String> {
        let request = Request::get(format!("/products/{id}")).header(HOST, &self.host).body(Empty::new());
        let request = request.map_err(|error| error.to_string())?;
        self.sender.ready().await.map_err(|error| error.to_string())?;
        let response = self.sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        if status != StatusCode::OK {
            return Err(format!("status {status}"));
        }
        let product: serde_json::Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        if product["id"] != *id {
            return Err(format!("asked for product {id}, got product {}", product["id"]));
        }
        let read_at = product["read_at_micros"].as_u64().ok_or("the answer has no read_at_micros")?;
        Ok(Duration::from_micros(micros(self.epoch.elapsed()).saturating_sub(read_at)))
    }
}

/// The clients, connected and idle.
pub(crate) struct Herd {
    clients: Vec<Client>,
    seed: u64,
}

impl Herd {
    pub(crate) async fn connect(
        address: SocketAddr,
        clients: usize,
        seed: u64,
        epoch: Instant,
    ) -> io::Result<Self> {
        let mut connected = Vec::with_capacity(clients);
        for _ in 0..clients {
            connected.push(Client::connect(address, epoch).await?);
        }
        Ok(Self { clients: connected, seed })
    }

    /// Lets all clients go at the same moment and waits for the last. Adds one to `done` for each request.
    /// The connections are closed afterwards.
    pub(crate) async fn run(self, plan: Plan, done: Arc<AtomicU64>) -> Seen {
        let start = Arc::new(Barrier::new(self.clients.len()));
        let mut tasks = JoinSet::new();
        for (n, mut client) in self.clients.into_iter().enumerate() {
            let (plan, start, done) = (plan.clone(), start.clone(), done.clone());
            let mut rng = StdRng::seed_from_u64(self.seed.wrapping_add(n as u64));
            tasks.spawn(async move {
                let mut seen = Seen::default();
                start.wait().await;
                match plan {
                    Plan::Lists(lists) => {
                        for id in &lists[n] {
                            ask(&mut client, id, &mut seen, &done).await;
                        }
                    }
                    Plan::Until(ids, end) => {
                        while Instant::now() < end {
                            let think = Duration::from_millis(rng.random_range(THINK_MILLIS));
                            tokio::time::sleep(think).await;
                            ask(&mut client, &ids[rng.random_range(0..ids.len())], &mut seen, &done).await;
                        }
                    }
                }
                seen
            });
        }
        let mut all = Seen::default();
        while let Some(seen) = tasks.join_next().await {
            match seen {
                Ok(seen) => all.merge(seen),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        all.latencies.sort_unstable();
        all
    }
}

async fn ask(client: &mut Client, id: &str, seen: &mut Seen, done: &AtomicU64) {
    let asked = Instant::now();
    let answer = client.get(id).await;
    seen.add(asked.elapsed(), answer);
    done.fetch_add(1, Ordering::Relaxed);
}
