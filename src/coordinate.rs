//! What a cache asks of the instances beside it: who loads, what they have, what they dropped.
//!
//! The engine knows leases, tokens, values and events; what carries them is behind [`Coordinator`].

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::RemoteKind;
use crate::event::StaleReason;
use crate::invalidation::Invalidation;

pub(crate) type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A key that means the same in every instance.
///
/// It is written into the shared tier's keys and events, and read back from the latter: an invalidation in one
/// instance names the key to all others. Two keys that differ must write different bytes.
///
/// Text that is owned (`String`, `Box<str>`, `Arc<str>`), the integers, `bool`, `char`, `Vec<u8>` and tuples of two or
/// three such keys can be used as they are.
///
/// ```
/// use stampede_guard::SharedKey;
///
/// #[derive(Clone, PartialEq, Eq, Hash, Debug)]
/// struct Sku {
///     shop: u32,
///     number: u64,
/// }
///
/// impl SharedKey for Sku {
///     fn write(&self, out: &mut Vec<u8>) {
///         out.extend_from_slice(format!("{}:{}", self.shop, self.number).as_bytes());
///     }
///
///     fn read(bytes: &[u8]) -> Option<Self> {
///         let (shop, number) = std::str::from_utf8(bytes).ok()?.split_once(':')?;
///         Some(Self { shop: shop.parse().ok()?, number: number.parse().ok()? })
///     }
/// }
/// # let sku = Sku { shop: 1, number: 2 };
/// # let mut out = Vec::new();
/// # sku.write(&mut out);
/// # assert_eq!(Sku::read(&out), Some(sku));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no key that instances can share",
    note = "text, numbers, `bool`, `char`, `Vec<u8>` and tuples of two or three such keys are; implement `SharedKey` for \
            a type of your own, and use `String` in place of `&str`: a key is also read back"
)]
pub trait SharedKey: Sized {
    /// Appends the key's bytes. Short text is best: it can be read where the tier shows its keys.
    fn write(&self, out: &mut Vec<u8>);

    /// The key that [`write`](Self::write) made `bytes` of; `None` if there is none.
    fn read(bytes: &[u8]) -> Option<Self>;
}

macro_rules! text_keys {
    ($($type:ty),*) => {$(
        impl SharedKey for $type {
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(self.as_bytes());
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                std::str::from_utf8(bytes).ok().map(Into::into)
            }
        }
    )*};
}

macro_rules! parsed_keys {
    ($($type:ty),*) => {$(
        impl SharedKey for $type {
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(self.to_string().as_bytes());
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                std::str::from_utf8(bytes).ok()?.parse().ok()
            }
        }
    )*};
}

text_keys!(String, Box<str>, Arc<str>);
parsed_keys!(bool, char, u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize);

impl SharedKey for Vec<u8> {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        Some(bytes.to_vec())
    }
}

/// The first part's length, a colon, both parts.
impl<A: SharedKey, B: SharedKey> SharedKey for (A, B) {
    fn write(&self, out: &mut Vec<u8>) {
        write_first(&self.0, out);
        self.1.write(out);
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (first, second) = read_first(bytes)?;
        Some((first, B::read(second)?))
    }
}

/// As `(A, (B, C))`.
impl<A: SharedKey, B: SharedKey, C: SharedKey> SharedKey for (A, B, C) {
    fn write(&self, out: &mut Vec<u8>) {
        write_first(&self.0, out);
        write_first(&self.1, out);
        self.2.write(out);
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (first, rest) = read_first(bytes)?;
        let (second, third) = read_first(rest)?;
        Some((first, second, C::read(third)?))
    }
}

fn write_first(key: &impl SharedKey, out: &mut Vec<u8>) {
    let mut bytes = Vec::new();
    key.write(&mut bytes);
    out.extend_from_slice(format!("{}:", bytes.len()).as_bytes());
    out.extend_from_slice(&bytes);
}

/// With what comes after it.
fn read_first<A: SharedKey>(bytes: &[u8]) -> Option<(A, &[u8])> {
    let colon = bytes.iter().position(|&byte| byte == b':')?;
    let length: usize = std::str::from_utf8(&bytes[..colon]).ok()?.parse().ok()?;
    let (first, rest) = bytes[colon + 1..].split_at_checked(length)?;
    Some((A::read(first)?, rest))
}

/// Orders loads of one key over all instances: the later load has the greater token.
pub(crate) type Token = u64;

/// Keys of one cache that are voided together. A key may be in several groups, and what groups there are is the cache's
/// own affair; instances that share it must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Group(pub(crate) u32);

