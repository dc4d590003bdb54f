//! The time from a request to the first frame of its body, over real sockets: through the guard and without it, in turn.
//!
//! The handler sends its first frame at once and the second when the client has the first, so a guard that waits for
//! more than one frame never ends. Fails where the medians are more than a millisecond apart. Without `--bench` it
//! makes a few requests, and no judgement.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use futures_util::stream;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use stampede_guard::StampedeGuard;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// What the guard may add.
const BUDGET: Duration = Duration::from_millis(1);
const FRAME: usize = 1_024;

/// One server, and a client that asks it for pages it has not seen.
struct Site {
    client: SendRequest<Empty<Bytes>>,
    second_frames: Arc<Semaphore>,
    asked: usize,
}

impl Site {
    async fn new(layered: impl FnOnce(Router) -> Router) -> Self {
        let second_frames = Arc::new(Semaphore::new(0));
        let gate = Arc::clone(&second_frames);
        let handler = move |_: Request| {
            let gate = Arc::clone(&gate);
            let frames = stream::unfold(0, move |sent| {
                let gate = Arc::clone(&gate);
                async move {
                    if sent == 1 {
                        gate.acquire().await.ok()?.forget();
                    }
                    (sent < 2)
                        .then(|| (Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; FRAME])), sent + 1))
                }
            });
            std::future::ready(Body::from_stream(frames))
        };
        let address = serve(layered(Router::new().fallback(handler))).await;
        let stream = TcpStream::connect(address).await.expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        let (client, connection) = handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        Self { client, second_frames, asked: 0 }
    }

    /// The time to the first frame.
    async fn ask(&mut self) -> Duration {
        self.asked += 1;
        let request = Request::get(format!("/{}", self.asked)).header("host", "bench.example");
        let request = request.body(Empty::new()).expect("a valid request");
        self.client.ready().await.expect("an open connection");
        let start = Instant::now();
        let mut body = self.client.send_request(request).await.expect("a response").into_body();
        let first = body.frame().await.expect("a frame").expect("no error");
        let took = start.elapsed();
        assert_eq!(first.data_ref().map(Bytes::len), Some(FRAME));
        self.second_frames.add_permits(1);
        let rest = body.collect().await.expect("the rest");
        assert_eq!(rest.to_bytes().len(), FRAME);
        took
    }
}

async fn serve(app: Router) -> SocketAddr {
    use axum::serve::ListenerExt;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("a socket"));
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let rounds = if is_bench { 5_000 } else { 5 };
    let mut bare = Site::new(|app| app).await;
    let mut guarded = Site::new(|app| app.layer(StampedeGuard::new())).await;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        without.push(bare.ask().await);
        with.push(guarded.ask().await);
    }
    if !is_bench {
        return ExitCode::SUCCESS;
    }
    let (without, with) = (median(without), median(with));
    let more = with.saturating_sub(without);
    let verdict = if more <= BUDGET { "met" } else { "MISSED" };
    println!(
        "first frame: {without:?} without the guard, {with:?} through it; at most {BUDGET:?} more: {verdict}"
    );
    if more <= BUDGET { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
