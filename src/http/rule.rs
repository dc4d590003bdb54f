//! Which request headers tell one request from another: everything but a closed list, unless the operator says
//! otherwise.

use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use http::{HeaderMap, HeaderName};

use crate::http::cookies::CookieRule;
use crate::http::headers::{self, Role};
use crate::stable_hash::Fnv1a;

/// Changes when the default list or the layout of keys does, so that a store shared by two versions of this crate
/// never mixes their keys.
const RULE_VERSION: u8 = 3;

/// The rule by which requests get their key. `Default` is the safe one.
///
/// `Authorization`, `Proxy-Authorization` and `Cookie` never count unless asked for, and a request that carries one
/// that does not count is not eligible: see [`admits`](Self::admits) and
/// [`admits_cookies`](Self::admits_cookies).
#[derive(Debug, Clone)]
pub(crate) struct KeyRule {
    /// These headers only, in place of all but the closed list.
    only: Option<Vec<HeaderName>>,
    ignored: Vec<HeaderName>,
    authorization: bool,
    /// Requests with `Authorization` take part although the key does not hold it.
    shares_authorized: bool,
    cookies: CookieRule,
    /// For gRPC calls: the protocol settles what becomes of its own metadata.
    #[cfg(feature = "grpc")]
    calls: bool,
    fingerprint: u64,
}

impl Default for KeyRule {
    fn default() -> Self {
        let rule = Self {
            only: None,
            ignored: Vec::new(),
            authorization: false,
            shares_authorized: false,
            cookies: CookieRule::default(),
            #[cfg(feature = "grpc")]
            calls: false,
            fingerprint: 0,
        };
        rule.sealed()
    }
}

impl KeyRule {
    /// Leaves `name` out of the key, in addition to the closed list. `Vary` still counts it where a response names it.
    /// Does not make requests with credentials eligible, and does not touch `Host`.
    pub(crate) fn ignore_header(mut self, name: HeaderName) -> Self {
        self.ignored.push(name);
        sort_set(&mut self.ignored);
        self.sealed()
    }

