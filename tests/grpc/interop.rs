//! The public interoperability cases that a plain tonic server passes, through the guard as well: with no method opted
//! in, and with all of them, those that stream included.

use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use stampede_guard::StampedeGuard;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::metadata::MetadataValue;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::common::{Runs, settle};
use crate::proto::interop::missing_client::MissingClient;
use crate::proto::interop::test_client::TestClient;
use crate::proto::interop::test_server::{Test, TestServer};
use crate::proto::interop::{self, Empty, InputSize, OutputRequest, Payload, Reply};
use crate::site::{Front, INITIAL, On, Site, TRAILING};

struct Tester {
    /// Streams that a handler began to read.
    begun: Runs,
    /// Those of them that were dropped.
    dropped: Runs,
}

impl Tester {
    fn begins(&self) -> Gone {
        self.begun.add();
        Gone(self.dropped.clone())
    }
}

struct Gone(Runs);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.add();
    }
}

type Payloads = std::pin::Pin<Box<dyn Stream<Item = Result<Payload, Status>> + Send>>;

fn payload(bytes: u32) -> Payload {
    Payload { body: vec![0; bytes as usize] }
}

fn asked_for(status: Option<interop::Status>) -> Result<(), Status> {
    status.map_or(Ok(()), |status| Err(Status::new(status.code.into(), status.message)))
}

#[tonic::async_trait]
impl Test for Tester {
    async fn empty_call(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        Ok(Response::new(Empty {}))
    }

    async fn unary_call(&self, request: Request<interop::Request>) -> Result<Response<Reply>, Status> {
        let request = request.into_inner();
        asked_for(request.status)?;
        Ok(Response::new(Reply { payload: Some(payload(request.reply_bytes)) }))
    }

    async fn streaming_input_call(
        &self,
        request: Request<Streaming<Payload>>,
    ) -> Result<Response<InputSize>, Status> {
        let _gone = self.begins();
        let mut payloads = request.into_inner();
        let mut bytes = 0;
        while let Some(payload) = payloads.message().await? {
            bytes += u32::try_from(payload.body.len()).unwrap();
        }
        Ok(Response::new(InputSize { bytes }))
    }

    type StreamingOutputCallStream = Payloads;

    async fn streaming_output_call(
        &self,
        request: Request<OutputRequest>,
    ) -> Result<Response<Payloads>, Status> {
        let sizes = request.into_inner().reply_bytes;
        Ok(Response::new(stream::iter(sizes).map(|bytes| Ok(payload(bytes))).boxed()))
    }

    type FullDuplexCallStream = Payloads;

    async fn full_duplex_call(
        &self,
        request: Request<Streaming<OutputRequest>>,
    ) -> Result<Response<Payloads>, Status> {
        let gone = self.begins();
        let replies = request.into_inner().flat_map(move |request| {
            let _ = &gone;
            let replies =
                match request.and_then(|request| asked_for(request.status.clone()).map(|()| request)) {
                    Ok(request) => request.reply_bytes.into_iter().map(|bytes| Ok(payload(bytes))).collect(),
                    Err(status) => vec![Err(status)],
                };
            stream::iter(replies)
        });
        Ok(Response::new(replies.boxed()))
    }

    async fn unimplemented_call(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// A site and a client of it.
struct Case {
    client: TestClient<Channel>,
    channel: Channel,
    begun: Runs,
    dropped: Runs,
}

async fn case(on: On, front: Front) -> Case {
    let (begun, dropped) = (Runs::default(), Runs::default());
    let service = TestServer::new(Tester { begun: begun.clone(), dropped: dropped.clone() });
    let service = service.accept_compressed(Gzip).send_compressed(Gzip);
    let site = Site::new(on, front, Routes::new(service)).await;
    let channel = site.connect().await;
    Case { client: TestClient::new(channel.clone()), channel, begun, dropped }
}

fn unary(request_bytes: u32, reply_bytes: u32) -> interop::Request {
    interop::Request { reply_bytes, payload: Some(payload(request_bytes)), status: None }
}

fn output(sizes: &[u32]) -> OutputRequest {
    OutputRequest { reply_bytes: sizes.to_vec(), payload: None, status: None }
}

async fn lengths(replies: Streaming<Payload>) -> Vec<usize> {
    replies.map(|reply| reply.unwrap().body.len()).collect().await
}

/// What a client sends while it listens.
fn channel<T: Send + 'static>() -> (tokio::sync::mpsc::UnboundedSender<T>, impl Stream<Item = T> + Send) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let said = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|request| (request, receiver))
    });
    (sender, said)
}

