//! One test a rule of the verdict.

use super::*;
use crate::http::freshness::tests::{date, now};
use crate::http::syntax::tests::map;

/// As the layer is without configuration.
const POLICY: HttpPolicy = HttpPolicy {
    default_ttl: Some(SECOND),
    default_swr: SECOND,
    granted_swr: Duration::ZERO,
    stale_if_error: Duration::ZERO,
    max_swr: None,
    max_sie: None,
    heuristic: None,
    targeted: Vec::new(),
};
const SECOND: Duration = Duration::from_secs(1);
const ZERO: Duration = Duration::ZERO;

/// The operator grants windows to everything.
fn generous() -> HttpPolicy {
    HttpPolicy { granted_swr: SECOND * 10, stale_if_error: SECOND * 20, ..POLICY }
}

fn of(status: u16, lines: &[(&str, &str)], policy: &HttpPolicy) -> Verdict {
    let status = StatusCode::from_u16(status).unwrap();
    judge(RequestFacts::default(), status, &map(lines), policy, now())
}

fn ok(cache_control: &str, policy: &HttpPolicy) -> Verdict {
    of(200, &[("cache-control", cache_control)], policy)
}

fn stored(verdict: &Verdict) -> Lifetime {
    assert_eq!(verdict.share, Share::Yes);
    verdict.store.expect("it is kept")
}

/// `fresh_for`, stale-while-revalidate and stale-if-error, in seconds.
fn seconds(verdict: &Verdict) -> (u64, u64, u64) {
    let lifetime = stored(verdict);
    (
        lifetime.fresh_for.as_secs(),
        lifetime.stale_while_revalidate.as_secs(),
        lifetime.stale_if_error.as_secs(),
    )
}

#[track_caller]
fn only_shared(verdict: &Verdict) {
    assert_eq!((verdict.share, verdict.store), (Share::Yes, None));
}

#[track_caller]
fn refused(verdict: &Verdict, reason: NotShared) {
    assert_eq!((verdict.share, verdict.store), (Share::No(reason), None));
}

#[test]
fn a_200_that_says_nothing_is_kept_by_default() {
    let lifetime = Lifetime {
        age: ZERO,
        fresh_for: SECOND,
        stale_while_revalidate: SECOND,
        stale_if_error: ZERO,
        revalidate: false,
    };
    assert_eq!(stored(&of(200, &[], &POLICY)), lifetime);
    assert_eq!(stored(&ok("public", &POLICY)), lifetime);
    assert_eq!(seconds(&of(200, &[], &generous())), (1, 1, 20));
}

#[test]
fn coalesce_only_keeps_nothing_beyond_the_own_word() {
    let coalesce_only = HttpPolicy { default_ttl: None, ..POLICY };
    only_shared(&of(200, &[], &coalesce_only));
    assert_eq!(seconds(&ok("max-age=60", &coalesce_only)), (60, 0, 0));
}

#[test]
fn only_200_is_kept_without_a_word() {
    for status in [201, 202, 203, 204, 205, 299, 300, 301, 302, 307, 308, 404, 405, 410, 500, 502, 503, 504] {
        only_shared(&of(status, &[], &POLICY));
    }
}

#[test]
fn any_final_status_is_kept_by_its_own_word() {
    for status in [200, 203, 204, 299, 301, 302, 400, 401, 403, 404, 410, 429, 451, 500, 503] {
        let verdict = of(status, &[("cache-control", "max-age=60")], &POLICY);
        assert_eq!(stored(&verdict).fresh_for, SECOND * 60, "{status}");
    }
    only_shared(&of(700, &[("cache-control", "max-age=60")], &POLICY));
}

#[test]
fn what_is_not_a_whole_final_answer_is_refused() {
    for (status, reason) in [
        (100, NotShared::Informational),
        (101, NotShared::Informational),
        (103, NotShared::Informational),
        (206, NotShared::Partial),
        (304, NotShared::NotModified),
    ] {
        refused(&of(status, &[("cache-control", "max-age=60")], &POLICY), reason);
    }
    refused(
        &of(416, &[("cache-control", "max-age=60"), ("content-range", "bytes */2")], &POLICY),
        NotShared::Partial,
    );
}

