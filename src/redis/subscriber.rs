//! The connection for events: made again whenever it breaks, and what was missed meanwhile made good.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use super::connector::{Connector, Wire};
use super::link::{MISSES, PING_EVERY, Pause};
use super::tier::{Core, in_time};
use crate::event;
use crate::trouble::Trouble;

/// So many attempts may fail before a word is said of it.
const SENT_ON: u32 = 5;

/// Listens to the end of time. `begun` is told once events arrive for the first time.
pub(super) async fn subscribe(core: Arc<Core>, connector: Arc<Connector>, begun: Arc<Notify>) {
    let (mut pause, mut trouble) = (Pause::new(), Trouble::default());
    event::set_subscribed(&core.config.namespace.as_str().into(), false);
    let (mut attempt, mut failures) = (0, 0);
    loop {
        match subscribed(&core, &connector, attempt).await {
            Ok((node, events)) => {
                pause = Pause::new();
                trouble.over();
                failures = 0;
                // From here on nothing is missed; before, anything may have been.
                let _live = Live::begin(&core);
                core.gap();
                begun.notify_one();
                listen(&core, node, events).await;
            }
            Err(why) => {
                // The first nodes of a cluster may send this one on.
                failures += 1;
                if failures > SENT_ON && trouble.is_news(&why) {
                    let namespace = core.config.namespace.as_str();
                    tracing::warn!(namespace, why, "no events from Redis; this instance asks more often");
                }
            }
        }
        attempt += 1;
        pause.wait().await;
    }
}

/// While it lives, events arrive. However it ends, no more do, and who waits for one asks for itself from then on.
struct Live<'a>(&'a Core);

impl<'a> Live<'a> {
    fn begin(core: &'a Core) -> Self {
        let live = Self(core);
        live.set(true);
        live
    }

    fn set(&self, live: bool) {
        self.0.subscription.set(live);
        event::set_subscribed(&self.0.config.namespace.as_str().into(), live);
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        self.set(false);
        self.0.waits.wake_all();
    }
}

async fn subscribed(
    core: &Core,
    connector: &Connector,
    attempt: usize,
) -> Result<(MultiplexedConnection, UnboundedReceiver<PushInfo>), String> {
    let (sink, events) = unbounded_channel();
    let connected = async {
        let mut node = connector.events(sink, attempt).await?;
        node.subscribe(&core.channel).await?;
        Ok(node)
    };
    let node = in_time(connector.timeout(), connected).await?;
    // In a cluster another node may have them; that one was asked when the commands' connection was made.
    core.read_epochs(&mut Wire::Node(node.clone())).await?;
    Ok((node, events))
}

async fn listen(core: &Core, node: MultiplexedConnection, mut events: UnboundedReceiver<PushInfo>) {
    let mut wire = Wire::Node(node);
    let mut misses = 0;
    loop {
        match timeout(PING_EVERY, events.recv()).await {
            Ok(Some(push)) => match push.kind {
                PushKind::Message => {
                    // Of one channel: its name, and the message.
                    if let Some(Value::BulkString(message)) = push.data.get(1) {
                        core.hear(message);
                    }
                }
                PushKind::Disconnection => return,
                _ => {}
            },
            Ok(None) => return,
            // A silence may be one of the network.
            Err(_) => match timeout(core.config.operation_timeout, wire.ping()).await {
                Ok(Ok(())) => misses = 0,
                Ok(Err(_)) => return,
                Err(_) => {
                    misses += 1;
                    if misses == MISSES {
                        return;
                    }
                }
            },
        }
    }
}
