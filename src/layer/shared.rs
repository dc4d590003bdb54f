//! One handler run over all instances: before it the tier is asked, after it the tier is told.
//!
//! What comes from the tier is untrusted. It is served only if it names the very key that the request has, and nothing
//! in its head ties it to one client.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use tokio::time::timeout;

use super::address::{Address, original_uri};
use super::bounds::{Inner, ResponseBody};
use super::guard::{Guarded, HIT_FOR_MISS, OnWaitTimeout, SIGNPOST_TTL};
use super::load::{Failure, Landing, PageArrival, PageLoad, asked};
use super::page::{Because, Page, PageKey, Reply};
use super::places::aged;
use super::recording::{End, Recorded, Recording};
use super::tier::{Tiered, group_of, group_of_mark, mark_of_group, name_of};
use crate::cache::{Arrival, Born, Destination, Entry, Mark, Stamp, Storing, capped, rest_of};
use crate::coordinate::{
    Ask, Group, Lease, LeaseOfLoad, Patience, Publication, Published, SharedValue, Token, Turn,
};
use crate::error::{LoadError, RemoteKind, TimedOut};
use crate::event::{Outcome, StaleReason};
use crate::http::headers::strip_personal;
use crate::http::key::{MethodClass, without_generation};
use crate::http::origin::target;
use crate::http::vary::{Vary, VarySpec};
use crate::http::verdict::{RequestFacts, is_anyones};
use crate::http::wire::Stored;
use crate::policy::Lifetime;
use crate::sync::{self, OnceLock};

/// The form of responses, among those of a tier's values.
const CODEC: u8 = 2;

/// So often a question leads to another one at most.
const QUESTIONS: usize = 8;

/// What a handler run brings for all instances, once its response is known to be one for them.
#[derive(Debug)]
pub(super) struct ForAll {
    /// Of its lease; 0 for a run that no other instance hears of.
    token: Token,
    /// How long this instance keeps it without asking again.
    cap: Duration,
    /// Its life is as long as the response says, less jitter.
    page: OnceLock<(Arc<Page>, Storing)>,
}

impl ForAll {
    fn new(tier: &Tiered, token: Token) -> Arc<Self> {
        Arc::new(Self { token, cap: tier.member.local_ttl_cap(), page: OnceLock::new() })
    }

    /// How this instance keeps a page of this life. Its jitter is settled here, once for all instances.
    pub(super) fn storing(&self, guard: &Guarded, page: &Arc<Page>, storing: Storing) -> Storing {
        let (_, settled) = self.page.get_or_init(|| {
            let ttl = guard.shelf().jittered(storing.life.ttl, storing.jitter);
            let shared = Some(Stamp::own(self.token, ttl));
            (Arc::clone(page), Storing { life: Lifetime { ttl, ..storing.life }, shared, ..storing })
        });
        Storing { life: capped(settled.life, self.cap), ..settled.clone() }
    }

    /// The page that this landing brings, if it is one for all, and how it would be stored without a tier.
    fn page_of(&self, landed: &PageArrival) -> Option<&(Arc<Page>, Storing)> {
        let Reply::Page(page, _) = &landed.value else { return None };
        self.page.get().filter(|(found, _)| Arc::ptr_eq(found, page))
    }
}

/// The tier that a load concerns. Those of one principal, those with credentials, and what only answers HEADs, do not
/// leave their instance.
pub(super) fn tier_of<S, B, R, X>(load: &PageLoad<S, B, R, X>) -> Option<Arc<Tiered>> {
    let facts = &load.facts;
    let concerns = load.address.class != MethodClass::Head && !facts.principal_in_key && !facts.authorized;
    load.guard.shared.tier.clone().filter(|_| concerns)
}

/// What an instance is to do.
enum Word {
    Have(PageArrival),
    /// Have this while the handler runs for all.
    Behind(PageArrival, Box<dyn Lease>),
    /// Run the handler for all. There may be a page that is past its freshness.
    Lead(Box<dyn Lease>, Option<Entry<Reply>>),
    Failed(RemoteKind),
    Alone,
}

