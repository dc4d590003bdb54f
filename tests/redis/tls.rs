//! TLS: certificates made for each test, and a server that speaks nothing else.

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use stampede_guard::{Outcome, RedisConfig, RedisTier, RedisTierError, RedisTls};

use crate::calls::{cache, fetch, loaded, published};
use crate::server::{Folder, Server, free_port, quick, until};

/// An authority, and certificates that it signed.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for this host, and its key.
    fn sign(&self, host: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_string()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, host);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// What a server needs to speak TLS: the names of settings, and their values. The files lie in `folder`.
    fn settings(&self, host: &str, clients: &str, port: u16, folder: &Folder) -> [(&'static str, String); 5] {
        let (certificate, key) = self.sign(host);
        let file = |name: &str, text: &str| {
            let path = folder.0.join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_string()
        };
        [
            ("tls-port", port.to_string()),
            ("tls-cert-file", file("cert.pem", &certificate)),
            ("tls-key-file", file("key.pem", &key)),
            ("tls-ca-cert-file", file("ca.pem", &self.pem)),
            ("tls-auth-clients", clients.to_string()),
        ]
    }

    /// A server with a certificate for this host, that wants to see one of its clients as well, or not.
    fn serve(&self, host: &str, clients: &str) -> (Server, u16, Folder) {
        self.serve_with(host, clients, &[])
    }

    /// With further arguments.
    fn serve_with(&self, host: &str, clients: &str, more: &[&str]) -> (Server, u16, Folder) {
        let (folder, port) = (Folder::new(), free_port());
        let settings = self.settings(host, clients, port, &folder);
        let settings = settings.into_iter().flat_map(|(name, value)| [format!("--{name}"), value]);
        let args: Vec<_> = settings.chain(more.iter().map(ToString::to_string)).collect();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        (Server::start_with(&args), port, folder)
    }

    fn trusted(&self) -> RedisTls {
        RedisTls { root_certificates: Some(self.pem.clone().into_bytes()), ..RedisTls::default() }
    }
}

async fn connect(url: &str, tls: RedisTls) -> Result<RedisTier, RedisTierError> {
    // A handshake takes its time on a busy machine.
    let operation_timeout = Duration::from_secs(2);
    RedisTier::connect(url, RedisConfig { tls, operation_timeout, ..quick() }).await
}

