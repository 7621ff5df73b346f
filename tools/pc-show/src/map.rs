//! `--map`: the address spaces drawn.

use pc_image::{Backing, PAGE_SIZE, SpaceId};

use crate::maps::permissions;
use crate::model::{Mapping, Model};
use crate::svg::Svg;
use crate::touched::{Sent, Touched};

const WIDTH: f64 = 1200.0;
/// Where the dots begin, how large they are, how many stand in a line, and how many lines a mapping has at most.
const LEFT: f64 = 420.0;
const DOT: f64 = 3.0;
const IN_LINE: usize = 256;
const LINES: usize = 4;
const LINE: f64 = 6.0;
/// More mappings than this are counted, not drawn.
const DRAWN: usize = 4000;

const NEVER: &str = "#e8e8e8";
const FILE: &str = "#a0cbe8";
const ZERO: &str = "#bab0ac";
const ONCE: &str = "#59a14f";
const AGAIN: &str = "#e15759";

/// Every mapping of every space as a strip of dots, each dot a power of two of pages: the lowest address first. A dot
/// has the colour of the most that was sent for any of its pages.
pub fn draw(model: &Model, touched: Option<&Touched>) -> String {
    let mut svg = Svg::new(WIDTH);
    svg.text(20.0, 22.0, "start", "Address spaces, the lowest address first");
    let legend = [
        (NEVER, "never touched"),
        (FILE, "from a file"),
        (ZERO, "zero"),
        (ONCE, "sent once"),
        (AGAIN, "sent again"),
    ];
    svg.legend(44.0, &legend);
    let all: Vec<_> =
        model.maps.iter().flat_map(|(space, maps)| maps.values().map(|mapping| (*space, mapping))).collect();
    let (mut y, mut before) = (60.0, None);
    for (space, mapping) in all.iter().take(DRAWN) {
        if before != Some(*space) {
            y += 20.0;
            svg.text(20.0, y, "start", &title(model, *space));
            y += 8.0;
            before = Some(*space);
        }
        y = strip(&mut svg, model, touched, *space, mapping, y);
    }
    if all.len() > DRAWN {
        y += 20.0;
        svg.text(20.0, y, "start", &format!("… and {} mappings more", all.len() - DRAWN));
    }
    svg.finish(y + 20.0)
}

fn title(model: &Model, space: SpaceId) -> String {
    let users = model.tasks.values().filter(|task| task.space == Some(space));
    let names: Vec<_> =
        users.map(|task| format!("{} {}", task.pid, crate::text::plain(&task.comm))).collect();
    format!("space {}: {}", space.0, names.join(", "))
}

/// Draws a mapping; gives where the next one goes.
fn strip(
    svg: &mut Svg,
    model: &Model,
    touched: Option<&Touched>,
    space: SpaceId,
    mapping: &Mapping,
    y: f64,
) -> f64 {
    let vma = &mapping.vma;
    let pages = (vma.end - vma.start).div_ceil(PAGE_SIZE);
    let scale = pages.div_ceil((IN_LINE * LINES) as u64).next_power_of_two();
    let mut dots = vec![None; pages.div_ceil(scale) as usize];
    for (from, to, sent) in touched.into_iter().flat_map(|t| t.within(space, vma.start, vma.end)) {
        let dot = |addr: u64| ((addr - vma.start) / PAGE_SIZE / scale) as usize;
        let last = dot(to.min(vma.end) - 1);
        dots[dot(from.max(vma.start))..=last]
            .iter_mut()
            .for_each(|d: &mut Option<Sent>| *d = (*d).max(Some(sent)));
    }
    let what = model.backing(space, vma);
    let name: String = what.chars().rev().take(34).collect::<Vec<_>>().into_iter().rev().collect();
    svg.text(20.0, y + 9.0, "start", &format!("{:012x} {} {name}", vma.start, permissions(vma)));
    let size = pc_cli::show_size(vma.end - vma.start);
    svg.text(LEFT - 8.0, y + 9.0, "end", &size);
    let each = pc_cli::show_size(scale.saturating_mul(PAGE_SIZE));
    let title = format!("{:x}-{:x} {what}: {size}, a dot is {each}", vma.start, vma.end);
    for (row, dots) in dots.chunks(IN_LINE).enumerate() {
        let mut x = LEFT;
        for same in dots.chunk_by(|a, b| a == b) {
            let width = DOT * same.len() as f64;
            let place = [x, y + LINE * row as f64, width, LINE - 1.0];
            svg.rectangle(place, colour(same.first().copied().flatten(), &vma.backing), &title);
            x += width;
        }
    }
    y + (LINE * dots.len().div_ceil(IN_LINE) as f64).max(12.0) + 3.0
}

fn colour(sent: Option<Sent>, backing: &Backing) -> &'static str {
    match (sent, backing) {
        (Some(Sent::Again), _) => AGAIN,
        (Some(Sent::Once), _) => ONCE,
        (Some(Sent::Zero), _) => ZERO,
        (None, Backing::File { .. }) => FILE,
        (None, _) => NEVER,
    }
}