/// What a value turned out to be.
enum Read {
    Page(Arc<Page>, Lifetime),
    /// Of another variant: this request's own is under this key.
    Elsewhere(PageKey, VarySpec),
    /// Damaged, or void.
    Nothing,
}

/// The shared form of a load: its own run takes place only if this instance is told to.
pub(super) async fn load<S, B, R>(tier: Arc<Tiered>, mut load: PageLoad<S, B, R, S::Error>) -> Landing
where
    S: Inner<B, R>,
    B: Send + 'static,
    R: ResponseBody,
{
    let guard = Arc::clone(&load.guard);
    let errand = Errand::new(&tier, &load);
    if errand.is_known_to_be_local() {
        return errand.alone(load).await;
    }
    let settings = &guard.settings;
    let limit = [settings.wait_timeout, settings.load_timeout].into_iter().flatten().min();
    let word = match limit {
        None => errand.ask().await,
        Some(limit) => match timeout(limit, errand.ask()).await {
            Ok(word) => word,
            Err(_)
                if settings.on_wait_timeout == OnWaitTimeout::PassThrough
                    && errand.in_hand.get().is_none() =>
            {
                Word::Alone
            }
            Err(_) => return errand.or_in_hand(Err(LoadError::TimedOut(TimedOut { after: limit }))),
        },
    };
    match word {
        Word::Have(arrival) => {
            guard.counters().spared.add();
            Ok(arrival)
        }
        Word::Failed(kind) => {
            guard.counters().spared.add();
            errand.or_in_hand(Err(LoadError::Remote { kind }))
        }
        Word::Alone => {
            load.stale = errand.in_hand.get().cloned().or(load.stale);
            let landed = errand.alone(load).await;
            errand.or_in_hand(landed)
        }
        // Its response is not one for others.
        Word::Lead(lease, _) if load.facts.no_store => {
            drop(lease);
            errand.alone(load).await
        }
        Word::Lead(lease, None) => errand.fly(lease, load).await,
        Word::Lead(lease, Some(stale)) => {
            load.stale = Some(stale.clone());
            let landed = errand.fly(lease, load).await;
            landed.or_else(|error| errand.stand_in(stale).ok_or(error))
        }
        Word::Behind(arrival, lease) => {
            guard.counters().spared.add();
            errand.go_on(lease, load);
            Ok(arrival)
        }
    }
}

/// What one flight asks the tier for.
struct Errand {
    guard: Arc<Guarded>,
    tier: Arc<Tiered>,
    address: Address,
    asked: Parts,
    group: Group,
    /// A page from the tier is as old as the question: what is voided while it is on its way voids it.
    born: Born,
    /// Its request has been answered already.
    background: bool,
    /// Only a page of a greater token will do.
    newer_than: Option<Token>,
    /// Past its freshness, found while another instance runs its handler: it stands in should that be slow, or fail.
    in_hand: OnceLock<Entry<Reply>>,
}

impl Errand {
    fn new<S, B, R, X>(tier: &Arc<Tiered>, load: &PageLoad<S, B, R, X>) -> Self {
        let background = load.leader.is_none();
        let asked = asked(&load.request);
        let newer_than = if load.facts.demanding {
            Some(Token::MAX)
        } else if background {
            load.stale.as_ref().map(Entry::token)
        } else {
            None
        };
        Self {
            guard: Arc::clone(&load.guard),
            tier: Arc::clone(tier),
            address: load.address.clone(),
            group: group_of(&target(&asked, original_uri(&asked))),
            asked,
            born: load.guard.shelf().generations.born(),
            background,
            newer_than,
            in_hand: OnceLock::new(),
        }
    }

