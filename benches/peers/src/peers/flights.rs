//! Single-flight alone.

use std::task::{Context, Poll};

use stampede_guard::{LoadError, SingleFlight};
use tower::{Layer, Service, ServiceExt};
use tower_resilience_coalesce::{CoalesceError, CoalesceLayer, CoalesceService};

use super::Peer;
use crate::load::{Failed, Load, Loaded};

pub struct OurFlights<L> {
    flights: SingleFlight<u64, u64, Failed>,
    load: L,
}

impl<L: Load> Peer<L> for OurFlights<L> {
    const NAME: &'static str = "stampede-guard SingleFlight::run";
    type Raw = Result<u64, LoadError<Failed>>;

    fn new(load: L, _: usize) -> Self {
        Self { flights: SingleFlight::new(), load }
    }

    fn call(&self, key: u64) -> impl Future<Output = Self::Raw> + Send {
        let load = self.load.clone();
        self.flights.run(key, move || load.run(key))
    }

    fn verdict(raw: Self::Raw) -> Result<u64, String> {
        raw.map_err(|error| error.to_string())
    }
}

pub struct RsSingleflight<L> {
    group: rs_singleflight::Group<u64, u64, Failed>,
    load: L,
}

impl<L: Load> Peer<L> for RsSingleflight<L> {
    const NAME: &'static str = "rs-singleflight do_call";
    type Raw = Loaded;

    fn new(load: L, _: usize) -> Self {
        Self { group: rs_singleflight::Group::new(), load }
    }

    fn call(&self, key: u64) -> impl Future<Output = Self::Raw> + Send {
        let load = self.load.clone();
        self.group.do_call(key, move || load.run(key))
    }

    fn verdict(raw: Self::Raw) -> Result<u64, String> {
        raw.map_err(|error| error.to_string())
    }
}

pub struct SingleflightAsync<L> {
    flights: singleflight_async::SingleFlight<u64, Loaded>,
    load: L,
}

impl<L: Load> Peer<L> for SingleflightAsync<L> {
    const NAME: &'static str = "singleflight-async work";
    type Raw = Loaded;

    fn new(load: L, _: usize) -> Self {
        Self { flights: singleflight_async::SingleFlight::new(), load }
    }

    fn call(&self, key: u64) -> impl Future<Output = Self::Raw> + Send {
        let load = self.load.clone();
        self.flights.work(key, move || load.run(key))
    }

    fn verdict(raw: Self::Raw) -> Result<u64, String> {
        raw.map_err(|error| error.to_string())
    }
}

pub struct AsyncSingleflight<L> {
    group: async_singleflight::Group<u64, u64, Failed>,
    load: L,
}

impl<L: Load> Peer<L> for AsyncSingleflight<L> {
    const NAME: &'static str = "async_singleflight Group::work";
    type Raw = Result<u64, Option<Failed>>;

    fn new(load: L, _: usize) -> Self {
        Self { group: async_singleflight::Group::new(), load }
    }

    fn loader_bytes() -> usize {
        size_of::<L::Run>()
    }

    async fn call(&self, key: u64) -> Self::Raw {
        // It borrows the key: a caller has to keep one.
        self.group.work(&key, self.load.clone().run(key)).await
    }

    fn verdict(raw: Self::Raw) -> Result<u64, String> {
        raw.map_err(|error| error.map_or("the leader failed".into(), |error| error.to_string()))
    }
}

/// The service that loads.
#[derive(Clone)]
pub struct Loads<L>(L);

impl<L: Load> Service<u64> for Loads<L> {
    type Response = u64;
    type Error = Failed;
    type Future = L::Run;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, key: u64) -> L::Run {
        self.0.clone().run(key)
    }
}

type KeyOf = fn(&u64) -> u64;

pub struct Coalesce<L: Load>(CoalesceService<Loads<L>, u64, u64, KeyOf>);

impl<L: Load> Peer<L> for Coalesce<L> {
    const NAME: &'static str = "tower-resilience-coalesce";
    type Raw = Result<u64, CoalesceError<Failed>>;

    fn new(load: L, _: usize) -> Self {
        let key_of: KeyOf = |key| *key;
        Self(CoalesceLayer::new(key_of).layer(Loads(load)))
    }

    fn call(&self, key: u64) -> impl Future<Output = Self::Raw> + Send {
        self.0.clone().oneshot(key)
    }

    fn verdict(raw: Self::Raw) -> Result<u64, String> {
        raw.map_err(|error| error.to_string())
    }
}
