//! Where a page goes, under which keys, and for how long.

use std::sync::Arc;
use std::time::Duration;

use super::bounds::ResponseBody;
use super::fill::Keep;
use super::guard::{Guarded, HIT_FOR_MISS, SIGNPOST_TTL};
use super::land::Lander;
use super::load::PageArrival;
use super::page::{Because, Page, PageKey, Reply, Signpost};
use super::recording::{End, Reader};
use crate::cache::{Arrival, Destination, Mark, Storing};
use crate::http::vary::VarySpec;
use crate::http::verdict::{Lifetime as VerdictLife, Share, Verdict};
use crate::policy::{Freshness, Lifetime};
use crate::sync::Mutex;

impl<R, X> Lander<R, X>
where
    R: ResponseBody,
{
    /// A page that is stored while its body comes, and taken out if that breaks off.
    pub(super) fn keep_growing(&self, page: &Arc<Page>) -> Keep {
        let guard = Arc::clone(&self.guard);
        let page = Arc::clone(page);
        let replaced = self.stale.clone().filter(|_| page.key == self.address.key);
        Keep::new(&self.guard, move |end| {
            if !matches!(end, End::Complete) {
                guard.drop_page(&page, replaced);
            } else if page.recording.trailer_weight() > 0 {
                guard.reweigh(&page);
            }
        })
    }

    /// A page that is stored once its body is complete, unless something newer is there. `is_stored` is told so, and
    /// locked meanwhile.
    pub(super) fn keep_complete(
        &self,
        page: &Arc<Page>,
        verdict: &Verdict,
        is_stored: &Arc<Mutex<bool>>,
    ) -> Keep {
        let is_stored = Arc::clone(is_stored);
        let guard = Arc::clone(&self.guard);
        let places = self.places(page, verdict);
        let (page, base) = (Arc::clone(page), Arc::clone(&self.address.base));
        let before = reply_at(&guard, &base);
        Keep::new(&self.guard, move |end| {
            if !matches!(end, End::Complete) {
                return;
            }
            let is_past =
                |key| reply_at(&guard, key).is_some_and(|there| is_past(&page, &there, before.as_ref()));
            if is_past(&base) || is_past(&page.key) {
                return;
            }
            let mut is_stored = is_stored.lock();
            *is_stored = true;
            for (key, value, mut storing) in places {
                if let Reply::Page(page, _) = &value {
                    storing.life = aged(storing.life, page.time_since_head(guard.shelf().timeline.now()));
                    if is_over(&storing.life) && page.validators().is_none() {
                        continue;
                    }
                }
                guard.shelf().put(key, value, &storing);
            }
        })
    }

    /// Each client runs its own request, this time: what kept this response from the others tells nothing of the next.
    pub(super) fn apart(&self) -> PageArrival {
        let value = Reply::Private(Because::Head);
        Arrival { value, bound_for: Destination::Nowhere(self.receipt(None)) }
    }

    /// The same, and for a while nobody waits to find that out again. What serves each client for which the origin
    /// says that it still holds stays: it lets nobody wait either.
    pub(super) fn private(&self, because: Because) -> PageArrival {
        match self.marker() {
            Some(storing) => {
                let value = Reply::Private(because);
                Arrival { value, bound_for: Destination::Shelf(Box::new(storing)) }
            }
            None => self.apart(),
        }
    }

    /// How the marker is kept that says so, if there is to be one.
    fn marker(&self) -> Option<Storing> {
        let there = self.guard.shelf().find(&self.address.key);
        let is_checked = there.is_some_and(|entry| {
            matches!(entry.value, Reply::Checked(_)) && self.guard.shelf().judge(&entry) == Freshness::Fresh
        });
        (!is_checked).then(|| self.storing(Lifetime::fresh_for(HIT_FOR_MISS), None))
    }

    /// What those who wait get who have waited for a body long enough. The marker does not take the place of the page,
    /// should its body have ended by now.
    pub(super) fn waited(&self, page: Arc<Page>, is_stored: &Mutex<bool>) -> PageArrival {
        let is_stored = is_stored.lock();
        if *is_stored {
            return self.for_waiters(page);
        }
        if let Some(storing) = self.marker() {
            let value = Reply::Private(Because::Body);
            self.guard.shelf().put(Arc::clone(&self.address.key), value, &storing);
        }
        self.apart()
    }

    /// Where a page goes whose body is there, or is read by all as it comes.
    pub(super) fn kept(
        &self,
        page: Arc<Page>,
        reader: Option<Arc<Reader>>,
        verdict: &Verdict,
    ) -> PageArrival {
        let is_shared = verdict.share == Share::Yes;
        if !is_shared && !verdict.check {
            return self.private(Because::Head);
        }
        // What is not kept voids what was, unless it is a client that does not want it kept: that takes nothing from
        // the others. Nor does a failure.
        let is_failure = page.status.is_server_error();
        if is_shared && verdict.store.is_none() && !self.facts.no_store && !is_failure {
            self.guard.shelf().remove(&page.key);
        }
        let places = self.places(&page, verdict);
        let bound_for = if places.is_empty() {
            Destination::Nowhere(self.receipt(page.tags.clone()))
        } else {
            Destination::Shelves(places)
        };
        let value = if is_shared { Reply::Page(page, reader) } else { Reply::Checked(page) };
        Arrival { value, bound_for }
    }

    /// A response that others may have, but for one that is the leader's own, whose key with the headers of `spec` in it
    /// is too long. Those who wait are sent on to theirs.
    pub(super) fn sends_on(&self, spec: &VarySpec, verdict: &Verdict) -> PageArrival {
        let (signpost, place) = self.signpost(spec, verdict);
        let bound_for = match place {
            Some(place) => Destination::Shelves(vec![place]),
            None => Destination::Nowhere(self.receipt(None)),
        };
        Arrival { value: Reply::Varies(signpost), bound_for }
    }

    /// The way to the variants of a response with these headers in its key, and where it goes, if it is not there yet.
    fn signpost(
        &self,
        spec: &VarySpec,
        verdict: &Verdict,
    ) -> (Arc<Signpost>, Option<(PageKey, Reply, Storing)>) {
        let base = &self.address.base;
        let (signpost, is_new) = self.guard.signpost(base, spec);
        // Headers that no response names any more are forgotten with the signpost.
        let names_all = verdict.vary.without_keyed(&self.guard.settings.rule) == *spec;
        // A client that does not want anything kept takes nothing from the others.
        let place = ((is_new || names_all) && !self.facts.no_store).then(|| {
            let storing = self.storing(Lifetime::fresh_for(SIGNPOST_TTL), None);
            (Arc::clone(base), Reply::Varies(Arc::clone(&signpost)), storing)
        });
        (signpost, place)
    }

    /// Where the page goes: under its key, and if that has headers in it that only `Vary` names, a signpost under
    /// the key without them.
    fn places(&self, page: &Arc<Page>, verdict: &Verdict) -> Vec<(PageKey, Reply, Storing)> {
        let mut places = Vec::new();
        let is_kept = verdict.store.is_some() || verdict.check;
        if !page.spec.is_empty() {
            let (signpost, place) = self.signpost(&page.spec, verdict);
            if is_kept {
                self.guard.admit(&self.address.base, &signpost, &page.key);
            }
            places.extend(place);
        }
        let (value, storing) = match verdict.store {
            Some(life) => (Reply::Page(Arc::clone(page), None), self.storing_page(page, &life)),
            None if verdict.check => {
                let storing = self.storing(Lifetime::fresh_for(HIT_FOR_MISS), page.tags.clone());
                (Reply::Checked(Arc::clone(page)), storing)
            }
            None => return places,
        };
        places.push((Arc::clone(&page.key), value, storing));
        places
    }

    /// How a page of this life is kept.
    pub(super) fn storing_page(&self, page: &Arc<Page>, life: &VerdictLife) -> Storing {
        let storing = self.storing(left(life), page.tags.clone());
        #[cfg(feature = "redis")]
        if let Some(for_all) = &self.for_all {
            return for_all.storing(&self.guard, page, storing);
        }
        self.guard.unshared(storing)
    }

    pub(super) fn storing(&self, life: Lifetime, tags: Option<Arc<[Mark]>>) -> Storing {
        Storing { tags, jitter: self.guard.settings.jitter, ..Storing::new(life, self.cost, self.born) }
    }
}

