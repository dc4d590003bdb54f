//! A herd on each of many keys.

use super::{Setting, herd};
use crate::bench::{Table, interleave};

pub fn run(setting: &Setting) -> Vec<Table> {
    let (keys, each) = (1_000, if setting.quick { 10 } else { 100 });
    let rows = herd::contenders(setting, keys * each, keys);
    let note = "All loads are let go at once. Times count from the end of the first load.";
    let title = format!("keys: {keys} keys, {each} callers each");
    vec![interleave(title, note, &herd::COLUMNS, setting.rounds(12), rows)]
}
