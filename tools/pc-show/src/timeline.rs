//! `--timeline`: the rounds drawn.

use pc_image::PAGE_SIZE;

use crate::model::{Model, Round};
use crate::svg::Svg;

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 980.0;
const TOP: f64 = 80.0;
const BOTTOM: f64 = 330.0;
/// Room for the stop, for the number of a round, and for an amount.
const STOP_WIDTH: f64 = 60.0;
const LABEL: f64 = 30.0;
const AMOUNT: f64 = 62.0;
/// More rounds than this are not drawn.
const DRAWN: usize = 2000;

const SENT: &str = "#4e79a7";
const ZERO: &str = "#bab0ac";
const STOP: &str = "#e15759";

/// Rounds over time: a bar from the start of each to the start of the next, as high as what it sent. The last round,
/// whose end no record tells, is the stop: a bar at the right.
pub fn draw(model: &Model) -> String {
    let mut svg = Svg::new(WIDTH);
    svg.text(20.0, 22.0, "start", "Rounds: what was sent, and when");
    svg.legend(
        44.0,
        &[
            (SENT, "pages with their bytes, and patches"),
            (ZERO, "pages of zeroes"),
            (STOP, "at the stop, with their bytes"),
        ],
    );
    let rounds: Vec<_> = model.rounds.iter().take(DRAWN).collect();
    let starts = starts(&rounds);
    let whole = starts.last().copied().unwrap_or(0.0);
    // The last round has no end: some room is left for it.
    let x = |ns: f64| if whole > 0.0 { LEFT + ns / whole * (RIGHT - LEFT - STOP_WIDTH) } else { LEFT };
    let most = rounds.iter().map(|round| sent_bytes(round).max(bytes(round.counts.zero_pages)));
    let most = most.max().unwrap_or(0);
    axes(&mut svg, most, whole / 1e6, x);
    if most == 0 {
        let what = if rounds.is_empty() { "no rounds" } else { "no pages were sent" };
        svg.text((LEFT + RIGHT) / 2.0, (TOP + BOTTOM) / 2.0, "middle", what);
    }
    let mut numbered = LEFT - LABEL;
    for (i, round) in rounds.iter().enumerate() {
        let from = x(starts[i]);
        let to = starts.get(i + 1).map_or(RIGHT, |next| x(*next)).max(from + 3.0);
        bars(&mut svg, round, most, [from, to], &title(round, starts[i] / 1e6));
        // As many numbers as there is room for.
        let middle = (from + to) / 2.0;
        if middle - numbered >= LABEL {
            svg.text(middle, BOTTOM + 20.0, "middle", &round.number.to_string());
            numbered = middle;
        }
    }
    if model.rounds.len() > DRAWN {
        svg.text(LEFT, BOTTOM + 60.0, "start", &format!("… and {} more", model.rounds.len() - DRAWN));
    }
    svg.finish(BOTTOM + 70.0)
}

/// What a round sent with its bytes, two thirds wide, and as zeroes, one third. Where there is room, how much that was: a bar
/// may be too low to be seen.
fn bars(svg: &mut Svg, round: &Round, most: u64, [from, to]: [f64; 2], title: &str) {
    let third = (to - from) / 3.0;
    let sent = if round.last { STOP } else { SENT };
    let both = [
        (sent_bytes(round), from, to - third, sent),
        (bytes(round.counts.zero_pages), to - third, to - 1.0, ZERO),
    ];
    for (bytes, from, to, colour) in both {
        if bytes == 0 {
            continue;
        }
        let height = (bytes as f64 / most as f64 * (BOTTOM - TOP)).max(1.0);
        svg.rectangle([from, BOTTOM - height, to - from, height], colour, title);
        if to - from >= AMOUNT || round.last && colour == STOP {
            svg.text((from + to) / 2.0, BOTTOM - height - 4.0, "middle", &pc_cli::show_size(bytes));
        }
    }
}

/// When each round began, in nanoseconds from the first. A stream may claim any times: none goes back here.
fn starts(rounds: &[&Round]) -> Vec<f64> {
    let mut at = 0.0_f64;
    let mut before = rounds.first().map_or(0, |round| round.clocks.monotonic);
    let mut segment = 0;
    let mut starts = Vec::with_capacity(rounds.len());
    for round in rounds {
        let now = round.clocks.monotonic;
        // The clocks of two segments may have nothing to do with each other.
        if round.segment == segment {
            at += (i128::from(now) - i128::from(before)).max(0) as f64;
        }
        (before, segment) = (now, round.segment);
        starts.push(at);
    }
    starts
}

/// Of pages with their bytes, and of patches.
fn sent_bytes(round: &Round) -> u64 {
    bytes(round.counts.pages).saturating_add(round.patch_bytes)
}

fn bytes(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_SIZE)
}

fn title(round: &Round, ms: f64) -> String {
    let counts = round.counts;
    format!(
        "round {} at {ms:.1} ms: {} pages ({}), {} patched ({}), {} zero, {} zapped{}",
        round.number,
        counts.pages,
        pc_cli::show_size(bytes(counts.pages)),
        counts.patched_pages,
        pc_cli::show_size(round.patch_bytes),
        counts.zero_pages,
        counts.zapped_pages,
        if round.last { ", the processes stand still" } else { "" }
    )
}

fn axes(svg: &mut Svg, most: u64, whole_ms: f64, x: impl Fn(f64) -> f64) {
    let quarters = |any: bool| if any { 0..=4 } else { 0..=0 };
    for quarter in quarters(most > 0) {
        let part = f64::from(quarter) / 4.0;
        let y = BOTTOM - part * (BOTTOM - TOP);
        svg.line([LEFT, y, RIGHT, y], "#ddd");
        svg.text(LEFT - 8.0, y + 4.0, "end", &pc_cli::show_size((most as f64 * part) as u64));
    }
    svg.text(LEFT - 8.0, BOTTOM + 20.0, "end", "round");
    svg.text(LEFT - 8.0 - LABEL, BOTTOM + 46.0, "end", "time");
    for quarter in quarters(whole_ms > 0.0) {
        let part = f64::from(quarter) / 4.0;
        let at = x(whole_ms * 1e6 * part);
        svg.line([at, BOTTOM + 28.0, at, BOTTOM + 32.0], "#888");
        svg.text(at, BOTTOM + 46.0, "middle", &format!("{:.1} ms", whole_ms * part));
    }
}
