//! `--timeline`: the rounds drawn.

use pc_image::PAGE_SIZE;

use crate::model::{Model, Round};
use crate::svg::Svg;

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 980.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 320.0;
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
            (SENT, "pages with their bytes"),
            (ZERO, "pages of zeroes"),
            (STOP, "at the stop, with their bytes"),
        ],
    );
    let rounds: Vec<_> = model.rounds.iter().take(DRAWN).collect();
    let starts = starts(&rounds);
    let whole = starts.last().copied().unwrap_or(0.0).max(1.0);
    // The last round has no end: some room is left for it.
    let x = |ns: f64| LEFT + ns / whole * (RIGHT - LEFT - 40.0);
    let most = rounds.iter().map(|round| bytes(round.counts.pages).max(bytes(round.counts.zero_pages)));
    let most = most.max().unwrap_or(0).max(1);
    let height = |amount: u64| amount as f64 / most as f64 * (BOTTOM - TOP);
    axes(&mut svg, most, whole / 1e6, x);
    for (i, round) in rounds.iter().enumerate() {
        let from = x(starts[i]);
        let to = starts.get(i + 1).map_or(RIGHT, |next| x(*next)).max(from + 3.0);
        let title = title(round, starts[i] / 1e6);
        let mut bar = |amount: u64, from: f64, to: f64, colour: &str| {
            let height = if amount == 0 { 0.0 } else { height(amount).max(1.0) };
            svg.rectangle([from, BOTTOM - height, to - from, height], colour, &title);
        };
        let third = (to - from) / 3.0;
        bar(bytes(round.counts.pages), from, to - third, if round.last { STOP } else { SENT });
        bar(bytes(round.counts.zero_pages), to - third, to - 1.0, ZERO);
        if rounds.len() <= 40 {
            svg.text((from + to) / 2.0, BOTTOM + 16.0, "middle", &round.number.to_string());
        }
    }
    if model.rounds.len() > DRAWN {
        svg.text(LEFT, BOTTOM + 60.0, "start", &format!("… and {} more", model.rounds.len() - DRAWN));
    }
    svg.finish(BOTTOM + 70.0)
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

fn bytes(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_SIZE)
}

fn title(round: &Round, ms: f64) -> String {
    let counts = round.counts;
    format!(
        "round {} at {ms:.1} ms: {} pages ({}), {} zero, {} zapped{}",
        round.number,
        counts.pages,
        pc_cli::show_size(bytes(counts.pages)),
        counts.zero_pages,
        counts.zapped_pages,
        if round.last { ", the processes stand still" } else { "" }
    )
}

fn axes(svg: &mut Svg, most: u64, whole_ms: f64, x: impl Fn(f64) -> f64) {
    for quarter in 0..=4 {
        let part = f64::from(quarter) / 4.0;
        let y = BOTTOM - part * (BOTTOM - TOP);
        svg.line([LEFT, y, RIGHT, y], "#ddd");
        svg.text(LEFT - 8.0, y + 4.0, "end", &pc_cli::show_size((most as f64 * part) as u64));
        let at = x(whole_ms * 1e6 * part);
        svg.line([at, BOTTOM + 22.0, at, BOTTOM + 26.0], "#888");
        svg.text(at, BOTTOM + 40.0, "middle", &format!("{:.1} ms", whole_ms * part));
    }
}
