//! A site behind a guard: an axum app whose handler the test writes, holds back and counts.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use stampede_guard::{ManualClock, StampedeGuard, StampedeGuardBuilder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tower::{BoxError, ServiceExt};

/// Far beyond what any test takes: a wait that lasts this long waits for something that does not come.
const NEVER: Duration = Duration::from_secs(20);

/// One run of the handler.
pub(crate) struct Call {
    /// Counted from 1.
    pub(crate) run: usize,
    pub(crate) parts: Parts,
    pub(crate) body: Body,
    gate: Arc<Semaphore>,
}

impl Call {
    /// Waits for the test to let one run through.
    pub(crate) fn gate(&self) -> impl Future<Output = ()> + Send + use<> {
        let gate = Arc::clone(&self.gate);
        async move { gate.acquire().await.unwrap().forget() }
    }

    pub(crate) fn header(&self, name: &str) -> String {
        self.parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    }
}

#[derive(Default)]
pub(crate) struct Origin {
    runs: AtomicUsize,
    seen: Mutex<Vec<Parts>>,
}

#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) router: Router,
    pub(crate) guard: StampedeGuard,
    pub(crate) clock: ManualClock,
    origin: Arc<Origin>,
    gate: Arc<Semaphore>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) broke: bool,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// Reads a response to its end.
pub(crate) async fn read(response: Response<Body>) -> Got {
    let (head, mut body) = response.into_parts();
    let mut got =
        Got { status: head.status, headers: head.headers, body: String::new(), trailers: None, broke: false };
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Err(_) => {
                got.broke = true;
                break;
            }
            Ok(Ok(data)) => got.body.push_str(std::str::from_utf8(&data).unwrap()),
            Ok(Err(frame)) => got.trailers = frame.into_trailers().ok(),
        }
    }
    got
}

/// The handler that answers with the number of its run, and headers.
pub(crate) fn numbered<const N: usize>(
    headers: [(&'static str, &'static str); N],
) -> impl Fn(Call) -> std::future::Ready<Response<Body>> + Clone + Send + Sync + 'static {
    move |call| std::future::ready(answer(200, &headers, call.run.to_string()))
}

pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        response.headers_mut().append(name, value.parse().unwrap());
    }
    response
}

impl Site {
    /// A site whose guard has a clock of its own and no jitter.
    pub(crate) fn new<F, Fut>(
        settings: impl FnOnce(StampedeGuardBuilder) -> StampedeGuardBuilder,
        handler: F,
    ) -> Self
    where
        F: Fn(Call) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        let clock = ManualClock::new();
        let builder = StampedeGuard::builder().jitter(0.0).clock(clock.clone());
        let guard = settings(builder).build().unwrap();
        let origin = Arc::new(Origin::default());
        let gate = Arc::new(Semaphore::new(0));
        let (counted, held) = (Arc::clone(&origin), Arc::clone(&gate));
        let router = Router::new()
            .fallback(move |request: Request<Body>| {
                let (parts, body) = request.into_parts();
                counted.seen.lock().unwrap().push(parts.clone());
                let run = counted.runs.fetch_add(1, Ordering::SeqCst) + 1;
                handler(Call { run, parts, body, gate: Arc::clone(&held) })
            })
            .layer(guard.clone());
        Self { router, guard, clock, origin, gate }
    }

    pub(crate) fn runs(&self) -> usize {
        self.origin.runs.load(Ordering::SeqCst)
    }

    /// What the handler saw in its last run.
    pub(crate) fn last_seen(&self) -> Parts {
        self.origin.seen.lock().unwrap().last().unwrap().clone()
    }

    /// Lets so many runs through the gate.
    pub(crate) fn open(&self, runs: usize) {
        self.gate.add_permits(runs);
    }

    pub(crate) async fn response(&self, request: Request<Body>) -> Response<Body> {
        within(self.router.clone().oneshot(request)).await.unwrap()
    }

    pub(crate) async fn ask(&self, request: Request<Body>) -> Got {
        read(self.response(request).await).await
    }

    /// Asks in a task.
    pub(crate) fn start(&self, request: Request<Body>) -> JoinHandle<Got> {
        let site = self.clone();
        tokio::spawn(async move { site.ask(request).await })
    }

    /// Asks in a task, and waits until the handler runs for it.
    pub(crate) async fn lead(&self, request: Request<Body>) -> JoinHandle<Got> {
        let runs = self.runs();
        let asked = self.start(request);
        until(|| self.runs() > runs).await;
        asked
    }

    /// Asks in tasks, and waits until all of them wait for a run that is under way.
    pub(crate) async fn follow(
        &self,
        requests: impl IntoIterator<Item = Request<Body>>,
    ) -> Vec<JoinHandle<Got>> {
        let before = self.guard.stats().flights.coalesced;
        let asked: Vec<_> = requests.into_iter().map(|request| self.start(request)).collect();
        until(|| self.guard.stats().flights.coalesced >= before + asked.len() as u64).await;
        asked
    }

    /// Whether the second of two requests is answered with what the first left.
    pub(crate) async fn shares(&self, one: Request<Body>, other: Request<Body>) -> bool {
        // Bodies are numbered by run.
        self.ask(one).await.body == self.ask(other).await.body
    }

    /// Waits until nothing is stored or loaded any more that a task still has to finish.
    pub(crate) async fn settled(&self, loads: u64) {
        until(|| self.guard.stats().flights.loads >= loads).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    /// Serves the site on a free port.
    pub(crate) async fn serve(&self) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = self.router.clone();
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Server { address, task }
    }
}

