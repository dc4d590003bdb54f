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
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        properties::keys(&bytes);
        properties::responses(&bytes);
    }
}
