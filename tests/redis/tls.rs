//! TLS: certificates made for each test, and a server that speaks nothing else.

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use stampede_guard::{Outcome, RedisConfig, RedisTier, RedisTierError, RedisTls};

use crate::calls::{cache, fetch, loaded, published};
use crate::server::{Folder, Server, quick, until};

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

    /// A server with a certificate for this host, that wants to see one of its clients as well, or not.
    fn serve(&self, host: &str, clients: &str) -> (Server, u16, Folder) {
        let folder = Folder::new();
        let (certificate, key) = self.sign(host);
        let file = |name: &str, text: &str| {
            let path = folder.0.join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_string()
        };
        let port = crate::server::free_port();
        let files = [file("cert.pem", &certificate), file("key.pem", &key), file("ca.pem", &self.pem)];
        let [certificate, key, ca] = &files;
        let port_text = port.to_string();
        let server = Server::start_with(&[
            "--tls-port",
            &port_text,
            "--tls-cert-file",
            certificate,
            "--tls-key-file",
            key,
            "--tls-ca-cert-file",
            ca,
            "--tls-auth-clients",
            clients,
        ]);
        (server, port, folder)
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
