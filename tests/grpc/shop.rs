//! The inventory service, as a shop has it: it counts its runs, and waits and fails as told.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, BoxStream, StreamExt};
use stampede_guard::{GrpcStampedeGuard, ManualClock, StampedeGuardBuilder};
use tokio::sync::{Semaphore, watch};
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::common::{Runs, clocked};
use crate::proto::inventory::inventory_client::InventoryClient;
use crate::proto::inventory::inventory_server::{Inventory, InventoryServer};
use crate::proto::inventory::{Stock, StockRequest};
use crate::site::{Front, On, Site};

pub(crate) const GET_STOCK: &str = "/inventory.Inventory/GetStock";

/// What a run of a handler gives.
pub(crate) type Outcome = Option<Status>;

#[derive(Clone)]
pub(crate) struct Shop {
    pub(crate) runs: Runs,
    /// One permit a run.
    pub(crate) gate: Arc<Semaphore>,
    /// The status of later runs, in place of a reply.
    pub(crate) outcome: Arc<watch::Sender<Outcome>>,
}

impl Shop {
    pub(crate) fn closed() -> Self {
        Self {
            runs: Runs::default(),
            gate: Arc::new(Semaphore::new(0)),
            outcome: Arc::new(watch::Sender::new(None)),
        }
    }

    /// One whose handlers do not wait.
    pub(crate) fn open() -> Self {
        let shop = Self::closed();
        shop.gate.add_permits(Semaphore::MAX_PERMITS / 2);
        shop
    }

    pub(crate) fn fails_with(&self, outcome: impl Into<Outcome>) {
        self.outcome.send_replace(outcome.into());
    }

    pub(crate) fn service(&self) -> InventoryServer<Self> {
        InventoryServer::new(self.clone())
    }
}

#[tonic::async_trait]
impl Inventory for Shop {
    /// As many units as there were runs.
    async fn get_stock(&self, request: Request<StockRequest>) -> Result<Response<Stock>, Status> {
        let units = self.runs.add() as u64;
        assert!(request.metadata().get("grpc-timeout").is_none(), "it is its caller's own");
        self.gate.acquire().await.unwrap().forget();
        if let Some(status) = &*self.outcome.borrow() {
            return Err(status.clone());
        }
        let tenant = request.metadata().get("x-tenant").cloned();
        let principal = request.metadata().get("authorization").cloned();
        let mut response = Response::new(Stock { sku: request.into_inner().sku, units });
        for (name, value) in [("x-for-tenant", tenant), ("x-for-principal", principal)] {
            if let Some(value) = value {
                response.metadata_mut().insert(name, value);
            }
        }
        response.metadata_mut().insert("x-run", units.into());
        Ok(response)
    }

    async fn set_stock(&self, request: Request<Stock>) -> Result<Response<Stock>, Status> {
        self.runs.add();
        Ok(Response::new(request.into_inner()))
    }

    type WatchStockStream = BoxStream<'static, Result<Stock, Status>>;

    async fn watch_stock(
        &self,
        request: Request<StockRequest>,
    ) -> Result<Response<Self::WatchStockStream>, Status> {
        self.runs.add();
        let sku = request.into_inner().sku;
        let stocks = (0..3).map(move |units| Ok(Stock { sku: sku.clone(), units }));
        Ok(Response::new(stream::iter(stocks).boxed()))
    }
}

pub(crate) type Client = InventoryClient<Channel>;

/// A shop behind a guard on a clock that stands still, with its clients.
pub(crate) struct Shopping {
    pub(crate) shop: Shop,
    pub(crate) guard: GrpcStampedeGuard,
    pub(crate) clock: ManualClock,
    pub(crate) site: Site,
}

/// Fresh for a minute, stale for another.
pub(crate) fn minutes(builder: StampedeGuardBuilder) -> StampedeGuardBuilder {
    builder.ttl(Duration::from_secs(60)).stale_while_revalidate(Duration::from_secs(60))
}

impl Shopping {
    pub(crate) async fn at(
        shop: &Shop,
        settings: impl FnOnce(StampedeGuardBuilder) -> StampedeGuardBuilder<GrpcStampedeGuard>,
    ) -> Self {
        let (clock, builder) = clocked();
        let guard = settings(builder).build().unwrap();
        let routes = Routes::new(shop.service());
        let site = Site::new(On::Tonic, Front::Grpc(guard.clone()), routes).await;
        Self { shop: shop.clone(), guard, clock, site }
    }

    pub(crate) async fn client(&self) -> Client {
        InventoryClient::new(self.site.connect().await)
    }

    /// Clients with a connection each.
    pub(crate) async fn clients(&self, count: usize) -> Vec<Client> {
        join_all((0..count).map(|_| self.client())).await
    }
}

pub(crate) fn ask_for(sku: &str) -> Request<StockRequest> {
    Request::new(StockRequest { sku: sku.to_owned() })
}

/// The same with one entry of metadata.
pub(crate) fn with(
    mut request: Request<StockRequest>,
    name: &'static str,
    value: &str,
) -> Request<StockRequest> {
    request.metadata_mut().insert(name, value.parse().unwrap());
    request
}

pub(crate) async fn units(client: &mut Client, request: Request<StockRequest>) -> u64 {
    client.get_stock(request).await.unwrap().into_inner().units
}
