//! What instances tell each other, and who listens.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::coordinate::Token;
use crate::sync::Mutex;

/// The first number that is no token. From here on numbers are not exact in a script, and no clock of microseconds
/// gets so far: one that is met has been damaged, or planted.
const END_OF_TOKENS: Token = 1 << 53;

/// The token that is written here.
pub(super) fn token(text: &str) -> Option<Token> {
    text.parse().ok().filter(|&token| token < END_OF_TOKENS)
}

/// A random name for a cache or for who asks for a lease, as text.
pub(super) type Owner = Arc<str>;

pub(super) const OWNER_BYTES: usize = 32;

pub(super) fn new_owner() -> Owner {
    format!("{:032x}", rand::random::<u128>()).into()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Published,
    /// A lease was given back without a value.
    Released,
    Invalidated,
    /// Everything of the cache up to the token is void.
    Epoch,
}

/// One event, as it was sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event<'a> {
    pub(super) what: What,
    pub(super) token: u64,
    pub(super) owner: &'a str,
    pub(super) cache: &'a str,
    pub(super) key: &'a [u8],
}

/// The part of an event that its sender knows beforehand.
pub(super) fn rest(owner: &str, cache: &str, key: &[u8]) -> Vec<u8> {
    let mut rest = Vec::with_capacity(OWNER_BYTES + 1 + cache.len() + key.len());
    rest.extend_from_slice(owner.as_bytes());
    // Names of caches are at most 64 bytes.
    rest.push(u8::try_from(cache.len()).unwrap_or(u8::MAX));
    rest.extend_from_slice(cache.as_bytes());
    rest.extend_from_slice(key);
    rest
}

impl<'a> Event<'a> {
    /// `None` if it is none of ours.
    pub(super) fn read(message: &'a [u8]) -> Option<Self> {
        let (&[what, length], message) = message.split_first_chunk()?;
        let what = match what {
            b'p' => What::Published,
            b'a' => What::Released,
            b'i' => What::Invalidated,
            b'e' => What::Epoch,
            _ => return None,
        };
        let (written, message) = message.split_at_checked(usize::from(length))?;
        let (owner, message) = message.split_at_checked(OWNER_BYTES)?;
        let (&length, message) = message.split_first()?;
        let (cache, key) = message.split_at_checked(usize::from(length))?;
        let text = |bytes| std::str::from_utf8(bytes).ok();
        Some(Self { what, token: token(text(written)?)?, owner: text(owner)?, cache: text(cache)?, key })
    }
}

type Waiting = HashMap<(Arc<str>, Arc<[u8]>), (Arc<Notify>, usize)>;

/// Who waits for word of a key.
#[derive(Default)]
pub(super) struct Waits {
    waiting: Mutex<Waiting>,
}

impl Waits {
    /// Wakes whoever waits for this key.
    pub(super) fn wake(&self, cache: &str, key: &[u8]) {
        let id = (Arc::from(cache), Arc::from(key));
        if let Some((bell, _)) = self.waiting.lock().get(&id) {
            bell.notify_waiters();
        }
    }

    /// Wakes everyone: what they wait for may have been missed.
    pub(super) fn wake_all(&self) {
        for (bell, _) in self.waiting.lock().values() {
            bell.notify_waiters();
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.waiting.lock().len()
    }
}

/// A place among those who wait for word of one key.
pub(super) struct Listener<'a> {
    waits: &'a Waits,
    id: (Arc<str>, Arc<[u8]>),
    bell: Arc<Notify>,
}

impl<'a> Listener<'a> {
    pub(super) fn new(waits: &'a Waits, cache: &Arc<str>, key: &Arc<[u8]>) -> Self {
        let id = (Arc::clone(cache), Arc::clone(key));
        let bell = {
            let mut waiting = waits.waiting.lock();
            let (bell, listeners) = waiting.entry(id.clone()).or_default();
            *listeners += 1;
            Arc::clone(bell)
        };
        Self { waits, id, bell }
    }

    /// Ready at the next word, counted from this call.
    pub(super) fn next_word(&self) -> Notified<'_> {
        // It need not be polled for that: `notify_waiters` reaches those that were made before it.
        self.bell.notified()
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waits.waiting.lock();
        if let Some((_, listeners)) = waiting.get_mut(&self.id) {
            *listeners -= 1;
            if *listeners == 0 {
                waiting.remove(&self.id);
            }
        }
    }
}

/// Whether events arrive.
#[derive(Debug, Default)]
pub(super) struct Subscription(AtomicBool);

impl Subscription {
    pub(super) fn is_live(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(super) fn set(&self, live: bool) {
        self.0.store(live, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_as_it_was_sent_and_noise_is_not() {
        let owner = new_owner();
        let mut sent = b"i\x0312 ".to_vec();
        sent.truncate(2);
        sent[1] = 2;
        sent.extend_from_slice(b"42");
        sent.extend_from_slice(&rest(&owner, "products", b"}x\xff"));
        let event = Event::read(&sent).unwrap();
        assert_eq!((event.what, event.token), (What::Invalidated, 42));
        assert_eq!((event.owner, event.cache, event.key), (&*owner, "products", &b"}x\xff"[..]));
        for end in 0..sent.len() - 3 {
            assert_eq!(Event::read(&sent[..end]), None, "{end}");
        }
        sent[0] = b'?';
        assert_eq!(Event::read(&sent), None);
        for (number, is_token) in [(END_OF_TOKENS - 1, true), (END_OF_TOKENS, false), (u64::MAX, false)] {
            let number = number.to_string();
            let mut sent = vec![b'e', u8::try_from(number.len()).unwrap()];
            sent.extend_from_slice(number.as_bytes());
            sent.extend_from_slice(&rest(&owner, "products", b""));
            assert_eq!(Event::read(&sent).is_some(), is_token, "{number}");
        }
    }

    #[tokio::test]
    async fn a_listener_hears_what_comes_after_it_began_to_listen_and_leaves_nothing_behind() {
        let waits = Waits::default();
        let (cache, key): (Arc<str>, Arc<[u8]>) = ("c".into(), b"k"[..].into());
        let one = Listener::new(&waits, &cache, &key);
        let two = Listener::new(&waits, &cache, &key);
        let (first, second) = (one.next_word(), two.next_word());
        waits.wake("c", b"other");
        waits.wake("c", b"k");
        tokio::join!(first, second);
        let again = one.next_word();
        waits.wake_all();
        again.await;
        drop(one);
        assert_eq!(waits.len(), 1);
        drop(two);
        assert_eq!(waits.len(), 0);
    }
}