pub(crate) struct Server {
    address: std::net::SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends these bytes and reads until the server closes.
    pub(crate) async fn raw(&self, bytes: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        within(stream.read_to_end(&mut all)).await.unwrap();
        String::from_utf8(all).unwrap()
    }

    /// The body of the answer to one request by a real client.
    pub(crate) async fn get(
        &self,
        request: Request<Body>,
    ) -> Result<(StatusCode, HeaderMap, Bytes), BoxError> {
        let stream = hyper_util::rt::TokioIo::new(self.connect().await);
        let (mut client, connection) = hyper::client::conn::http1::handshake(stream).await?;
        let connection = tokio::spawn(connection);
        let (head, body) = within(client.send_request(request)).await?.into_parts();
        let body = within(body.collect()).await?.to_bytes();
        connection.abort();
        Ok((head.status, head.headers, body))
    }
}

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(NEVER, future).await.expect("it comes in time")
}

/// Lets the other tasks run until `condition` holds.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < NEVER, "it comes in time");
        tokio::task::yield_now().await;
    }
}

pub(crate) async fn all(asked: Vec<JoinHandle<Got>>) -> Vec<Got> {
    let mut got = Vec::new();
    for asked in asked {
        got.push(within(asked).await.unwrap());
    }
    got
}

pub(crate) fn bodies(got: &[Got]) -> Vec<&str> {
    got.iter().map(|got| got.body.as_str()).collect()
}

pub(crate) fn request(method: &str, uri: &str) -> Request<Body> {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = Request::builder().method(method).uri(uri).header(header::HOST, "shop.example");
    request.body(Body::empty()).unwrap()
}

pub(crate) fn get(uri: &str) -> Request<Body> {
    request("GET", uri)
}

pub(crate) fn head(uri: &str) -> Request<Body> {
    request("HEAD", uri)
}

/// With one more line of `name`.
pub(crate) fn with(mut request: Request<Body>, name: &str, value: &str) -> Request<Body> {
    let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
    request.headers_mut().append(name, value.parse().unwrap());
    request
}

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A body by frames: each comes when the test sends it.
pub(crate) struct Frames {
    coming: tokio::sync::mpsc::UnboundedReceiver<Result<Frame<Bytes>, BoxError>>,
    exact: Option<u64>,
}

pub(crate) type FrameSender = tokio::sync::mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>;

pub(crate) fn frames(exact: Option<u64>) -> (FrameSender, Body) {
    let (sender, coming) = tokio::sync::mpsc::unbounded_channel();
    (sender, Body::new(Frames { coming, exact }))
}

#[expect(clippy::unnecessary_wraps, reason = "it is what a sender of frames takes")]
pub(crate) fn data(bytes: &'static str) -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::data(Bytes::from_static(bytes.as_bytes())))
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.coming.poll_recv(cx)
    }

    fn size_hint(&self) -> SizeHint {
        self.exact.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

/// Bodies to be handed out, one a run.
#[derive(Clone, Default)]
pub(crate) struct Bodies(Arc<Mutex<VecDeque<Body>>>);

impl Bodies {
    pub(crate) fn add(&self, exact: Option<u64>) -> FrameSender {
        let (sender, body) = frames(exact);
        self.0.lock().unwrap().push_back(body);
        sender
    }

    pub(crate) fn next(&self) -> Body {
        self.0.lock().unwrap().pop_front().unwrap_or_else(|| Body::from("own"))
    }
}
