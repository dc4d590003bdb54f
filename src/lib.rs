//! Cache-stampede protection.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod error;
mod flight;
mod sync;

pub use error::{ConfigError, LoadError, Overloaded, Panicked, TimedOut};
pub use flight::{FlightStats, Flown, OnAbandon, Role, SingleFlight, SingleFlightBuilder};