/// What one caller asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    /// A group that the key is in: a value from before it was voided is none.
    pub(crate) group: Option<Group>,
    /// A value is good enough only if its token is greater than this, fresh or not.
    pub(crate) newer_than: Option<Token>,
    /// Have a value that is past its freshness, within its window, while another instance loads.
    pub(crate) takes_stale: bool,
    /// The load of another instance that the asker has been told of, if it has.
    pub(crate) awaited: Option<Token>,
    pub(crate) patience: Patience,
}

/// Whether to wait while another instance loads; if not, the answer is [`Turn::Busy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    None,
    /// Not if there is a value to have should that load fail, or be slow: its caller has to look at the clock.
    UnlessStale,
    Full,
}

impl Patience {
    pub(crate) fn waits(self, stale: Option<&SharedValue>) -> bool {
        match self {
            Self::None => false,
            Self::UnlessStale => stale.is_none(),
            Self::Full => true,
        }
    }
}

/// A value that instances share, its times as of when it was read.
#[derive(Clone, Debug)]
pub(crate) struct SharedValue {
    pub(crate) payload: Vec<u8>,
    /// The [`Codec`](crate::codec::Codec) that made the payload.
    pub(crate) codec: u8,
    pub(crate) token: Token,
    /// How long it stays fresh; zero if it is not.
    pub(crate) fresh_for: Duration,
    /// How long it has not been fresh; zero if it is.
    pub(crate) stale_since: Duration,
    /// The time since it was published.
    pub(crate) age: Duration,
    /// How long after its freshness it is served while a load replaces it.
    pub(crate) stale_while_revalidate: Duration,
    /// How long after its freshness it is served if a load fails.
    pub(crate) stale_if_error: Duration,
    /// What its load took.
    pub(crate) cost: Duration,
    /// That it is in.
    pub(crate) groups: Vec<Group>,
}

impl SharedValue {
    /// Whether it is past its freshness and may stand in for a load that fails.
    pub(crate) fn covers_failure(&self) -> bool {
        self.fresh_for.is_zero() && self.stale_since < self.stale_if_error
    }

    /// Why it is served past its freshness.
    pub(crate) fn stale_reason(&self) -> StaleReason {
        if self.stale_since < self.stale_while_revalidate {
            StaleReason::Revalidating
        } else {
            StaleReason::LoadFailed
        }
    }
}

/// What a caller is to do.
pub(crate) enum Turn {
    /// Have this: it is fresh.
    Hit { value: SharedValue, waited: bool },
    /// Have this while another instance loads, or because that one's load has failed.
    Stale(SharedValue),
    /// Load, for all instances. There may be a value that is past its freshness.
    Lead { lease: Box<dyn Lease>, stale: Option<SharedValue> },
    /// The load that it waited for failed in its instance.
    Failed(RemoteKind),
    /// Load for this instance alone: the tier is out of reach, or the value is not one to share.
    Alone,
    /// Another instance loads, and this one asked not to wait for it. There may be a value to have if that load fails.
    Busy { awaited: Token, stale: Option<SharedValue> },
}

/// What a load brought, for the other instances.
#[derive(Debug)]
pub(crate) struct Publication {
    pub(crate) payload: Vec<u8>,
    pub(crate) codec: u8,
    pub(crate) fresh: Duration,
    /// Counted from the end of freshness, as is the next.
    pub(crate) stale_while_revalidate: Duration,
    pub(crate) stale_if_error: Duration,
    pub(crate) cost: Duration,
    /// That it is in.
    pub(crate) groups: Vec<Group>,
}

impl Publication {
    /// How long it may be of any use.
    pub(crate) fn lives(&self) -> Duration {
        self.fresh.saturating_add(self.stale_while_revalidate.max(self.stale_if_error))
    }
}

/// What became of a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    Yes,
    /// Something newer is known of the key, so this value is none.
    Superseded,
    /// The tier could not take it or did not say.
    Unknown,
}

/// The right to load a key for all instances. Dropped, it is given back.
pub(crate) trait Lease: Send {
    fn token(&self) -> Token;
    fn publish(self: Box<Self>, what: Publication) -> Boxed<'static, Published>;
    /// Everyone who waits in another instance gets this error.
    fn fail(self: Box<Self>, kind: RemoteKind);
    /// The value is not one to share: everyone who waits loads for itself.
    fn keep_local(self: Box<Self>);
}

/// The lease of a load that may be dropped on its way. Those who wait in other instances learn why, unless it is for want
/// of callers: then one of them loads.
pub(crate) struct LeaseOfLoad {
    lease: Option<Box<dyn Lease>>,
    /// When the load has taken too long.
    end: Option<Instant>,
}

impl LeaseOfLoad {
    pub(crate) fn new(lease: Box<dyn Lease>, end: Option<Instant>) -> Self {
        Self { lease: Some(lease), end }
    }