    async fn ask(&self) -> Word {
        let (mut key, mut spec) = (Arc::clone(&self.address.key), self.address.spec.clone());
        let patient = self.background || self.newer_than.is_some();
        let group = Some(self.group);
        let first = Ask {
            group,
            newer_than: self.newer_than,
            takes_stale: !patient,
            awaited: None,
            patience: if patient { Patience::Full } else { Patience::UnlessStale },
        };
        let mut ask = first;
        for _ in 0..QUESTIONS {
            let (value, outcome) = match self.tier.member.enter(&name_of(&key), ask).await {
                Turn::Alone => return Word::Alone,
                Turn::Busy { awaited, stale } => {
                    (ask.awaited, ask.patience) = (Some(awaited), Patience::Full);
                    if let Some(value) = stale {
                        self.take_in_hand(value, &key, &spec).await;
                    }
                    continue;
                }
                Turn::Failed(kind) => return Word::Failed(kind),
                Turn::Lead { lease, stale } => return self.lead(lease, stale, &key, &spec, patient).await,
                Turn::Hit { value, waited } => {
                    (value, if waited { Outcome::SharedWait } else { Outcome::SharedHit })
                }
                Turn::Stale(value) => {
                    let (age, reason) = (value.age, value.stale_reason());
                    (value, Outcome::Stale { age, reason })
                }
            };
            let token = value.token;
            let (times, read) = self.read(value, &key, &spec).await;
            match read {
                Read::Page(page, life) => return Word::Have(self.arrival(page, life, &times, outcome)),
                Read::Elsewhere(variant, names) => {
                    (key, spec) = (variant, names);
                    ask = first;
                }
                Read::Nothing => ask.newer_than = Some(token.max(ask.newer_than.unwrap_or(0))),
            }
        }
        Word::Alone
    }

    async fn lead(
        &self,
        lease: Box<dyn Lease>,
        stale: Option<SharedValue>,
        key: &PageKey,
        spec: &VarySpec,
        patient: bool,
    ) -> Word {
        let Some(value) = stale else { return Word::Lead(lease, None) };
        let (times, read) = self.read(value, key, spec).await;
        match read {
            Read::Page(page, life) if page.key == self.address.key => {
                if !patient && !life.stale_while_revalidate.is_zero() {
                    let outcome = Outcome::Stale { age: times.age, reason: StaleReason::Revalidating };
                    return Word::Behind(self.arrival(page, life, &times, outcome), lease);
                }
                Word::Lead(lease, self.shelve(page, life, &times))
            }
            _ => Word::Lead(lease, None),
        }
    }

    async fn take_in_hand(&self, value: SharedValue, key: &PageKey, spec: &VarySpec) {
        let (times, read) = self.read(value, key, spec).await;
        if let Read::Page(page, life) = read
            && page.key == self.address.key
            && let Some(entry) = self.shelve(page, life, &times)
        {
            // Another one would be as good.
            let _ = self.in_hand.set(entry);
        }
    }

    /// Keeps a page that is past its freshness. Served if the run fails, and asked about if it has a validator: as what
    /// this instance had itself.
    fn shelve(&self, page: Arc<Page>, life: Lifetime, times: &SharedValue) -> Option<Entry<Reply>> {
        let (storing, key) = (self.storing(&page, life, times, None), Arc::clone(&page.key));
        let shelf = self.guard.shelf();
        shelf.put(Arc::clone(&key), Reply::Page(page, None), &storing);
        shelf.find(&key)
    }

    /// What was in hand, if another instance's run or this one's own came to nothing.
    fn or_in_hand(&self, landed: Landing) -> Landing {
        landed
            .or_else(|error| self.in_hand.get().cloned().and_then(|stale| self.stand_in(stale)).ok_or(error))
    }

