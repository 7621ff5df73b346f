//! Pictures.

use std::fmt::Write as _;

use crate::run::Outcome;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 40.0;
/// The height of a panel.
const PANEL: f64 = 170.0;
const COLOURS: [&str; 10] = [
    "#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f",
    "#bab0ac",
];

/// What the watching client saw, a panel for each way of moving: latency (logarithmic) over time, from the source in
/// one colour and from the destination in another; the move's begin is a dashed line.
pub fn latency(title: &str, runs: &[(String, &Outcome)]) -> String {
    let end = runs.iter().filter_map(|(_, run)| run.samples.last()).map(|sample| sample.at_us).max();
    let end = end.unwrap_or(1).max(1) as f64;
    let bottom = TOP + PANEL * runs.len() as f64;
    let mut out = open(&format!("{title}: latency seen by a client"), bottom + 50.0);
    for (number, (name, run)) in runs.iter().enumerate() {
        panel(&mut out, TOP + PANEL * number as f64, end, name, run);
    }
    for tenth in 0..=10 {
        let us = (end / 10.0 * f64::from(tenth)) as u64;
        text(&mut out, across(us, end), bottom + 14.0, "middle", &format!("{:.2} s", us as f64 / 1e6));
    }
    let legend = "dashed: the move begins; blue: the source answers; green: the destination";
    text(&mut out, LEFT, bottom + 38.0, "start", legend);
    out + "</svg>\n"
}

fn across(us: u64, end: f64) -> f64 {
    LEFT + us as f64 / end * (WIDTH - LEFT - 20.0)
}

/// One way of moving; 10 µs at the bottom, 100 s at the top.
fn panel(out: &mut String, top: f64, end: f64, name: &str, run: &Outcome) {
    let (top, bottom) = (top + 22.0, top + PANEL - 14.0);
    let x = |us| across(us, end);
    let y = |us: u64| bottom - ((us.max(10) as f64).log10() - 1.0) / 7.0 * (bottom - top);
    let longest = format!("{name}: {:.1} ms without an answer", run.downtime_us as f64 / 1e3);
    text(out, LEFT, top - 6.0, "start", &longest);
    for (us, label) in [
        (100, "100 µs"),
        (1_000, "1 ms"),
        (10_000, "10 ms"),
        (100_000, "100 ms"),
        (1_000_000, "1 s"),
        (10_000_000, "10 s"),
    ] {
        line(out, [LEFT, y(us), WIDTH - 20.0, y(us)], "#ddd", "");
        text(out, LEFT - 6.0, y(us) + 4.0, "end", label);
    }
    line(out, [x(run.began_us), top, x(run.began_us), bottom], "#888", "4 3");
    for (at, low, high, from) in columns(run, &x) {
        let colour = COLOURS[if from == 0 { 0 } else { 4 }];
        let _ = writeln!(
            out,
            r#"<line x1="{at:.1}" x2="{at:.1}" y1="{:.1}" y2="{:.1}" stroke="{colour}" stroke-width="2" stroke-linecap="round"/>"#,
            y(low),
            y(high),
        );
    }
}

/// Samples gathered by column of the picture: place, least and greatest latency, who answered.
fn columns(run: &Outcome, x: &impl Fn(u64) -> f64) -> Vec<(f64, u64, u64, usize)> {
    let mut columns: Vec<(f64, u64, u64, usize)> = Vec::new();
    for sample in &run.samples {
        let at = x(sample.at_us).floor();
        match columns.last_mut() {
            Some(last) if last.0 == at && last.3 == sample.from => {
                last.1 = last.1.min(sample.latency_us);
                last.2 = last.2.max(sample.latency_us);
            }
            _ => columns.push((at, sample.latency_us, sample.latency_us, sample.from)),
        }
    }
    columns
}

/// The stop of each case as a bar, cut into its phases (name and microseconds).
pub fn stops(cases: &[(String, Vec<(String, u64)>)]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in cases.iter().flat_map(|(_, phases)| phases) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let total = |phases: &[(String, u64)]| phases.iter().map(|(_, us)| us).sum::<u64>();
    let longest = cases.iter().map(|(_, phases)| total(phases)).max().unwrap_or(0).max(1) as f64;
    let (left, row) = (330.0, 22.0);
    let mut out = open("The stop by phase", TOP + row * (cases.len() + names.len() + 2) as f64);
    for (number, (case, phases)) in cases.iter().enumerate() {
        let y = TOP + row * number as f64;
        text(&mut out, left - 8.0, y + 14.0, "end", case);
        let mut x = left;
        for (name, us) in phases {
            let width = *us as f64 / longest * (WIDTH - left - 90.0);
            rectangle(&mut out, [x, y + 2.0, width, row - 5.0], colour(&names, name));
            x += width;
        }
        text(&mut out, x + 5.0, y + 14.0, "start", &format!("{:.1} ms", total(phases) as f64 / 1e3));
    }
    for (number, name) in names.iter().enumerate() {
        let y = TOP + row * (cases.len() + 1 + number) as f64;
        rectangle(&mut out, [left, y + 2.0, 14.0, 14.0], colour(&names, name));
        text(&mut out, left + 22.0, y + 14.0, "start", name);
    }
    out + "</svg>\n"
}

fn colour(names: &[&str], name: &str) -> &'static str {
    COLOURS[names.iter().position(|known| *known == name).unwrap_or(0) % COLOURS.len()]
}

fn open(title: &str, height: f64) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut out, LEFT, 22.0, "start", title);
    out
}

fn line(out: &mut String, [x1, y1, x2, y2]: [f64; 4], colour: &str, dashes: &str) {
    let _ = writeln!(
        out,
        r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}" stroke-dasharray="{dashes}"/>"#
    );
}

fn rectangle(out: &mut String, [x, y, width, height]: [f64; 4], colour: &str) {
    let _ = writeln!(
        out,
        r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{colour}"/>"#
    );
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(out, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#);
}
