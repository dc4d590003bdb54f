//! Point 11: logs and metrics carry neither keys nor header values.

use crate::everything::Everything;
use crate::site::{Call, Site, all, answer, frames, get, request, secs, with};

/// One of everything that a guard does.
async fn a_day() -> Site {
    let site = Site::new(
        |builder| {
            builder
                .stale_while_revalidate(secs(60))
                .key_authorization()
                .key_with(|_, key| key.push("secret-extra"))
        },
        |call: Call| async move {
            tokio::task::yield_now().await;
            match call.parts.uri.path() {
                "/secret-panic" => panic!("handler"),
                "/secret-own" => answer(200, &[("set-cookie", "secret-cookie")], "secret-body"),
                "/secret-short" => answer(200, &[("content-length", "99")], "secret-body"),
                "/secret-down" => answer(500, &[("x-why", "secret-answer")], "secret-body"),
                _ => answer(200, &[("vary", "user-agent"), ("x-told", "secret-answer")], "secret-body"),
            }
        },
    );
    let of = |uri: &str, nonce: usize| {
        let request = with(get(uri), "x-nonce", &format!("secret-nonce-{nonce}"));
        with(with(request, "user-agent", "secret-agent"), "authorization", "secret-token")
    };
    for uri in ["/secret-page", "/secret-own", "/secret-short", "/secret-down", "/secret-panic"] {
        for _ in 0..2 {
            let herd = (0..3).map(|_| {
                let (site, request) = (site.clone(), of(uri, 0));
                tokio::spawn(async move { site.ask(request).await })
            });
            for asked in herd.collect::<Vec<_>>() {
                let _ = asked.await;
            }
            site.clock.advance(secs(2));
        }
    }
    for nonce in 0..600 {
        site.ask(of("/secret-page?secret-query", nonce)).await;
    }
    site.ask(with(request("POST", "/secret-page"), "cookie", "secret-cookie")).await;
    all(vec![site.start(get(&format!("/secret-{}", "x".repeat(9_000))))]).await;
    for _ in 0..2 {
        let (sender, body) = frames(None);
        drop(sender);
        site.ask(get("/secret-page").map(|_| body)).await;
    }
    site
}

#[tokio::test]
async fn nothing_that_is_traced_holds_a_key_or_a_value() {
    let everything = Everything::default();
    // Where there is one subscriber alone, the first thread to reach an event decides for all whether it is wanted.
    let second = tracing::Dispatch::new(Everything::default());
    let installed = tracing::subscriber::set_default(everything.clone());
    tracing::callsite::rebuild_interest_cache();
    tracing::trace!("it listens");
    let site = a_day().await;
    drop((installed, second));
    let said = everything.0.lock().unwrap().clone();
    assert!(said.contains("it listens"));
    // What it warns of: a header by its name, and a body that does not tell its length. Each once.
    assert_eq!(said.matches("x-nonce").count(), 1, "{said}");
    assert_eq!(said.matches("belongs inside the guard").count(), 1, "{said}");
    assert!(!said.contains("secret"), "{said}");
    assert!(!said.contains("shop.example"), "{said}");
    assert_eq!(site.guard.stats().unique_headers, ["x-nonce"]);
    for shown in [format!("{:?}", site.guard), format!("{:?}", site.guard.stats())] {
        assert!(!shown.contains("secret"), "{shown}");
    }
}

#[cfg(feature = "metrics")]
mod measured {
    use std::sync::{Arc, Mutex};

    use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

    #[derive(Default)]
    struct Names(Arc<Mutex<Vec<String>>>);

    impl Names {
        fn add(&self, key: &Key) {
            self.0.lock().unwrap().push(format!("{key:?}"));
        }
    }

    impl Recorder for Names {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            self.add(key);
            Counter::noop()
        }
        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            self.add(key);
            Gauge::noop()
        }
        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
            self.add(key);
            Histogram::noop()
        }
    }

    #[test]
    fn no_metric_has_a_label_by_key() {
        let names = Names::default();
        let seen = Arc::clone(&names.0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        metrics::with_local_recorder(&names, || runtime.block_on(super::a_day()));
        let mut seen = seen.lock().unwrap().clone();
        seen.sort();
        seen.dedup();
        assert!(seen.iter().any(|name| name.contains("stampede_requests_total")), "{seen:?}");
        assert!(!seen.iter().any(|name| name.contains("secret") || name.contains("nonce")), "{seen:?}");
        assert!(seen.len() < 20, "{seen:?}");
    }
}