#[test]
fn what_says_nothing_of_a_client_keeps_no_answer_from_the_others() {
    for (name, value) in [
        // RFC 9110 section 14.4: only 206 and 416 give it a meaning.
        ("content-range", "pages 1-2/3"),
        // RFC 9111 section 3.1: not stored, while the response is.
        ("proxy-authenticate", "Basic"),
        ("proxy-authentication-info", "x"),
    ] {
        for status in [200, 404, 500] {
            let verdict = of(status, &[("cache-control", "max-age=60"), (name, value)], &POLICY);
            assert_eq!(verdict.share, Share::Yes, "{status} {name}");
            assert!(verdict.store.is_some(), "{status} {name}");
        }
    }
}

#[test]
fn site_data_is_cleared_by_a_shared_answer_only_while_said_to_be_fresh() {
    let clears = ("clear-site-data", "\"cache\"");
    refused(&of(200, &[clears], &POLICY), NotShared::ClearSiteData);
    refused(&of(200, &[clears, ("cache-control", "max-age=0")], &POLICY), NotShared::ClearSiteData);
    let fresh = of(200, &[clears, ("cache-control", "max-age=60")], &POLICY);
    assert_eq!((fresh.share, fresh.store.is_some()), (Share::Yes, true));
}

#[test]
fn each_header_that_ties_an_answer_to_its_client_is_refused_in_spite_of_freshness() {
    for (name, value, reason) in [
        ("set-cookie", "a=1", NotShared::SetCookie),
        ("cache-control", "private", NotShared::Private),
        ("cache-control", "private=\"x\"", NotShared::Private),
        ("cache-control", "no-store", NotShared::NoStore),
        ("cache-control", "no-cache", NotShared::NoCache),
        ("cache-control", "no-cache=\"set-cookie\"", NotShared::NoCache),
        ("vary", "accept, *", NotShared::VaryAny),
        ("www-authenticate", "Basic", NotShared::Challenge),
        ("authentication-info", "x", NotShared::AuthenticationInfo),
    ] {
        for status in [200, 404, 500] {
            let lines = [("cache-control", "public, max-age=60"), (name, value)];
            refused(&of(status, &lines, &POLICY), reason);
        }
    }
    let lines = [("cache-control", "public, max-age=60"), ("proxy-authenticate", "Basic")];
    refused(&of(407, &lines, &POLICY), NotShared::Challenge);
}

#[test]
fn one_clients_fault_is_shared_only_while_said_to_be_fresh() {
    for status in [400, 401, 403, 407, 408, 413, 421, 425, 426, 429, 431, 451] {
        refused(&of(status, &[], &POLICY), NotShared::ClientFault);
        refused(&of(status, &[("cache-control", "public")], &POLICY), NotShared::ClientFault);
        refused(&of(status, &[("cache-control", "max-age=0")], &POLICY), NotShared::ClientFault);
        refused(
            &of(status, &[("cache-control", "max-age=5"), ("age", "5")], &POLICY),
            NotShared::ClientFault,
        );
        assert_eq!(of(status, &[("cache-control", "max-age=1")], &POLICY).share, Share::Yes);
    }
    for status in [402, 404, 405, 406, 409, 410, 414, 415, 416, 422, 501] {
        only_shared(&of(status, &[], &POLICY));
    }
}

#[test]
fn event_streams_are_shared_only_while_said_to_be_fresh() {
    for media_type in ["text/event-stream", "Text/Event-Stream ; charset=utf-8"] {
        refused(&of(200, &[("content-type", media_type)], &POLICY), NotShared::EventStream);
        let fresh = [("content-type", media_type), ("cache-control", "max-age=5")];
        assert_eq!(stored(&of(200, &fresh, &POLICY)).fresh_for, SECOND * 5);
    }
    stored(&of(200, &[("content-type", "text/event-streams")], &POLICY));
}

