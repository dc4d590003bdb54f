//! A request whose stored answer may be used only on the origin's word for this very request (RFC 9111, section
//! 5.2.2.4): it runs for itself, beside all others, and asks with the guard's own conditions.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::oneshot;
use tracing::Instrument;

use super::body::GuardBody;
use super::bounds::{Inner, ResponseBody};
use super::load::{Landing, Own, PageLoad};
use super::refusal::Refusal;
use crate::error::LoadError;
use crate::http::conditional::Conditionals;
use crate::http::key::MethodClass;

/// The answer to a client of these conditions, from a load outside all flights. What it brings goes where a flight would
/// put it; nobody waits for it.
///
/// Its body, and what the store wants of it, outlive the caller; the run up to the head does not.
pub(super) async fn check<S, B, R>(
    load: PageLoad<S, B, R, S::Error>,
    conditionals: Conditionals,
) -> Own<R, S::Error>
where
    S: Inner<B, R>,
    B: Send + 'static,
    R: ResponseBody,
{
    let mut response = run(load).await?;
    conditionals.apply(&mut response, GuardBody::left_out);
    Ok(response)
}

async fn run<S, B, R>(mut load: PageLoad<S, B, R, S::Error>) -> Own<R, S::Error>
where
    S: Inner<B, R>,
    B: Send + 'static,
    R: ResponseBody,
{
    let (leader, mut own) = oneshot::channel();
    load.leader = Some(leader);
    let (guard, key) = (Arc::clone(&load.guard), Arc::clone(&load.address.key));
    let mut landing = Box::pin(load.run().in_current_span());
    let (own, landed) = poll_fn(|cx| {
        let landed = landing.as_mut().poll(cx);
        // The client's own response is sent before the landing.
        match (Pin::new(&mut own).poll(cx), landed) {
            (Poll::Ready(own), Poll::Ready(landed)) => Poll::Ready((own.ok(), Some(landed))),
            (Poll::Ready(Ok(own)), Poll::Pending) => Poll::Ready((Some(own), None)),
            (_, Poll::Ready(landed)) => Poll::Ready((own.try_recv().ok(), Some(landed))),
            _ => Poll::Pending,
        }
    })
    .await;
    let timed_out = matches!(landed, Some(Err(LoadError::TimedOut(_))));
    let why = if timed_out { Refusal::TooSlow } else { Refusal::Failed };
    let own = own.unwrap_or_else(|| Ok(guard.refuse(why, MethodClass::Get)));
    let settle = move |landed: Landing| guard.shelf().land(&key, landed);
    match landed {
        Some(landed) => settle(landed),
        None => crate::sync::spawn(async move { settle(landing.await) }),
    }
    own
}
