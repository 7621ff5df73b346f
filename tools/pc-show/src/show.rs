//! One pass over a stream.

use std::io::{self, Read, Write};

use pc_image::{Item, Reader, Step};

use crate::model::Model;
use crate::touched::Touched;
use crate::{Args, fds, frames, json, map, maps, memory, ps, search, summary, threads, timeline};

/// A stream that was read to its end, or to what is wrong in it (then [`Model::wrong`] says what).
#[derive(Debug)]
pub struct Shown {
    /// What it says.
    pub model: Model,
    /// What was sent for each page, kept for a picture.
    touched: Option<Touched>,
    /// Patched pages that a search could not look into, as it had not kept them.
    pub not_searched: u64,
}

impl Shown {
    /// What `--json` shows.
    pub fn json(&self) -> serde_json::Value {
        json::view(&self.model)
    }

    /// The picture of the address spaces.
    pub fn map(&self) -> String {
        map::draw(&self.model, self.touched.as_ref())
    }

    /// The picture of the rounds.
    pub fn timeline(&self) -> String {
        timeline::draw(&self.model)
    }
}

/// Reads a stream, showing what `args` ask for. Fails only where `out` does: what is wrong with the stream, or with
/// reading it, stands in the model.
pub fn show(args: &Args, input: impl Read, out: &mut impl Write) -> io::Result<Shown> {
    let mut reader = Reader::new(input);
    let mut model = Model::default();
    let mut touched = args.map.as_ref().map(|_| Touched::default());
    let mut search = args.search.as_ref().or(args.search_text.as_ref()).map(search::Search::new);
    let mut dump = args.pages.map(memory::Dump::new);
    loop {
        let step = match reader.step() {
            Ok(Some(step)) => step,
            Ok(None) => break,
            Err(err) => {
                model.wrong = Some(err);
                break;
            }
        };
        if args.frames {
            frames::line(out, &step, reader.offset(), reader.last_frame())?;
        }
        match step {
            Step::Preamble(preamble) => model.segment(&preamble),
            Step::Item(item) => {
                if let Some(search) = &mut search {
                    search.item(&item, &model, out)?;
                }
                dump.iter_mut().for_each(|dump| dump.item(&item));
                touched.iter_mut().for_each(|touched| touched.item(&item));
                take(&mut model, &mut reader, item);
            }
            Step::Skipped | Step::End => {}
        }
    }
    model.bytes = reader.offset();
    let not_searched = search.map_or(0, |search| search.missed);
    let shown = Shown { model, touched, not_searched };
    match dump {
        Some(dump) => dump.write(out)?,
        None => write(args, &shown.model, out)?,
    }
    Ok(shown)
}

fn take<R: Read>(model: &mut Model, reader: &mut Reader<R>, item: Item) {
    if let Some(payload) = model.item(item) {
        pc_image::Source::recycle(reader, payload);
    }
}

/// What is shown at the end.
fn write(args: &Args, model: &Model, out: &mut impl Write) -> io::Result<()> {
    match args {
        Args { maps: true, .. } => maps::write(model, out),
        Args { json: true, .. } => json::write(model, out),
        Args { ps: true, .. } => ps::write(model, out),
        Args { fds: true, .. } => fds::write(model, out),
        Args { threads: true, .. } => threads::write(model, out),
        Args { frames: false, search: None, search_text: None, map: None, timeline: None, .. } => {
            summary::write(model, out)
        }
        _ => Ok(()),
    }
}
