//! The properties of the fuzz targets, with random input and with every seed.

#[allow(unreachable_pub)] // it is a library of its own, too
#[path = "../fuzz/src/lib.rs"]
mod properties;

use std::fs;
use std::path::Path;

use proptest::prelude::*;

/// The input of every file in `fuzz/seeds/<target>`.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let seeds: Vec<_> =
        fs::read_dir(folder).unwrap().map(|seed| fs::read(seed.unwrap().path()).unwrap()).collect();
    assert!(!seeds.is_empty());
    seeds
}

#[test]
fn requests_of_every_seed_get_their_own_answers() {
    for seed in seeds("keys") {
        properties::keys(&seed);
    }
}

#[test]
fn responses_of_every_seed_are_shared_only_if_they_may_be() {
    for seed in seeds("responses") {
        properties::responses(&seed);
    }
}

#[test]
fn stored_responses_of_every_seed_are_the_same_when_they_are_read_again() {
    for seed in seeds("stored") {
        properties::stored(&seed);
    }
}

/// A response as `src/http/wire.rs` describes it, more or less.
fn stored() -> impl Strategy<Value = Vec<u8>> {
    let sized = |width: usize, bytes: Vec<u8>| {
        let length = (bytes.len() as u64).to_be_bytes();
        [&length[8 - width..], &bytes].concat()
    };
    let any = |most: usize| proptest::collection::vec(any::<u8>(), 0..most);
    let line = ("[a-c-]{1,3}", "[ -~]{0,5}")
        .prop_map(move |(name, value)| [sized(2, name.into_bytes()), sized(4, value.into_bytes())].concat());
    let lines = proptest::collection::vec(line, 0..6).prop_map(|lines| {
        let count = u16::try_from(lines.len()).unwrap().to_be_bytes();
        [count.to_vec(), lines.concat()].concat()
    });
    let head = (0_u8..5, 90_u16..700, 0..1_u64 << 42).prop_map(|(flags, status, age)| {
        [&[1, flags][..], &status.to_be_bytes(), &age.to_be_bytes()].concat()
    });
    (head, any(20), lines.clone(), lines, any(20)).prop_map(move |(head, key, headers, trailers, body)| {
        let trailers = if head[1] & 2 == 0 { Vec::new() } else { trailers };
        [head, sized(4, key), vec![0, 0], headers, trailers, sized(4, body)].concat()
    })
}

/// What reading `bytes` may allocate at once: each line of a header takes at least 7 of them, and a place in a map.
fn reads_within_bounds(bytes: &[u8]) {
    let used = allocation_counter::measure(|| drop(stampede_guard::test_util::reread_response(bytes)));
    assert!(used.bytes_max < 4_096 + 64 * bytes.len() as u64, "{used:?} for {}", bytes.len());
}

fn request_line() -> impl Strategy<Value = String> {
    let header = prop_oneof![
        4 => "(k-one|k-two|accept|host|x-tenant|cookie|authorization|x-api-key|origin): ?(id=)?[ab,; ]{0,3}",
        1 => "(range|if-none-match|cache-control|user-agent|x-forwarded-for|connection): (bytes=)?[0-9*a\\-\"]{0,4}",
    ];
    let uri = "(GET|GET|GET|HEAD|POST) (http://[ab]\\.example)?/[ab%/.]{0,3}(\\?[ab=&]{0,3})?";
    (uri, proptest::collection::vec(header, 0..4))
        .prop_map(|(line, headers)| format!("{line}\n{}", headers.join("\n")))
}

fn response() -> impl Strategy<Value = String> {
    let directive = "[ \t]{0,1}(no-store|No-Cache|PRIVATE|public|max-age|s-maxage|must-revalidate|immutable|\
                     stale-while-revalidate|stale-if-error|x)(=\"?[0-9]{0,12}\"?)?[ ]{0,1}";
    let header = prop_oneof![
        6 => proptest::collection::vec(directive, 0..4).prop_map(|list| format!("cache-control: {}", list.join(","))),
        1 => "(vary|set-cookie|etag|www-authenticate|authentication-info|pragma): ?[a*, \"]{0,4}",
        1 => "(age|expires|date|last-modified): (-?[0-9]{0,12}|(Sun|Mon), 06 Nov (1994|2094) 08:49:37 GMT)",
    ];
    let status = prop_oneof![Just(200), Just(206), Just(301), Just(404), Just(500), Just(599), Just(204)];
    (status, proptest::collection::vec(header, 0..4))
        .prop_map(|(status, headers)| format!("{status}\n{}", headers.join("\n")))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_request_gets_its_own_answer(first in request_line(), second in request_line()) {
        properties::keys(format!("{first}\n\n{second}").as_bytes());
    }

    #[test]
    fn a_response_is_shared_only_if_it_may_be(response in response()) {
        properties::responses(response.as_bytes());
    }

    #[test]
    fn a_stored_response_is_the_same_when_it_is_read_again(bytes in stored(), at in any::<u16>(), byte in any::<u8>()) {
        properties::stored(&bytes);
        reads_within_bounds(&bytes);
        let mut damaged = bytes;
        let at = usize::from(at) % damaged.len();
        damaged[at] = byte;
        properties::stored(&damaged);
        reads_within_bounds(&damaged);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        properties::keys(&bytes);
        properties::responses(&bytes);
        properties::stored(&bytes);
        reads_within_bounds(&bytes);
    }
}
