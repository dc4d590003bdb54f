//! What comes of a call that others may share: the trailers tell.

use std::sync::Arc;
use std::time::SystemTime;

use http::{Response, StatusCode};

use crate::cache::{Arrival, Destination};
use crate::error::LoadError;
use crate::http::grpc::is_grpc;
use crate::http::grpc::reply::{Answer, answer};
use crate::http::headers::strip_hop_by_hop;
use crate::http::verdict::{self, Share, Verdict};
use crate::layer::body::GuardBody;
use crate::layer::bounds::ResponseBody;
use crate::layer::land::{Lander, Stream};
use crate::layer::load::{Failure, Landing};
use crate::layer::page::{Because, Page, Reply};
use crate::layer::recording::Recording;

impl<R, X> Lander<R, X>
where
    R: ResponseBody,
{
    /// A response to a call. Its head cannot say whether it is one that others may have: what is streamed is told by
    /// its length or the time it takes, what is an error by its end.
    pub(in crate::layer) async fn share_call(mut self, response: Response<R>) -> Landing {
        let (mut head, body) = response.into_parts();
        let tags = self.guard.take_tags(&mut head.headers, &mut head.extensions);
        let settings = &self.guard.settings;
        let verdict =
            verdict::judge(self.facts, head.status, &head.headers, &settings.policy, SystemTime::now());
        // Not of the service's making but of something in front of it, such as a limit: clients read it as a status.
        let is_trouble = head.status.is_server_error();
        if is_trouble && self.may_serve_stale() {
            return Err(LoadError::Failed(Arc::new(Failure::ServerError)));
        }
        let is_shared = (is_trouble || (head.status == StatusCode::OK && is_grpc(&head.headers)))
            && verdict.share == Share::Yes
            && verdict.vary.without_keyed(&settings.rule).is_empty();
        let mut headers = head.headers.clone();
        strip_hop_by_hop(&mut headers);
        let recording = Recording::new(None);
        let page = self.page_of(head.status, headers, &recording, &verdict, tags);
        let page = match self.place_of(page, is_shared, None, &verdict) {
            Ok(page) => page,
            Err(elsewhere) => {
                self.tell_leader(Ok(Response::from_parts(head, GuardBody::own(body))));
                return Ok(elsewhere);
            }
        };
        self.record(Stream { head, body, is_known: false, recording, page, verdict }).await
    }

    /// Where a reply goes whose body is complete.
    pub(in crate::layer) fn call_ended(&self, page: Arc<Page>, verdict: &Verdict) -> Landing {
        if page.status.is_server_error() {
            return Ok(self.for_waiters(page));
        }
        match answer_of(&page) {
            Answer::Message => Ok(self.kept(page, None, verdict)),
            Answer::Status(status) if status.is_trouble() => {
                if self.may_serve_stale() {
                    return Err(LoadError::Failed(Arc::new(Failure::ServerError)));
                }
                Ok(self.for_waiters(page))
            }
            // What was stored is not so any more.
            Answer::Status(_) => {
                let bound_for = Destination::WaitersOnly(self.receipt(page.tags.clone()));
                Ok(Arrival { value: Reply::Page(page, None), bound_for })
            }
            Answer::Stream => Ok(self.private(Because::Body)),
            Answer::Truncated => Err(LoadError::Failed(Arc::new(Failure::Broken))),
        }
    }

    /// Whether a page is the reply to a call, and an old one may stand in for it.
    pub(in crate::layer) fn gives_way(&self, page: &Page) -> bool {
        page.is_complete()
            && self.may_serve_stale()
            && matches!(answer_of(page), Answer::Status(status) if status.is_trouble())
    }
}

/// Whether a page is a reply that may be stored.
#[cfg(feature = "redis")]
pub(in crate::layer) fn is_reply(page: &Page) -> bool {
    is_grpc(&page.headers) && matches!(answer_of(page), Answer::Message)
}

fn answer_of(page: &Page) -> Answer {
    answer(&page.headers, page.recording.pieces(), page.recording.trailers())
}
