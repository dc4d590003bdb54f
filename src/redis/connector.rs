//! From a URL to connections.

use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline, ProtocolVersion,
    PushInfo, RedisError, RedisResult, Value,
};
use tokio::sync::mpsc::UnboundedSender;

use super::config::{RedisConfig, RedisTierError};

/// A connection that carries commands. Clones share it.
#[derive(Clone)]
pub(super) enum Wire {
    Node(MultiplexedConnection),
    #[cfg(feature = "redis-cluster")]
    Cluster(redis::cluster_async::ClusterConnection),
}

impl Wire {
    /// How many commands on different keys may be sent at once.
    pub(super) fn at_once(&self) -> usize {
        match self {
            Self::Node(_) => 200,
            // It takes them if all are in one slot.
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(_) => 1,
        }
    }

    /// Sends all commands at once. An error of one of them is a value among the answers.
    pub(super) async fn send(&mut self, commands: &Pipeline) -> RedisResult<Vec<Value>> {
        match self {
            Self::Node(node) => node.req_packed_commands(commands, 0, commands.len()).await,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(cluster) => cluster.req_packed_commands(commands, 0, commands.len()).await,
        }
    }

    pub(super) async fn ping(&mut self) -> RedisResult<()> {
        let ping = redis::cmd("PING");
        match self {
            Self::Node(node) => ping.query_async(node).await,
            #[cfg(feature = "redis-cluster")]
            Self::Cluster(cluster) => {
                use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
                // One node that answers is a cluster that may: keys of the others fail on their own.
                let any = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
                cluster.route_command(ping, any).await.map(drop)
            }
        }
    }
}

enum Kind {
    Node(Box<Client>),
    #[cfg(feature = "redis-cluster")]
    Cluster(Box<redis::cluster::ClusterClient>, Vec<Client>),
    #[cfg(feature = "redis-sentinel")]
    Sentinel(Box<tokio::sync::Mutex<redis::sentinel::SentinelClient>>),
}

/// Makes connections.
pub(super) struct Connector {
    kind: Kind,
    timeout: Duration,
    tls: bool,
}

#[cfg(not(feature = "redis-tls"))]
fn choose_provider() {}

/// TLS needs to know whose cryptography to use, and the client panics if nobody said. What the service chose is kept.
#[cfg(feature = "redis-tls")]
fn choose_provider() {
    use rustls::crypto::{CryptoProvider, ring};
    if CryptoProvider::get_default().is_none() {
        // Another thread may have been first.
        let _ = ring::default_provider().install_default();
    }
}

#[cfg(not(feature = "redis-tls"))]
fn client(info: ConnectionInfo, _: &RedisConfig) -> Result<Client, RedisTierError> {
    Client::open(info).map_err(|error| refused_url(&error))
}

#[cfg(feature = "redis-tls")]
fn client(info: ConnectionInfo, config: &RedisConfig) -> Result<Client, RedisTierError> {
    if let (Some(certificates), redis::ConnectionAddr::TcpTls { .. }) = (certificates(config), info.addr()) {
        return Client::build_with_tls(info, certificates).map_err(|error| refused_certificates(&error));
    }
    Client::open(info).map_err(|error| refused_url(&error))
}

/// `None` if nothing is said of any.
#[cfg(feature = "redis-tls")]
fn certificates(config: &RedisConfig) -> Option<redis::TlsCertificates> {
    let tls = config.tls.clone();
    let client_tls = tls.client_certificate.zip(tls.client_key);
    let client_tls =
        client_tls.map(|(client_cert, client_key)| redis::ClientTlsConfig { client_cert, client_key });
    let root_cert = tls.root_certificates;
    (client_tls.is_some() || root_cert.is_some()).then_some(redis::TlsCertificates { client_tls, root_cert })
}

/// The error names what cannot be read, and nothing of it.
#[cfg(feature = "redis-tls")]
fn refused_certificates(error: &RedisError) -> RedisTierError {
    RedisTierError::Tls(format!("a certificate or key in `RedisConfig::tls` is no PEM: {}", error.category()))
}

fn unusable(why: &str) -> RedisTierError {
    RedisTierError::Url(format!(
        "{why}; use redis://[user:password@]host[:port][/database], rediss:// for TLS, redis+unix:///path, \
         redis-cluster://host:port,host:port or redis-sentinel://host:port,host:port/master[/database], and rediss-cluster:// \
         or rediss-sentinel:// for TLS"
    ))
}

#[cfg(not(feature = "redis-cluster"))]
fn cluster(_: &'static str, _: &str, _: &RedisConfig, _: Duration) -> Result<Kind, RedisTierError> {
    Err(RedisTierError::Url("a cluster needs this crate's feature `redis-cluster`".into()))
}

