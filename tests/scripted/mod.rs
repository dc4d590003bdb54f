//! Handlers and bodies that do what a test tells them, step by step, and clients on real sockets.

// Each test binary uses a part of it.
#![allow(dead_code)]
// What is sent is a piece, broken or not.
#![allow(clippy::unnecessary_wraps)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::{HeaderMap, Request, Response, StatusCode};
use stampede_guard::{GuardBody, GuardService, GuardStats, StampedeGuard};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tower::util::BoxCloneService;
use tower::{BoxError, Layer, Service, ServiceExt};

/// Counts things alive, and how many there were at most.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gauge(Arc<[AtomicUsize; 3]>);

impl Gauge {
    /// One more of `size`, until dropped.
    pub(crate) fn enter(&self, size: usize) -> Entered {
        self.0[2].fetch_add(1, Ordering::SeqCst);
        let alive = self.0[0].fetch_add(size, Ordering::SeqCst) + size;
        self.0[1].fetch_max(alive, Ordering::SeqCst);
        Entered { gauge: self.clone(), size }
    }

    pub(crate) fn alive(&self) -> usize {
        self.0[0].load(Ordering::SeqCst)
    }

    pub(crate) fn peak(&self) -> usize {
        self.0[1].load(Ordering::SeqCst)
    }

    pub(crate) fn entered(&self) -> usize {
        self.0[2].load(Ordering::SeqCst)
    }

    /// Bytes that count for as long as anybody holds them.
    pub(crate) fn bytes(&self, size: usize) -> Bytes {
        struct Owner(Vec<u8>, #[allow(dead_code)] Entered);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        Bytes::from_owner(Owner(vec![b'x'; size], self.enter(size)))
    }
}

#[derive(Debug)]
pub(crate) struct Entered {
    gauge: Gauge,
    size: usize,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.gauge.0[0].fetch_sub(self.size, Ordering::SeqCst);
    }
}

/// Waits until `condition` holds; fails after ten seconds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(tokio::time::Instant::now() < limit, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// `future`, which must not take ten seconds.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("not within 10 s")
}

pub(crate) type Piece = Result<Frame<Bytes>, std::io::Error>;

/// What a test sends a body's pieces with. Dropped, the body ends.
pub(crate) type Pipe = mpsc::UnboundedSender<Piece>;

/// A body that is neither `Sync` nor `Default`, and comes when the test sends it.
#[derive(Debug)]
pub(crate) struct Piped {
    pieces: mpsc::UnboundedReceiver<Piece>,
    length: Option<u64>,
    alive: Option<Entered>,
    not_sync: std::marker::PhantomData<std::cell::Cell<()>>,
}

pub(crate) fn piped(length: Option<u64>) -> (Pipe, Piped) {
    let (pipe, pieces) = mpsc::unbounded_channel();
    (pipe, Piped { pieces, length, alive: None, not_sync: std::marker::PhantomData })
}

impl Piped {
    pub(crate) fn counted(mut self, gauge: &Gauge) -> Self {
        self.alive = Some(gauge.enter(1));
        self
    }
}

impl Body for Piped {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        let piece = self.pieces.poll_recv(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(left)) = (&piece, self.length) {
            self.length = Some(left.saturating_sub(frame.data_ref().map_or(0, Bytes::len) as u64));
        }
        piece
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

pub(crate) fn data(bytes: impl Into<Bytes>) -> Piece {
    Ok(Frame::data(bytes.into()))
}

pub(crate) fn trailers(name: &'static str, value: &'static str) -> Piece {
    let mut trailers = HeaderMap::new();
    trailers.insert(name, value.parse().unwrap());
    Ok(Frame::trailers(trailers))
}

pub(crate) fn broken() -> Piece {
    Err(std::io::Error::other("the disk is gone"))
}

/// The whole of a body that is complete.
pub(crate) async fn text<B>(response: Response<B>) -> String
where
    B: Body,
    B::Error: std::fmt::Debug,
{
    String::from_utf8(soon(response.into_body().collect()).await.unwrap().to_bytes().to_vec()).unwrap()
}

/// A request that reached the handler, to be answered by the test.
#[derive(Debug)]
pub(crate) struct Call<X = Infallible> {
    pub(crate) request: Request<Empty<Bytes>>,
    answer: oneshot::Sender<Result<Response<Piped>, X>>,
}

impl<X> Call<X> {
    /// Whether anybody runs the handler still.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.answer.is_closed()
    }

    pub(crate) fn fails(self, error: X) {
        let _ = self.answer.send(Err(error));
    }

    pub(crate) fn respond(self, response: Response<Piped>) {
        let _ = self.answer.send(Ok(response));
    }

    /// A 200 whose body the test sends, with these headers.
    pub(crate) fn begin(self, headers: &[(&str, &str)], body: Piped) {
        let mut response = Response::builder();
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        self.respond(response.body(body).unwrap());
    }

    /// A 200 with this body, at once.
    pub(crate) fn done(self, body: &'static str) {
        self.begin(&[], whole(body));
    }
}

