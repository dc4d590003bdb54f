//! What the guard promises about other people's responses, one test a clause.
//!
//! Modules go by the points of the contract: which requests take part, what their key holds, credentials, responses
//! that are one client's alone, what is kept and for how long, background refreshes, headers that belong to a
//! connection, streaming, caps, invalidation, logs; then what failures become, and attacks that no clause names.

#![cfg(all(feature = "layer", feature = "test-util"))]

#[path = "security/attacks.rs"]
mod attacks;
#[path = "security/failures.rs"]
mod failures;
#[path = "security/point_01.rs"]
mod point_01;
#[path = "security/point_02.rs"]
mod point_02;
#[path = "security/point_03.rs"]
mod point_03;
#[path = "security/point_04.rs"]
mod point_04;
#[path = "security/point_05.rs"]
mod point_05;
#[path = "security/point_06.rs"]
mod point_06;
#[path = "security/point_07.rs"]
mod point_07;
#[path = "security/point_08.rs"]
mod point_08;
#[path = "security/point_09.rs"]
mod point_09;
#[path = "security/point_10.rs"]
mod point_10;
#[path = "security/point_11.rs"]
mod point_11;
#[path = "security/support.rs"]
mod support;
