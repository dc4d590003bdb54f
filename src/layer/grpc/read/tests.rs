use super::*;
use crate::layer::grpc::body::RequestBody;
use futures_util::{StreamExt, stream};
use http::HeaderMap;
use http_body_util::{BodyExt, StreamBody};
use proptest::prelude::*;

type Piece = Result<Frame<Bytes>, &'static str>;

#[allow(clippy::unnecessary_wraps)] // among others, it may be an error
fn data(bytes: &[u8]) -> Piece {
    Ok(Frame::data(Bytes::copy_from_slice(bytes)))
}

#[allow(clippy::unnecessary_wraps)]
fn trailers() -> Piece {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-last", "word".parse().unwrap());
    Ok(Frame::trailers(trailers))
}

/// A body of these frames, which does not end by itself if it `hangs`.
fn body(pieces: Vec<Piece>, hangs: bool) -> impl Body<Data = Bytes, Error = &'static str> {
    let end = stream::iter(hangs.then_some(())).then(|()| std::future::pending());
    StreamBody::new(stream::iter(pieces).chain(end))
}

/// What the handler reads, as text.
async fn handler_reads<B: Body<Data = Bytes, Error = &'static str>>(body: B) -> Vec<String> {
    let mut body = std::pin::pin!(body);
    let mut seen = Vec::new();
    while let Some(frame) = body.frame().await {
        seen.push(match frame.map(Frame::into_data) {
            Ok(Ok(data)) => format!("{data:?}"),
            Ok(Err(frame)) => format!("{:?}", frame.into_trailers()),
            Err(error) => error.to_owned(),
        });
    }
    seen
}

const MESSAGE: &[u8] = &[0, 0, 0, 0, 3, 1, 2, 3];

#[tokio::test]
async fn one_message_in_pieces_is_read_whole() {
    for cut in 0..=MESSAGE.len() {
        let (start, end) = MESSAGE.split_at(cut);
        let read = read(body(vec![data(start), data(end)], false), 8).await;
        assert_eq!(read.ok().as_deref(), Some(MESSAGE), "{cut}");
    }
}

#[tokio::test]
async fn anything_else_is_given_back_as_it_came() {
    let cases = || {
        [
            vec![],
            vec![data(&MESSAGE[..4])],
            vec![data(&MESSAGE[..7])],
            vec![data(MESSAGE), data(&[0])],
            vec![data(MESSAGE), data(MESSAGE)],
            vec![data(MESSAGE), trailers()],
            vec![data(&MESSAGE[..6]), trailers()],
            vec![data(&[0, 0, 0, 0, 4, 1, 2, 3, 4])],
            vec![data(&[9; 5]), data(b"more"), trailers()],
            vec![data(MESSAGE), Err("broke off")],
            vec![Err("broke off")],
        ]
    };
    for (case, same) in cases().into_iter().zip(cases()) {
        let expected = handler_reads(body(same, false)).await;
        let Err(rest) = read(body(case, false), 8).await else { panic!("taken: {expected:?}") };
        assert_eq!(handler_reads(RequestBody::replayed(rest)).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_does_not_say_that_it_is_done_is_waited_for_so_long() {
    let started = Instant::now();
    let Err(rest) = read(body(vec![data(MESSAGE)], true), 8).await else { panic!("it may say more") };
    assert_eq!(started.elapsed().as_millis(), CALL_WAIT.as_millis());
    let mut replayed = Box::pin(RequestBody::replayed(rest));
    assert!(!replayed.is_end_stream());
    let frame = replayed.frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().ok().as_deref(), Some(MESSAGE));
}

#[tokio::test]
async fn the_length_counts_what_was_read() {
    let Err(rest) = read(http_body_util::Full::new(Bytes::from_static(b"no message")), 8).await else {
        panic!("taken")
    };
    assert_eq!(RequestBody::replayed(rest).size_hint().exact(), Some(10));
    let message = RequestBody::<http_body_util::Full<Bytes>>::message(Bytes::from_static(MESSAGE));
    assert_eq!(message.size_hint().exact(), Some(8));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_reach_the_handler_unchanged(
        pieces in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..12),
                (0..2_u8, 0..6_u8).prop_map(|(flag, length)| vec![flag, 0, 0, 0, length]),
            ],
            0..5,
        ),
        cap in 0..24_u64,
        ends_with_trailers in any::<bool>(),
    ) {
        let frames = || {
            let mut frames: Vec<_> = pieces.iter().map(|piece| data(piece)).collect();
            frames.extend(ends_with_trailers.then(trailers));
            frames
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            match read(body(frames(), false), cap).await {
                Ok(message) => {
                    assert_eq!(message, pieces.concat());
                    assert!(message.len() as u64 <= cap && !ends_with_trailers);
                    let replayed = RequestBody::<http_body_util::Full<Bytes>>::message(message);
                    assert_eq!(replayed.collect().await.unwrap().to_bytes(), pieces.concat());
                }
                Err(rest) => {
                    let expected = handler_reads(body(frames(), false)).await;
                    assert_eq!(handler_reads(RequestBody::replayed(rest)).await, expected);
                }
            }
        });
    }
}