#[test]
fn pragma_speaks_where_cache_control_does_not() {
    refused(&of(200, &[("pragma", "x, No-Cache")], &POLICY), NotShared::NoCache);
    stored(&of(200, &[("pragma", "no-cache"), ("cache-control", "max-age=5")], &POLICY));
    stored(&of(200, &[("pragma", "x")], &POLICY));
}

#[test]
fn a_no_store_request_is_shared_and_not_kept() {
    let request = RequestFacts { no_store: true, ..RequestFacts::default() };
    let headers = map(&[("cache-control", "max-age=60")]);
    only_shared(&judge(request, StatusCode::OK, &headers, &POLICY, now()));
}

#[test]
fn a_principal_in_the_key_is_kept_without_background_refresh() {
    let request = RequestFacts { principal_in_key: true, ..RequestFacts::default() };
    let judge = |line| judge(request, StatusCode::OK, &map(&[("cache-control", line)]), &generous(), now());
    assert_eq!(seconds(&judge("max-age=60, stale-while-revalidate=5")), (60, 0, 20));
    assert_eq!(seconds(&judge("")), (1, 0, 20));
    refused(&judge("private, max-age=60"), NotShared::Private);
}

#[test]
fn must_understand_lifts_no_store_for_statuses_that_are_understood() {
    let lines = [("cache-control", "no-store, must-understand, max-age=60")];
    assert_eq!(seconds(&of(200, &lines, &POLICY)), (60, 0, 0));
    refused(&of(299, &lines, &POLICY), NotShared::NoStore);
    only_shared(&of(299, &[("cache-control", "must-understand, max-age=60")], &POLICY));
}

#[test]
fn age_on_arrival_counts() {
    let aged = of(200, &[("cache-control", "max-age=60"), ("age", "20")], &POLICY);
    assert_eq!(stored(&aged).age, SECOND * 20);
    let dated = of(200, &[("cache-control", "max-age=60"), ("date", &date(-20))], &POLICY);
    assert_eq!(stored(&dated).age, SECOND * 20);
    only_shared(&of(200, &[("cache-control", "max-age=60"), ("age", "60")], &POLICY));
    only_shared(&of(200, &[("age", "2")], &POLICY));
}

#[test]
fn stale_on_arrival_is_kept_only_for_a_window_of_its_own() {
    for stale in ["max-age=0", "s-maxage=0", "max-age=x", "max-age=0, stale-while-revalidate=0"] {
        only_shared(&ok(stale, &generous()));
    }
    only_shared(&of(200, &[("expires", "0")], &generous()));
    assert_eq!(seconds(&ok("max-age=0, stale-while-revalidate=5", &generous())), (0, 5, 0));
    assert_eq!(seconds(&ok("max-age=0, stale-if-error=5", &generous())), (0, 0, 5));
    let lines = [("cache-control", "max-age=10, stale-while-revalidate=5"), ("age", "14")];
    assert_eq!(seconds(&of(200, &lines, &POLICY)), (10, 5, 0));
    only_shared(&of(200, &[lines[0], ("age", "15")], &POLICY));
}

#[test]
fn default_windows_are_not_for_those_who_state_their_freshness() {
    assert_eq!(seconds(&ok("max-age=60", &POLICY)), (60, 0, 0));
    assert_eq!(seconds(&ok("max-age=60", &generous())), (60, 10, 20));
}

#[test]
fn a_stated_window_replaces_the_granted_one() {
    let stated = ok("max-age=60, stale-while-revalidate=0, stale-if-error=7", &generous());
    assert_eq!(seconds(&stated), (60, 0, 7));
    assert_eq!(seconds(&ok("stale-while-revalidate=7", &generous())), (1, 7, 20));
}

