//! Instructions of one hit and one miss, which no other load on the machine changes: callgrind counts two runs of
//! the `instructions` binary that differ in length alone.

use std::process::Command;

use super::Setting;
use crate::bench::{Cell, Kind, Row, Table};

/// What the binary can do, in the order of the table.
const CASES: [(Kind, &str); 25] = [
    (Kind::Floor, "hit moka-sync"),
    (Kind::Floor, "hit quick-cache"),
    (Kind::Floor, "hit dashmap"),
    (Kind::Ours, "hit ours-get"),
    (Kind::Ours, "hit ours"),
    (Kind::Ours, "hit ours-quick"),
    (Kind::Peer, "hit moka"),
    (Kind::Floor, "hit moka-sync-text"),
    (Kind::Ours, "hit ours-get-text"),
    (Kind::Ours, "hit ours-text"),
    (Kind::Ours, "hit ours-quick-text"),
    (Kind::Peer, "hit moka-text"),
    (Kind::Floor, "miss map"),
    (Kind::Ours, "miss ours-flight"),
    (Kind::Peer, "miss rs-singleflight"),
    (Kind::Floor, "miss moka-sync"),
    (Kind::Ours, "miss ours"),
    (Kind::Ours, "miss ours-quick"),
    (Kind::Peer, "miss moka"),
    (Kind::Ours, "herd ours-flight"),
    (Kind::Ours, "herd ours"),
    (Kind::Peer, "herd moka"),
    (Kind::Peer, "herd foyer"),
    (Kind::Ours, "tower ours"),
    (Kind::Peer, "tower tower-http-cache"),
];

const SHORT: u64 = 2_000;
const LONG: u64 = 12_000;

fn count(case: &str, times: u64) -> Result<f64, String> {
    let binary = std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("instructions");
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(binary)
        .args(case.split(' '))
        .arg(times.to_string())
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&run.stderr);
    let collected = said.lines().find_map(|line| line.split("Collected : ").nth(1));
    let collected = collected.and_then(|counts| counts.trim().parse().ok());
    collected.ok_or_else(|| format!("no count in: {said}"))
}

/// Those that a quick run counts.
const QUICK: [&str; 4] = ["hit moka-sync", "hit ours", "miss map", "miss ours-flight"];

pub fn run(setting: &Setting) -> Vec<Table> {
    let cases: Vec<_> = CASES.iter().filter(|(_, case)| !setting.quick || QUICK.contains(case)).collect();
    eprintln!("instructions: {} cases under callgrind", cases.len());
    let each =
        |case: &str| Ok::<_, String>((count(case, LONG)? - count(case, SHORT)?) / (LONG - SHORT) as f64);
    let rows = cases.into_iter().map(|&(kind, case)| {
        let cell = each(case).map_or_else(|error| error, |count| format!("{count:.0}"));
        Row { name: case.into(), kind, cells: vec![Cell::Text(cell)] }
    });
    let note = "By callgrind, the difference of two run lengths. A hit is of one of 1,000 keys; a miss has a loader \
                that is \
                ready at once; in a herd, one waiter joins and is served.";
    let rows = rows.collect();
    vec![Table { title: "instructions".into(), note: note.into(), columns: vec!["a call"], rows }]
}
