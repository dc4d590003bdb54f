//! Settings of a tier, and what a connection can be refused for.

#[cfg(any(feature = "redis-sentinel", feature = "redis-tls"))]
use std::fmt;
use std::time::Duration;

use crate::error::{ConfigError, check_name, check_positive};

/// Settings of a [`RedisTier`](crate::RedisTier). Every instance that shares a tier must have the same.
///
/// ```
/// use std::time::Duration;
/// use stampede_guard::RedisConfig;
///
/// let config = RedisConfig {
///     namespace: "shop".into(),
///     operation_timeout: Duration::from_millis(200),
///     ..RedisConfig::default()
/// };
/// # drop(config);
/// ```
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// The beginning of every key, and the name of the event channel: 1 to 64 of `A-Z`, `a-z`, `0-9`, `_`, `-` and
    /// `.`. Default: `stampede`.
    pub namespace: String,
    /// How long one operation may take before this instance goes on without Redis: at most a day. Default: 250 ms.
    ///
    /// Once one takes longer, callers do not wait for Redis at all until it answers again. A server that answers others
    /// meanwhile, or a process that has no time for its own timers, has up to four times as long: a crowd is no fault.
    pub operation_timeout: Duration,
    /// How long a load's lease lasts unless it is renewed, which it is every third of this time. Default: 5 s.
    ///
    /// When an instance dies, the others wait this long at most.
    pub lease: Duration,
    /// How long a lease is renewed. Default: 60 s. A load that takes longer may get company.
    pub max_hold: Duration,
    /// How long an instance serves a value without asking Redis again. Default: 30 s.
    ///
    /// An instance that misses an invalidation is stale for this long at most.
    pub local_ttl_cap: Duration,
    /// The same, while the instance hears no events though Redis answers. Default: 1 s.
    pub unsubscribed_ttl_cap: Duration,
    /// How many bytes a value may have, encoded and compressed. A larger one is kept by its instance alone, as are
    /// those of the same key for the next ten seconds. Default: 1 MiB.
    pub max_value_bytes: usize,
    /// Values of more bytes than this are compressed, with LZ4. Default: `None`, none are.
    pub compress_over: Option<usize>,
    /// How long a failed load is told to whoever asks, in all instances, in place of another load. Default: zero,
    /// those who waited for it alone.
    pub error_backoff: Duration,
    /// Whom to trust, and who one is, where the URL says TLS. Default: the system's certificate authorities, and nobody.
    #[cfg(feature = "redis-tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-tls")))]
    pub tls: RedisTls,
    /// What the sentinels want to hear; the user and password in the URL are for the servers that they watch.
    /// Default: `None`, they are asked without.
    #[cfg(feature = "redis-sentinel")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-sentinel")))]
    pub sentinel_credentials: Option<RedisCredentials>,
}

/// Certificates, all in PEM.
///
/// ```no_run
/// use stampede_guard::{RedisConfig, RedisTls};
///
/// # fn main() -> std::io::Result<()> {
/// let tls = RedisTls { root_certificates: Some(std::fs::read("ca.pem")?), ..RedisTls::default() };
/// let config = RedisConfig { tls, ..RedisConfig::default() };
/// # drop(config);
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "redis-tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis-tls")))]
#[derive(Clone, Default)]
pub struct RedisTls {
    /// The certificate authorities to trust in place of the system's. Default: `None`, the system's.
    pub root_certificates: Option<Vec<u8>>,
    /// A certificate to show to the server, with those above it, if it asks for one. Default: `None`.
    pub client_certificate: Option<Vec<u8>>,
    /// The key of [`client_certificate`](Self::client_certificate). Default: `None`.
    pub client_key: Option<Vec<u8>>,
}

#[cfg(feature = "redis-tls")]
impl fmt::Debug for RedisTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisTls").finish_non_exhaustive()
    }
}

/// A user and a password.
#[cfg(feature = "redis-sentinel")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis-sentinel")))]
#[derive(Clone, Default)]
pub struct RedisCredentials {
    /// `None` for the default user.
    pub user: Option<String>,
    /// The password.
    pub password: String,
}

#[cfg(feature = "redis-sentinel")]
impl fmt::Debug for RedisCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCredentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            namespace: "stampede".into(),
            operation_timeout: Duration::from_millis(250),
            lease: Duration::from_secs(5),
            max_hold: Duration::from_secs(60),
            local_ttl_cap: Duration::from_secs(30),
            unsubscribed_ttl_cap: Duration::from_secs(1),
            max_value_bytes: 1024 * 1024,
            compress_over: None,
            error_backoff: Duration::ZERO,
            #[cfg(feature = "redis-tls")]
            tls: RedisTls::default(),
            #[cfg(feature = "redis-sentinel")]
            sentinel_credentials: None,
        }
    }
}

