//! A server on a free port of this machine, and its clients.

use std::net::SocketAddr;

use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use http_body_util::BodyExt;
use stampede_guard::{GrpcStampedeGuard, StampedeGuard};
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tower::util::MapRequestLayer;

use crate::common::Runs;

/// What stands in front of the services.
#[derive(Clone)]
pub(crate) enum Front {
    Nothing,
    Guard(StampedeGuard),
    Grpc(GrpcStampedeGuard),
}

#[derive(Clone, Copy)]
pub(crate) enum On {
    Tonic,
    Axum,
}

/// A server that runs until its test ends.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    /// Requests that reached the server.
    pub(crate) arrived: Runs,
    /// Requests that reached the services.
    pub(crate) handled: Runs,
}

pub(crate) const INITIAL: &str = "x-grpc-test-echo-initial";
pub(crate) const TRAILING: &str = "x-grpc-test-echo-trailing-bin";

/// Gives back metadata of the call, at the head of the reply and behind it.
async fn echo(request: Request, next: Next) -> Response {
    let [initial, trailing] = [INITIAL, TRAILING].map(|name| request.headers().get(name).cloned());
    let mut response = next.run(request).await;
    if let Some(value) = initial {
        response.headers_mut().insert(INITIAL, value);
    }
    response.map(|body| {
        axum::body::Body::new(body.map_frame(move |mut frame| {
            if let (Some(trailers), Some(value)) = (frame.trailers_mut(), &trailing) {
                trailers.insert(TRAILING, value.clone());
            }
            frame
        }))
    })
}

impl Site {
    pub(crate) async fn new(on: On, front: Front, routes: Routes) -> Self {
        let site = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            arrived: Runs::default(),
            handled: Runs::default(),
        };
        let handled = site.handled.clone();
        let count = move |request: Request, next: Next| {
            handled.add();
            next.run(request)
        };
        let router = routes.into_axum_router().layer(from_fn(echo)).layer(from_fn(count));
        match on {
            On::Tonic => site.on_tonic(front, router),
            On::Axum => site.on_axum(front, router.route("/rest", get(|| async { "rest" }))).await,
        }
    }

    fn on_tonic(mut self, front: Front, router: axum::Router) -> Self {
        let incoming = TcpIncoming::bind(self.address).unwrap();
        self.address = incoming.local_addr().unwrap();
        let arrived = self.arrived.clone();
        let mut server = Server::builder().layer(MapRequestLayer::new(move |request: http::Request<_>| {
            arrived.add();
            request
        }));
        let routes = Routes::from(router);
        match front {
            Front::Nothing => {
                tokio::spawn(server.add_routes(routes).serve_with_incoming(incoming));
            }
            Front::Guard(guard) => {
                tokio::spawn(server.layer(guard).add_routes(routes).serve_with_incoming(incoming));
            }
            Front::Grpc(guard) => {
                tokio::spawn(server.layer(guard).add_routes(routes).serve_with_incoming(incoming));
            }
        }
        self
    }

    async fn on_axum(mut self, front: Front, router: axum::Router) -> Self {
        let listener = tokio::net::TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let app = match front {
            Front::Nothing => router,
            Front::Guard(guard) => router.layer(guard),
            Front::Grpc(guard) => router.layer(guard),
        };
        let arrived = self.arrived.clone();
        let app = app.layer(MapRequestLayer::new(move |request: http::Request<_>| {
            arrived.add();
            request
        }));
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        self
    }

    /// A client with a connection of its own.
    pub(crate) async fn connect(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }
}
