//! The names of methods that are to be shared: `/package.Service/Method`, or `/package.Service/*` for a whole service.

/// The path of a service with its slashes, `/package.Service/`, and the method.
fn split(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.split_at(path.rfind('/')? + 1);
    let name = service.strip_prefix('/')?.strip_suffix('/')?;
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    let is_path = |name: &str| is_name(name) && !name.contains(['/', '?', '#', '*']);
    (is_path(name) && (method == "*" || is_path(method))).then_some((service, method))
}

/// Whether `name` names a method or a service.
pub(crate) fn is_name(name: &str) -> bool {
    split(name).is_some()
}

/// The name under which all methods of the service go that `path` calls.
pub(crate) fn wildcard_of(path: &str) -> Option<String> {
    split(path).map(|(service, _)| format!("{service}*"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_named_by_their_full_path() {
        for name in ["/inventory.Inventory/GetStock", "/inventory.Inventory/*", "/Plain/get"] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "",
            "/",
            "//",
            "*",
            "/*",
            "/*/*",
            "GetStock",
            "inventory.Inventory/GetStock",
            "/a/b/c",
            "/a/",
            "//b",
            "/a/b?c",
            "/a/b*",
            "/a b/c",
            "/a/b#c",
        ] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn a_path_has_the_wildcard_of_its_service() {
        assert_eq!(wildcard_of("/a.B/Get").as_deref(), Some("/a.B/*"));
        assert_eq!(wildcard_of("/products"), None);
    }
}
