//! Figures for `--stats FILE`.

use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use crate::Pending;

/// Writes figures as one JSON object, mode 0600, all or nothing.
pub fn write_stats(path: &Path, figures: &impl Serialize) -> anyhow::Result<()> {
    Pending::create(path)?.put_figures(figures)
}

impl Pending {
    /// Puts figures into a file that was begun early.
    pub fn put_figures(self, figures: &impl Serialize) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec_pretty(figures).context("statistics")?;
        text.push(b'\n');
        self.put(&text)
    }
}
