//! `--map`: the address spaces drawn.

use pc_image::{Backing, PAGE_SIZE, SpaceId, Vma};

use crate::maps::permissions;
use crate::model::{Mapping, Model};
use crate::svg::Svg;
use crate::touched::{Sent, Touched};

const WIDTH: f64 = 1280.0;
/// Where the columns are: addresses end, permissions and names begin, sizes end, dots begin.
const ADDRESS: f64 = 136.0;
const NAME: f64 = 144.0;
const SIZE: f64 = 480.0;
const LEFT: f64 = 490.0;
/// Letters of a name that fit.
const LETTERS: usize = 29;
/// How large dots are, how many stand in a line, and how many lines a row has at most.
const DOT: f64 = 3.0;
const IN_LINE: usize = 256;
const LINES: usize = 4;
const LINE: f64 = 6.0;
/// About so many rows are drawn: with more mappings than that, neighbours share one.
const ROWS: usize = 500;
/// More rows than this, as they come of many spaces, are counted, not drawn.
const DRAWN: usize = 2 * ROWS;
/// Holes from this size on are named.
const HOLE: u64 = 1 << 30;

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
    let shared = model.maps.values().map(|maps| maps.len()).sum::<usize>().div_ceil(ROWS).max(1);
    let (mut y, mut rows, mut left_out) = (60.0, 0, 0);
    for (space, maps) in &model.maps {
        if rows >= DRAWN {
            left_out += maps.len();
            continue;
        }
        y += 20.0;
        svg.text(20.0, y, "start", &title(model, *space));
        y += 8.0;
        let mut behind = None;
        let mappings: Vec<_> = maps.values().collect();
        for row in mappings.chunks(shared) {
            rows += 1;
            if let Some(hole) =
                behind.and_then(|end| row[0].vma.start.checked_sub(end)).filter(|n| *n >= HOLE)
            {
                svg.code(ADDRESS, y + 9.0, "end", "⋮");
                svg.text(NAME, y + 9.0, "start", &format!("nothing for {}", pc_cli::show_size(hole)));
                y += 15.0;
            }
            behind = row.last().map(|mapping| mapping.vma.end);
            y = Strip::new(model, touched, *space, row).draw(&mut svg, y);
        }
    }
    if left_out > 0 {
        y += 20.0;
        svg.text(20.0, y, "start", &format!("… and {left_out} mappings more"));
    }
    svg.finish(y + 20.0)
}

fn title(model: &Model, space: SpaceId) -> String {
    let users = model.tasks.values().filter(|task| task.space == Some(space));
    let names: Vec<_> =
        users.map(|task| format!("{} {}", task.pid, crate::text::plain(&task.comm))).collect();
    let users = if names.is_empty() { "used by no process".to_owned() } else { names.join(", ") };
    format!("space {}: {users}", space.0)
}

/// A row: a mapping, or some that are neighbours.
struct Strip {
    address: u64,
    name: String,
    size: String,
    title: String,
    colours: Vec<&'static str>,
}

impl Strip {
    fn new(model: &Model, touched: Option<&Touched>, space: SpaceId, row: &[&Mapping]) -> Strip {
        let (first, last) = (&row[0].vma, &row[row.len() - 1].vma);
        let bytes: u64 = row.iter().map(|mapping| mapping.vma.end - mapping.vma.start).sum();
        let scale = bytes.div_ceil(PAGE_SIZE).div_ceil((IN_LINE * LINES) as u64).next_power_of_two();
        let colours: Vec<_> = row.iter().flat_map(|one| dots(touched, space, &one.vma, scale)).collect();
        // A dot belongs to one mapping, so many small ones have more dots than their pages would.
        let colours = thin(colours, IN_LINE * LINES);
        let size = pc_cli::show_size(bytes);
        let (name, what) = match row {
            [one] => {
                let what = model.backing(space, &one.vma);
                (format!("{} {}", permissions(&one.vma), end_of(&what, LETTERS)), what)
            }
            row => (format!("{} mappings", row.len()), format!("{} mappings", row.len())),
        };
        let each = pc_cli::show_size(scale.saturating_mul(PAGE_SIZE));
        let title = format!("{:x}-{:x} {what}: {size}, a dot is {each}", first.start, last.end);
        Strip { address: first.start, name, size, title, colours }
    }

    /// Draws it; gives where the next one goes.
    fn draw(&self, svg: &mut Svg, y: f64) -> f64 {
        svg.code(ADDRESS, y + 9.0, "end", &format!("{:012x}", self.address));
        svg.code(NAME, y + 9.0, "start", &self.name);
        svg.text(SIZE, y + 9.0, "end", &self.size);
        for (row, dots) in self.colours.chunks(IN_LINE).enumerate() {
            let mut x = LEFT;
            for same in dots.chunk_by(|a, b| a == b) {
                let width = DOT * same.len() as f64;
                let place = [x, y + 2.5 + LINE * row as f64, width, LINE - 1.0];
                svg.rectangle(place, same[0], &self.title);
                x += width;
            }
        }
        y + (LINE * self.colours.len().div_ceil(IN_LINE) as f64).max(12.0) + 3.0
    }
}

/// The colours of a mapping's dots. Pages of shared memory were sent for the object.
fn dots(touched: Option<&Touched>, space: SpaceId, vma: &Vma, scale: u64) -> Vec<&'static str> {
    let pages = (vma.end - vma.start).div_ceil(PAGE_SIZE);
    let (space, start) = match vma.backing {
        Backing::Shm { space, offset } => (space, offset),
        _ => (space, vma.start),
    };
    let end = start.saturating_add(vma.end - vma.start);
    let mut dots = vec![None; pages.div_ceil(scale) as usize];
    for (from, to, sent) in touched.into_iter().flat_map(|t| t.within(space, start, end)) {
        let dot = |addr: u64| ((addr - start) / PAGE_SIZE / scale) as usize;
        let last = dot(to.min(end) - 1);
        dots[dot(from.max(start))..=last]
            .iter_mut()
            .for_each(|d: &mut Option<Sent>| *d = (*d).max(Some(sent)));
    }
    dots.into_iter().map(|sent| colour(sent, &vma.backing)).collect()
}

/// So many of them at most: each stands for some, and has the colour of that for which most was sent.
fn thin(dots: Vec<&'static str>, most: usize) -> Vec<&'static str> {
    let rank = |colour: &&str| [NEVER, FILE, ZERO, ONCE, AGAIN].iter().position(|c| c == colour);
    let step = dots.len().div_ceil(most).max(1);
    dots.chunks(step).filter_map(|some| some.iter().copied().max_by_key(rank)).collect()
}

/// The end of a text that is too long: of a path it says most.
fn end_of(text: &str, most: usize) -> String {
    let len = text.chars().count();
    if len <= most {
        return text.to_owned();
    }
    std::iter::once('…').chain(text.chars().skip(len - most + 1)).collect()
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