async fn empty_unary(mut case: Case) {
    for _ in 0..2 {
        assert_eq!(case.client.empty_call(Empty {}).await.unwrap().into_inner(), Empty {});
    }
}

async fn large_unary(mut case: Case) {
    for _ in 0..2 {
        let reply = case.client.unary_call(unary(271_828, 314_159)).await.unwrap().into_inner();
        assert_eq!(reply.payload.unwrap().body.len(), 314_159);
    }
}

async fn reply_beyond_what_is_shared(mut case: Case) {
    for _ in 0..2 {
        let reply = case.client.unary_call(unary(1, 3_000_000)).await.unwrap().into_inner();
        assert_eq!(reply.payload.unwrap().body.len(), 3_000_000);
    }
}

async fn client_streaming(mut case: Case) {
    let payloads = stream::iter([27_182, 8, 1_828, 45_904].map(payload));
    assert_eq!(case.client.streaming_input_call(payloads).await.unwrap().into_inner().bytes, 74_922);
}

async fn server_streaming(mut case: Case) {
    let sizes = [31_415, 9, 2_653, 58_979];
    for _ in 0..2 {
        let replies = case.client.streaming_output_call(output(&sizes)).await.unwrap().into_inner();
        assert_eq!(lengths(replies).await, sizes.map(|size| size as usize));
    }
}

/// More than one window of HTTP/2 has room for.
async fn server_streaming_beyond_a_window(mut case: Case) {
    let sizes = [400_000; 10];
    let replies = case.client.streaming_output_call(output(&sizes)).await.unwrap().into_inner();
    assert_eq!(lengths(replies).await, sizes.map(|size| size as usize));
}

async fn ping_pong(mut case: Case) {
    let (sender, requests) = channel();
    let sizes = [31_415, 9, 2_653, 58_979];
    sender.send(output(&sizes[..1])).unwrap();
    let mut replies = case.client.full_duplex_call(requests).await.unwrap().into_inner();
    for (place, size) in sizes.iter().enumerate() {
        assert_eq!(replies.message().await.unwrap().unwrap().body.len(), *size as usize);
        if let Some(next) = sizes.get(place + 1) {
            sender.send(output(&[*next])).unwrap();
        }
    }
    drop(sender);
    assert!(replies.message().await.unwrap().is_none());
}

async fn empty_stream(mut case: Case) {
    let replies = case.client.full_duplex_call(stream::empty()).await.unwrap().into_inner();
    assert!(lengths(replies).await.is_empty());
}

async fn custom_metadata(mut case: Case) {
    let initial: MetadataValue<_> = "test_initial_metadata_value".parse().unwrap();
    let trailing = MetadataValue::from_bytes(&[0xab, 0xab, 0xab]);
    for _ in 0..2 {
        let mut request = Request::new(unary(1, 1));
        request.metadata_mut().insert(INITIAL, initial.clone());
        request.metadata_mut().insert_bin(TRAILING, trailing.clone());
        let reply = case.client.unary_call(request).await.unwrap();
        assert_eq!(reply.metadata().get(INITIAL), Some(&initial));
        assert_eq!(reply.metadata().get_bin(TRAILING), Some(&trailing));
    }
    let mut request = Request::new(stream::iter([output(&[1])]));
    request.metadata_mut().insert(INITIAL, initial.clone());
    request.metadata_mut().insert_bin(TRAILING, trailing.clone());
    let reply = case.client.full_duplex_call(request).await.unwrap();
    assert_eq!(reply.metadata().get(INITIAL), Some(&initial));
    let mut replies = reply.into_inner();
    while replies.message().await.unwrap().is_some() {}
    let trailers = replies.trailers().await.unwrap().unwrap();
    assert_eq!(trailers.get_bin(TRAILING), Some(&trailing));
}

