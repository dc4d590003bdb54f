//! A guard's place on a tier that instances share: what its keys are called there, and what others' doings mean here.
//!
//! A page's name is the digest of its key without the generation, which is this instance's own. What a write makes out
//! of date is not one key but all of a URL's, so URLs and tags are sorted into groups, and a group is voided at once.
//! Two that fall into one cost a handler run when either is voided, nothing else.

use std::fmt;
use std::fmt::Write;
use std::sync::{Arc, Weak};

use sha2::{Digest, Sha256};

use super::guard::PageFlights;
use super::page::PageKey;
use crate::cache::{MARKS, Mark};
use crate::coordinate::{EventSink, Group, Member, Membership, SharedTier, Token};
use crate::http::key::without_generation;
use crate::http::origin::{Target, rooted};
use crate::http::wire;
use crate::stable_hash::folded;
use crate::sync::{AtomicU64, Ordering};

/// URLs share this many groups, whatever their host. Those of tags come after them.
const TARGETS: u32 = 1 << 14;

#[allow(clippy::cast_possible_truncation)]
pub(super) fn group_of(target: &Target<'_>) -> Group {
    Group((folded(&rooted(target.path_and_query.as_bytes())) % u64::from(TARGETS)) as u32)
}

pub(super) fn group_of_mark(mark: Mark) -> Group {
    Group(TARGETS + u32::from(mark))
}

/// The mark that a group is of, if it is one of tags.
pub(super) fn mark_of_group(group: Group) -> Option<Mark> {
    let mark = Mark::try_from(group.0.checked_sub(TARGETS)?).ok()?;
    (usize::from(mark) < MARKS).then_some(mark)
}

/// The name of a key: a digest in hex, so that nothing a client sent is part of it.
pub(super) fn name_of(key: &PageKey) -> Arc<[u8]> {
    let mut name = String::with_capacity(64);
    for byte in Sha256::digest(without_generation(key)) {
        // Writing to a string does not fail.
        let _ = write!(name, "{byte:02x}");
    }
    name.into_bytes().into()
}

/// A guard's access to its tier.
pub(super) struct Tiered {
    pub(super) member: Arc<dyn Member>,
    heard: Arc<Heard>,
}

impl fmt::Debug for Tiered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tiered").finish_non_exhaustive()
    }
}

impl Tiered {
    pub(super) fn join(tier: SharedTier, name: Arc<str>, flights: &Arc<PageFlights>) -> Arc<Self> {
        let voided = (0..TARGETS).map(|_| AtomicU64::new(0)).collect();
        let heard = Arc::new(Heard { flights: Arc::clone(flights), voided });
        let sink: Weak<dyn EventSink> = Arc::downgrade(&heard) as _;
        // Of another version of the format, nothing could be read.
        let schema = u32::from(wire::VERSION);
        let member = tier.0.join(Membership { name, schema, previous_schemas: Vec::new(), sink });
        Arc::new(Self { member, heard })
    }

    /// How often others have voided the target's group. It only ever rises.
    pub(super) fn voided(&self, target: &Target<'_>) -> u64 {
        self.heard.voided[group_of(target).0 as usize].load(Ordering::Acquire)
    }
}

/// What a guard does about others' doings.
struct Heard {
    flights: Arc<PageFlights>,
    /// For each group of URLs.
    voided: Box<[AtomicU64]>,
}

impl EventSink for Heard {
    /// Guards void groups, and no single keys.
    fn invalidated(&self, _: &[u8], _: Token) {}

    /// A page is fresh for as long as it says, whatever came after it.
    fn replaced(&self, _: &[u8], _: Token) {}

    fn group_invalidated(&self, group: Group) {
        if let Some(count) = self.voided.get(group.0 as usize) {
            // Part of each key: nobody finds or joins what is from before.
            count.fetch_add(1, Ordering::AcqRel);
        } else if let Some(mark) = mark_of_group(group) {
            self.flights.hook.generations.invalidate(mark);
        }
    }

    fn all_doubtful(&self) {
        self.flights.hook.clear();
        self.flights.forget_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path_and_query: &str) -> Target<'_> {
        Target { scheme: None, host: b"shop.example", path_and_query }
    }

    /// In all instances, of all versions that share a tier.
    #[test]
    fn groups_and_names_are_the_same_everywhere() {
        assert_eq!(group_of(&target("/products/7?size=l")), Group(3760));
        let key = |generation: u8| PageKey::from([&[1; 8][..], &[generation; 8], b"G/page"].concat());
        assert_eq!(name_of(&key(0)), name_of(&key(9)), "a generation is one instance's own");
        assert_eq!(
            std::str::from_utf8(&name_of(&key(0))).unwrap(),
            "51e6e00cf6e3934212f0436ff6ee4372607fb3dbadf1e3a89d01b0bced2947ef"
        );
    }

    #[test]
    fn urls_and_tags_are_apart() {
        assert!(group_of(&target("/")).0 < TARGETS);
        for mark in [0, 1, 4_095] {
            assert_eq!(mark_of_group(group_of_mark(mark)), Some(mark));
        }
        for group in [0, TARGETS - 1, TARGETS + 4_096, u32::MAX] {
            assert_eq!(mark_of_group(Group(group)), None, "{group}");
        }
    }
}
