//! What was invalidated when: decides whether an entry, or a load still under way, is from before.
//!
//! One counter orders invalidations. A load is born at the counter's value when it starts; whatever is
//! invalidated later has a higher mark, so the load's result is void however late it comes.

use crate::stable_hash::folded;
use crate::sync::{AtomicU64, Ordering};

/// Tags share this many marks. Two tags on one mark cost a reload when either is invalidated, nothing else.
pub(crate) const MARKS: usize = 4_096;

#[derive(Debug)]
pub(crate) struct Generations {
    counter: AtomicU64,
    /// The mark of everything.
    floor: AtomicU64,
    marks: Box<[AtomicU64]>,
}

/// The moment a load started, among the invalidations. The default is before all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Born(u64);

/// A tag's mark.
pub(crate) type Mark = u16;

/// The mark of a tag, the same in every instance, whatever it was built with; tags are the service's own, so nobody
/// gains by finding two of one mark.
#[allow(clippy::cast_possible_truncation)]
pub(crate) fn mark_of(tag: impl AsRef<[u8]>) -> Mark {
    (folded(tag.as_ref()) % MARKS as u64) as Mark
}

impl Generations {
    pub(crate) fn new() -> Self {
        Self {
            counter: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            marks: (0..MARKS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub(crate) fn born(&self) -> Born {
        Born(self.counter.load(Ordering::Acquire))
    }

    #[inline]
    pub(crate) fn is_valid(&self, born: Born, marks: Option<&[Mark]>) -> bool {
        self.floor.load(Ordering::Acquire) <= born.0
            && marks.is_none_or(|marks| {
                marks.iter().all(|&mark| self.marks[usize::from(mark)].load(Ordering::Acquire) <= born.0)
            })
    }

    /// True if a caller of the time `caller` must not have what a load of the time `load` brings: it was
    /// invalidated in between. If something else was, and this only after the caller came, it is true as well:
    /// a mark knows its last invalidation alone.
    pub(crate) fn is_void_for(&self, caller: Born, load: Born, marks: Option<&[Mark]>) -> bool {
        load < caller && !self.is_valid(load, marks)
    }

    pub(crate) fn invalidate_all(&self) {
        let now = self.counter.fetch_add(1, Ordering::AcqRel) + 1;
        self.floor.fetch_max(now, Ordering::AcqRel);
    }

    /// Does nothing for a number that is no mark, as only another instance could send.
    pub(crate) fn invalidate(&self, mark: Mark) {
        let now = self.counter.fetch_add(1, Ordering::AcqRel) + 1;
        if let Some(last) = self.marks.get(usize::from(mark)) {
            last.fetch_max(now, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tags_mark_never_changes() {
        assert_eq!([mark_of(""), mark_of("shoes"), mark_of("product:42")], [4_033, 3_195, 3_483]);
        assert!((0..10_000).all(|n| usize::from(mark_of(n.to_string())) < MARKS));
    }

    #[test]
    fn a_load_from_before_is_void_and_one_from_after_is_not() {
        let generations = Generations::new();
        let (red, blue) = (1, 2);
        let before = generations.born();
        assert!(generations.is_valid(before, Some(&[red])));
        generations.invalidate(red);
        assert!(!generations.is_valid(before, Some(&[blue, red])));
        assert!(generations.is_valid(before, Some(&[blue])));
        assert!(generations.is_valid(before, None));
        let after = generations.born();
        assert!(generations.is_void_for(after, before, Some(&[red])));
        assert!(!generations.is_void_for(before, before, Some(&[red])), "it waited already");
        assert!(!generations.is_void_for(after, before, Some(&[blue])));
        assert!(generations.is_valid(after, Some(&[red])));
        generations.invalidate_all();
        assert!(!generations.is_valid(after, None));
        assert!(generations.is_valid(generations.born(), Some(&[red, blue])));
    }
}
