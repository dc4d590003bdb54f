//! `StampedeGuard`, the Tower layer.

mod address;
mod asking;
mod body;
mod bounds;
mod budget;
mod builder;
mod check;
mod confirm;
mod fill;
mod future;
mod guard;
mod land;
mod load;
mod look;
mod page;
mod places;
mod recording;
mod service;
mod stampede;
mod stats;
mod trip;
mod uniques;
mod writes;

pub use body::GuardBody;
pub use builder::StampedeGuardBuilder;
pub use future::ResponseFuture;
pub use guard::{KeyExtra, OnWaitTimeout};
pub use recording::BrokenBody;
pub use service::GuardService;
pub use stampede::StampedeGuard;
pub use stats::GuardStats;
