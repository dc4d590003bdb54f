use super::*;
use crate::http::syntax::tests::map;

/// One with something in every field.
fn full() -> Stored {
    Stored {
        key: Bytes::from_static(b"\0\x01key\xff"),
        vary: VarySpec::new(vec![HeaderName::from_static("x-a"), HeaderName::from_static("accept")]),
        status: StatusCode::OK,
        headers: map(&[
            ("content-type", &b"text/plain"[..]),
            ("x-twice", b"first"),
            ("x-twice", b"second"),
            ("cache-control", b"max-age=60, stale-while-revalidate=5"),
            ("x-latin", b"\xe9t\xe9"),
            ("x-empty", b""),
        ]),
        trailers: Some(map(&[("x-checksum", "abc")])),
        body: Bytes::from_static(b"a body\0with any bytes\xff"),
        age: Duration::from_millis(12_345),
        revalidate: true,
    }
}

/// The least that a response is.
fn bare() -> Stored {
    Stored {
        key: Bytes::new(),
        vary: VarySpec::default(),
        status: StatusCode::NO_CONTENT,
        headers: HeaderMap::new(),
        trailers: None,
        body: Bytes::new(),
        age: Duration::ZERO,
        revalidate: false,
    }
}

fn decode(bytes: &[u8]) -> Option<Stored> {
    Stored::decode(Bytes::copy_from_slice(bytes))
}

fn snapshot(hex: &str) -> Vec<u8> {
    let digits: Vec<_> = hex.lines().filter(|line| !line.starts_with('#')).collect();
    let digits: Vec<_> = digits.concat().bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

#[test]
fn the_first_version_stays_as_it_is() {
    let one = snapshot(include_str!("../../../tests/wire_compat/v1.hex"));
    assert_eq!(decode(&one).unwrap(), full());
    assert_eq!(full().encode().unwrap(), one);
}

#[test]
fn what_was_written_is_what_is_read_order_and_repetition_included() {
    for stored in [full(), bare()] {
        let read = decode(&stored.encode().unwrap()).unwrap();
        assert_eq!(read, stored);
        let lines = |map: &HeaderMap| -> Vec<_> {
            map.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
        };
        assert_eq!(lines(&read.headers), lines(&stored.headers));
    }
}

#[test]
fn what_is_cut_short_or_has_more_behind_it_is_none() {
    for stored in [full(), bare()] {
        let bytes = stored.encode().unwrap();
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end]), None, "{end}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(decode(&longer), None);
    }
}

#[test]
fn whatever_byte_is_wrong_it_does_not_panic() {
    let bytes = full().encode().unwrap();
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            if let Some(read) = decode(&damaged) {
                assert_eq!(decode(&read.encode().unwrap()), Some(read), "{at}");
            }
        }
    }
}

/// The bytes of a bare response with some of them replaced.
fn bare_with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut out = bare().encode().unwrap();
    out[at..at + bytes.len()].copy_from_slice(bytes);
    out
}

#[test]
fn what_no_version_means_is_none() {
    assert!(decode(&bare_with(0, &[1])).is_some());
    for version in [0, 2, 255] {
        assert_eq!(decode(&bare_with(0, &[version])), None, "{version}");
    }
    assert_eq!(decode(&bare_with(1, &[4])), None, "an unknown flag");
    assert_eq!(decode(&bare_with(2, &99_u16.to_be_bytes())), None, "no status");
    let too_long = u64::try_from(MAX_LIFETIME.as_millis()).unwrap() + 1;
    assert!(decode(&bare_with(4, &(too_long - 1).to_be_bytes())).is_some());
    assert_eq!(decode(&bare_with(4, &too_long.to_be_bytes())), None, "no age");
    let long_key = |bytes| Stored { key: Bytes::from(vec![0; bytes]), ..bare() }.encode().unwrap();
    assert!(decode(&long_key(MAX_KEY_BYTES)).is_some());
    assert_eq!(decode(&long_key(MAX_KEY_BYTES + 1)), None, "no key is so long");
}

#[test]
fn names_and_values_are_those_of_headers() {
    let with_line = |name: &[u8], value: &[u8]| {
        let mut out = bare().encode().unwrap();
        let body = out.split_off(out.len() - 4);
        out.truncate(out.len() - 2);
        out.extend_from_slice(&1_u16.to_be_bytes());
        out.extend_from_slice(&u16::try_from(name.len()).unwrap().to_be_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
        out.extend_from_slice(value);
        out.extend(body);
        out
    };
    assert!(decode(&with_line(b"x-a", b"b")).is_some());
    for name in [&b"X-a"[..], b"", b"x a", b"x\n", b"\xff"] {
        assert_eq!(decode(&with_line(name, b"b")), None, "{name:?}");
    }
    for value in [&b"\r\nset-cookie: a"[..], b"\0", b"\x7f"] {
        assert_eq!(decode(&with_line(b"x-a", value)), None, "{value:?}");
    }
}

#[test]
fn names_out_of_order_are_none() {
    let mut bytes = full().encode().unwrap();
    let at = bytes.windows(11).position(|window| window == b"accept\0\x03x-a").unwrap();
    bytes[at - 2..at + 11].copy_from_slice(b"\0\x03x-a\0\x06accept");
    assert_eq!(decode(&bytes), None);
}

#[test]
fn a_length_or_a_count_that_is_a_lie_allocates_nothing_like_it() {
    let length = bare().encode().unwrap().len();
    // The lengths of key and body, the counts of names and lines.
    for (at, lie) in [(12, &[0xff; 4][..]), (length - 4, &[0xff; 4]), (16, &[0xff; 2]), (18, &[0xff; 2])] {
        let bytes = bare_with(at, lie);
        let used = allocation_counter::measure(|| assert_eq!(decode(&bytes), None));
        assert!(used.bytes_max < 1_024, "{at}: {used:?}");
    }
}

#[test]
fn more_lines_than_a_map_holds_are_none_and_no_panic() {
    let mut bytes = bare().encode().unwrap();
    bytes.truncate(18);
    bytes.extend_from_slice(&u16::MAX.to_be_bytes());
    for number in 0..u32::from(u16::MAX) {
        let name = format!("x{number:05}");
        bytes.extend_from_slice(&6_u16.to_be_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(&0_u32.to_be_bytes());
    }
    bytes.extend_from_slice(&0_u32.to_be_bytes());
    assert_eq!(decode(&bytes), None);
}
