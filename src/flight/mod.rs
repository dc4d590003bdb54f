//! Single-flight: concurrent calls for one key share one run of one loader. Knows no cache.

mod bounds;
mod builder;
mod core;
mod driver;
mod drop_load;
mod lineage;
#[cfg(all(test, stampede_loom, feature = "cache"))]
mod models;
mod plan;
mod run;
mod single;
mod state;
mod stats;
mod table;
mod waiters;

pub use builder::SingleFlightBuilder;
pub use core::OnAbandon;
pub use run::Role;
pub use single::{Flown, SingleFlight};
pub use stats::FlightStats;

#[cfg(feature = "cache")]
pub(crate) use self::{
    bounds::{Fault, Key, Value},
    core::{FlightConfig, Flights, Settle},
    lineage::{Joint, Lead, current},
    plan::{Borrowed, BoxLoad, KeySource, Owned, Plan},
    run::{FirstPoll, Landed, Run},
};

#[cfg(feature = "layer")]
pub(crate) use self::run::Seat;
