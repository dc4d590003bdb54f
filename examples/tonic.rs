//! A herd of gRPC clients asks a tonic service for the same thing, first without and then with the guard.
//!
//! ```sh
//! cargo run --example tonic --features grpc
//! ```
//!
//! The service takes 50 ms for a look at its database, and the guard keeps what it says for 200 ms, and 200 ms more
//! while one call in the background asks again. The generated code of the service comes from `scripts/protos`.

#[path = "../tests/grpc/proto.rs"]
mod proto;

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use futures_util::stream::{self, BoxStream, StreamExt};
use stampede_guard::StampedeGuard;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

use proto::inventory::inventory_client::InventoryClient;
use proto::inventory::inventory_server::{Inventory, InventoryServer};
use proto::inventory::{Stock, StockRequest};

const CLIENTS: usize = 200;
const CALLS: usize = 5;

/// A warehouse that counts how often somebody goes and looks.
#[derive(Clone, Default)]
struct Warehouse {
    looks: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Inventory for Warehouse {
    async fn get_stock(&self, request: Request<StockRequest>) -> Result<Response<Stock>, Status> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(Response::new(Stock { sku: request.into_inner().sku, units: 7 }))
    }

    async fn set_stock(&self, request: Request<Stock>) -> Result<Response<Stock>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    type WatchStockStream = BoxStream<'static, Result<Stock, Status>>;

    async fn watch_stock(
        &self,
        request: Request<StockRequest>,
    ) -> Result<Response<Self::WatchStockStream>, Status> {
        let stock = Stock { sku: request.into_inner().sku, units: 7 };
        Ok(Response::new(stream::iter([Ok(stock)]).boxed()))
    }
}

/// Each client has a connection and asks a few times, with a pause between.
async fn herd(address: SocketAddr) -> Result<Duration, Box<dyn Error>> {
    let endpoint = Channel::from_shared(format!("http://{address}"))?;
    let channels = try_join_all((0..CLIENTS).map(|_| endpoint.connect())).await?;
    let started = Instant::now();
    try_join_all(channels.into_iter().map(|channel| async {
        let mut client = InventoryClient::new(channel);
        for _ in 0..CALLS {
            let stock = client.get_stock(StockRequest { sku: "chair".into() }).await?.into_inner();
            assert_eq!((stock.sku.as_str(), stock.units), ("chair", 7));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok::<_, Status>(())
    }))
    .await?;
    Ok(started.elapsed())
}

fn report(what: &str, looks: &AtomicUsize, took: Duration) {
    let calls = CLIENTS * CALLS;
    println!("{what:<16} {calls} calls, {:>4} handler runs, {took:.1?}", looks.load(Ordering::Relaxed));
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    println!("{CLIENTS} gRPC clients ask {CALLS} times each for one article.");

    let warehouse = Warehouse::default();
    let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address = incoming.local_addr()?;
    let server = Server::builder().add_service(InventoryServer::new(warehouse.clone()));
    tokio::spawn(server.serve_with_incoming(incoming));
    report("without a guard:", &warehouse.looks, herd(address).await?);

    let guard = StampedeGuard::builder()
        .ttl(Duration::from_millis(200))
        .stale_while_revalidate(Duration::from_millis(200))
        .grpc_method("/inventory.Inventory/GetStock")
        .build()?;
    let warehouse = Warehouse::default();
    let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address = incoming.local_addr()?;
    let server = Server::builder().layer(guard.clone()).add_service(InventoryServer::new(warehouse.clone()));
    tokio::spawn(server.serve_with_incoming(incoming));
    let took = herd(address).await?;
    report("with it:", &warehouse.looks, took);

    let stats = guard.stats();
    let (hits, stale, refreshes) = (stats.hits, stats.stale, stats.refreshes);
    println!("The guard answered {hits} calls from its store, {stale} more while {refreshes} refreshes ran.");
    Ok(())
}
