//! Logs say what happened and never to whom: no key, no header's value.

mod support;

use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::routing::get;
use stampede_guard::StampedeGuard;
use support::{ask, request, with};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Keeps everything that is logged.
#[derive(Clone, Default)]
struct Everything(Arc<Mutex<String>>);

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

impl Subscriber for Everything {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut all = self.0.lock().unwrap();
        all.push_str(span.metadata().name());
        span.record(&mut Fields(&mut all));
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        values.record(&mut Fields(&mut self.0.lock().unwrap()));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Fields(&mut self.0.lock().unwrap()));
    }

    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn point_11_logs_name_a_header_and_never_its_value_or_a_key() {
    let everything = Everything::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tracing::subscriber::with_default(everything.clone(), || {
        runtime.block_on(async {
            let app = Router::new().fallback(get(|| async { "page" })).layer(StampedeGuard::new());
            for number in 0..600 {
                let secret = format!("confidential-{number}");
                ask(&app, with(request("/hidden?token=confidential"), "x-nonce", &secret)).await;
            }
        });
    });
    let all = everything.0.lock().unwrap();
    assert!(all.contains("x-nonce"), "the header is named: {all}");
    assert_eq!(all.matches("header=").count(), 1, "once: {all}");
    for secret in ["confidential", "hidden", "shop.example"] {
        assert!(!all.contains(secret), "{secret} in {all}");
    }
}