fn refused(answer: Result<RedisTier, RedisTierError>) -> String {
    match answer {
        Err(error @ RedisTierError::Tls(_)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn instances_share_over_tls() {
    let authority = Authority::new();
    let (server, port, _folder) = authority.serve("127.0.0.1", "no");
    let url = format!("rediss://127.0.0.1:{port}");
    let one = connect(&url, authority.trusted()).await.unwrap();
    let two = connect(&server.url(), authority.trusted()).await.unwrap();
    until("it shares", || one.stats().subscribed && !one.stats().circuit_open).await;
    assert_eq!(fetch(&cache(&one), 1, "value").await, loaded("value"));
    published(&one, 1).await;
    assert_eq!(fetch(&cache(&two), 1, "unused").await, ("value".into(), Outcome::SharedHit));
}

#[tokio::test]
async fn a_server_that_wants_to_know_its_clients_is_shown_a_certificate() {
    let authority = Authority::new();
    let (_server, port, _folder) = authority.serve("127.0.0.1", "yes");
    let url = format!("rediss://127.0.0.1:{port}");
    let (certificate, key) = authority.sign("shop.example");
    let known = RedisTls {
        client_certificate: Some(certificate.clone().into_bytes()),
        client_key: Some(key.into_bytes()),
        ..authority.trusted()
    };
    let tier = connect(&url, known).await.unwrap();
    until("it shares", || !tier.stats().circuit_open).await;
    refused(connect(&url, authority.trusted()).await);
    let without_key = RedisTls { client_certificate: Some(certificate.into_bytes()), ..authority.trusted() };
    let error = connect(&url, without_key).await.unwrap_err();
    assert!(matches!(&error, RedisTierError::Config(config) if config.field() == "tls"), "{error}");
}

#[tokio::test]
async fn where_there_is_no_trust_the_error_says_what_to_check() {
    let authority = Authority::new();
    let (server, port, _folder) = authority.serve("127.0.0.1", "no");
    let url = format!("rediss://127.0.0.1:{port}");
    connect(&url, authority.trusted()).await.unwrap();
    for (what, answer) in [
        ("another authority", connect(&url, Authority::new().trusted()).await),
        ("none but the system's", connect(&url, RedisTls::default()).await),
        ("a port without TLS", connect(&server.url().replace("redis", "rediss"), authority.trusted()).await),
        (
            "no PEM",
            connect(&url, RedisTls { root_certificates: Some(b"x".to_vec()), ..RedisTls::default() }).await,
        ),
    ] {
        let text = refused(answer);
        assert!(text.contains("RedisConfig::tls") && text.contains("speaks TLS"), "{what}: {text}");
    }
    let (_other, port, _folder) = authority.serve("10.0.0.1", "no");
    let text = refused(connect(&format!("rediss://127.0.0.1:{port}"), authority.trusted()).await);
    assert!(text.contains("for the host in the URL"), "{text}");
}

/// Two instances share what one of them loads.
async fn share(url: &str, authority: &Authority, keys: u64) {
    let one = connect(url, authority.trusted()).await.unwrap();
    let two = connect(url, authority.trusted()).await.unwrap();
    let there = |tier: &RedisTier| tier.stats().subscribed && !tier.stats().circuit_open;
    until("both are there", || there(&one) && there(&two)).await;
    let (a, b) = (cache(&one), cache(&two));
    for key in 1..=keys {
        assert_eq!(fetch(&a, key, "value").await, loaded("value"));
        published(&one, key).await;
        assert_eq!(fetch(&b, key, "unused").await, ("value".into(), Outcome::SharedHit));
    }
}

#[tokio::test]
async fn a_cluster_over_tls_is_shared_by_its_instances() {
    let authority = Authority::new();
    let node = || {
        let bus = free_port().to_string();
        let cluster = ["--cluster-enabled", "yes", "--tls-cluster", "yes", "--cluster-port", &bus];
        (authority.serve_with("127.0.0.1", "no", &cluster), bus)
    };
    let (first, second) = (node(), node());
    for (((node, ..), _), slots) in [(&first, "0 8191"), (&second, "8192 16383")] {
        assert_eq!(node.command(&format!("CLUSTER ADDSLOTSRANGE {slots}")), "+OK\r\n");
    }
    let ((node, port, _), bus) = &second;
    node.command("CLUSTER SET-CONFIG-EPOCH 2");
    let met = first.0.0.command(&format!("CLUSTER MEET 127.0.0.1 {port} {bus}"));
    assert_eq!(met, "+OK\r\n");
    let is_whole = |node: &Server| node.command("CLUSTER INFO").contains("cluster_state:ok");
    until("it is whole", || is_whole(&first.0.0) && is_whole(node)).await;
    // The one seed leads to the other node.
    share(&format!("rediss-cluster://127.0.0.1:{}", first.0.1), &authority, 20).await;
    let url = format!("rediss-cluster://127.0.0.1:{port}");
    let text = refused(connect(&url, Authority::new().trusted()).await);
    assert!(text.contains("RedisConfig::tls"), "{text}");
}

#[tokio::test]
async fn sentinel_over_tls_leads_to_its_master_over_tls() {
    let authority = Authority::new();
    let (_master, master, _folder) = authority.serve_with("127.0.0.1", "no", &["--tls-replication", "yes"]);
    let (folder, port) = (Folder::new(), free_port());
    let settings = authority.settings("127.0.0.1", "no", port, &folder);
    let lines = settings.map(|(name, value)| format!("{name} {value}\n")).concat();
    let sentinel = Server::sentinel_with(master, &format!("{lines}tls-replication yes\n"));
    until("it sees the master", || {
        let seen = sentinel.command("SENTINEL MASTER mymaster");
        seen.contains("role-reported") && !seen.contains("s_down") && !seen.contains("disconnected")
    })
    .await;
    share(&format!("rediss-sentinel://127.0.0.1:{port}/mymaster"), &authority, 3).await;
}
