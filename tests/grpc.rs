//! gRPC through the guard, over real HTTP/2 connections of tonic: untouched where it was not asked for, shared where it
//! was.

#[path = "grpc/calls.rs"]
mod calls;
#[path = "support/mod.rs"]
mod common;
#[path = "grpc/failures.rs"]
mod failures;
#[path = "grpc/interop.rs"]
mod interop;
#[path = "grpc/proto.rs"]
mod proto;
#[path = "grpc/sharing.rs"]
mod sharing;
#[path = "grpc/shop.rs"]
mod shop;
#[path = "grpc/site.rs"]
mod site;