#[test]
fn must_revalidate_closes_every_window() {
    for word in ["must-revalidate", "proxy-revalidate"] {
        let stated = format!("max-age=60, stale-while-revalidate=5, stale-if-error=5, {word}");
        for line in [stated.as_str(), &format!("max-age=60, {word}"), word] {
            let lifetime = stored(&ok(line, &generous()));
            assert!(lifetime.revalidate, "{line}");
            assert_eq!((lifetime.stale_while_revalidate, lifetime.stale_if_error), (ZERO, ZERO), "{line}");
        }
    }
    assert!(!stored(&ok("max-age=60", &generous())).revalidate);
    only_shared(&ok("max-age=0, stale-while-revalidate=5, must-revalidate", &generous()));
}

#[test]
fn s_maxage_closes_the_windows_that_the_response_does_not_state() {
    let bare = stored(&ok("s-maxage=60", &generous()));
    assert!(bare.revalidate);
    assert_eq!((bare.stale_while_revalidate, bare.stale_if_error), (ZERO, ZERO));
    let stated = stored(&ok("s-maxage=60, stale-while-revalidate=5", &generous()));
    assert!(!stated.revalidate);
    assert_eq!((stated.stale_while_revalidate, stated.stale_if_error), (SECOND * 5, ZERO));
    assert_eq!(seconds(&ok("s-maxage=60, stale-if-error=5", &generous())), (60, 0, 5));
}

#[test]
fn windows_are_capped() {
    let capped = HttpPolicy { max_swr: Some(SECOND * 3), max_sie: Some(SECOND * 4), ..generous() };
    assert_eq!(seconds(&ok("max-age=60", &capped)), (60, 3, 4));
    assert_eq!(seconds(&ok("max-age=60, stale-while-revalidate=90, stale-if-error=90", &capped)), (60, 3, 4));
    assert_eq!(seconds(&ok("max-age=60, stale-while-revalidate=2, stale-if-error=2", &capped)), (60, 2, 2));
}

#[test]
fn the_longest_of_everything_does_not_overflow() {
    let endless = HttpPolicy {
        default_ttl: Some(Duration::MAX),
        default_swr: Duration::MAX,
        granted_swr: Duration::MAX,
        stale_if_error: Duration::MAX,
        max_swr: Some(Duration::MAX),
        max_sie: Some(Duration::MAX),
        ..POLICY
    };
    assert_eq!(seconds(&of(200, &[], &endless)), (1 << 31, 1 << 31, 1 << 31));
}

#[test]
fn vary_is_reported_even_when_not_shared() {
    let names =
        |verdict: Verdict| -> Vec<String> { verdict.vary.names().iter().map(ToString::to_string).collect() };
    assert_eq!(names(of(200, &[("vary", "Accept, origin")], &POLICY)), ["accept", "origin"]);
    assert_eq!(names(of(200, &[("vary", "accept"), ("set-cookie", "a=1")], &POLICY)), ["accept"]);
    assert!(of(200, &[("vary", "*")], &POLICY).vary.is_empty());
}

#[test]
fn a_guess_is_made_only_if_the_operator_asks() {
    let then = date(-1_000);
    let modified = [("last-modified", then.as_str())];
    assert_eq!(seconds(&of(200, &modified, &POLICY)), (1, 1, 0));
    let guessing = HttpPolicy { heuristic: Some(0.1), default_ttl: None, ..POLICY };
    for status in [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501] {
        assert_eq!(seconds(&of(status, &modified, &guessing)), (100, 0, 0), "{status}");
    }
    for status in [201, 202, 302, 307, 500, 502, 503, 504, 599] {
        only_shared(&of(status, &modified, &guessing));
        let public = [modified[0], ("cache-control", "public")];
        assert_eq!(seconds(&of(status, &public, &guessing)).0, 100, "{status}");
    }
    refused(&of(403, &modified, &guessing), NotShared::ClientFault);
    let stated = [modified[0], ("cache-control", "max-age=5")];
    assert_eq!(seconds(&of(200, &stated, &guessing)).0, 5);
    only_shared(&of(200, &[], &guessing));
}

