//! Which requests take part, and what their keys hold.

use std::sync::Arc;

use http::request::Parts;

use super::super::guard::KeyExtra;
use super::StampedeGuardBuilder;

impl<G> StampedeGuardBuilder<G> {
    /// Leaves a request header out of the key, beside the closed list that is left out anyway. `Vary` still counts it
    /// where a response names it.
    pub fn ignore_header(mut self, name: impl AsRef<str>) -> Self {
        if let Some(name) = self.header("ignore_header", name.as_ref()) {
            self.settings.rule = self.settings.rule.ignore_header(name);
        }
        self
    }

    /// Keys these request headers and no others, beside method, URI and `Host`. None at all, `key_headers([])`, is the
    /// classic key of a shared cache (RFC 9111, section 2): what else matters, the responses must say in `Vary`.
    ///
    /// Naming `authorization` or `cookie` makes requests that carry it take part, one key for each value.
    pub fn key_headers<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let names: Vec<_> = names.into_iter().map(|name| self.header("key_headers", name)).collect();
        self.settings.rule = self.settings.rule.key_headers(names.into_iter().flatten());
        self
    }

    /// Puts `Authorization` and `Proxy-Authorization` into the key, which makes requests that carry them take part:
    /// each principal shares with itself alone. Responses marked `private` are still not shared.
    pub fn key_authorization(mut self) -> Self {
        self.settings.rule = self.settings.rule.key_authorization();
        self
    }

    /// Lets requests with `Authorization` share responses whose `Cache-Control` says `public`, `s-maxage` or
    /// `must-revalidate`, with each other and with requests without it (RFC 9111, section 3.5). The key does not hold the
    /// credentials. All other responses to such requests go to their own client alone. Default: false, they go straight
    /// through; [`key_authorization`](Self::key_authorization) is the way to share a principal's responses with that
    /// principal, and the two exclude each other.
    ///
    /// # Danger
    ///
    /// This believes those directives. A handler or framework that puts `public` or `s-maxage` on every response, as
    /// many do by default, hands what it made for one user to all others, and to those it has not admitted: who sends no
    /// credentials, or wrong ones, gets what is stored without the handler being asked. Turn it on only where every
    /// response that says so is the same for everybody. A background refresh carries the `Authorization` of the request
    /// that triggered it, after that request has its answer.
    pub fn share_authorized(mut self, share: bool) -> Self {
        self.settings.rule = self.settings.rule.share_authorized(share);
        self
    }

    /// Cookies that do not matter to any answer, say those of analytics. A request takes part if each of its cookies
    /// is named here or in [`key_cookies`](Self::key_cookies). The handler may see the cookies of one client while it
    /// answers several.
    pub fn ignore_cookies<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.settings.rule = self.settings.rule.ignore_cookies(names);
        self
    }

    /// Cookies that are part of the key, say a session's or a language's.
    pub fn key_cookies<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.settings.rule = self.settings.rule.key_cookies(names);
        self
    }

    /// Adds to the key what the request's headers do not show: an identity in its extensions, a tenant by peer
    /// address. Background refreshes carry the same extensions.
    pub fn key_with(mut self, key_with: impl Fn(&Parts, &mut KeyExtra) + Send + Sync + 'static) -> Self {
        self.settings.key_with = Some(Arc::new(key_with));
        self
    }

    /// Requests for which this is true go straight through.
    ///
    /// ```
    /// use stampede_guard::StampedeGuard;
    ///
    /// let guard = StampedeGuard::builder().bypass_if(|parts| parts.uri.path().starts_with("/me")).build();
    /// # assert!(guard.is_ok());
    /// ```
    pub fn bypass_if(mut self, bypass: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.settings.bypass = Some(Arc::new(bypass));
        self
    }
}