    /// The load is over.
    pub(crate) fn take(mut self) -> Box<dyn Lease> {
        self.lease.take().expect("it is taken once")
    }
}

impl Drop for LeaseOfLoad {
    fn drop(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        if std::thread::panicking() {
            lease.fail(RemoteKind::Panicked);
        } else if self.end.is_some_and(|end| Instant::now() >= end) {
            lease.fail(RemoteKind::TimedOut);
        }
    }
}

/// What a cache is told about the doings of others.
pub(crate) trait EventSink: Send + Sync {
    /// What has this token or a lower one is void, loads under way included.
    fn invalidated(&self, key: &[u8], up_to: Token);
    /// A value of this token took the place of those with lower ones.
    fn replaced(&self, key: &[u8], by: Token);
    /// What is in this group is void, loads under way included.
    fn group_invalidated(&self, group: Group);
    /// Anything may be void.
    fn all_doubtful(&self);
}

/// A cache as part of a tier.
pub(crate) struct Membership {
    pub(crate) name: Arc<str>,
    pub(crate) schema: u32,
    pub(crate) previous_schemas: Vec<u32>,
    pub(crate) sink: Weak<dyn EventSink>,
}

/// What joins caches of the same name in different instances.
#[cfg_attr(not(feature = "layer"), allow(dead_code))] // groups and payloads of its own are a guard's
pub(crate) trait Coordinator: Send + Sync {
    /// Whether it is told apart from those of other services.
    fn has_own_namespace(&self) -> bool;
    fn join(self: Arc<Self>, who: Membership) -> Arc<dyn Member>;
}

/// One cache's access to its [`Coordinator`].
#[cfg_attr(not(feature = "layer"), allow(dead_code))]
pub(crate) trait Member: Send + Sync {
    /// Waits while another instance loads.
    fn enter<'a>(&'a self, key: &'a Arc<[u8]>, ask: Ask) -> Boxed<'a, Turn>;
    /// Under way before this returns, whether or not the answer is waited for.
    fn invalidate(&self, key: Arc<[u8]>) -> Invalidation;
    fn invalidate_all(&self) -> Invalidation;
    /// The same of a group.
    fn invalidate_group(&self, group: Group) -> Invalidation;
    /// True if a value of this token is from before one of its groups was voided, or may be.
    fn is_void<'a>(&'a self, groups: &'a [Group], token: Token) -> Boxed<'a, bool>;
    /// Whether a payload of so many bytes may have a place.
    fn takes(&self, bytes: u64) -> bool;
    /// Counts a value whose payload is not what it should be.
    fn count_malformed(&self);
    /// How long a value may be served without asking again.
    fn local_ttl_cap(&self) -> Duration;
}

/// A tier that instances share, as [`StampedeCacheBuilder::redis`](crate::StampedeCacheBuilder::redis) takes it.
///
/// There is no way to make one but from this crate's own tiers.
#[derive(Clone)]
pub struct SharedTier(pub(crate) Arc<dyn Coordinator>);

impl fmt::Debug for SharedTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedTier").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::needless_pass_by_value)] // literals, mostly
    fn round<K: SharedKey + PartialEq + fmt::Debug>(key: K) -> Vec<u8> {
        let mut bytes = Vec::new();
        key.write(&mut bytes);
        assert_eq!(K::read(&bytes).as_ref(), Some(&key));
        bytes
    }

    #[test]
    fn keys_come_back_as_they_were() {
        assert_eq!(round(42_u64), b"42");
        assert_eq!(round(-1_i32), b"-1");
        assert_eq!(round(String::from("a b")), b"a b");
        assert_eq!((round(true), round('ö')), (b"true".to_vec(), "ö".into()));
        round(Vec::from([0_u8, 255]));
        assert_eq!(u8::read(b"256"), None);
        assert_eq!(String::read(&[255]), None);
    }

    #[test]
    fn pairs_do_not_run_into_each_other() {
        let pair = |a: &str, b: &str| round((a.to_string(), b.to_string()));
        assert_ne!(pair("a:", "b"), pair("a", ":b"));
        assert_ne!(pair("", "1:"), pair("1:", ""));
        round(((1_u8, String::from("x:")), 7_i64));
        let three = round((String::from("a:"), 7_u8, String::from("1:b")));
        assert_eq!(three, round((String::from("a:"), (7_u8, String::from("1:b")))));
        assert_eq!(three, b"2:a:1:71:b");
        for bad in ["", "1", ":", "2:a", "-1:a", "99999999999999999999:a"] {
            assert_eq!(<(String, String)>::read(bad.as_bytes()), None, "{bad}");
            assert_eq!(<(String, String, String)>::read(format!("1:x{bad}").as_bytes()), None, "{bad}");
        }
    }
}
