//! HTTP policy: from `http` types to a key and a verdict.
//!
//! Pure functions of their arguments. Nothing here reads a clock, waits, or knows of flights and stores: the
//! layer brings the request, the response head and the time of day, and gets back what it may do with them.
//!
//! | question | module |
//! |---|---|
//! | may this request be coalesced at all? | [`eligible`] |
//! | which requests are the same request? | [`key`], by the [`rule`], [`vary`] and [`cookies`] |
//! | may this response be given to others, and kept for how long? | [`verdict`], from [`cache_control`] and [`freshness`] |
//! | has the client this body already? | [`conditional`] |
//! | is what is stored still the origin's answer? | [`validate`] |
//! | which part of a stored body is asked for? | [`range`] |
//! | what is a client told about it? | [`cache_status`] |
//! | what does an unsafe request make out of date? | [`origin`] |
//! | how does a response look to another instance? | `wire` |
//! | what of all this is there to a gRPC call? | `grpc`, with the feature |

pub(crate) mod cache_control;
pub(crate) mod cache_status;
pub(crate) mod conditional;
pub(crate) mod cookies;
pub(crate) mod eligible;
pub(crate) mod freshness;
#[cfg(feature = "grpc")]
pub(crate) mod grpc;
pub(crate) mod headers;
pub(crate) mod key;
pub(crate) mod origin;
pub(crate) mod range;
pub(crate) mod rule;
pub(crate) mod syntax;
pub(crate) mod targeted;
pub(crate) mod validate;
pub(crate) mod vary;
pub(crate) mod verdict;
#[cfg(any(feature = "redis", feature = "test-util"))]
pub(crate) mod wire;
pub(crate) mod writer;
