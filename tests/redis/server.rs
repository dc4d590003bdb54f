//! Redis servers of a test's own, and ways to make them fail.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use stampede_guard::{RedisConfig, RedisTier};

/// Longer than anything here takes on a busy machine; what waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A folder that goes with its owner.
#[derive(Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("stampede-redis-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server process, killed with its handle.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    folder: Folder,
    args: Vec<String>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further arguments for `redis-server`.
    pub(crate) fn start_with(args: &[&str]) -> Self {
        // Another process may have taken the port meanwhile.
        let started = (0..5).find_map(|_| Self::try_start_at(free_port(), args).ok());
        started.expect("redis-server runs on a free port")
    }

    pub(crate) fn start_at(port: u16, args: &[&str]) -> Self {
        Self::try_start_at(port, args).unwrap_or_else(|status| panic!("redis-server ended: {status}"))
    }

    fn try_start_at(port: u16, args: &[&str]) -> Result<Self, ExitStatus> {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let folder = Folder::new();
        let child = spawn(port, &folder, &args);
        let mut server = Self { child, port, folder, args };
        server.wait_until_it_answers()?;
        Ok(server)
    }

    /// A sentinel that watches a master by the name of `mymaster`.
    #[cfg(feature = "redis-sentinel")]
    pub(crate) fn sentinel(master: u16) -> Self {
        Self::sentinel_with(master, "")
    }

    /// With further lines for its file.
    #[cfg(feature = "redis-sentinel")]
    pub(crate) fn sentinel_with(master: u16, lines: &str) -> Self {
        let (folder, port) = (Folder::new(), free_port());
        let file = folder.0.join("sentinel.conf");
        let settings = format!(
            "port {port}\nbind 127.0.0.1\n{lines}sentinel monitor mymaster 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds mymaster 400\nsentinel failover-timeout mymaster 2000\n"
        );
        std::fs::write(&file, settings).unwrap();
        let mut command = Command::new(program());
        command.arg(&file).arg("--sentinel").current_dir(&folder.0);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut server = Self { child, port, folder, args: Vec::new() };
        server.wait_until_it_answers().expect("a sentinel runs");
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    fn wait_until_it_answers(&mut self) -> Result<(), ExitStatus> {
        let until = Instant::now() + PATIENCE;
        // Nobody else on that port. A server with a password says who it is to nobody.
        let own = format!("process_id:{}\r\n", self.child.id());
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Err(status);
            }
            let answer = try_raw(self.port, b"INFO server\r\n").unwrap_or_default();
            if answer.contains(&own) || answer.starts_with("-NOAUTH") {
                return Ok(());
            }
            assert!(Instant::now() < until, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("CONT");
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Again on the same port, and empty.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, &self.folder, &self.args);
        self.wait_until_it_answers().expect("it runs again");
    }

    /// One command, its words parted by blanks, and its answer as it comes.
    pub(crate) fn command(&self, command: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            // A server that is promoted cuts off its clients.
            if let Some(answer) = try_raw(self.port, format!("{command}\r\n").as_bytes()) {
                return answer;
            }
            assert!(Instant::now() < end, "the server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Makes the server answer nobody for so many milliseconds, beginning before this returns.
    pub(crate) fn pause(&self, millis: u32) {
        let mut stream = TcpStream::connect(self.addr()).unwrap();
        stream.write_all(format!("CLIENT PAUSE {millis}\r\n").as_bytes()).unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+OK\r\n");
    }

    /// The same with words of any bytes.
    pub(crate) fn run(&self, words: &[&[u8]]) -> String {
        let mut sent = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            sent.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            sent.extend_from_slice(word);
            sent.extend_from_slice(b"\r\n");
        }
        try_raw(self.port, &sent).expect("the server answers")
    }

    /// When the lease of a key, or of a lock, ends by the server's clock.
    pub(crate) fn lease_end(&self, control: &str) -> u64 {
        let end = self.command(&format!("HGET {control} x"));
        end.lines().nth(1).and_then(|end| end.parse().ok()).unwrap_or(0)
    }

    /// The names of all keys, sorted.
    pub(crate) fn keys(&self) -> Vec<String> {
        let answer = self.command("KEYS *");
        let mut keys: Vec<_> =
            answer.lines().filter(|line| !line.starts_with(['$', '*'])).map(str::to_string).collect();
        keys.sort();
        keys
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

fn program() -> OsString {
    std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
}

fn spawn(port: u16, folder: &Folder, args: &[String]) -> Child {
    let mut command = Command::new(program());
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir"])
        .arg(&folder.0)
        .args(["--save", "", "--appendonly", "no", "--loglevel", "warning"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().expect("redis-server can be started: `scripts/provision` installs it")
}

fn try_raw(port: u16, sent: &[u8]) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(sent).ok()?;
    // The server answers, and then it closes, too.
    stream.shutdown(Shutdown::Write).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

/// A lease that no busy machine makes a test lose.
pub(crate) fn quick() -> RedisConfig {
    RedisConfig { namespace: "t".into(), lease: Duration::from_secs(30), ..RedisConfig::default() }
}

/// One that is renewed, or ends, while a test waits for that.
pub(crate) fn brief() -> RedisConfig {
    RedisConfig { lease: Duration::from_millis(900), ..quick() }
}

pub(crate) async fn tier(server: &Server) -> RedisTier {
    RedisTier::connect(&server.url(), quick()).await.unwrap()
}

/// Waits until something holds, asking now and then; panics if it does not come to be.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Ends what would otherwise hang.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it hangs")
}
