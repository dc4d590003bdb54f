//! Runs scenarios and prints their tables: `cargo run --release -- [--quick] [--out FILE] [SCENARIO ...]`.
//!
//! Without names all scenarios run, and the tables go to `benches/RESULTS.md` unless `--quick` or `--out` says
//! otherwise.

mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use peers::scenarios::{ALL, Scenario, Setting};

struct Wanted {
    quick: bool,
    out: Option<PathBuf>,
    scenarios: Vec<(&'static str, Scenario)>,
}

fn wanted(mut arguments: impl Iterator<Item = String>) -> Result<Wanted, String> {
    let mut wanted = Wanted { quick: false, out: None, scenarios: Vec::new() };
    while let Some(argument) = arguments.next() {
        match &argument[..] {
            "--quick" => wanted.quick = true,
            "--out" => wanted.out = Some(arguments.next().ok_or("--out wants a file")?.into()),
            name => match ALL.iter().find(|(known, _)| *known == name) {
                Some(&found) => wanted.scenarios.push(found),
                None => {
                    let known: Vec<_> = ALL.iter().map(|(name, _)| *name).collect();
                    return Err(format!("no scenario {name}; there are {}", known.join(", ")));
                }
            },
        }
    }
    if wanted.scenarios.is_empty() {
        wanted.scenarios = ALL.to_vec();
        if !wanted.quick && wanted.out.is_none() {
            wanted.out = Some(report::results());
        }
    }
    Ok(wanted)
}

fn main() -> ExitCode {
    let wanted = match wanted(std::env::args().skip(1)) {
        Ok(wanted) => wanted,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let setting = Setting::new(wanted.quick);
    let mut tables = Vec::new();
    for (_, scenario) in &wanted.scenarios {
        for table in scenario(&setting) {
            println!("{}", table.markdown());
            tables.push(table);
        }
    }
    let budgets = report::budgets(&tables);
    println!("{budgets}");
    if let Some(out) = wanted.out
        && let Err(error) = std::fs::write(&out, report::whole(&tables, &budgets))
    {
        eprintln!("{}: {error}", out.display());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