    /// What a value is to this request. Its payload is used up.
    async fn read(&self, mut value: SharedValue, key: &PageKey, spec: &VarySpec) -> (SharedValue, Read) {
        let payload = Bytes::from(std::mem::take(&mut value.payload));
        let stored = Stored::decode(payload).filter(|stored| value.codec == CODEC && self.is_sound(stored));
        let Some(stored) = stored else {
            self.tier.member.count_malformed();
            return (value, Read::Nothing);
        };
        let is_variant = stored.vary != *spec;
        let key = if is_variant {
            let variant = self.address.under(&self.guard.settings.rule, &self.asked, &stored.vary);
            let Some(variant) = variant else { return (value, Read::Nothing) };
            variant
        } else {
            Arc::clone(key)
        };
        if *without_generation(&key) != *stored.key {
            if is_variant && stored.vary.contains(spec) {
                return (value, Read::Elsewhere(key, stored.vary));
            }
            self.tier.member.count_malformed();
            return (value, Read::Nothing);
        }
        let marks: Option<Arc<[Mark]>> = value.groups.iter().copied().map(mark_of_group).collect();
        let Some(marks) = marks else {
            self.tier.member.count_malformed();
            return (value, Read::Nothing);
        };
        if self.tier.member.is_void(&value.groups, value.token).await {
            return (value, Read::Nothing);
        }
        let life = rest_of(&value);
        let recording = Recording::complete(stored.body, stored.trailers);
        recording.in_room(self.guard.shared.budget.open());
        let page = Page {
            status: stored.status,
            headers: stored.headers,
            recording: Recorded::new(&recording),
            received: self.guard.shelf().timeline.now(),
            age: stored.age + value.age,
            revalidate: stored.revalidate,
            tags: (!marks.is_empty()).then_some(marks),
            key,
            spec: stored.vary,
        };
        let page = if self.address.class == MethodClass::Unary { Arc::new(page) } else { page.with_age() };
        #[cfg(feature = "grpc")]
        if self.address.class == MethodClass::Unary && !super::grpc::is_reply(&page) {
            self.tier.member.count_malformed();
            return (value, Read::Nothing);
        }
        (value, Read::Page(page, life))
    }

    /// Whether it is a whole response that this instance, too, would give to others.
    fn is_sound(&self, stored: &Stored) -> bool {
        let Guarded { settings, .. } = &*self.guard;
        let length = stored.headers.get(CONTENT_LENGTH);
        let varies_as_it_says = match VarySpec::parse(&stored.headers) {
            Vary::Any => false,
            Vary::Names(names) => stored.vary.contains(&names.without_keyed(&settings.rule)),
        };
        is_anyones(stored.status, &stored.headers, &settings.policy)
            && varies_as_it_says
            && length.is_none_or(|said| said.as_bytes() == stored.body.len().to_string().as_bytes())
    }

    /// Whether the page itself names all the headers that are in its key beyond the rule.
    fn names_all(&self, page: &Page) -> bool {
        match VarySpec::parse(&page.headers) {
            Vary::Any => false,
            Vary::Names(names) => names.without_keyed(&self.guard.settings.rule) == page.spec,
        }
    }

    fn storing(&self, page: &Page, life: Lifetime, times: &SharedValue, outcome: Option<Outcome>) -> Storing {
        let shared = Some(Stamp { token: times.token, outcome, age: times.age, fresh_for: life.ttl });
        let life = capped(life, self.tier.member.local_ttl_cap());
        Storing { tags: page.tags.clone(), shared, ..Storing::new(life, times.cost, self.born) }
    }

    /// The page of another instance's run, and where this one keeps it.
    fn arrival(&self, page: Arc<Page>, life: Lifetime, times: &SharedValue, outcome: Outcome) -> PageArrival {
        let mut places = Vec::new();
        if !page.spec.is_empty() {
            let (signpost, is_new) = self.guard.signpost(&self.address.base, &page.spec);
            self.guard.admit(&self.address.base, &signpost, &page.key);
            if is_new || self.names_all(&page) {
                let storing = Storing::new(Lifetime::fresh_for(SIGNPOST_TTL), Duration::ZERO, self.born);
                places.push((Arc::clone(&self.address.base), Reply::Varies(signpost), storing));
            }
        }
        let storing = self.storing(&page, life, times, Some(outcome));
        places.push((Arc::clone(&page.key), Reply::Page(Arc::clone(&page), None), storing));
        Arrival { value: Reply::Page(page, None), bound_for: Destination::Shelves(places) }
    }

