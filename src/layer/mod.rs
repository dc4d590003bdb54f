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
#[cfg(feature = "grpc")]
mod grpc;
mod guard;
mod land;
mod load;
mod look;
mod page;
mod places;
mod recording;
mod refusal;
mod service;
#[cfg(feature = "redis")]
mod shared;
mod stampede;
mod stats;
#[cfg(feature = "redis")]
mod tier;
mod trip;
mod uniques;
mod writes;

pub use body::GuardBody;
pub use builder::StampedeGuardBuilder;
pub use future::ResponseFuture;
#[cfg(feature = "grpc")]
pub use grpc::{GrpcGuardService, GrpcMethod, GrpcStampedeGuard, RequestBody};
pub use guard::{KeyExtra, OnWaitTimeout};
pub use recording::BrokenBody;
pub use service::GuardService;
pub use stampede::StampedeGuard;
pub use stats::GuardStats;
