//! Each module of the crate uses only modules below it.

use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up. A module may use those of lower levels, and within its own level none but itself.
const LEVELS: [&[&str]; 5] =
    [FOUNDATIONS, &["policy", "flight", "coordinate"], &["cache", "redis"], &["http"], &["layer"]];
const FOUNDATIONS: &[&str] = &[
    "sync",
    "clock",
    "rng",
    "error",
    "event",
    "describe",
    "codec",
    "deferred",
    "invalidation",
    "quietly",
    "stable_hash",
    "trace",
    "trouble",
];
/// On their own level, these may use each other: the seam and the errors are used by everything.
const FOUNDATION: &[&str] = &["sync", "error", "clock", "quietly"];
/// Used by tests of other crates, above everything.
const TOP: &[&str] = &["lib", "test_util"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

fn level(module: &str) -> Option<usize> {
    LEVELS.iter().position(|level| level.contains(&module))
}

/// The modules of this crate that a line of code imports or names.
fn used(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    let after = code.match_indices("crate::").map(|(at, _)| &code[at + "crate::".len()..]);
    after
        .map(|path| path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>())
        .filter(|module| module.starts_with(char::is_lowercase))
        .collect()
}

fn offences(module: &str, text: &str) -> Vec<String> {
    let mine = level(module);
    let mut offences = Vec::new();
    for line in text.lines() {
        for used in used(line) {
            let allowed = match (mine, level(&used)) {
                _ if used == module => true,
                (Some(mine), Some(theirs)) => {
                    theirs < mine || (theirs == mine && FOUNDATION.contains(&used.as_str()))
                }
                _ => false,
            };
            if !allowed {
                offences.push(format!("{module} uses {used}: {}", line.trim()));
            }
        }
    }
    offences
}

#[test]
fn no_module_uses_one_above_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 20, "the sources are there");
    let mut found = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&src).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        if TOP.contains(&module) {
            continue;
        }
        assert!(level(module).is_some(), "{module} has no level: give it one in LEVELS");
        found.extend(offences(module, &fs::read_to_string(&file).unwrap()));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn an_upward_use_is_found() {
    assert_eq!(offences("flight", "use crate::cache::Entry;").len(), 1);
    assert_eq!(offences("http", "    let page = crate::layer::Page::new();").len(), 1);
    assert_eq!(offences("policy", "use crate::flight::Flights;").len(), 1);
    assert_eq!(offences("cache", "use crate::redis::RedisTier;").len(), 1);
    assert_eq!(offences("cache", "use crate::flight::Flights; // crate::layer").len(), 0);
}