fn reply_at(guard: &Guarded, key: &PageKey) -> Option<Reply> {
    guard.shelf().find(key).map(|entry| entry.value)
}

/// Whether `there`, found where `page` goes once its body is complete, came after the page's head did: it is a newer
/// page, or points to variants where another thing was `before`. A marker may be its own: others went on without it.
fn is_past(page: &Arc<Page>, there: &Reply, before: Option<&Reply>) -> bool {
    match (there, before) {
        (Reply::Page(there, _) | Reply::Checked(there), _) => there.is_newer_than(page),
        (Reply::Varies(there), _) if there.spec == page.spec => false,
        (Reply::Varies(there), Some(Reply::Varies(before))) => !Arc::ptr_eq(there, before),
        (Reply::Private(_), _) => false,
        (Reply::Varies(_), _) => true,
    }
}

/// What is left of a lifetime on arrival.
fn left(life: &VerdictLife) -> Lifetime {
    let VerdictLife { age, fresh_for, stale_while_revalidate, stale_if_error, .. } = *life;
    aged(Lifetime { ttl: fresh_for, stale_while_revalidate, stale_if_error }, age)
}

/// What is left of a lifetime. It may be past its freshness already, and its windows have begun.
pub(super) fn aged(life: Lifetime, age: Duration) -> Lifetime {
    let overdue = age.saturating_sub(life.ttl);
    Lifetime {
        ttl: life.ttl.saturating_sub(age),
        stale_while_revalidate: life.stale_while_revalidate.saturating_sub(overdue),
        stale_if_error: life.stale_if_error.saturating_sub(overdue),
    }
}

fn is_over(life: &Lifetime) -> bool {
    (life.ttl + life.stale_while_revalidate + life.stale_if_error).is_zero()
}
