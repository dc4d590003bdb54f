//! What `SingleFlight` promises, through its public face. One module a promise.

#[path = "single_flight/support.rs"]
mod support;

#[path = "single_flight/departures.rs"]
mod departures;
#[path = "single_flight/forget.rs"]
mod forget;
#[path = "single_flight/herd.rs"]
mod herd;
#[path = "single_flight/hostile.rs"]
mod hostile;
#[path = "single_flight/limits.rs"]
mod limits;
#[path = "single_flight/model.rs"]
mod model;
#[path = "single_flight/reentrancy.rs"]
mod reentrancy;
#[path = "single_flight/runtimes.rs"]
mod runtimes;
#[path = "single_flight/types.rs"]
mod types;
