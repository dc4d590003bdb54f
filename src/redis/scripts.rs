//! The scripts, as commands.

use std::sync::LazyLock;

use redis::{Cmd, Pipeline, Value};

use super::connector::Wire;
use super::link::{Fault, Link};

/// A script and its digest, by which Redis knows it once it has seen it.
pub(super) struct Script {
    code: &'static str,
    known_as: LazyLock<redis::Script>,
}

macro_rules! scripts {
    ($($name:ident = $file:literal;)*) => {
        $(pub(super) static $name: Script = Script {
            code: include_str!(concat!("scripts/", $file)),
            known_as: LazyLock::new(|| redis::Script::new(include_str!(concat!("scripts/", $file)))),
        };)*
        static ALL: [&Script; [$($file),*].len()] = [$(&$name),*];
    };
}

scripts! {
    ACQUIRE = "acquire.lua";
    COMMIT = "commit.lua";
    RELEASE = "release.lua";
    RENEW = "renew.lua";
    INVALIDATE = "invalidate.lua";
    EPOCH = "epoch.lua";
    EPOCHS = "epochs.lua";
}

/// How a script is named to Redis.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Digest,
    /// In full, which also makes Redis know it.
    Code,
}

impl Script {
    /// A call with these keys; the arguments follow.
    pub(super) fn call(&self, form: Form, keys: &[String]) -> Cmd {
        let mut call = match form {
            Form::Digest => redis::cmd("EVALSHA"),
            Form::Code => redis::cmd("EVAL"),
        };
        match form {
            Form::Digest => call.arg(self.known_as.get_hash()),
            Form::Code => call.arg(self.code),
        };
        call.arg(keys.len()).arg(keys);
        call
    }
}

/// Makes a server know all scripts. Those of a cluster learn each when it is first needed.
pub(super) async fn introduce(wire: &mut Wire) -> redis::RedisResult<()> {
    #[cfg(feature = "redis-cluster")]
    if let Wire::Cluster(_) = wire {
        return Ok(());
    }
    let mut commands = redis::pipe();
    for script in ALL {
        commands.cmd("SCRIPT").arg("LOAD").arg(script.code);
    }
    for answer in wire.send(&commands).await? {
        answer.extract_error()?;
    }
    Ok(())
}

pub(super) fn is_unknown(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if error.code() == "NOSCRIPT")
}

/// Sends what `commands` makes; once more if Redis has forgotten a script. A pipeline of one script does nothing
/// before that script, or does the same again.
pub(super) async fn run(link: &Link, commands: impl Fn(Form) -> Pipeline) -> Result<Vec<Value>, Fault> {
    let answers = link.call(&commands(Form::Digest)).await?;
    if answers.iter().any(is_unknown) { link.call(&commands(Form::Code)).await } else { Ok(answers) }
}

pub(super) fn single(command: Cmd) -> Pipeline {
    let mut pipeline = redis::pipe();
    pipeline.add_command(command);
    pipeline
}

/// A whole number, if the answer is one.
pub(super) fn integer(answer: &Value) -> Option<i64> {
    match answer {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}

pub(super) fn text(answer: &Value) -> Option<&str> {
    match answer {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}
