//! What a tool says while it works, always on stderr.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use crate::units::{show_duration, show_rate, show_size};

/// The value of `--progress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ProgressMode {
    /// Bars on a terminal, else plain lines
    #[default]
    Auto,
    /// A line for each round, and one a second while bytes move
    Plain,
    /// The same as JSON objects, one a line
    Json,
    /// Nothing but errors and what must be known
    None,
}

/// What is known of a round once it is through.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Round {
    /// Its number, from 0.
    pub round: u32,
    /// Whether the target stood still for it.
    pub last: bool,
    /// Pages sent with their bytes.
    pub pages: u64,
    /// Pages of which only what had changed was sent.
    pub patched_pages: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// How long it took.
    pub elapsed_us: u64,
    /// How fast the target dirties memory, in bytes a second, where that was measured.
    pub dirty_rate: Option<u64>,
    /// How long a stop now would take.
    pub estimated_stop_us: Option<u64>,
}

/// Progress of one tool. May be shared between threads.
pub struct Progress {
    tool: &'static str,
    view: View,
}

enum View {
    Bar(ProgressBar),
    Lines { json: bool, moved: Mutex<Moved> },
    Nothing,
}

/// The last line about moving bytes.
struct Moved {
    began: Instant,
    said: Instant,
}

impl Progress {
    /// Looks at stderr to settle what `auto` means.
    pub fn new(tool: &'static str, mode: ProgressMode) -> Self {
        let lines = |json| {
            let now = Instant::now();
            View::Lines { json, moved: Mutex::new(Moved { began: now, said: now }) }
        };
        let view = match mode {
            ProgressMode::None => View::Nothing,
            ProgressMode::Json => lines(true),
            ProgressMode::Auto if std::io::stderr().is_terminal() => View::Bar(bar(tool)),
            ProgressMode::Auto | ProgressMode::Plain => lines(false),
        };
        Progress { tool, view }
    }

    /// A line that may be left out.
    pub fn line(&self, text: &str) {
        if !matches!(self.view, View::Nothing) {
            self.notice(text);
        }
    }

    /// A line that must be known: shown in every mode.
    pub fn notice(&self, text: &str) {
        match &self.view {
            View::Lines { json: true, .. } => self.json(&json!({ "event": "message", "text": text })),
            View::Bar(bar) => bar.suspend(|| crate::notice(self.tool, text)),
            _ => crate::notice(self.tool, text),
        }
    }

    /// A round has ended.
    pub fn round(&self, round: &Round) {
        match &self.view {
            View::Lines { json: true, .. } => self.json(&event("round", round)),
            View::Nothing => {}
            _ => self.line(&describe(round)),
        }
    }

    /// `done` bytes have moved, of `total` where that is known. Call it as often as you like.
    pub fn moved(&self, done: u64, total: Option<u64>) {
        match &self.view {
            View::Bar(bar) => {
                if let Some(total) = total {
                    if bar.length().is_none() {
                        bar.set_style(style("{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}"));
                    }
                    bar.set_length(total.max(done));
                }
                bar.set_position(done);
            }
            View::Lines { json, moved } => {
                if let Some(elapsed) = due(moved) {
                    self.moved_line(*json, done, total, elapsed);
                }
            }
            View::Nothing => {}
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let View::Bar(bar) = &self.view {
            bar.finish_and_clear();
        }
    }

    fn moved_line(&self, json: bool, done: u64, total: Option<u64>, elapsed: Duration) {
        if json {
            let elapsed_us = elapsed.as_micros() as u64;
            let line = json!({ "event": "moved", "bytes": done, "total": total, "elapsed_us": elapsed_us });
            return self.json(&line);
        }
        let of = total.map(|total| format!(" of {}", show_size(total))).unwrap_or_default();
        let rate = show_rate(done, elapsed).map(|rate| format!(", {rate}")).unwrap_or_default();
        crate::notice(self.tool, &format!("{}{of}{rate}", show_size(done)));
    }

    fn json(&self, value: &serde_json::Value) {
        let mut value = value.clone();
        value["tool"] = self.tool.into();
        let _ = std::io::stderr().write_all(format!("{value}\n").as_bytes());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The time since the beginning, at most once a second.
fn due(moved: &Mutex<Moved>) -> Option<Duration> {
    let mut moved = moved.lock().ok()?;
    if moved.said.elapsed() < Duration::from_secs(1) {
        return None;
    }
    moved.said = Instant::now();
    Some(moved.began.elapsed())
}

fn event(name: &str, body: &impl Serialize) -> serde_json::Value {
    let mut value = serde_json::to_value(body).unwrap_or_default();
    value["event"] = name.into();
    value
}

fn describe(round: &Round) -> String {
    let (took, patched) = (Duration::from_micros(round.elapsed_us), round.patched_pages);
    let mut text = format!(
        "round {}{}: {} pages{}, {} in {}",
        round.round,
        if round.last { " (stopped)" } else { "" },
        round.pages,
        if patched > 0 { format!(" and {patched} changed in part") } else { String::new() },
        show_size(round.bytes),
        show_duration(took),
    );
    if let Some(rate) = show_rate(round.bytes, took) {
        text += &format!(", {rate}");
    }
    if let Some(rate) = round.dirty_rate {
        text += &format!(", dirtied {}/s", show_size(rate));
    }
    if let Some(stop) = round.estimated_stop_us {
        text += &format!(", a stop would take {}", show_duration(Duration::from_micros(stop)));
    }
    text
}

fn bar(tool: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    bar.set_style(style("{prefix} {bytes} {bytes_per_sec}"));
    bar.with_prefix(tool)
}

/// The templates are literals; the default style stands in for a slip in one.
fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_reads_as_one_line_with_what_is_known() {
        let mut round = Round { round: 2, pages: 3, bytes: 12_288, elapsed_us: 1000, ..Round::default() };
        assert_eq!(describe(&round), "round 2: 3 pages, 12.0 KiB in 1.0 ms, 11.7 MiB/s");
        round.patched_pages = 7;
        assert!(describe(&round).starts_with("round 2: 3 pages and 7 changed in part, 12.0 KiB"));
        round.last = true;
        round.estimated_stop_us = Some(2500);
        assert!(describe(&round).starts_with("round 2 (stopped): 3 pages"));
        assert!(describe(&round).ends_with("a stop would take 2.5 ms"));
    }

    #[test]
    fn bytes_are_told_at_most_once_a_second() {
        let now = Instant::now();
        let moved = Mutex::new(Moved { began: now, said: now });
        assert_eq!(due(&moved), None);
    }

    #[test]
    fn progress_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Progress>();
    }

    #[test]
    fn the_bar_has_a_valid_template() {
        let bar = bar("pc-x");
        bar.set_length(10);
        bar.set_position(3);
        assert_eq!(bar.position(), 3);
    }
}
