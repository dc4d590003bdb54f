//! When which target was last written to: what is stored, and on its way, from before is out of date.
//!
//! Exact for as many targets as there are slots; beyond that, those written to longest ago share one number a line.

use crate::sync::{AtomicU64, Mutex, Ordering};

/// A line of the processor's cache: one number for what was pushed out, the others for one target each.
const SLOTS: usize = 7;
/// 128 KiB in all, for some 14,000 targets.
const LINES: usize = 2_048;
/// The bits of a slot that tell targets of one line apart. The others are its number.
const TAG_BITS: u32 = 16;

#[derive(Debug, Default)]
#[repr(align(64))]
struct Line {
    floor: AtomicU64,
    slots: [AtomicU64; SLOTS],
}

/// The numbers of the last writes.
#[derive(Debug)]
pub(super) struct Writes {
    lines: Box<[Line]>,
    /// The number of the last of all. Where nothing is ever written to, nobody has to look further.
    latest: AtomicU64,
    /// How many there were. Only one at a time is noted.
    count: Mutex<u64>,
}

impl Default for Writes {
    fn default() -> Self {
        let lines = (0..LINES).map(|_| Line::default()).collect();
        Self { lines, latest: AtomicU64::new(0), count: Mutex::new(0) }
    }
}

impl Writes {
    /// The number of the last write to the target of this hash; zero if there was none. It only ever rises.
    pub(super) fn last(&self, target: u64) -> u64 {
        let line = self.line(target);
        let own =
            line.slots.iter().map(|slot| slot.load(Ordering::Acquire)).find(|slot| is_of(*slot, target));
        // After the slots: who is pushed out of one is counted here before.
        own.map_or(0, number).max(line.floor.load(Ordering::Acquire))
    }

    /// False until the first write.
    pub(super) fn are_any(&self) -> bool {
        self.latest.load(Ordering::Acquire) > 0
    }

    /// Notes a write.
    pub(super) fn note(&self, target: u64) {
        let mut count = self.count.lock();
        *count += 1;
        self.latest.store(*count, Ordering::Release);
        let line = self.line(target);
        let slots = || line.slots.iter().map(|slot| (slot, slot.load(Ordering::Relaxed)));
        let own = slots().find(|(_, slot)| is_of(*slot, target));
        let Some((slot, old)) = own.or_else(|| slots().min_by_key(|(_, slot)| number(*slot))) else { return };
        if own.is_none() {
            line.floor.fetch_max(number(old), Ordering::AcqRel);
        }
        slot.store(*count << TAG_BITS | tag(target), Ordering::Release);
    }

    #[allow(clippy::cast_possible_truncation)]
    fn line(&self, target: u64) -> &Line {
        &self.lines[target as usize % LINES]
    }
}

/// The bits that do not choose the line.
fn tag(target: u64) -> u64 {
    target >> (u64::BITS - TAG_BITS)
}

fn number(slot: u64) -> u64 {
    slot >> TAG_BITS
}

fn is_of(slot: u64, target: u64) -> bool {
    number(slot) > 0 && slot & ((1 << TAG_BITS) - 1) == tag(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Targets of one line.
    fn target(nth: u64) -> u64 {
        (nth << (u64::BITS - TAG_BITS)) + 5
    }

    #[test]
    fn a_write_is_to_its_target_alone() {
        let writes = Writes::default();
        for nth in 0..SLOTS as u64 {
            writes.note(target(nth));
        }
        writes.note(target(0));
        for nth in 1..SLOTS as u64 {
            assert_eq!(writes.last(target(nth)), nth + 1);
        }
        assert_eq!(writes.last(target(0)), SLOTS as u64 + 1);
        assert_eq!(writes.last(target(SLOTS as u64)), 0);
        assert_eq!(writes.last(target(0) + 1), 0);
    }

    #[test]
    fn a_number_never_falls_when_others_need_the_place() {
        let writes = Writes::default();
        for nth in 0..100 {
            writes.note(target(nth));
        }
        for nth in 0..100 {
            assert!(writes.last(target(nth)) > nth, "{nth}");
        }
        let pushed_out = 100 - SLOTS as u64;
        assert_eq!(writes.last(target(500)), pushed_out, "others of the line count as written to with them");
        assert_eq!(writes.last(target(0) + 1), 0);
    }
}
