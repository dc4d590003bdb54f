//! The guard's own word, where there is no handler's.

use http::header::{CACHE_CONTROL, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use super::body::GuardBody;
use crate::http::key::MethodClass;

/// Why a request gets no handler's response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The handler run, or a wait for it, took too long.
    TooSlow,
    /// The handler run gave nothing that can be shared.
    Failed,
    /// The handler panicked.
    Panicked,
    /// Too many wait already.
    Busy,
    /// The handler run was dropped with its runtime.
    Gone,
    /// It is not stored, and the client wants it from the store or not at all.
    NotStored,
    /// It has no key.
    NoKey,
}

impl Refusal {
    fn status(self) -> StatusCode {
        match self {
            Self::TooSlow | Self::NotStored => StatusCode::GATEWAY_TIMEOUT,
            Self::Failed => StatusCode::BAD_GATEWAY,
            Self::Panicked | Self::NoKey => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Busy | Self::Gone => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// What `Cache-Status` says of it: a token.
    pub(super) fn detail(self) -> &'static str {
        match self {
            Self::TooSlow => "too-slow",
            Self::Failed => "failed",
            Self::Panicked => "panicked",
            Self::Busy => "too-many-waiters",
            Self::Gone => "cancelled",
            Self::NotStored => "not-stored",
            Self::NoKey => "no-key",
        }
    }

    /// The response, in the words of the request.
    #[cfg_attr(not(feature = "grpc"), allow(unused_variables))]
    pub(super) fn respond<R>(self, class: MethodClass) -> Response<GuardBody<R>> {
        #[cfg(feature = "grpc")]
        if class == MethodClass::Unary {
            return super::grpc::refused(self);
        }
        let mut response = Response::new(GuardBody::empty());
        *response.status_mut() = self.status();
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