#[cfg(not(feature = "redis-sentinel"))]
fn sentinel(_: &'static str, _: &str, _: &RedisConfig) -> Result<Kind, RedisTierError> {
    Err(RedisTierError::Url("Sentinel needs this crate's feature `redis-sentinel`".into()))
}

/// What the client says of a URL or of its settings. Its text names neither user nor password.
fn refused_url(error: &RedisError) -> RedisTierError {
    unusable(error.detail().unwrap_or("it cannot be parsed"))
}

/// A URL that may name several nodes.
#[cfg(any(feature = "redis-cluster", feature = "redis-sentinel"))]
struct Parts<'a> {
    scheme: &'static str,
    user: &'a str,
    hosts: Vec<&'a str>,
    path: &'a str,
}

#[cfg(any(feature = "redis-cluster", feature = "redis-sentinel"))]
fn parts<'a>(scheme: &'static str, rest: &'a str) -> Result<Parts<'a>, RedisTierError> {
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let hosts: Vec<_> = hosts.split(',').collect();
    if hosts.iter().any(|host| host.is_empty()) {
        return Err(unusable("a host is missing"));
    }
    Ok(Parts { scheme, user, hosts, path })
}

fn settled(info: &ConnectionInfo) -> ConnectionInfo {
    // Events are pushed by version 3 of the protocol alone.
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let tcp = TcpSettings::default().set_nodelay(true);
    info.clone().set_redis_settings(settings).set_tcp_settings(tcp)
}

#[cfg(any(feature = "redis-cluster", feature = "redis-sentinel"))]
impl Parts<'_> {
    fn node(&self, host: &str, database: &str) -> Result<ConnectionInfo, RedisTierError> {
        let at = if self.user.is_empty() { "" } else { "@" };
        let url = format!("{}://{}{at}{host}/{database}", self.scheme, self.user);
        let info = url.into_connection_info().map_err(|error| refused_url(&error))?;
        Ok(settled(&info))
    }
}

impl Connector {
    pub(super) fn new(url: &str, config: &RedisConfig) -> Result<Self, RedisTierError> {
        // A handshake is a few round trips.
        let timeout = (config.operation_timeout * 2).max(Duration::from_millis(500));
        let Some((scheme, rest)) = url.split_once("://") else { return Err(unusable("it has no scheme")) };
        let tls = matches!(scheme, "rediss" | "rediss-cluster" | "rediss-sentinel" | "valkeys");
        if tls && !cfg!(feature = "redis-tls") {
            return Err(RedisTierError::Url("TLS needs this crate's feature `redis-tls`".into()));
        }
        let kind = match scheme {
            "redis-cluster" => cluster("redis", rest, config, timeout)?,
            "rediss-cluster" => cluster("rediss", rest, config, timeout)?,
            "redis-sentinel" => sentinel("redis", rest, config)?,
            "rediss-sentinel" => sentinel("rediss", rest, config)?,
            _ => {
                let info = url.into_connection_info().map_err(|error| refused_url(&error))?;
                Kind::Node(Box::new(client(settled(&info), config)?))
            }
        };
        if tls {
            choose_provider();
        }
        Ok(Self { kind, timeout, tls })
    }

    /// What no later attempt would change; `None` for a server that is out of reach or not ready.
    pub(super) fn lasting(&self, error: &RedisError) -> Option<RedisTierError> {
        let text = || error.to_string();
        let code = error.code().unwrap_or_default();
        match (error.kind(), code) {
            (ErrorKind::AuthenticationFailed, _) | (_, "NOAUTH" | "WRONGPASS") => {
                Some(RedisTierError::Credentials(text()))
            }
            (ErrorKind::RESP3NotSupported, _) | (_, "NOPROTO") => Some(RedisTierError::Unsupported),
            (_, "NOPERM") => Some(RedisTierError::Permission(text())),
            // What TLS does not accept is data to it that makes no sense.
            (ErrorKind::Io, _) if self.tls && !is_out_of_reach(error) => Some(RedisTierError::Tls(text())),
            (ErrorKind::InvalidClientConfig, _) => Some(refused_url(error)),
            (_, "ERR" | "DENIED") => Some(RedisTierError::Refused(text())),
            _ => None,
        }
    }

