//! What happened in a run, counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts by name; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Figures(Arc<Mutex<BTreeMap<String, u64>>>);

impl Figures {
    pub fn count(&self, what: &str) {
        self.add(what, 1);
    }

    pub fn add(&self, what: &str, number: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(what.to_owned()).or_default() += number;
    }

    #[must_use]
    pub fn all(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
