//! Cache-stampede protection.

#[cfg(feature = "layer")]
#[allow(dead_code)]
mod http;