pub(crate) fn whole(text: &'static str) -> Piped {
    let (pipe, body) = piped(Some(text.len() as u64));
    pipe.send(data(text)).unwrap();
    body
}

pub(crate) type Answer<X = Infallible> = Result<Response<GuardBody<Piped>>, X>;
pub(crate) type Inner<X = Infallible> = BoxCloneService<Request<Empty<Bytes>>, Response<Piped>, X>;

/// A handler that asks the test for each answer.
#[derive(Debug)]
pub(crate) struct Origin<X = Infallible> {
    calls: mpsc::UnboundedReceiver<Call<X>>,
}

pub(crate) fn origin<X: Send + 'static>() -> (Inner<X>, Origin<X>) {
    let (sender, calls) = mpsc::unbounded_channel();
    let handler = tower::service_fn(move |request| {
        let (answer, answered) = oneshot::channel();
        let _ = sender.send(Call { request, answer });
        async move {
            match answered.await {
                Ok(answer) => answer,
                Err(_) => std::future::pending().await,
            }
        }
    });
    (BoxCloneService::new(handler), Origin { calls })
}

impl<X> Origin<X> {
    /// The next handler run.
    pub(crate) async fn run(&mut self) -> Call<X> {
        soon(self.calls.recv()).await.expect("the handler is there")
    }

    /// That no handler runs but those taken.
    pub(crate) async fn rests(&mut self) {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        assert!(self.calls.try_recv().is_err(), "another handler run");
    }
}

/// A guard in front of a handler that the test plays.
pub(crate) struct Stage<X = Infallible> {
    pub(crate) guard: StampedeGuard,
    pub(crate) service: GuardService<Inner<X>>,
    pub(crate) origin: Origin<X>,
}

impl<X: Send + 'static> Stage<X> {
    pub(crate) fn new(guard: StampedeGuard) -> Self {
        let (inner, origin) = origin();
        Self { service: guard.layer(inner), guard, origin }
    }

    pub(crate) fn stats(&self) -> GuardStats {
        self.guard.stats()
    }

    /// A client that asks.
    pub(crate) fn ask(&self, request: Request<Empty<Bytes>>) -> JoinHandle<Answer<X>> {
        tokio::spawn(self.service.clone().oneshot(request))
    }

    pub(crate) fn get(&self, uri: &str) -> JoinHandle<Answer<X>> {
        self.ask(get(uri))
    }

    /// Clients that wait for a handler run under way.
    pub(crate) async fn followers(&self, uri: &str, count: u64) -> Vec<JoinHandle<Answer<X>>> {
        let before = self.stats().flights.coalesced;
        let followers = (0..count).map(|_| self.get(uri)).collect();
        until("the followers wait", || self.stats().flights.coalesced == before + count).await;
        followers
    }
}

pub(crate) fn get(uri: &str) -> Request<Empty<Bytes>> {
    Request::get(uri).header("host", "shop.example").body(Empty::new()).unwrap()
}

pub(crate) fn head(uri: &str) -> Request<Empty<Bytes>> {
    let mut request = get(uri);
    *request.method_mut() = hyper::Method::HEAD;
    request
}

/// The response to a client that is served soon.
pub(crate) async fn served(client: JoinHandle<Answer>) -> Response<GuardBody<Piped>> {
    soon(client).await.unwrap().unwrap()
}

/// The next frame of a body, as text.
pub(crate) async fn next<B>(body: &mut B) -> Option<Result<String, BoxError>>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let frame = soon(body.frame()).await?;
    Some(frame.map_err(Into::into).map(|frame| match frame.into_data() {
        Ok(data) => String::from_utf8(data.to_vec()).unwrap(),
        Err(frame) => format!("{:?}", frame.into_trailers().unwrap()),
    }))
}

/// The app on a socket of its own.
pub(crate) async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// A client's connection. Dropped, it closes.
pub(crate) struct Client {
    sender: hyper::client::conn::http1::SendRequest<Empty<Bytes>>,
    connection: tokio::task::AbortHandle,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = loop {
            // A herd may fill the listener's queue.
            match TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let io = hyper_util::rt::TokioIo::new(stream);
        let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        Self { sender, connection: tokio::spawn(async move { drop(connection.await) }).abort_handle() }
    }

    pub(crate) async fn send(&mut self, request: Request<Empty<Bytes>>) -> Response<Incoming> {
        self.sender.ready().await.unwrap();
        self.sender.send_request(request).await.unwrap()
    }

    pub(crate) async fn get(&mut self, uri: &str) -> Response<Incoming> {
        self.send(get(uri)).await
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// One request on a connection of its own: status and body.
pub(crate) async fn fetch(address: SocketAddr, uri: String) -> (StatusCode, String) {
    let mut client = Client::connect(address).await;
    let response = client.get(&uri).await;
    let status = response.status();
    (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

/// Asks a service once, as a caller that waits for readiness does.
pub(crate) async fn ask<S, B>(service: &S, request: Request<B>) -> Result<S::Response, S::Error>
where
    S: Service<Request<B>> + Clone,
{
    service.clone().oneshot(request).await
}