async fn gives_status(mut case: Case, message: &str) {
    let status = Some(interop::Status { code: 2, message: message.to_owned() });
    for _ in 0..2 {
        let request = interop::Request { status: status.clone(), ..unary(1, 1) };
        let error = case.client.unary_call(request).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Unknown, message));
    }
    let requests = stream::iter([OutputRequest { status, ..output(&[]) }]);
    let mut replies = case.client.full_duplex_call(requests).await.unwrap().into_inner();
    let error = replies.message().await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unknown, message));
}

async fn status_code_and_message(case: Case) {
    gives_status(case, "test status message").await;
}

async fn special_status_message(case: Case) {
    gives_status(case, "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n").await;
}

async fn unimplemented_method(mut case: Case) {
    let error = case.client.unimplemented_call(Empty {}).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
}

async fn unimplemented_service(case: Case) {
    let error = MissingClient::new(case.channel).unimplemented_call(Empty {}).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
}

/// The handler sleeps until it has all payloads.
async fn timeout_on_sleeping_server(mut case: Case) {
    let (sender, payloads) = channel();
    sender.send(payload(1)).unwrap();
    let mut request = Request::new(payloads);
    request.set_timeout(Duration::from_millis(1));
    let error = case.client.streaming_input_call(request).await.unwrap_err();
    // tonic says the one, other clients the other.
    assert!(matches!(error.code(), Code::Cancelled | Code::DeadlineExceeded), "{error}");
    drop(sender);
}

async fn cancel_after_begin(case: Case) {
    let mut client = case.client.clone();
    let (sender, payloads) = channel();
    sender.send(payload(1)).unwrap();
    let call = tokio::spawn(async move { client.streaming_input_call(payloads).await });
    settle(|| case.begun.get() == 1).await;
    call.abort();
    settle(|| case.dropped.get() == 1).await;
    drop(sender);
}

async fn cancel_after_first_response(mut case: Case) {
    let (sender, requests) = channel();
    sender.send(output(&[31_415])).unwrap();
    let mut replies = case.client.full_duplex_call(requests).await.unwrap().into_inner();
    assert_eq!(replies.message().await.unwrap().unwrap().body.len(), 31_415);
    drop(replies);
    drop(sender);
    settle(|| case.dropped.get() == 1).await;
}

async fn compression_both_ways(case: Case) {
    let mut client = case.client.send_compressed(Gzip).accept_compressed(Gzip);
    for _ in 0..2 {
        let reply = client.unary_call(unary(10_000, 20_000)).await.unwrap();
        assert_eq!(reply.metadata().get("grpc-encoding").unwrap(), "gzip");
        assert_eq!(reply.into_inner().payload.unwrap().body.len(), 20_000);
    }
    let replies = client.streaming_output_call(output(&[1_000, 2_000])).await.unwrap().into_inner();
    assert_eq!(lengths(replies).await, [1_000, 2_000]);
}

fn every_method() -> Front {
    let guard = StampedeGuard::builder().grpc_method("/interop.Test/*").grpc_method("/interop.Missing/*");
    Front::Grpc(guard.build().unwrap())
}

fn another_method() -> Front {
    Front::Grpc(StampedeGuard::builder().grpc_method("/inventory.Inventory/*").build().unwrap())
}

macro_rules! each {
    ($($site:ident: $on:expr, $front:expr;)*) => {
        $(each!(@ $site, $on, $front,
            empty_unary, large_unary, reply_beyond_what_is_shared, client_streaming, server_streaming,
            server_streaming_beyond_a_window, ping_pong, empty_stream, custom_metadata, status_code_and_message,
            special_status_message, unimplemented_method, unimplemented_service, timeout_on_sleeping_server,
            cancel_after_begin, cancel_after_first_response, compression_both_ways);)*
    };
    (@ $site:ident, $on:expr, $front:expr, $($case:ident),*) => {
        mod $site {
            use super::*;
            $(#[tokio::test]
            async fn $case() {
                super::$case(case($on, $front).await).await;
            })*
        }
    };
}

each! {
    // What the cases are measured by.
    bare_tonic: On::Tonic, Front::Nothing;
    guarded_tonic: On::Tonic, Front::Guard(StampedeGuard::new());
    guarded_axum: On::Axum, Front::Guard(StampedeGuard::new());
    tonic_with_another_method: On::Tonic, another_method();
    tonic_with_every_method: On::Tonic, every_method();
    axum_with_every_method: On::Axum, every_method();
}
