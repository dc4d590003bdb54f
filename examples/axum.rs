//! A small product API behind the guard.
//!
//! ```text
//! cargo run --example axum
//! ```
//!
//! In another terminal:
//!
//! ```text
//! # The first request runs the handler (200 ms). For about a second its answer is kept; then it is served
//! # for one more second while one request in the background replaces it.
//! curl -s -w ' %{time_total}s\n' http://127.0.0.1:3000/products/7
//!
//! # A hundred at once: one handler run, if that.
//! seq 100 | xargs -P 100 -I{} curl -s -o /dev/null http://127.0.0.1:3000/products/8
//!
//! # What the handler and the guard counted.
//! curl -s http://127.0.0.1:3000/stats
//!
//! # Not found is an answer, too.
//! curl -s -i http://127.0.0.1:3000/products/1000000
//!
//! # A change goes straight to the handler, and the product is read anew by the next request.
//! curl -s -X PUT -H 'content-type: application/json' -d '{"price_cents": 999}' \
//!     http://127.0.0.1:3000/products/7
//! curl -s http://127.0.0.1:3000/products/7
//!
//! # A request with a cookie is never shared: each of them runs the handler.
//! curl -s -H 'cookie: session=1' http://127.0.0.1:3000/products/7
//! ```
//!
//! `--listen ADDR` listens elsewhere. `--demo` serves a free port, sends itself a burst of requests, prints
//! what happened and ends.

use std::collections::HashMap;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::http::{Request, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use stampede_guard::StampedeGuard;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Clients of the demo's burst.
const BURST: u64 = 100;

/// A product API behind stampede-guard.
#[derive(Parser)]
struct Arguments {
    /// Where to listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3000")]
    listen: SocketAddr,

    /// Serves a free port, sends itself a burst of requests, prints what happened and ends
    #[arg(long, conflicts_with = "listen")]
    demo: bool,
}

/// The shop's data. Reading a product takes 200 ms.
#[derive(Default)]
struct Shop {
    reads: AtomicU64,
    prices: Mutex<HashMap<u64, u64>>,
}

async fn product(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Result<Json<Value>, StatusCode> {
    shop.reads.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(200)).await;
    if id >= 1_000 {
        return Err(StatusCode::NOT_FOUND);
    }
    let price = shop.prices.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied();
    Ok(Json(json!({ "id": id, "price_cents": price.unwrap_or(100 * id) })))
}

async fn set_price(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<u64>,
    Json(change): Json<Value>,
) -> Result<StatusCode, (StatusCode, &'static str)> {
    let price = change["price_cents"].as_u64();
    let price = price.ok_or((StatusCode::BAD_REQUEST, "price_cents must be a whole number\n"))?;
    shop.prices.lock().unwrap_or_else(PoisonError::into_inner).insert(id, price);
    Ok(StatusCode::NO_CONTENT)
}

fn app() -> Router {
    let shop = Arc::new(Shop::default());
    let guard = StampedeGuard::new();
    let (counts, counted_guard) = (shop.clone(), guard.clone());
    let stats = move || async move {
        let reads = counts.reads.load(Ordering::Relaxed);
        format!("product handler runs: {reads}\nguard: {:#?}\n", counted_guard.stats())
    };
    Router::new()
        .route("/products/{id}", get(product).put(set_price))
        .with_state(shop)
        .layer(guard)
        // A route added after the layer is outside it.
        .route("/stats", get(stats))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    if arguments.demo {
        return demo().await;
    }
    let listener = TcpListener::bind(arguments.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", arguments.listen))?;
    println!(
        "listening on http://{}; try the commands at the top of examples/axum.rs",
        listener.local_addr()?
    );
    let interrupted = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    Ok(axum::serve(listener, app()).with_graceful_shutdown(interrupted).await?)
}

/// The commands of the header in short, with requests over TCP.
async fn demo() -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app()).await });

    println!("{BURST} clients ask for product 7 at once; the handler takes 200 ms.");
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..BURST {
        clients.spawn(ask(address, "GET", "/products/7", ""));
    }
    while let Some(answer) = clients.join_next().await {
        expect(&answer??, StatusCode::OK)?;
    }
    println!("  all answered after {:?}", started.elapsed());
    let stats = ask(address, "GET", "/stats", "").await?.1;
    println!("{stats}");
    let runs = stats.lines().next().unwrap_or_default();
    if runs != "product handler runs: 1" {
        return Err(format!("expected one handler run, got: {runs}").into());
    }

    println!("The price changes, and the next answer has the new one.");
    let change = json!({ "price_cents": 999 }).to_string();
    expect(&ask(address, "PUT", "/products/7", &change).await?, StatusCode::NO_CONTENT)?;
    let answer = ask(address, "GET", "/products/7", "").await?;
    expect(&answer, StatusCode::OK)?;
    println!("  {}", answer.1);
    if !answer.1.contains("999") {
        return Err("the answer has the old price".into());
    }

    println!("A product that does not exist:");
    let answer = ask(address, "GET", "/products/1000000", "").await?;
    expect(&answer, StatusCode::NOT_FOUND)?;
    println!("  {}", answer.0);
    Ok(())
}

type Answer = (StatusCode, String);
type Failure = Box<dyn Error + Send + Sync>;

async fn ask(
    address: SocketAddr,
    method: &'static str,
    path: &'static str,
    body: &str,
) -> Result<Answer, Failure> {
    let body = Full::new(Bytes::from(body.to_owned()));
    let request = Request::builder().method(method).uri(path).header("host", address.to_string());
    let request = request.header("content-type", "application/json").body(body)?;
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn expect(answer: &Answer, status: StatusCode) -> Result<(), String> {
    if answer.0 == status {
        Ok(())
    } else {
        Err(format!("expected {status}, got {}: {}", answer.0, answer.1))
    }
}