    /// Keys these headers and no others. None at all is the classic key of a shared cache: method, URI and `Vary`
    /// (RFC 9111 section 2). Naming `authorization` or `cookie` opts those in.
    pub(crate) fn key_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        let mut names = names.into_iter().collect();
        sort_set(&mut names);
        self.only = Some(names);
        self.sealed()
    }

    /// Makes requests eligible whose cookies are all named here or in [`key_cookies`](Self::key_cookies).
    pub(crate) fn ignore_cookies(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.cookies.ignore(names);
        self.sealed()
    }

    /// Puts these cookies into the key. Others must be ignored by name, or the request is not eligible.
    pub(crate) fn key_cookies(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.cookies.key(names);
        self.sealed()
    }

    /// Puts `Authorization` and `Proxy-Authorization` into the key, and so makes requests with them eligible.
    pub(crate) fn key_authorization(mut self) -> Self {
        self.authorization = true;
        self.sealed()
    }

    /// Makes requests with `Authorization` eligible without putting it into the key. Their responses are judged by
    /// RFC 9111 section 3.5.
    pub(crate) fn share_authorized(mut self, share: bool) -> Self {
        self.shares_authorized = share;
        self.sealed()
    }

    /// Whether requests with `Authorization` take part, in whatever way. That of proxies does by the key alone.
    pub(crate) fn takes_authorization(&self) -> bool {
        self.shares_authorized || self.keys(&AUTHORIZATION)
    }

    /// Whether it is to share what it also is to keep apart.
    pub(crate) fn contradicts_itself(&self) -> bool {
        self.shares_authorized && self.keys(&AUTHORIZATION)
    }

    /// Whether the request carries `Authorization` that its key does not hold.
    pub(crate) fn is_authorized(&self, headers: &HeaderMap) -> bool {
        self.shares_authorized && headers.contains_key(AUTHORIZATION)
    }

    /// The same rule for gRPC calls.
    #[cfg(feature = "grpc")]
    pub(crate) fn for_calls(mut self) -> Self {
        self.calls = true;
        self.sealed()
    }

    /// Whether a request on behalf of several carries `name`, the key aside. Where `Authorization` is shared, the origin
    /// is to see it, or it would turn the request down.
    pub(crate) fn carries(&self, name: &HeaderName) -> bool {
        if self.shares_authorized && *name == AUTHORIZATION {
            return true;
        }
        #[cfg(feature = "grpc")]
        if self.calls && crate::http::grpc::metadata::is_carried(name) {
            return true;
        }
        self.keys(name)
    }

    /// Tells rules apart: the same for the same settings in any order, in every process of one version of this crate.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The rule on single cookies.
    pub(crate) fn cookies(&self) -> &CookieRule {
        &self.cookies
    }

    /// Whether the key holds all values of `name`.
    pub(crate) fn keys(&self, name: &HeaderName) -> bool {
        self.keys_as(headers::role(name.as_str()), name)
    }

    /// The same, of a name whose role is known.
    #[inline]
    pub(crate) fn keys_as(&self, role: Role, name: &HeaderName) -> bool {
        if role == Role::Host {
            return true;
        }
        #[cfg(feature = "grpc")]
        if self.calls
            && let Some(keys) = crate::http::grpc::metadata::settled(name)
        {
            return keys;
        }
        if !self.ignored.is_empty() && self.ignored.contains(name) {
            return false;
        }
        let named = self.only.as_ref().is_some_and(|only| only.contains(name));
        match role {
            Role::Credentials => self.authorization || named,
            Role::Cookie | Role::Ignored => named,
            Role::Host | Role::Forbidding | Role::Other => named || self.only.is_none(),
        }
    }

    /// Whether `Vary: name` adds nothing to the key. Beyond [`keys`](Self::keys): once the operator has sorted the
    /// cookies, those that are not in the key have no say, whatever `Vary: cookie` means by them.
    pub(crate) fn settles(&self, name: &HeaderName) -> bool {
        self.keys(name) || (*name == COOKIE && !self.cookies.is_empty())
    }

    /// Whether `name`, a header that carries credentials, is absent or in the key.
    pub(crate) fn admits(&self, name: &HeaderName, headers: &HeaderMap) -> bool {
        !headers.contains_key(name) || self.keys(name)
    }

    /// Whether the request has no cookies, or only such as the operator sorted.
    pub(crate) fn admits_cookies(&self, headers: &HeaderMap) -> bool {
        self.admits(&COOKIE, headers) || (!self.cookies.is_empty() && self.cookies.covers(headers))
    }

    /// Whether the key of an eligible request holds credentials: then it is one principal's alone.
    pub(crate) fn holds_principal(&self, headers: &HeaderMap) -> bool {
        let keys_credentials = self.authorization || self.only.is_some();
        keys_credentials
            && [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE]
                .iter()
                .any(|name| headers.contains_key(name) && self.keys(name))
            || self.cookies.keys_any_of(headers)
    }

    fn sealed(mut self) -> Self {
        let mut hash = Fnv1a::default();
        hash.write(&[RULE_VERSION, u8::from(self.authorization), u8::from(self.only.is_some())]);
        let only = self.only.as_deref().unwrap_or_default();
        write_list(&mut hash, only.iter().map(HeaderName::as_str));
        write_list(&mut hash, self.ignored.iter().map(HeaderName::as_str));
        write_list(&mut hash, self.cookies.ignored().iter().map(String::as_str));
        write_list(&mut hash, self.cookies.keyed().iter().map(String::as_str));
        #[cfg(feature = "grpc")]
        if self.calls {
            hash.write(b"grpc");
        }
        if self.shares_authorized {
            hash.write(b"authorized");
        }
        self.fingerprint = hash.0;
        self
    }
}

fn sort_set(names: &mut Vec<HeaderName>) {
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
}

