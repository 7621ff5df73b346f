//! Figures for `--stats FILE`.

use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

/// Writes figures as one JSON object, mode 0600, all or nothing.
pub fn write_stats(path: &Path, figures: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(figures).context("statistics")?;
    text.push(b'\n');
    crate::write_private(path, &text).with_context(|| format!("cannot write {}", path.display()))
}
