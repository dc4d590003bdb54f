//! One handler run for all who say the same.

use std::time::Duration;

use futures_util::future::join_all;
use stampede_guard::{GrpcMethod, StampedeGuard};
use tonic::Request;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::service::Routes;

use crate::common::{Runs, clocked, settle};
use crate::proto::inventory::inventory_client::InventoryClient;
use crate::proto::inventory::{Stock, StockRequest};
use crate::shop::{GET_STOCK, Shop, Shopping, ask_for, minutes, units, with};
use crate::site::{Front, INITIAL, On, Site, TRAILING};

/// Metadata of every reply, message and trailers.
async fn whole_reply(mut client: crate::shop::Client) -> String {
    let mut request = with(ask_for("chair"), INITIAL, "head");
    request.metadata_mut().insert_bin(TRAILING, tonic::metadata::MetadataValue::from_bytes(&[1, 2, 255]));
    let reply = client.get_stock(request).await.unwrap();
    let mut metadata = reply.metadata().clone().into_headers();
    // The server's own, as of when it sent the reply.
    metadata.remove("date");
    format!("{metadata:?} {:?}", reply.get_ref())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients_are_one_run_and_after_expiry_one_refresh() {
    const CLIENTS: usize = 1_000;
    let shop = Shop::closed();
    let shopping = Shopping::at(&shop, |builder| minutes(builder).grpc_method(GET_STOCK)).await;
    let clients = shopping.clients(CLIENTS).await;

    let herd: Vec<_> = clients.iter().map(|client| tokio::spawn(whole_reply(client.clone()))).collect();
    settle(|| shopping.site.arrived.get() == CLIENTS).await;
    shop.gate.add_permits(1);
    let replies: Vec<_> = join_all(herd).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(shop.runs.get(), 1);
    assert!(replies[0].contains("grpc-status") && replies[0].contains("units: 1"), "{}", replies[0]);
    assert!(replies[0].contains(INITIAL) && replies[0].contains(TRAILING), "{}", replies[0]);
    assert!(replies.iter().all(|reply| *reply == replies[0]), "{replies:?}");

    shopping.clock.advance(Duration::from_secs(61));
    let herd: Vec<_> = clients.iter().map(|client| tokio::spawn(whole_reply(client.clone()))).collect();
    // The refresh waits for the gate; nobody waits for it.
    for reply in join_all(herd).await {
        assert_eq!(reply.unwrap(), replies[0]);
    }
    assert_eq!(shopping.guard.stats().refreshes, 1);
    shop.gate.add_permits(1);
    settle(|| shopping.guard.stats().in_flight == 0).await;
    assert_eq!(shop.runs.get(), 2);
    let now = whole_reply(clients[0].clone()).await;
    assert!(now.contains("units: 2") && now.contains(INITIAL) && now.contains(TRAILING), "{now}");
}

#[tokio::test]
async fn what_tells_calls_apart_never_shares() {
    let shop = Shop::open();
    let shopping = Shopping::at(&shop, |builder| minutes(builder).grpc_method(GET_STOCK)).await;
    let mut client = shopping.client().await;
    for tenant in ["a", "b"] {
        for _ in 0..2 {
            let reply = client.get_stock(with(ask_for("chair"), "x-tenant", tenant)).await.unwrap();
            assert_eq!(reply.metadata().get("x-for-tenant").unwrap(), tenant);
        }
    }
    assert_eq!(shop.runs.get(), 2);
    assert_eq!(client.get_stock(ask_for("table")).await.unwrap().into_inner().sku, "table");
    assert_eq!(client.get_stock(ask_for("chair")).await.unwrap().into_inner().sku, "chair");
    assert_eq!(shop.runs.get(), 4);
    for name in ["if-none-match", "cache-control", "x-unknown"] {
        assert_eq!(units(&mut client, with(ask_for("chair"), name, "1")).await, shop.runs.get() as u64);
    }
    assert_eq!(shop.runs.get(), 7);
}

#[tokio::test]
async fn what_says_nothing_to_the_handler_does_not_tell_calls_apart() {
    let shop = Shop::open();
    let shopping = Shopping::at(&shop, |builder| minutes(builder).grpc_method(GET_STOCK)).await;
    let mut client = shopping.client().await;
    for name in ["grpc-previous-rpc-attempts", "traceparent", "x-request-id", "x-forwarded-for"] {
        assert_eq!(units(&mut client, with(ask_for("chair"), name, "1")).await, 1, "{name}");
    }
    let mut patient = ask_for("chair");
    patient.set_timeout(Duration::from_secs(5));
    assert_eq!(units(&mut client, patient).await, 1);
    for value in ["identity,deflate,gzip", "gzip, deflate", "deflate,gzip,identity"] {
        assert_eq!(units(&mut client, with(ask_for("chair"), "grpc-accept-encoding", value)).await, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tenants_at_once_are_two_runs() {
    let shop = Shop::closed();
    let shopping = Shopping::at(&shop, |builder| minutes(builder).grpc_method(GET_STOCK)).await;
    let clients = shopping.clients(100).await;
    let herd = clients.into_iter().enumerate().map(|(number, mut client)| {
        tokio::spawn(async move {
            let tenant = ["a", "b"][number % 2];
            let reply = client.get_stock(with(ask_for("chair"), "x-tenant", tenant)).await.unwrap();
            assert_eq!(reply.metadata().get("x-for-tenant").unwrap(), tenant);
        })
    });
    let herd: Vec<_> = herd.collect();
    settle(|| shop.runs.get() == 2 && shopping.site.arrived.get() == 100).await;
    shop.gate.add_permits(2);
    for caller in join_all(herd).await {
        caller.unwrap();
    }
    assert_eq!(shop.runs.get(), 2);
}

#[tokio::test]
async fn credentials_pass_through_unless_they_are_in_the_key() {
    for is_keyed in [false, true] {
        let shop = Shop::open();
        let shopping = Shopping::at(&shop, |builder| {
            let builder = minutes(builder);
            let builder = if is_keyed { builder.key_authorization() } else { builder };
            builder.grpc_method(GET_STOCK)
        })
        .await;
        let mut client = shopping.client().await;
        for principal in ["Bearer one", "Bearer two", "Bearer one", "Bearer two"] {
            let reply = client.get_stock(with(ask_for("chair"), "authorization", principal)).await.unwrap();
            assert_eq!(reply.metadata().get("x-for-principal").unwrap(), principal);
        }
        assert_eq!(shop.runs.get(), if is_keyed { 2 } else { 4 });
        let passed = shopping.guard.stats().passed;
        assert_eq!(passed, if is_keyed { 0 } else { 4 });
    }
}

#[tokio::test]
async fn only_methods_that_opted_in_are_shared() {
    let shop = Shop::open();
    let shopping = Shopping::at(&shop, |builder| minutes(builder).grpc_method(GET_STOCK)).await;
    let mut client = shopping.client().await;
    for run in 1..=2 {
        client.set_stock(Stock { sku: "chair".into(), units: 7 }).await.unwrap();
        assert_eq!(shop.runs.get(), run);
    }
    for _ in 0..2 {
        units(&mut client, ask_for("chair")).await;
        assert_eq!(shop.runs.get(), 3);
    }
}

#[tokio::test]
async fn a_wildcard_means_every_method_of_its_service_and_streams_stay_whole() {
    let shop = Shop::open();
    let shopping =
        Shopping::at(&shop, |builder| minutes(builder).grpc_method("/inventory.Inventory/*")).await;
    let mut client = shopping.client().await;
    for _ in 0..2 {
        units(&mut client, ask_for("chair")).await;
        assert_eq!(shop.runs.get(), 1);
    }
    for run in 2..4 {
        let mut stocks = client.watch_stock(ask_for("chair")).await.unwrap().into_inner();
        for units in 0..3 {
            assert_eq!(stocks.message().await.unwrap().unwrap().units, units);
        }
        assert!(stocks.message().await.unwrap().is_none());
        assert_eq!(shop.runs.get(), run, "streams are not shared");
    }
}

#[tokio::test]
async fn a_method_has_times_of_its_own() {
    let shop = Shop::open();
    let brief = GrpcMethod::new().ttl(Duration::from_secs(5)).stale_while_revalidate(Duration::ZERO);
    let shopping = Shopping::at(&shop, |builder| {
        minutes(builder).grpc_method("/inventory.Inventory/*").grpc_method_with(GET_STOCK, brief)
    })
    .await;
    let mut client = shopping.client().await;
    for (seconds, expected) in [(0, 1), (4, 1), (2, 2), (4, 2)] {
        shopping.clock.advance(Duration::from_secs(seconds));
        assert_eq!(units(&mut client, ask_for("chair")).await, expected);
    }
}

#[tokio::test]
async fn jitter_of_a_method_shortens_its_freshness() {
    let shop = Shop::open();
    let jittery = GrpcMethod::new().jitter(1.0).stale_while_revalidate(Duration::ZERO);
    let shopping =
        Shopping::at(&shop, |builder| minutes(builder).seed(7).grpc_method_with(GET_STOCK, jittery)).await;
    let mut client = shopping.client().await;
    for sku in 0..20 {
        units(&mut client, ask_for(&sku.to_string())).await;
    }
    shopping.clock.advance(Duration::from_secs(30));
    for sku in 0..20 {
        units(&mut client, ask_for(&sku.to_string())).await;
    }
    // Without it, all would be fresh for the minute.
    assert!((25..40).contains(&shop.runs.get()), "{}", shop.runs.get());
}

#[tokio::test]
async fn compressed_calls_and_replies_are_shared_with_those_who_can_read_them() {
    let shop = Shop::open();
    let guard = minutes(StampedeGuard::builder()).grpc_method(GET_STOCK).build().unwrap();
    let service = shop.service().accept_compressed(Gzip).send_compressed(Gzip);
    let site = Site::new(On::Tonic, Front::Grpc(guard), Routes::new(service)).await;
    let plain = InventoryClient::new(site.connect().await);
    let reads = plain.clone().accept_compressed(Gzip);
    let both = reads.clone().send_compressed(Gzip);
    for (run, mut client) in [(1, plain), (2, reads), (3, both)] {
        let sku = "chair ".repeat(100);
        for _ in 0..2 {
            let reply = client.get_stock(ask_for(&sku)).await.unwrap();
            let encoding = reply.metadata().get("grpc-encoding").map(|encoding| encoding.to_str().unwrap());
            assert_eq!(encoding, if run == 1 { None } else { Some("gzip") });
            assert_eq!(*reply.get_ref(), Stock { sku: sku.clone(), units: run });
        }
    }
}

#[tokio::test]
async fn a_refresh_says_how_to_read_it_and_what_can_be_read() {
    let shop = Shop::open();
    let (clock, builder) = clocked();
    // Not even these are left out, if no metadata is to count.
    let guard = minutes(builder.key_headers([])).grpc_method(GET_STOCK).build().unwrap();
    let service = shop.service().accept_compressed(Gzip).send_compressed(Gzip);
    let site = Site::new(On::Tonic, Front::Grpc(guard.clone()), Routes::new(service)).await;
    let client = InventoryClient::new(site.connect().await);
    let mut client = client.accept_compressed(Gzip).send_compressed(Gzip);
    assert_eq!(units(&mut client, ask_for("chair")).await, 1);
    clock.advance(Duration::from_secs(61));
    assert_eq!(units(&mut client, ask_for("chair")).await, 1);
    settle(|| guard.stats().refreshes == 1 && guard.stats().in_flight == 0).await;
    let reply = client.get_stock(ask_for("chair")).await.unwrap();
    assert_eq!(reply.metadata().get("grpc-encoding").unwrap(), "gzip");
    assert_eq!(reply.get_ref().units, 2);
}

#[tokio::test]
async fn invalidation_and_limits_of_the_store_hold_for_calls() {
    let shop = Shop::open();
    let shopping = Shopping::at(&shop, |builder| minutes(builder).grpc_method(GET_STOCK)).await;
    let mut client = shopping.client().await;
    assert_eq!(units(&mut client, ask_for("chair")).await, 1);
    shopping.guard.invalidate(GET_STOCK).unwrap();
    assert_eq!(units(&mut client, ask_for("chair")).await, 2);
    shopping.guard.invalidate_all();
    assert_eq!(units(&mut client, ask_for("chair")).await, 3);
    let stats = shopping.guard.stats();
    assert_eq!((stats.led, stats.hits), (3, 0));
    assert_eq!(units(&mut client, ask_for("chair")).await, 3);
    assert_eq!(shopping.guard.stats().hits, 1);
    assert!(shopping.guard.stats().bytes > 100, "its key, metadata and message");
}

#[tokio::test]
async fn a_call_that_is_too_long_for_a_key_passes_through_and_drops_nothing() {
    let shop = Shop::open();
    let shopping = Shopping::at(&shop, |builder| minutes(builder).grpc_method(GET_STOCK)).await;
    let mut client = shopping.client().await;
    assert_eq!(units(&mut client, ask_for("chair")).await, 1);
    for length in [8_100, 8_192, 100_000] {
        let sku = "x".repeat(length);
        let runs = shop.runs.get();
        for _ in 0..2 {
            let stock = client.get_stock(ask_for(&sku)).await.unwrap().into_inner();
            assert_eq!(stock.sku, sku);
        }
        assert_eq!(shop.runs.get(), runs + 2, "{length}");
    }
    assert_eq!(units(&mut client, ask_for("chair")).await, 1, "it is stored still");
}

#[tokio::test]
async fn one_layer_serves_rest_and_grpc_of_one_axum_router() {
    let (shop, rest) = (Shop::open(), Runs::default());
    let guard = StampedeGuard::builder().grpc_method(GET_STOCK).build().unwrap();
    let runs = rest.clone();
    let router = Routes::new(shop.service()).into_axum_router();
    let router = router.route(
        "/products",
        axum::routing::get(move || {
            let run = runs.add();
            async move { run.to_string() }
        }),
    );
    let site = Site::new(On::Axum, Front::Grpc(guard), Routes::from(router)).await;
    let mut client = InventoryClient::new(site.connect().await);
    for _ in 0..2 {
        assert_eq!(units(&mut client, ask_for("chair")).await, 1);
    }
    let http = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new());
    let http = http.build_http::<axum::body::Body>();
    let uri: axum::http::Uri = format!("http://{}/products", site.address).parse().unwrap();
    for is_stored in [false, true] {
        let response = http.get(uri.clone()).await.unwrap();
        assert_eq!(response.headers().contains_key("age"), is_stored);
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        assert_eq!(body, "1");
    }
}

#[tokio::test]
async fn a_guarded_service_keeps_its_name() {
    use tonic::service::LayerExt;
    let shop = Shop::open();
    let guard = StampedeGuard::builder().grpc_method(GET_STOCK).build().unwrap();
    let (plain, keyed) = (Shop::open(), shop.clone());
    let plainly = StampedeGuard::new().named_layer(plain.service());
    let site = Site::new(On::Tonic, Front::Nothing, Routes::new(guard.named_layer(keyed.service()))).await;
    let other = Site::new(On::Tonic, Front::Nothing, Routes::new(plainly)).await;
    for _ in 0..2 {
        assert_eq!(units(&mut InventoryClient::new(site.connect().await), ask_for("chair")).await, 1);
        units(&mut InventoryClient::new(other.connect().await), ask_for("chair")).await;
    }
    assert_eq!((shop.runs.get(), plain.runs.get()), (1, 2));
}

/// Lets the call say what its reply says of itself.
async fn says(request: axum::extract::Request, next: axum::middleware::Next) -> axum::response::Response {
    let says = request.headers().get("x-says").cloned();
    let mut response = next.run(request).await;
    if let Some(says) = says {
        response.headers_mut().insert("cache-control", says);
    }
    response
}

#[tokio::test]
async fn metadata_of_the_reply_has_a_say_in_what_is_stored() {
    let shop = Shop::open();
    let guard = minutes(StampedeGuard::builder()).grpc_method(GET_STOCK).build().unwrap();
    let directives = [("no-store", 2), ("private", 2), ("max-age=60", 1)];
    let router = Routes::new(shop.service()).into_axum_router();
    let router = router.layer(axum::middleware::from_fn(says));
    let site = Site::new(On::Tonic, Front::Grpc(guard), Routes::from(router)).await;
    let mut client = InventoryClient::new(site.connect().await);
    for (says, expected) in directives {
        let before = shop.runs.get();
        for _ in 0..2 {
            let request: Request<StockRequest> = with(ask_for("chair"), "x-says", says);
            client.get_stock(request).await.unwrap();
        }
        assert_eq!(shop.runs.get() - before, expected, "{says}");
    }
}

#[test]
fn names_and_settings_are_checked_when_the_guard_is_built() {
    for name in ["GetStock", "inventory.Inventory/GetStock", "/inventory.Inventory", "/a/b/c", ""] {
        let error = StampedeGuard::builder().grpc_method(name).build().unwrap_err();
        assert_eq!(error.field(), "grpc_method");
        assert!(error.to_string().contains("/package.Service/Method"), "{error}");
    }
    let times = [
        ("ttl", GrpcMethod::new().ttl(Duration::ZERO)),
        ("jitter", GrpcMethod::new().jitter(1.1)),
        ("load_timeout", GrpcMethod::new().load_timeout(Duration::ZERO)),
    ];
    for (field, method) in times {
        let error = StampedeGuard::builder().grpc_method_with(GET_STOCK, method).build().unwrap_err();
        assert_eq!(error.field(), field);
    }
    let builder = StampedeGuard::builder().grpc_method(GET_STOCK).max_waiters_per_key(0);
    assert_eq!(builder.build().unwrap_err().field(), "max_waiters_per_key");
}
