//! Where a page goes, under which keys, and for how long.

use std::sync::Arc;
use std::time::Duration;

use super::bounds::ResponseBody;
use super::fill::Keep;
use super::guard::{HIT_FOR_MISS, SIGNPOST_TTL};
use super::land::Lander;
use super::load::PageArrival;
use super::page::{Page, PageKey, Reply, Signpost};
use super::recording::{End, Reader};
use crate::cache::{Arrival, Destination, Mark, Storing};
use crate::http::verdict::{Lifetime as VerdictLife, Share, Verdict};
use crate::policy::Lifetime;

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
            }
        })
    }

    /// A page that is stored once its body is complete, unless something newer is there.
    pub(super) fn keep_complete(&self, page: &Arc<Page>, verdict: &Verdict) -> Keep {
        let guard = Arc::clone(&self.guard);
        let places = self.places(page, verdict);
        Keep::new(&self.guard, move |end| {
            if !matches!(end, End::Complete) {
                return;
            }
            for (key, value, mut storing) in places {
                if let Reply::Page(page, _) = &value {
                    storing.life = aged(storing.life, page.time_since_head(&guard.shelf().timeline));
                    if is_over(&storing.life) && page.validators().is_none() {
                        continue;
                    }
                }
                let there = guard.shelf().find(&key);
                let there = there.as_ref().and_then(|entry| entry.value.page());
                let is_old = there.zip(value.page()).is_some_and(|(there, page)| there.is_newer_than(page));
                if !is_old {
                    guard.shelf().put(key, value, &storing);
                }
            }
        })
    }

    /// Each client runs its own request, and for a while nobody waits to find that out again.
    pub(super) fn private(&self) -> PageArrival {
        let storing = self.storing(Lifetime::fresh_for(HIT_FOR_MISS), None);
        Arrival { value: Reply::Private, bound_for: Destination::Shelf(Box::new(storing)) }
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
            return self.private();
        }
        // What is not kept voids what was, unless it is a client that does not want it kept: that takes nothing from
        // the others.
        if is_shared && verdict.store.is_none() && !self.facts.no_store {
            self.guard.shelf().remove(&page.key);
        }
        let places = self.places(&page, verdict);
        let bound_for = if places.is_empty() { Destination::Nowhere } else { Destination::Shelves(places) };
        let value = if is_shared { Reply::Page(page, reader) } else { Reply::Checked(page) };
        Arrival { value, bound_for }
    }

    /// Where the page goes: under its key, and if that has headers in it that only `Vary` names, a signpost under
    /// the key without them.
    fn places(&self, page: &Arc<Page>, verdict: &Verdict) -> Vec<(PageKey, Reply, Storing)> {
        let mut places = Vec::new();
        let is_kept = verdict.store.is_some() || verdict.check;
        if !page.spec.is_empty() {
            let known = self.guard.shelf().find(&self.address.base).and_then(|entry| match entry.value {
                Reply::Varies(signpost) if signpost.spec == page.spec => Some(signpost),
                _ => None,
            });
            let signpost = known.unwrap_or_else(|| Arc::new(Signpost::new(page.spec.clone())));
            if is_kept && let Some(oldest) = signpost.admit(&page.key, self.guard.settings.max_variants) {
                self.guard.shelf().remove(&oldest);
            }
            let storing = self.storing(Lifetime::fresh_for(SIGNPOST_TTL), None);
            places.push((Arc::clone(&self.address.base), Reply::Varies(signpost), storing));
        }
        let (value, life) = match verdict.store {
            Some(life) => (Reply::Page(Arc::clone(page), None), left(&life)),
            None if verdict.check => (Reply::Checked(Arc::clone(page)), Lifetime::fresh_for(HIT_FOR_MISS)),
            None => return places,
        };
        places.push((Arc::clone(&page.key), value, self.storing(life, page.tags.clone())));
        places
    }

    pub(super) fn storing(&self, life: Lifetime, tags: Option<Arc<[Mark]>>) -> Storing {
        Storing { tags, jitter: self.guard.settings.jitter, ..Storing::new(life, self.cost, self.born) }
    }
}

/// What is left of a lifetime on arrival.
pub(super) fn left(life: &VerdictLife) -> Lifetime {
    let VerdictLife { age, fresh_for, stale_while_revalidate, stale_if_error, .. } = *life;
    aged(Lifetime { ttl: fresh_for, stale_while_revalidate, stale_if_error }, age)
}

/// What is left of a lifetime. It may be past its freshness already, and its windows have begun.
fn aged(life: Lifetime, age: Duration) -> Lifetime {
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
