//! News of what is stored already: a 304 to the guard's own question, and the answer to a HEAD.

use std::sync::Arc;
use std::time::SystemTime;

use http::response::Parts as Head;
use http::{HeaderMap, StatusCode};

use super::bounds::ResponseBody;
use super::land::Lander;
use super::load::PageArrival;
use super::page::{Because, Page, Reply};
use super::recording::Recorded;
use crate::cache::{Arrival, Destination, Entry, Mark};
use crate::http::conditional::Conditionals;
use crate::http::headers::strip_hop_by_hop;
use crate::http::key::MethodClass;
use crate::http::validate::{self, Heard};
use crate::http::verdict::{self, Lifetime as VerdictLife, Share};

impl<R, X> Lander<R, X>
where
    R: ResponseBody,
{
    /// The origin says that what is stored still holds: it serves on, with what the answer says anew (RFC 9111 section
    /// 4.3.4).
    pub(super) fn confirmed(
        mut self,
        page: &Arc<Page>,
        mut head: Head,
        tags: Option<Arc<[Mark]>>,
    ) -> PageArrival {
        let now = SystemTime::now();
        // What it forbids, it forbids in fields of this one connection, too.
        let heard = validate::updated(&page.headers, &head.headers, now);
        let verdict = verdict::judge(self.facts, page.status, &heard, &self.guard.settings.policy, now);
        strip_hop_by_hop(&mut head.headers);
        if !validate::agrees(&page.headers, &head.headers) {
            // It confirms what it was asked about and names something else: good for those who wait, no longer.
            self.tell_leader(Ok(page.respond(MethodClass::Get, &Conditionals::default(), self.now())));
            let value = if let Some(Entry { value: Reply::Page(..), .. }) = &self.stale {
                Reply::Page(Arc::clone(page), None)
            } else {
                Reply::Private(Because::Head)
            };
            let bound_for = Destination::WaitersOnly(self.receipt(page.tags.clone()));
            return Arrival { value, bound_for };
        }
        let headers = validate::updated(&page.headers, &head.headers, now);
        let tags = tags.or_else(|| page.tags.clone());
        let fresh = match self.page_of(page.status, headers, &page.recording, &verdict, tags) {
            Ok(fresh) => fresh,
            Err(spec) => {
                self.tell_leader(Ok(page.respond(MethodClass::Get, &Conditionals::default(), self.now())));
                let given = verdict.share == Share::Yes || verdict.check;
                return if given { self.sends_on(&spec, &verdict) } else { self.private(Because::Head) };
            }
        };
        let mut own = fresh.respond(MethodClass::Get, &Conditionals::default(), self.now());
        self.guard.tell(own.headers_mut(), || self.status(head.status, &verdict, true));
        self.tell_leader(Ok(own));
        self.kept(fresh, None, &verdict)
    }

    /// The answer to a HEAD may be news of what is stored for GET (RFC 9111 section 4.3.5).
    pub(super) fn heard_of_stored(
        &self,
        status: StatusCode,
        answer: &HeaderMap,
        tags: Option<Arc<[Mark]>>,
        now: SystemTime,
    ) {
        let Some(Entry { value: Reply::Page(page, _), .. }) = &self.stale else { return };
        let shelf = self.guard.shelf();
        let is_there = shelf
            .find(&page.key)
            .is_some_and(|entry| entry.value.page().is_some_and(|there| Arc::ptr_eq(there, page)));
        if status != page.status || status != StatusCode::OK || !is_there || self.facts.no_store {
            return;
        }
        let headers = validate::updated(&page.headers, answer, now);
        let verdict = verdict::judge(self.facts, status, &headers, &self.guard.settings.policy, now);
        let same_variant = verdict.vary.without_keyed(&self.guard.settings.rule) == page.spec;
        let (Some(life), true, true) = (verdict.store, same_variant, page.is_complete()) else {
            return shelf.remove(&page.key);
        };
        let (received, age, life) = match validate::heard(&page.headers, page.recording.length(), answer) {
            Heard::Another => return shelf.remove(&page.key),
            Heard::Confirmed => (shelf.timeline.now(), life.age, life),
            // It does not make the body any younger, and is no validation.
            Heard::Unconfirmed => {
                let life = VerdictLife { age: page.age(shelf.timeline.now()), ..life };
                if page.revalidate || life.is_over() {
                    return;
                }
                (page.received, page.age, life)
            }
        };
        let fresh = Page {
            status,
            headers,
            recording: Recorded::new(&page.recording),
            received,
            age,
            revalidate: life.revalidate,
            tags: tags.or_else(|| page.tags.clone()),
            key: Arc::clone(&page.key),
            spec: page.spec.clone(),
        };
        let fresh = fresh.with_age();
        let storing = self.storing_page(&fresh, &life);
        shelf.put(Arc::clone(&page.key), Reply::Page(fresh, None), &storing);
    }
}
