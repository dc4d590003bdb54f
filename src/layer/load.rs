//! A handler run that others may share: what the leader's request becomes.

use std::sync::Arc;

use http::{Request, Response};
use tokio::sync::oneshot;
use tower::util::Oneshot;

use super::address::Address;
use super::body::GuardBody;
use super::bounds::{Inner, ResponseBody};
use super::guard::Guarded;
use super::land::Lander;
use super::page::{Page, PageKey, Reply};
use super::recording::Hold;
#[cfg(feature = "redis")]
use super::shared;
use crate::cache::{Arrival, Entry};
use crate::error::LoadError;
use crate::flight::{BoxLoad, Plan};
use crate::http::cache_status::Ttl;
use crate::http::key::MethodClass;
use crate::http::verdict::RequestFacts;

/// Why a handler run gave nothing to share. The leader learns more, from its own channel.
#[derive(Debug)]
pub(super) enum Failure {
    /// The inner service returned an error.
    Inner,
    /// The response is a server error, and a stale one may be served in its place.
    ServerError,
    /// The body broke off before anybody had its head.
    Broken,
    /// A GET in a HEAD's place brought nothing, where there was something: see [`PageLoad::by_head`].
    Bodiless,
}

pub(super) type Landing = Result<PageArrival, LoadError<Failure>>;
pub(super) type PageArrival = Arrival<PageKey, Reply>;

/// The leader's own response, or its service's own error.
pub(super) type Own<R, X> = Result<Response<GuardBody<R>>, X>;

/// A request and the service to run it.
pub(super) struct PageLoad<S, B, R, X> {
    pub(super) guard: Arc<Guarded>,
    pub(super) inner: S,
    pub(super) request: Request<B>,
    pub(super) facts: RequestFacts,
    pub(super) address: Address,
    /// What the shelf had.
    pub(super) stale: Option<Entry<Reply>>,
    /// Whether its leader, if it comes to lead, waits for a response of its own; of a background refresh nobody does.
    pub(super) attended: bool,
    /// Whether it is a GET that a HEAD set off. Where a router has a handler for each method, that is the handler for
    /// HEAD, whose answer has no body to replace a page's with.
    pub(super) by_head: bool,
    /// Where the leader waits.
    pub(super) leader: Option<oneshot::Sender<Own<R, X>>>,
}

impl<S, B, R> Plan<PageKey, PageArrival, Failure> for PageLoad<S, B, R, S::Error>
where
    S: Inner<B, R>,
    B: Send + 'static,
    R: ResponseBody,
{
    /// Where the leader's own response arrives.
    type Kept = Option<oneshot::Receiver<Own<R, S::Error>>>;

    fn recheck(&mut self, key: &PageKey) -> Option<PageArrival> {
        let found = self.guard.shelf().find_again(key)?;
        if found.value.page().is_some_and(|page| !self.guard.may_have(self.facts, page)) {
            return None;
        }
        // A client may ask for a newer one than this, fresh as it is.
        let seen = self.stale.as_ref().and_then(|seen| seen.value.page());
        let is_seen = found.value.page().zip(seen).is_some_and(|(found, seen)| Arc::ptr_eq(found, seen));
        if is_seen && matches!(self.guard.ttl(&found), Ttl::Left(_)) {
            return None;
        }
        let mut spared = self.guard.shelf().spare_load(&found, self.stale.as_ref())?;
        if let Reply::Page(page, reader) = &mut spared.value {
            match page.recording.hold()? {
                Hold::Whole => {}
                Hold::Growing(holds) => *reader = Some(Arc::new(holds)),
            }
        }
        Some(spared)
    }

    fn load(mut self, own: &mut Self::Kept) -> BoxLoad<PageArrival, Failure> {
        if self.attended {
            let (leader, waits) = oneshot::channel();
            (self.leader, *own) = (Some(leader), Some(waits));
        }
        #[cfg(feature = "redis")]
        if let Some(tier) = shared::tier_of(&self) {
            return Box::pin(shared::load(tier, self));
        }
        Box::pin(self.run())
    }
}

