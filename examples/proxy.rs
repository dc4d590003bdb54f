//! A caching reverse proxy: the guard in front of any origin.
//!
//! ```text
//! # Without arguments: starts an origin of its own, shows a few requests and what became of them, and ends.
//! cargo run --example proxy
//!
//! # In front of a real origin, as a shared cache that obeys the origin's headers alone.
//! cargo run --example proxy -- --origin http://127.0.0.1:8000 --listen 8080
//! ```
//!
//! Its defaults are those of a classic shared cache, which takes the origin at its word: the key is method and URI,
//! and what responses name in `Vary`; responses to authorized requests are shared where they say so (RFC 9111, section
//! 3.5). They suit an origin that says all that matters. In front of any other, `--key-all-headers` and
//! `--no-share-authorized` bring back the guard's own, safe defaults.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, HeaderName, TRANSFER_ENCODING, UPGRADE};
use axum::http::uri::{Authority, PathAndQuery, Scheme};
use axum::http::{HeaderMap, StatusCode, Uri, Version};
use axum::response::{IntoResponse, Response};
use clap::Parser;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use stampede_guard::{StampedeGuard, StampedeGuardBuilder};
use tokio::net::TcpListener;

/// A caching reverse proxy.
#[derive(Parser)]
#[allow(clippy::struct_excessive_bools)] // each is one flag
struct Arguments {
    /// Where requests go, as in `http://127.0.0.1:8000`. Without it a demonstration runs, and ends
    #[arg(long, value_name = "URL")]
    origin: Option<Uri>,

    /// The port to listen on, on the loopback interface, or an address with a port; port 0 takes a free one
    #[arg(long, value_name = "PORT", default_value = "8080", value_parser = address)]
    listen: SocketAddr,

    /// Keep a 200 that says nothing about freshness for so many seconds. Without it, only what the origin says counts
    #[arg(long, value_name = "SECONDS", conflicts_with = "coalesce_only")]
    ttl: Option<f64>,

    /// For so many seconds after its freshness, let a response stand in for an origin that fails or is out of reach, unless
    /// it forbids that. Without it, only what the origin says counts (RFC 5861)
    #[arg(long, value_name = "SECONDS")]
    stale_if_error: Option<f64>,

    /// Store nothing beyond the responses' own word. It is the default; the flag says so
    #[arg(long)]
    coalesce_only: bool,

    /// Key these request headers beside method, URI and `Vary`
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    key_headers: Vec<String>,

    /// Key no request header: method, URI and `Vary` alone. It is the default; the flag says so
    #[arg(long, conflicts_with = "key_headers")]
    key_headers_none: bool,

    /// Key every request header but a closed list, as the guard does by default
    #[arg(long, conflicts_with_all = ["key_headers", "key_headers_none"])]
    key_all_headers: bool,

    /// Let requests with Authorization go straight through, as the guard does by default
    #[arg(long)]
    no_share_authorized: bool,

    /// Do not guess how long a response is fresh that says nothing but when it was last changed
    #[arg(long)]
    no_heuristics: bool,

    /// A response field whose directives come before those of Cache-Control (RFC 9213)
    #[arg(long, value_name = "FIELD", default_value = "CDN-Cache-Control")]
    targeted: String,

    /// Heed the Cache-Control of clients
    #[arg(long)]
    honor_clients: bool,

    /// Add Cache-Status to responses, with this name
    #[arg(long, value_name = "NAME")]
    cache_status: Option<String>,

    /// The share of its lifetime by which a response's freshness is shortened at most, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    jitter: f64,
}

impl Arguments {
    fn guard(&self) -> Result<StampedeGuard, Failure> {
        let mut guard: StampedeGuardBuilder = StampedeGuard::builder()
            .jitter(self.jitter)
            .heuristic_freshness((!self.no_heuristics).then_some(0.1))
            .targeted_cache_control(&self.targeted)
            .share_authorized(!self.no_share_authorized)
            .honor_client_directives(self.honor_clients);
        guard = match self.ttl {
            Some(seconds) => guard.ttl(Duration::try_from_secs_f64(seconds)?),
            None => guard.coalesce_only(),
        };
        if let Some(seconds) = self.stale_if_error {
            guard = guard.stale_if_error(Duration::try_from_secs_f64(seconds)?);
        }
        if let Some(name) = &self.cache_status {
            guard = guard.cache_status(name);
        }
        if !self.key_all_headers {
            guard = guard.key_headers(self.key_headers.iter().map(String::as_str));
        }
        Ok(guard.build()?)
    }
}

/// A port of the loopback interface, or an address.
fn address(given: &str) -> Result<SocketAddr, Failure> {
    match given.parse() {
        Ok(port) => Ok((Ipv4Addr::LOCALHOST, port).into()),
        Err(_) => Ok(given.parse()?),
    }
}

