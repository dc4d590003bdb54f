//! Randomness that tests can seed.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::sync::Mutex;

/// Random numbers for jitter and early refresh.
#[derive(Debug)]
pub(crate) enum Random {
    /// Each thread's own generator.
    Thread,
    /// One sequence for all threads, the same for the same seed.
    Seeded(Box<Mutex<StdRng>>),
}

impl Random {
    pub(crate) fn new(seed: Option<u64>) -> Self {
        match seed {
            None => Self::Thread,
            Some(seed) => Self::Seeded(Box::new(Mutex::new(StdRng::seed_from_u64(seed)))),
        }
    }

    /// Uniform in `[0, 1)`.
    pub(crate) fn unit(&self) -> f64 {
        match self {
            Self::Thread => rand::random(),
            Self::Seeded(generator) => generator.lock().random(),
        }
    }
}
