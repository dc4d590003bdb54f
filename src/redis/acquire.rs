//! Asking Redis for a value, or for the lease to load it.

use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::envelope::open;
use super::link::Fault;
use super::scripts::{ACQUIRE, Form, integer, run, text};
use super::tier::Core;
use super::undone::Orphan;
use crate::coordinate::SharedValue;

/// A question.
pub(super) struct Question<'a> {
    /// The lease that it may be granted.
    pub(super) mine: &'a Orphan,
    pub(super) schema: u32,
    pub(super) key: &'a [u8],
    /// Only a value of a greater token will do.
    pub(super) newer_than: u64,
    /// The load that the asker waited for.
    pub(super) awaited: u64,
    /// Tokens up to this one are void.
    pub(super) void: u64,
    /// False for a lock, which has no value to read.
    pub(super) reads: bool,
}

/// An answer.
#[derive(Debug)]
pub(super) enum Answer {
    Hit(SharedValue),
    /// It is stale, and another instance holds the lease of that token for that long.
    Stale {
        value: SharedValue,
        token: u64,
        left: Duration,
    },
    /// It is stale, and a load has failed.
    StaleAfter(SharedValue, String),
    Lead {
        token: u64,
        stale: Option<SharedValue>,
    },
    Wait {
        token: u64,
        left: Duration,
    },
    Failed(String),
    /// What Redis has is not what it should be; its token.
    Malformed {
        token: u64,
        held_by: Option<(u64, Duration)>,
    },
    /// Redis answered with an error: there is nothing to be had from it for this key.
    Refused,
}

/// There is no answer. What Redis may have granted all the same is given back.
pub(super) struct Silence {
    /// The connection broke, and may be back soon.
    pub(super) is_broken: bool,
}

/// A question that is on its way. Dropped before it has its answer, as its load is when nobody wants it any more, it
/// gives back what it may be granted.
struct OnItsWay<'a> {
    core: &'a Core,
    mine: &'a Orphan,
    is_over: bool,
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let fault = self.core.link.late().map_or(Fault::Broken, Fault::TimedOut);
            self.core.disown(self.mine.clone(), fault);
        }
    }
}

fn ms(number: i64) -> Duration {
    Duration::from_millis(number.unsigned_abs())
}

impl Question<'_> {
    pub(super) async fn ask(&self, core: &Core) -> Result<Answer, Silence> {
        let commands = |form: Form| {
            let mut pipeline = redis::pipe();
            let (value, control) = (self.mine.place.value(), self.mine.place.control());
            let mut call = ACQUIRE.call(form, &[value.clone(), control]);
            call.arg(&*self.mine.owner).arg(Core::millis(core.config.lease)).arg(self.newer_than);
            call.arg(self.awaited).arg(core.control_life()).arg(self.void);
            pipeline.add_command(call);
            if self.reads {
                // Not all of it, whatever somebody may have put there.
                let most = core.bounds().to_read(self.key);
                pipeline.cmd("GETRANGE").arg(value).arg(0).arg(most);
            }
            pipeline
        };
        let asked = Instant::now();
        let mut on_its_way = OnItsWay { core, mine: self.mine, is_over: false };
        let answers = run(&core.link, commands).await;
        on_its_way.is_over = true;
        let answers = match answers {
            Ok(answers) => answers,
            Err(Fault::Down) => return Err(Silence { is_broken: false }),
            Err(fault) => {
                let is_broken = matches!(fault, Fault::Broken);
                core.disown(self.mine.clone(), fault);
                return Err(Silence { is_broken });
            }
        };
        let answer = self.understand(core, &answers, asked.elapsed()).unwrap_or(Answer::Refused);
        match &answer {
            Answer::Refused => core.refused(&answers),
            Answer::Malformed { .. } => core.counters.malformed(),
            _ => {}
        }
        Ok(answer)
    }

    fn understand(&self, core: &Core, answers: &[Value], took: Duration) -> Option<Answer> {
        let Some(Value::Array(reply)) = answers.first() else { return None };
        let number = |at: usize| reply.get(at).and_then(integer);
        let (fresh, lives) = (number(2)?, number(3)?);
        let (value_token, token) = (number(1)?.unsigned_abs(), number(4)?.unsigned_abs());
        let left = ms(number(5)?);
        let shared = || -> Option<SharedValue> {
            let Some(Value::BulkString(bytes)) = answers.get(1) else { return None };
            let opened = open(self.key, self.schema, bytes, core.bounds()).ok()?;
            // It may have been replaced since the script looked.
            (opened.token == value_token).then(|| SharedValue {
                payload: opened.payload,
                codec: opened.codec,
                token: opened.token,
                // As of when it was asked for: freshness is a promise.
                fresh_for: ms(fresh.max(0)).saturating_sub(took),
                stale_since: ms(fresh.min(0)),
                // The other way round: nobody is to take it for younger than it is.
                age: opened.lives.saturating_sub(ms(lives)) + took,
                stale_while_revalidate: opened.stale_while_revalidate,
                stale_if_error: opened.stale_if_error,
                cost: opened.cost,
                groups: opened.groups,
            })
        };
        Some(match (text(reply.first()?)?, shared()) {
            ("H", Some(value)) => Answer::Hit(value),
            ("S", Some(value)) if left.is_zero() => {
                Answer::StaleAfter(value, text(reply.get(6)?)?.to_string())
            }
            ("S", Some(value)) => Answer::Stale { value, token, left },
            ("R", Some(value)) => Answer::Lead { token, stale: Some(value) },
            ("L" | "R", _) => Answer::Lead { token, stale: None },
            ("W", _) => Answer::Wait { token, left },
            ("E", _) => Answer::Failed(text(reply.get(6)?)?.to_string()),
            ("H", None) => Answer::Malformed { token: value_token, held_by: None },
            ("S", None) => Answer::Malformed { token: value_token, held_by: Some((token, left)) },
            _ => return None,
        })
    }
}