type Failure = Box<dyn Error + Send + Sync>;

/// How long a connection to the origin is kept while nobody uses it. Many servers close theirs after 5 seconds; a
/// request that meets that moment is lost.
const IDLE: Duration = Duration::from_secs(2);

/// The origin, and the connections to it.
struct Upstream {
    scheme: Scheme,
    authority: Authority,
    client: Client<HttpConnector, Body>,
}

impl Upstream {
    fn new(origin: Uri) -> Result<Self, Failure> {
        let parts = origin.into_parts();
        let scheme = Some(parts.scheme.unwrap_or(Scheme::HTTP)).filter(|scheme| *scheme == Scheme::HTTP);
        let (Some(scheme), Some(authority)) = (scheme, parts.authority) else {
            return Err("--origin must be of the form http://HOST:PORT".into());
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build_http();
        Ok(Self { scheme, authority, client })
    }

    async fn send(&self, request: Request) -> Result<Response, Failure> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        let uri = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone());
        parts.uri = uri.path_and_query(path).build()?;
        parts.version = Version::HTTP_11;
        strip_connection(&mut parts.headers);
        let mut response = self.client.request(Request::from_parts(parts, body)).await?;
        strip_connection(response.headers_mut());
        // Of the proxy's own message, not of the origin's (RFC 9110 section 2.5).
        *response.version_mut() = Version::HTTP_11;
        Ok(response.map(Body::new))
    }
}

/// What is between two neighbours goes no further (RFC 9110 section 7.6.1).
fn strip_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let keep_alive = HeaderName::from_static("keep-alive");
    for name in named.into_iter().chain([CONNECTION, TRANSFER_ENCODING, UPGRADE, keep_alive]) {
        headers.remove(name);
    }
}

async fn forward(State(upstream): State<Arc<Upstream>>, request: Request) -> Response {
    upstream.send(request).await.unwrap_or_else(|error| {
        let mut whole = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            whole = format!("{whole}: {cause}");
            source = cause.source();
        }
        eprintln!("the origin did not answer: {whole}");
        StatusCode::BAD_GATEWAY.into_response()
    })
}

fn proxy(upstream: Upstream, guard: StampedeGuard) -> Router {
    Router::new().fallback(forward).with_state(Arc::new(upstream)).layer(guard)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    let guard = arguments.guard()?;
    let Some(origin) = arguments.origin else { return demo(guard).await };
    let listener = TcpListener::bind(arguments.listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let interrupted = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    let app = proxy(Upstream::new(origin)?, guard);
    Ok(axum::serve(listener, app).with_graceful_shutdown(interrupted).await?)
}

/// An origin that counts its requests, the proxy in front of it, and a client.
async fn demo(guard: StampedeGuard) -> Result<(), Failure> {
    let runs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&runs);
    let origin = Router::new().fallback(move |request: Request| {
        let counted = Arc::clone(&counted);
        async move {
            counted.fetch_add(1, Ordering::Relaxed);
            if request.headers().contains_key("if-none-match") {
                return (StatusCode::NOT_MODIFIED, [("cache-control", "max-age=60")], "").into_response();
            }
            let freshness = match request.uri().path() {
                "/page" => "max-age=60",
                "/checked" => "max-age=0",
                _ => "no-store",
            };
            ([("cache-control", freshness), ("etag", "\"v1\"")], "hello").into_response()
        }
    });
    let origin = serve(origin).await?;
    let upstream = Upstream::new(format!("http://{origin}").parse()?)?;
    let proxy = serve(proxy(upstream, guard)).await?;

    let client = Client::builder(TokioExecutor::new()).build_http();
    for (path, header, expected) in [
        ("/page", None, (200, 1)),
        ("/page", None, (200, 1)),
        ("/page", Some(("if-none-match", "\"v1\"")), (304, 1)),
        ("/page", Some(("range", "bytes=0-3")), (206, 1)),
        ("/checked", None, (200, 2)),
        ("/checked", None, (200, 3)),
        ("/personal", None, (200, 4)),
        ("/personal", None, (200, 5)),
    ] {
        let mut request = Request::get(format!("http://{proxy}{path}"));
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let response = client.request(request.body(Body::empty())?).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        let found = (head.status.as_u16(), runs.load(Ordering::Relaxed));
        println!(
            "GET {path} {header:?}: {} with {} bytes; origin asked {} times",
            found.0,
            body.len(),
            found.1
        );
        if found != expected {
            return Err(format!("expected status and runs of {expected:?}, got {found:?}").into());
        }
    }
    Ok(())
}

async fn serve(app: Router) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}