    /// A run that no other instance hears of.
    async fn alone<S, B, R>(&self, load: PageLoad<S, B, R, S::Error>) -> Landing
    where
        S: Inner<B, R>,
        B: Send + 'static,
        R: ResponseBody,
    {
        let for_all = ForAll::new(&self.tier, 0);
        let landed = self.run(load, &for_all).await;
        if let Ok(arrival) = &landed {
            self.learn(for_all.page_of(arrival).is_some());
        }
        landed
    }

    /// Runs the handler for all. Dropped, it gives the lease back.
    async fn fly<S, B, R>(&self, lease: Box<dyn Lease>, load: PageLoad<S, B, R, S::Error>) -> Landing
    where
        S: Inner<B, R>,
        B: Send + 'static,
        R: ResponseBody,
    {
        let for_all = ForAll::new(&self.tier, lease.token());
        let generation = self.guard.generation(|| target(&self.asked, original_uri(&self.asked)));
        // Its time-out is the run's own, and no drop.
        let lease = LeaseOfLoad::new(lease, None);
        let landed = self.run(load, &for_all).await;
        let lease = lease.take();
        match &landed {
            Ok(arrival) => {
                let page = for_all.page_of(arrival).filter(|(page, _)| self.may_fit(page));
                self.learn(page.is_some());
                match page {
                    Some((page, storing)) => self.publish(lease, Arc::clone(page), storing, generation),
                    // At its head, that is: nobody waits in vain.
                    None => lease.keep_local(),
                }
            }
            Err(LoadError::Failed(failure)) if !matches!(**failure, Failure::Bodiless) => {
                lease.fail(RemoteKind::Failed);
            }
            Err(LoadError::TimedOut(_)) => lease.fail(RemoteKind::TimedOut),
            Err(_) => drop(lease),
        }
        landed
    }

    async fn run<S, B, R>(&self, load: PageLoad<S, B, R, S::Error>, for_all: &Arc<ForAll>) -> Landing
    where
        S: Inner<B, R>,
        B: Send + 'static,
        R: ResponseBody,
    {
        let (mut lander, call) = load.depart();
        lander.for_all = Some(Arc::clone(for_all));
        lander.land(call).await
    }

    /// What is served in place of a run that failed, and for a while in place of the next one.
    fn stand_in(&self, stale: Entry<Reply>) -> Option<PageArrival> {
        if !self.guard.may_stand_in(RequestFacts::default(), &stale) {
            return None;
        }
        let age = stale.age(self.guard.shelf().timeline.now());
        let (value, receipt) = (stale.value.clone(), stale.receipt());
        self.guard.shelf().put_back(Arc::clone(&self.address.key), stale);
        Some(Arrival { value, bound_for: Destination::BackingOff { age, receipt } })
    }

    /// Runs the handler for all in the background, with what a refresh carries of the request.
    fn go_on<S, B, R>(self, lease: Box<dyn Lease>, mut load: PageLoad<S, B, R, S::Error>)
    where
        S: Inner<B, R>,
        B: Send + 'static,
        R: ResponseBody,
    {
        let Some(place) = Unattended::enter(&self.guard) else { return };
        self.guard.carry_common(load.request.headers_mut(), &self.address.spec);
        load.leader = None;
        self.guard.counters().refreshes.add();
        crate::event::count_refresh();
        let key = Arc::clone(&self.address.key);
        sync::spawn(async move {
            let landed = self.fly(lease, load).await;
            place.0.shelf().land(&key, landed);
        });
    }

    /// Whether its length leaves any hope.
    fn may_fit(&self, page: &Page) -> bool {
        page.recording.length().is_none_or(|length| self.tier.member.takes(length))
    }

