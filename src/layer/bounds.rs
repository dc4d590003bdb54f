//! What the guarded service and its response bodies must be, under one name each. The public items spell it out.

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower::{BoxError, Service};

/// A response body. It need not be `Sync`: axum's and tonic's are not.
pub(super) trait ResponseBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static {}
impl<R: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static> ResponseBody for R {}

/// The service behind the guard.
pub(super) trait Inner<B, R>:
    Service<Request<B>, Response = Response<R>, Error: Send + 'static, Future: Send + 'static>
    + Clone
    + Send
    + 'static
{
}

impl<S, B, R> Inner<B, R> for S
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Error: Send + 'static,
    S::Future: Send + 'static,
{
}
