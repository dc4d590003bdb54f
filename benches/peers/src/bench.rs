//! Rounds: every contender once, then every contender again; medians over the rounds.

use std::fmt::Write as _;

/// What a contender is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ours,
    Peer,
    /// What nobody can be faster than, or a part of it.
    Floor,
}

/// One contender's round: a number for each column.
type Round<'a> = Box<dyn FnMut() -> Vec<f64> + 'a>;

pub struct Contender<'a> {
    pub name: String,
    pub kind: Kind,
    round: Round<'a>,
}

impl<'a> Contender<'a> {
    pub fn new(kind: Kind, name: impl Into<String>, round: impl FnMut() -> Vec<f64> + 'a) -> Self {
        Self { name: name.into(), kind, round: Box::new(round) }
    }
}

/// The median and the quarter of the rounds below and above it.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

impl Spread {
    fn of(mut rounds: Vec<f64>) -> Self {
        rounds.sort_by(f64::total_cmp);
        let at = |quarter: usize| rounds[(rounds.len() - 1) * quarter / 4];
        Self { low: at(1), median: at(2), high: at(3) }
    }
}

pub struct Row {
    pub name: String,
    pub kind: Kind,
    pub cells: Vec<Cell>,
}

pub enum Cell {
    Number(Spread),
    Text(String),
}

pub struct Table {
    pub title: String,
    pub note: String,
    pub columns: Vec<&'static str>,
    pub rows: Vec<Row>,
}

/// Runs `rounds` rounds and one to warm up. Each round starts with another contender, so that none always comes
/// after the same one.
pub fn interleave(
    title: impl Into<String>,
    note: impl Into<String>,
    columns: &[&'static str],
    rounds: usize,
    mut contenders: Vec<Contender<'_>>,
) -> Table {
    let title = title.into();
    eprintln!("{title}: {rounds} rounds of {}", contenders.len());
    let count = contenders.len();
    let mut samples = vec![vec![Vec::with_capacity(rounds); columns.len()]; count];
    for round in 0..=rounds {
        for step in 0..count {
            let turn = (round + step) % count;
            let measured = (contenders[turn].round)();
            if round > 0 {
                for (column, number) in samples[turn].iter_mut().zip(measured) {
                    column.push(number);
                }
            }
        }
    }
    let cell = |rounds: Vec<f64>| {
        if rounds.is_empty() || rounds.iter().any(|number| number.is_nan()) {
            Cell::Text("-".into())
        } else {
            Cell::Number(Spread::of(rounds))
        }
    };
    let rows = contenders.into_iter().zip(samples).map(|(contender, columns)| Row {
        name: contender.name,
        kind: contender.kind,
        cells: columns.into_iter().map(cell).collect(),
    });
    Table { title, note: note.into(), columns: columns.to_vec(), rows: rows.collect() }
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 9_999.5 => format!("{value:.0}"),
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(spread) if number(spread.low) == number(spread.high) => number(spread.median),
            Self::Number(Spread { low, median, high }) => {
                format!("{} ({}-{})", number(*median), number(*low), number(*high))
            }
        }
    }
}

impl Table {
    /// The median in a cell.
    pub fn median(&self, row: &str, column: usize) -> Option<f64> {
        match self.rows.iter().find(|it| it.name == row)?.cells.get(column)? {
            Cell::Number(spread) => Some(spread.median),
            Cell::Text(_) => None,
        }
    }

    pub fn markdown(&self) -> String {
        let mut out = format!("## {}\n\n", self.title);
        if !self.note.is_empty() {
            let _ = writeln!(out, "{}\n", self.note);
        }
        let _ = writeln!(out, "| | {} |", self.columns.join(" | "));
        let _ = writeln!(out, "|---|{}", "---|".repeat(self.columns.len()));
        for row in &self.rows {
            let name = match row.kind {
                Kind::Ours => format!("**{}**", row.name),
                Kind::Peer => row.name.clone(),
                Kind::Floor => format!("*{}*", row.name),
            };
            let cells: Vec<_> = row.cells.iter().map(Cell::text).collect();
            let _ = writeln!(out, "| {name} | {} |", cells.join(" | "));
        }
        out
    }
}