    /// In the background: whoever waits here does not wait for this. Whoever waits in other instances waits for the
    /// end of the body.
    fn publish(&self, lease: Box<dyn Lease>, page: Arc<Page>, storing: &Storing, generation: u64) {
        let (life, cost) = (storing.life, storing.cost);
        let (guard, asked) = (Arc::clone(&self.guard), self.asked.clone());
        let limit = guard.settings.load_timeout.unwrap_or(Duration::MAX);
        let is_call = self.address.class == MethodClass::Unary;
        sync::spawn(async move {
            match timeout(limit, page.recording.ended()).await {
                Ok(End::Complete) => {}
                Ok(End::Failed(_)) => return lease.fail(RemoteKind::Failed),
                Ok(End::Elsewhere(_)) | Err(_) => return lease.keep_local(),
            }
            // Whatever the clocks of several servers say.
            if guard.generation(|| target(&asked, original_uri(&asked))) != generation {
                return drop(lease);
            }
            let life = aged(life, page.time_since_head(guard.shelf().timeline.now()));
            let Some(payload) = stored(&page, &guard, is_call).and_then(|stored| stored.encode()) else {
                return lease.keep_local();
            };
            let marks = page.tags.as_deref().unwrap_or_default();
            let what = Publication {
                payload,
                codec: CODEC,
                fresh: life.ttl,
                stale_while_revalidate: life.stale_while_revalidate,
                stale_if_error: life.stale_if_error,
                cost,
                groups: marks.iter().copied().map(group_of_mark).collect(),
            };
            if what.lives() < Duration::from_millis(1) {
                return lease.keep_local();
            }
            let token = lease.token();
            if lease.publish(what).await == Published::Superseded {
                let there = guard.shelf().find(&page.key);
                if there.is_some_and(|entry| entry.token() <= token) {
                    guard.shelf().remove(&page.key);
                }
            }
        });
    }

    /// Under a name that is too short to be a key.
    fn marker(&self) -> PageKey {
        name_of(&self.address.key)[..12].into()
    }

    /// Whether the responses under this key were lately no use to others.
    fn is_known_to_be_local(&self) -> bool {
        self.guard.shelf().fresh(&*self.marker()).is_some()
    }

    fn learn(&self, is_for_all: bool) {
        let shelf = self.guard.shelf();
        if is_for_all {
            shelf.remove(&*self.marker());
        } else {
            let storing = Storing::new(Lifetime::fresh_for(HIT_FOR_MISS), Duration::ZERO, self.born);
            shelf.put(self.marker(), Reply::Private(Because::Head), &storing);
        }
    }
}

/// The form in which a page goes to others. `None` if it has something in its trailers that is not theirs to see.
fn stored(page: &Page, guard: &Guarded, is_call: bool) -> Option<Stored> {
    let mut headers = page.headers.clone();
    headers.remove(http::header::AGE);
    let mut trailers = page.recording.trailers().cloned();
    if let Some(trailers) = &mut trailers {
        let before = trailers.len();
        strip_personal(trailers);
        // Those of a call go out to the byte, or not at all.
        if is_call && trailers.len() != before {
            return None;
        }
    }
    Some(Stored {
        key: Bytes::copy_from_slice(&without_generation(&page.key)),
        vary: page.spec.clone(),
        status: page.status,
        headers,
        trailers,
        body: page.recording.whole_body(),
        age: page.age(guard.shelf().timeline.now()),
        revalidate: page.revalidate,
    })
}

/// One of the places for runs that nobody waits for.
struct Unattended(Arc<Guarded>);

impl Unattended {
    fn enter(guard: &Arc<Guarded>) -> Option<Self> {
        guard.flights().enter_unattended().then(|| Self(Arc::clone(guard)))
    }
}

impl Drop for Unattended {
    fn drop(&mut self) {
        self.0.flights().leave_unattended();
    }
}