    /// Of a TLS connection that came to nothing: a server without TLS says nothing to it, or hangs up, as one that is out
    /// of reach may.
    #[cfg(feature = "redis-tls")]
    pub(super) async fn answers_without_tls(&self) -> bool {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let node = match &self.kind {
            Kind::Node(client) => Some(client.get_connection_info().addr()),
            #[cfg(feature = "redis-cluster")]
            Kind::Cluster(..) => None,
            #[cfg(feature = "redis-sentinel")]
            Kind::Sentinel(_) => None,
        };
        let Some(redis::ConnectionAddr::TcpTls { host, port, .. }) = node else { return false };
        let answer = async {
            let mut stream = tokio::net::TcpStream::connect((host.as_str(), *port)).await.ok()?;
            stream.write_all(b"PING\r\n").await.ok()?;
            stream.read_u8().await.ok()
        };
        matches!(tokio::time::timeout(self.timeout, answer).await, Ok(Some(b'+' | b'-')))
    }

    #[cfg(not(feature = "redis-tls"))]
    #[allow(clippy::unused_async, clippy::unused_self)] // as with the feature
    pub(super) async fn answers_without_tls(&self) -> bool {
        false
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    fn settings(&self) -> AsyncConnectionConfig {
        // Each caller has a limit of its own.
        AsyncConnectionConfig::new().set_connection_timeout(Some(self.timeout)).set_response_timeout(None)
    }

    pub(super) async fn commands(&self) -> RedisResult<Wire> {
        match &self.kind {
            Kind::Node(client) => {
                let node = client.get_multiplexed_async_connection_with_config(&self.settings()).await?;
                Ok(Wire::Node(node))
            }
            #[cfg(feature = "redis-cluster")]
            Kind::Cluster(client, _) => Ok(Wire::Cluster(client.get_async_connection().await?)),
            #[cfg(feature = "redis-sentinel")]
            Kind::Sentinel(client) => {
                let master = client.lock().await.async_get_client().await?;
                let node = master.get_multiplexed_async_connection_with_config(&self.settings()).await?;
                Ok(Wire::Node(node))
            }
        }
    }

    /// What keeps a cluster out of reach for good, if the nodes of the URL agree. Its client only says that it reached
    /// none, and takes its time.
    #[cfg(feature = "redis-cluster")]
    pub(super) async fn refusal(&self) -> Option<RedisTierError> {
        let Kind::Cluster(_, seeds) = &self.kind else { return None };
        let (settings, mut refusal) = (self.settings(), None);
        for seed in seeds {
            let error = seed.get_multiplexed_async_connection_with_config(&settings).await.err()?;
            refusal = Some(self.lasting(&error)?);
        }
        refusal
    }

    #[cfg(not(feature = "redis-cluster"))]
    #[allow(clippy::unused_async, clippy::unused_self)] // as with the feature
    pub(super) async fn refusal(&self) -> Option<RedisTierError> {
        None
    }

    /// A connection for events. In a cluster every node hears them all, so any will do.
    pub(super) async fn events(
        &self,
        sink: UnboundedSender<PushInfo>,
        attempt: usize,
    ) -> RedisResult<MultiplexedConnection> {
        #[cfg(not(feature = "redis-cluster"))]
        let _ = attempt;
        let settings = self.settings().set_push_sender(sink);
        match &self.kind {
            Kind::Node(client) => client.get_multiplexed_async_connection_with_config(&settings).await,
            #[cfg(feature = "redis-cluster")]
            Kind::Cluster(_, seeds) => {
                let seed = &seeds[attempt % seeds.len()];
                seed.get_multiplexed_async_connection_with_config(&settings).await
            }
            #[cfg(feature = "redis-sentinel")]
            Kind::Sentinel(client) => {
                let master = client.lock().await.async_get_client().await?;
                master.get_multiplexed_async_connection_with_config(&settings).await
            }
        }
    }
}

#[cfg(feature = "redis-cluster")]
#[cfg_attr(not(feature = "redis-tls"), allow(unused_variables))]
fn cluster(
    scheme: &'static str,
    rest: &str,
    config: &RedisConfig,
    timeout: Duration,
) -> Result<Kind, RedisTierError> {
    let parts = parts(scheme, rest)?;
    let nodes = parts.hosts.iter().map(|host| parts.node(host, parts.path));
    let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
    let seeds = nodes.iter().map(|node| client(node.clone(), config));
    let seeds = seeds.collect::<Result<Vec<_>, _>>()?;
    let builder = redis::cluster::ClusterClient::builder(nodes);
    #[cfg(feature = "redis-tls")]
    let builder = match certificates(config).filter(|_| scheme == "rediss") {
        Some(certificates) => builder.certs(certificates),
        None => builder,
    };
    let client = builder
        .use_protocol(ProtocolVersion::RESP3)
        .tcp_settings(TcpSettings::default().set_nodelay(true))
        .connection_timeout(timeout)
        .response_timeout(timeout)
        .build()
        .map_err(|error| refused_url(&error))?;
    Ok(Kind::Cluster(Box::new(client), seeds))
}

#[cfg(feature = "redis-sentinel")]
fn sentinel(scheme: &'static str, rest: &str, config: &RedisConfig) -> Result<Kind, RedisTierError> {
    use redis::sentinel::{SentinelClientBuilder, SentinelServerType};

    let parts = parts(scheme, rest)?;
    let (master, database) = parts.path.split_once('/').unwrap_or((parts.path, ""));
    if master.is_empty() {
        return Err(unusable("the name of the master is missing"));
    }
    // User, password and database are the master's.
    let node = parts.node(parts.hosts[0], database)?;
    let node = node.redis_settings();
    let sentinels = parts.hosts.iter().map(|host| Ok(parts.node(host, "")?.addr().clone()));
    let sentinels = sentinels.collect::<Result<Vec<_>, RedisTierError>>()?;
    let builder = SentinelClientBuilder::new(sentinels, master, SentinelServerType::Master);
    let tcp = TcpSettings::default().set_nodelay(true);
    let mut builder = builder
        .map_err(|error| refused_url(&error))?
        .set_client_to_redis_protocol(ProtocolVersion::RESP3)
        .set_client_to_redis_db(node.db())
        .set_client_to_redis_tcp_settings(tcp);
    if let Some(user) = node.username() {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = node.password() {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(own) = &config.sentinel_credentials {
        builder = builder.set_client_to_sentinel_password(&own.password);
        if let Some(user) = &own.user {
            builder = builder.set_client_to_sentinel_username(user);
        }
    }
    #[cfg(feature = "redis-tls")]
    if scheme == "rediss" {
        builder = builder.set_client_to_redis_tls_mode(redis::TlsMode::Secure);
        if let Some(certificates) = certificates(config) {
            builder = builder
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates);
        }
    }
    let client = builder.build().map_err(|error| refused_url(&error))?;
    Ok(Kind::Sentinel(Box::new(tokio::sync::Mutex::new(client))))
}

/// True if nobody answered, or the answer broke off.
fn is_out_of_reach(error: &RedisError) -> bool {
    error.is_connection_refusal() || error.is_timeout() || error.is_connection_dropped()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        match Connector::new(url, &RedisConfig::default()) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{url} was taken"),
        }
    }