impl<S, B, R> PageLoad<S, B, R, S::Error>
where
    S: Inner<B, R>,
    B: Send + 'static,
    R: ResponseBody,
{
    /// The handler run itself.
    pub(super) async fn run(self) -> Landing {
        // The flight's own key tells nothing of where the page is that a HEAD is served from.
        let page = if self.address.class == MethodClass::Head { self.stale.clone() } else { None };
        let guard = Arc::clone(&self.guard);
        let (lander, call) = self.depart();
        let landing = lander.land(call).await;
        if landing.is_err()
            && let Some(page) = page
        {
            guard.put_off(&page);
        }
        landing
    }

    /// The handler's call, and who makes a landing of what it brings.
    pub(super) fn depart(self) -> (Lander<R, S::Error>, Oneshot<S, Request<B>>) {
        let Self { guard, inner, mut request, facts, address, stale, by_head, leader, attended: _ } = self;
        let asked = asked(&request);
        #[cfg(feature = "grpc")]
        if address.class == MethodClass::Unary {
            crate::http::grpc::metadata::make_common(request.headers_mut());
        }
        // As old as what it asks about: what was voided before is not there any more, what is voided from now on voids it.
        let born = guard.shelf().generations.born();
        let stale = stale.filter(|entry| guard.shelf().is_valid(entry));
        let asks_about = stale.as_ref().and_then(|entry| ask_about(entry, &address, request.headers_mut()));
        let mut lander = Lander::new(guard, facts, address, asked, stale, asks_about, born);
        (lander.leader, lander.by_head) = (leader, by_head);
        (lander, Oneshot::new(inner, request))
    }
}

/// Adds the guard's own conditions to a request, if what is stored has a validator: the page that they are about.
fn ask_about(stale: &Entry<Reply>, address: &Address, request: &mut http::HeaderMap) -> Option<Arc<Page>> {
    let page = stale.value.page()?;
    // Only a whole response can be confirmed.
    if address.class != MethodClass::Get || page.key != address.key || !page.is_complete() {
        return None;
    }
    page.validators()?.add_to(request);
    Some(Arc::clone(page))
}

/// What of a request goes into keys, for a `Vary` that is not known yet.
pub(super) fn asked<B>(request: &Request<B>) -> http::request::Parts {
    let mut asked = Request::new(()).into_parts().0;
    asked.uri = request.uri().clone();
    asked.headers = request.headers().clone();
    if let Some(original) = request.extensions().get::<axum::extract::OriginalUri>() {
        asked.extensions.insert(original.clone());
    }
    asked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Storing;
    use crate::http::vary::VarySpec;
    use crate::layer::builder::StampedeGuardBuilder;
    use crate::layer::recording::{BrokenBody, End, Outgrown, Recorded, Recording};
    use crate::policy::Lifetime;
    use std::convert::Infallible;
    use std::time::Duration;

    type Text = axum::body::Body;

    /// What a new leader finds once `end` has come to a page that is stored all the same.
    fn found_after(end: End) -> bool {
        let guard = Arc::new(StampedeGuardBuilder::new().defaults());
        let request = Request::new(Text::empty());
        let (parts, body) = request.into_parts();
        let address = Address::of(&guard, &parts, MethodClass::Get, 0, &[], &VarySpec::default()).unwrap();
        let key = Arc::clone(&address.key);
        let recording = Recording::new(None);
        let page = Page {
            status: http::StatusCode::OK,
            headers: http::HeaderMap::new(),
            recording: Recorded::new(&recording),
            received: guard.shelf().timeline.now(),
            age: Duration::ZERO,
            revalidate: false,
            tags: None,
            key: Arc::clone(&key),
            spec: VarySpec::default(),
        };
        let page = page.with_age();
        let minute = Duration::from_secs(60);
        let life = Lifetime { ttl: minute, stale_while_revalidate: minute, stale_if_error: minute };
        let storing = Storing::new(life, Duration::ZERO, guard.shelf().generations.born());
        guard.shelf().put(Arc::clone(&key), Reply::Page(page, None), &storing);
        recording.finish(end, None);
        let inner = tower::service_fn(|_: Request<Text>| {
            std::future::pending::<Result<Response<Text>, Infallible>>()
        });
        let mut load: PageLoad<_, Text, Text, Infallible> = PageLoad {
            guard,
            inner,
            request: Request::from_parts(parts, body),
            facts: RequestFacts::default(),
            address,
            stale: None,
            attended: false,
            by_head: false,
            leader: None,
        };
        load.recheck(&key).is_some()
    }

    #[test]
    fn a_page_whose_body_broke_off_before_it_was_stored_spares_no_load() {
        assert!(found_after(End::Complete));
        assert!(!found_after(End::Failed(BrokenBody::unexplained())));
        assert!(!found_after(End::Elsewhere(Outgrown::Limit)));
    }
}