#[test]
fn what_is_over_is_kept_only_to_ask_whether_it_still_holds() {
    let over = ("cache-control", "max-age=0");
    only_shared(&of(200, &[over], &POLICY));
    let kept = of(200, &[over, ("etag", "\"a\"")], &POLICY);
    assert_eq!(seconds(&kept), (0, 0, 0));
    assert!(stored(&kept).is_over());
    only_shared(&of(404, &[over, ("etag", "\"a\"")], &POLICY));
}

#[test]
fn no_cache_is_kept_for_checking_with_a_validator() {
    let no_cache = ("cache-control", "max-age=60, no-cache");
    let tag = ("etag", "\"a\"");
    let check = |lines: &[(&str, &str)]| {
        let verdict = of(200, lines, &POLICY);
        assert_eq!(verdict.store, None);
        assert_ne!(verdict.share, Share::Yes);
        verdict.check
    };
    assert!(check(&[no_cache, tag]));
    assert!(check(&[no_cache, tag, ("vary", "accept")]));
    assert!(!check(&[no_cache]));
    for against in [
        ("vary", "*"),
        ("set-cookie", "a=b"),
        ("www-authenticate", "x"),
        ("authentication-info", "x"),
        ("content-type", "text/event-stream"),
        ("cache-control", "private"),
        ("cache-control", "no-store"),
    ] {
        assert!(!check(&[no_cache, tag, against]), "{against:?}");
    }
    let facts = RequestFacts { principal_in_key: true, ..RequestFacts::default() };
    assert!(!judge(facts, StatusCode::OK, &map(&[no_cache, tag]), &POLICY, now()).check);
    let facts = RequestFacts { no_store: true, ..RequestFacts::default() };
    assert!(!judge(facts, StatusCode::OK, &map(&[no_cache, tag]), &POLICY, now()).check);
}

#[test]
fn a_targeted_field_silences_the_plain_ones() {
    let name = http::HeaderName::from_static("cdn-cache-control");
    let policy = HttpPolicy { targeted: vec![name], ..POLICY };
    let cdn = ("cdn-cache-control", "max-age=60");
    assert_eq!(seconds(&of(200, &[cdn, ("cache-control", "no-store")], &policy)), (60, 0, 0));
    assert_eq!(seconds(&of(200, &[cdn, ("expires", "0"), ("pragma", "no-cache")], &policy)), (60, 0, 0));
    refused(&of(200, &[cdn, ("cache-control", "no-store")], &POLICY), NotShared::NoStore);
    let private = [("cdn-cache-control", "private"), ("cache-control", "max-age=60")];
    refused(&of(200, &private, &policy), NotShared::Private);
    let invalid = [("cdn-cache-control", "max-age=60, &"), ("cache-control", "no-store")];
    refused(&of(200, &invalid, &policy), NotShared::NoStore);
}

#[test]
fn an_authorized_request_shares_what_says_so_and_nothing_else() {
    let facts = RequestFacts { authorized: true, ..RequestFacts::default() };
    let tag = ("etag", "\"a\"");
    let judged = |line: &str| {
        let headers = map(&[("cache-control", line), tag]);
        let verdict = judge(facts, StatusCode::OK, &headers, &POLICY, now());
        assert_eq!(may_have(facts, &headers, &POLICY), line.contains("open") || verdict.share == Share::Yes);
        assert!(may_have(RequestFacts::default(), &headers, &POLICY));
        verdict
    };
    for open in ["max-age=60, public", "s-maxage=60", "max-age=60, Must-Revalidate", "public"] {
        assert_eq!(judged(open).share, Share::Yes, "{open}");
        assert!(judged(open).store.is_some(), "{open}");
    }
    for closed in ["max-age=60", "max-age=60, proxy-revalidate", "max-age=60, immutable", "", "no-cache"] {
        refused(&judged(closed), NotShared::Authorized);
        assert!(!judged(closed).check, "{closed}");
    }
    refused(&judged("private, public, open"), NotShared::Private);
    let checked = judged("no-cache, public, open");
    refused(&checked, NotShared::NoCache);
    assert!(checked.check);
}
