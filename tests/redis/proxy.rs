//! A TCP proxy that can stop passing on, in one direction or both.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

#[derive(Default)]
struct Rules {
    /// Nothing goes through any more on the connections there are, and they stay open.
    hole: AtomicBool,
    /// Answers are swallowed from the next request on that holds this text.
    swallow_after: std::sync::Mutex<Option<Vec<u8>>>,
    /// Connections are cut by each request that holds this text.
    refused: std::sync::Mutex<Option<Vec<u8>>>,
    /// The connection is cut right behind that request.
    cut: AtomicBool,
    /// How much later each answer arrives, however many are on their way.
    delay: std::sync::Mutex<Duration>,
    connections: AtomicUsize,
    /// Of connections that are made from now on.
    target: std::sync::Mutex<Option<SocketAddr>>,
    /// Cuts the connections there are.
    cut_all: Notify,
}

pub(crate) struct Proxy {
    pub(crate) port: u16,
    rules: Arc<Rules>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let rules = Arc::<Rules>::default();
        let mine = Arc::clone(&rules);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let target = mine.target.lock().unwrap().unwrap_or(target);
                let Ok(server) = TcpStream::connect(target).await else { continue };
                mine.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(pass(client, server, Arc::clone(&mine)));
            }
        });
        Self { port, rules, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Answers arrive so much later from now on.
    pub(crate) fn delay(&self, by: Duration) {
        *self.rules.delay.lock().unwrap() = by;
    }

    pub(crate) fn black_hole(&self, on: bool) {
        self.rules.hole.store(on, Ordering::SeqCst);
    }

    /// Cuts all connections and leads new ones elsewhere.
    pub(crate) fn retarget(&self, target: SocketAddr) {
        *self.rules.target.lock().unwrap() = Some(target);
        self.rules.cut_all.notify_waiters();
    }

    /// From the next request that holds `text`, that connection's answers are lost.
    pub(crate) fn swallow_answers_after(&self, text: &str) {
        *self.rules.swallow_after.lock().unwrap() = Some(text.into());
    }

    /// The next request that holds `text` reaches the server, and then its connection is cut.
    pub(crate) fn cut_after(&self, text: &str) {
        self.rules.cut.store(true, Ordering::SeqCst);
        self.swallow_answers_after(text);
    }

    /// Whoever sends `text` is cut off, from now on.
    pub(crate) fn refuse(&self, text: &str) {
        *self.rules.refused.lock().unwrap() = Some(text.into());
    }

    pub(crate) fn connections(&self) -> usize {
        self.rules.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(client: TcpStream, server: TcpStream, rules: Arc<Rules>) {
    let end = Arc::clone(&rules);
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mute = Arc::new(AtomicBool::new(false));
    let (requests, muting) = (Arc::clone(&rules), Arc::clone(&mute));
    let mut there = tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
            if requests.hole.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let holds = |text: &Option<Vec<u8>>| {
                text.as_ref().is_some_and(|text| buffer[..read].windows(text.len()).any(|part| part == text))
            };
            if holds(&requests.refused.lock().unwrap()) {
                return;
            }
            {
                let mut text = requests.swallow_after.lock().unwrap();
                if holds(&text) {
                    *text = None;
                    muting.store(true, Ordering::SeqCst);
                }
            }
            if to_server.write_all(&buffer[..read]).await.is_err() {
                return;
            }
            if muting.load(Ordering::SeqCst) && requests.cut.swap(false, Ordering::SeqCst) {
                return;
            }
        }
    });
    let (send, mut on_their_way) = unbounded_channel::<(Instant, Vec<u8>)>();
    let mut arrive = tokio::spawn(async move {
        while let Some((due, bytes)) = on_their_way.recv().await {
            if due > Instant::now() {
                sleep_until(due).await;
            }
            if to_client.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let back = tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
            if rules.hole.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            if mute.load(Ordering::SeqCst) {
                continue;
            }
            let due = Instant::now() + *rules.delay.lock().unwrap();
            if send.send((due, buffer[..read].to_vec())).is_err() {
                return;
            }
        }
    });
    tokio::select! {
        _ = &mut there => {}
        _ = &mut arrive => {}
        () = end.cut_all.notified() => {}
    }
    for task in [there, arrive, back] {
        task.abort();
    }
}