/// What Redis takes for one string.
const MOST_BYTES: usize = 512 * 1024 * 1024 - 64 * 1024;

/// A control record must outlive every load that may still refer to it.
const MOST_TIME: Duration = Duration::from_secs(24 * 60 * 60);

impl RedisConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check_name("namespace", &self.namespace)?;
        check_positive("local_ttl_cap", self.local_ttl_cap)?;
        check_positive("unsubscribed_ttl_cap", self.unsubscribed_ttl_cap)?;
        if self.operation_timeout.is_zero() || self.operation_timeout > MOST_TIME {
            return Err(ConfigError::new(
                "operation_timeout",
                self.operation_timeout,
                "more than 0 and at most a day",
            ));
        }
        // Redis counts in milliseconds, and a third of a lease must be one.
        if self.lease < Duration::from_millis(10) || self.lease > MOST_TIME {
            return Err(ConfigError::new("lease", self.lease, "from 10 ms to a day"));
        }
        if self.max_hold < self.lease || self.max_hold > MOST_TIME {
            return Err(ConfigError::new("max_hold", self.max_hold, "at least the lease and at most a day"));
        }
        if self.error_backoff > MOST_TIME {
            return Err(ConfigError::new("error_backoff", self.error_backoff, "at most a day"));
        }
        #[cfg(feature = "redis-tls")]
        if self.tls.client_certificate.is_some() != self.tls.client_key.is_some() {
            return Err(ConfigError::new("tls", &self.tls, "a client certificate and its key, or neither"));
        }
        if self.max_value_bytes == 0 || self.max_value_bytes > MOST_BYTES {
            return Err(ConfigError::new(
                "max_value_bytes",
                self.max_value_bytes,
                "from 1 to just under 512 MiB",
            ));
        }
        Ok(())
    }

    /// How long a control record is kept: longer than any lease, so that no load outlives what is known of it.
    pub(super) fn control_life(&self) -> Duration {
        self.max_hold * 2 + self.lease + self.error_backoff
    }
}

/// Why there is no tier.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisTierError {
    /// A setting is outside its range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The URL is none of the forms that [`RedisTier::connect`](crate::RedisTier::connect) takes.
    #[error("the Redis URL cannot be used: {0}")]
    Url(String),
    /// The server wants other credentials.
    #[error("Redis refused the credentials ({0}): check the user and the password in the URL")]
    Credentials(String),
    /// The user may not do what a tier does.
    #[error("Redis refused a command ({0}): give the user the permissions that docs/redis.md lists")]
    Permission(String),
    /// There is no trust between this client and the server, or one of them does not speak TLS.
    #[error(
        "no TLS connection to Redis ({0}): check that the server's port speaks TLS, that `RedisConfig::tls` names the \
         authority that signed its certificate, that the certificate is for the host in the URL, and that the server \
         trusts the client's certificate if it asks for one"
    )]
    Tls(String),
    /// The server does not speak the protocol that events need.
    #[error("the server is too old: Redis 6.0 or later, or Valkey, is needed")]
    Unsupported,
    /// The server refused the connection for another reason.
    #[error("Redis refused the connection: {0}")]
    Refused(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_checked() {
        let refused = |change: fn(&mut RedisConfig)| {
            let mut config = RedisConfig::default();
            config.check().unwrap();
            change(&mut config);
            config.check().unwrap_err().field()
        };
        assert_eq!(refused(|c| c.namespace = "a:b".into()), "namespace");
        assert_eq!(refused(|c| c.operation_timeout = Duration::ZERO), "operation_timeout");
        assert_eq!(refused(|c| c.operation_timeout = Duration::MAX), "operation_timeout");
        assert_eq!(refused(|c| c.local_ttl_cap = Duration::ZERO), "local_ttl_cap");
        assert_eq!(refused(|c| c.unsubscribed_ttl_cap = Duration::ZERO), "unsubscribed_ttl_cap");
        assert_eq!(refused(|c| c.lease = Duration::from_millis(9)), "lease");
        assert_eq!(refused(|c| c.lease = Duration::MAX), "lease");
        assert_eq!(refused(|c| c.max_hold = c.lease / 2), "max_hold");
        assert_eq!(refused(|c| c.max_hold = Duration::MAX), "max_hold");
        assert_eq!(refused(|c| c.error_backoff = Duration::MAX), "error_backoff");
        assert_eq!(refused(|c| c.max_value_bytes = 0), "max_value_bytes");
        assert_eq!(refused(|c| c.max_value_bytes = usize::MAX), "max_value_bytes");
    }
}
