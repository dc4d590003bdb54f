//! Cache-stampede protection.
