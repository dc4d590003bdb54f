//! `GrpcStampedeGuard`: unary gRPC methods that opted in, on the engine of HTTP requests.
//!
//! A call is a request whose one message is part of its key, and a reply is a page whose trailers say whether it is
//! kept. What differs is here: reading the message, methods by name, deadlines, the end of a reply.

mod body;
mod guard;
mod land;
mod methods;
mod read;
mod service;

pub use body::RequestBody;
pub use guard::GrpcStampedeGuard;
pub use methods::GrpcMethod;
pub use service::GrpcGuardService;

#[cfg(feature = "redis")]
pub(super) use land::is_reply;
pub(super) use methods::check_methods;

use http::{Response, StatusCode};

use super::body::GuardBody;
use super::page::with_head;
use super::refusal::Refusal;
use crate::http::grpc::status::{Code, trailers_only};

/// The guard's own word to the caller of a method.
pub(super) fn refused<R>(why: Refusal) -> Response<GuardBody<R>> {
    let (code, message) = match why {
        Refusal::TooSlow => (Code::DeadlineExceeded, "the call was not answered in time"),
        Refusal::Failed => (Code::Unavailable, "the call that this one waited for failed"),
        Refusal::Gone => (Code::Unavailable, "the call that this one waited for was dropped"),
        Refusal::Busy => (Code::ResourceExhausted, "too many waiters"),
        Refusal::Panicked | Refusal::NotStored | Refusal::NoKey => {
            (Code::Internal, "the call that this one waited for panicked")
        }
    };
    with_head(StatusCode::OK, trailers_only(code, message), GuardBody::empty())
}
