//! What is measured, each by name.

mod faults;
mod herd;
mod hit;
mod instructions;
mod keys;
mod miss;
mod tower_hit;
mod waiters;

use tokio::runtime::{Builder, Runtime};

use crate::bench::Table;

pub use tower_hit::{answered, request};

/// What every scenario needs.
pub struct Setting {
    pub runtime: Runtime,
    /// A tenth of the rounds.
    pub quick: bool,
}

impl Setting {
    pub fn new(quick: bool) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Self { runtime: runtime.expect("a runtime"), quick }
    }

    fn rounds(&self, full: usize) -> usize {
        if self.quick { (full / 10).max(3) } else { full }
    }
}

pub type Scenario = fn(&Setting) -> Vec<Table>;

/// In the order in which they run.
pub const ALL: [(&str, Scenario); 8] = [
    ("hit", hit::run),
    ("miss", miss::run),
    ("herd", herd::run),
    ("keys", keys::run),
    ("waiters", waiters::run),
    ("faults", faults::run),
    ("tower-hit", tower_hit::run),
    ("instructions", instructions::run),
];