    #[test]
    fn a_wrong_url_is_refused_with_the_right_form_and_without_its_password() {
        for url in
            ["", "localhost:6379", "http://localhost", "redis://:hunter2@:bad", "redis://h:hunter2/x/y"]
        {
            let text = refusal(url);
            assert!(text.contains("redis://[user:password@]host"), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[cfg(not(all(feature = "redis-tls", feature = "redis-cluster", feature = "redis-sentinel")))]
    #[test]
    fn what_a_url_needs_is_named_by_its_feature() {
        for (url, feature, is_on) in [
            ("rediss://localhost", "redis-tls", cfg!(feature = "redis-tls")),
            ("redis-cluster://localhost", "redis-cluster", cfg!(feature = "redis-cluster")),
            ("redis-sentinel://localhost/main", "redis-sentinel", cfg!(feature = "redis-sentinel")),
        ] {
            assert!(is_on || refusal(url).contains(&format!("feature `{feature}`")), "{url}");
        }
    }

    #[test]
    fn every_form_is_taken() {
        for url in ["redis://localhost", "redis://u:p@10.0.0.1:7000/3", "redis+unix:///run/redis.sock"] {
            Connector::new(url, &RedisConfig::default()).map(drop).unwrap();
        }
        #[cfg(feature = "redis-tls")]
        Connector::new("rediss://localhost", &RedisConfig::default()).map(drop).unwrap();
    }

    #[cfg(feature = "redis-cluster")]
    #[test]
    fn a_cluster_is_a_list_of_nodes() {
        Connector::new("redis-cluster://u:p@a:7000,b:7001", &RedisConfig::default()).map(drop).unwrap();
        assert!(refusal("redis-cluster://a:7000,").contains("a host is missing"));
    }

    #[cfg(feature = "redis-sentinel")]
    #[test]
    fn a_sentinel_url_names_its_master() {
        let url = "redis-sentinel://u:p@a:26379,b:26379/mymaster/2";
        Connector::new(url, &RedisConfig::default()).map(drop).unwrap();
        assert!(refusal("redis-sentinel://a:26379").contains("the name of the master is missing"));
    }
}