fn write_list<'a>(hash: &mut Fnv1a, names: impl ExactSizeIterator<Item = &'a str>) {
    hash.write(&(names.len() as u64).to_be_bytes());
    for name in names {
        hash.write(&(name.len() as u64).to_be_bytes());
        hash.write(name.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::syntax::tests::map;
    use http::header::{ACCEPT, HOST, USER_AGENT};

    const X_TENANT: HeaderName = HeaderName::from_static("x-tenant");

    #[test]
    fn by_default_everything_counts_but_the_list_and_credentials() {
        let rule = KeyRule::default();
        assert!(rule.keys(&X_TENANT) && rule.keys(&ACCEPT) && rule.keys(&HOST));
        for name in [USER_AGENT, AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE] {
            assert!(!rule.keys(&name), "{name}");
        }
    }

    #[test]
    fn a_run_for_several_carries_what_the_key_holds_and_little_else() {
        let shared = KeyRule::default().share_authorized(true);
        assert!(shared.carries(&AUTHORIZATION) && shared.carries(&X_TENANT));
        assert!(!shared.carries(&USER_AGENT) && !KeyRule::default().carries(&AUTHORIZATION));
        #[cfg(feature = "grpc")]
        {
            let accepted = HeaderName::from_static("grpc-accept-encoding");
            let calls = KeyRule::default().key_headers([]).for_calls();
            assert!(calls.carries(&accepted) && !calls.carries(&USER_AGENT));
            assert!(!KeyRule::default().key_headers([]).carries(&accepted));
        }
    }

    #[test]
    fn ignoring_a_header_takes_it_out_and_host_stays() {
        let rule = KeyRule::default().ignore_header(X_TENANT).ignore_header(HOST);
        assert!(!rule.keys(&X_TENANT));
        assert!(rule.keys(&HOST) && rule.keys(&ACCEPT));
    }

    #[test]
    fn named_headers_replace_the_rule() {
        let rule = KeyRule::default().key_headers([USER_AGENT]);
        assert!(rule.keys(&USER_AGENT) && rule.keys(&HOST));
        assert!(!rule.keys(&ACCEPT) && !rule.keys(&X_TENANT));
        assert!(!KeyRule::default().key_headers([]).keys(&ACCEPT));
    }

    #[test]
    fn credentials_are_admitted_only_in_the_key() {
        let request = map(&[("authorization", "x"), ("cookie", "a=1")]);
        let default = KeyRule::default();
        assert!(!default.admits(&AUTHORIZATION, &request) && !default.admits_cookies(&request));
        let ignoring = KeyRule::default().ignore_header(AUTHORIZATION).ignore_header(COOKIE);
        assert!(!ignoring.admits(&AUTHORIZATION, &request) && !ignoring.admits_cookies(&request));
        let contradictory = KeyRule::default().key_authorization().ignore_header(AUTHORIZATION);
        assert!(!contradictory.admits(&AUTHORIZATION, &request));

        let keyed = KeyRule::default().key_authorization();
        assert!(keyed.keys(&AUTHORIZATION) && keyed.keys(&PROXY_AUTHORIZATION));
        assert!(keyed.admits(&AUTHORIZATION, &request) && !keyed.admits_cookies(&request));
        assert!(KeyRule::default().key_headers([]).key_authorization().keys(&AUTHORIZATION));
        let named = KeyRule::default().key_headers([AUTHORIZATION, COOKIE]);
        assert!(named.admits(&AUTHORIZATION, &request) && named.admits_cookies(&request));
    }

    #[test]
    fn a_principal_is_what_the_key_holds_of_one() {
        let none = map(&[("accept", "*/*"), ("cookie", "_ga=1")]);
        let cookie = map(&[("cookie", "session=1")]);
        let bearer = map(&[("authorization", "Bearer t")]);
        let rule = KeyRule::default().key_authorization().ignore_cookies(["_ga"]).key_cookies(["session"]);
        assert!(!rule.holds_principal(&none));
        assert!(rule.holds_principal(&cookie) && rule.holds_principal(&bearer));
        assert!(KeyRule::default().key_headers([COOKIE]).holds_principal(&cookie));
    }

    #[test]
    fn fingerprints_differ_with_every_setting_and_not_with_their_order() {
        let rules = [
            KeyRule::default(),
            KeyRule::default().ignore_header(ACCEPT),
            KeyRule::default().key_headers([ACCEPT]),
            KeyRule::default().key_headers([]),
            KeyRule::default().key_authorization(),
            KeyRule::default().ignore_cookies(["accept"]),
            KeyRule::default().key_cookies(["accept"]),
            KeyRule::default().key_cookies(["acc", "ept"]),
        ];
        for (i, one) in rules.iter().enumerate() {
            for other in &rules[..i] {
                assert_ne!(one.fingerprint(), other.fingerprint(), "{one:?} {other:?}");
            }
        }
        let one = KeyRule::default().ignore_header(ACCEPT).ignore_header(X_TENANT).ignore_header(ACCEPT);
        let other = KeyRule::default().ignore_header(X_TENANT).ignore_header(ACCEPT);
        assert_eq!(one.fingerprint(), other.fingerprint());
    }
}
