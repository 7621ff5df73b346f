//! `pc-show`: look inside a stream.
#![forbid(unsafe_code)]

mod args;
mod fds;
mod frames;
mod json;
mod maps;
mod memory;
mod model;
mod ps;
mod summary;
mod threads;

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use anyhow::Context;
use args::Args;
use model::Model;
use pc_cli::{Exit, Input, WithExit};
use pc_image::{Blame, ImageError, Reader, Source};

fn main() -> ExitCode {
    pc_cli::main("pc-show", run)
}

fn run() -> anyhow::Result<ExitCode> {
    let args: Args = pc_cli::parse();
    let input = pc_cli::input("pc-show", args.file.as_deref())?;
    let mut out = BufWriter::new(io::stdout().lock());
    let shown = show(&args, Reader::new(input), &mut out);
    let flushed = out.flush();
    let model = shown?;
    flushed.context("standard output")?;
    if let Some(path) = &args.common.stats {
        pc_cli::write_stats(path, &json::view(&model))?;
    }
    match model.wrong {
        None => Ok(ExitCode::SUCCESS),
        Some(err) => {
            let exit = exit_for(&err);
            Err(err).context("the stream is not good").exit(exit)
        }
    }
}

/// Reads the stream to its end, or to what is wrong in it, showing what was asked for.
fn show(args: &Args, mut reader: Reader<Input>, out: &mut impl Write) -> anyhow::Result<Model> {
    let mut model = Model::default();
    let mut search = args.search.as_ref().or(args.search_text.as_ref()).map(memory::Search::new);
    let mut dump = args.pages.map(memory::Dump::new);
    loop {
        let item = match reader.next() {
            Ok(Some(item)) => item,
            Ok(None) => break,
            Err(err) => {
                model.wrong = Some(err);
                break;
            }
        };
        if let (true, Some(info)) = (args.frames, reader.last_frame()) {
            frames::line(out, info)?;
        }
        if let Some(search) = &mut search {
            search.item(&item, &model, out)?;
        }
        if let Some(dump) = &mut dump {
            dump.item(&item);
        }
        if let Some(payload) = model.item(item) {
            reader.recycle(payload);
        }
    }
    model.bytes = reader.offset();
    model.stream_id = reader.preamble().map(|preamble| preamble.stream_id);
    match (args, dump) {
        (_, Some(dump)) => dump.write(out)?,
        (Args { maps: true, .. }, _) => maps::write(&model, out)?,
        (Args { json: true, .. }, _) => json::write(&model, out)?,
        (Args { ps: true, .. }, _) => ps::write(&model, out)?,
        (Args { fds: true, .. }, _) => fds::write(&model, out)?,
        (Args { threads: true, .. }, _) => threads::write(&model, out)?,
        (Args { frames: false, search: None, search_text: None, .. }, _) => summary::write(&model, out)?,
        _ => {}
    }
    Ok(model)
}

/// The exit code for a stream that is not good.
fn exit_for(err: &ImageError) -> Exit {
    match err.blame() {
        Blame::Stream => Exit::BadStream,
        Blame::Truncated => Exit::Truncated,
        Blame::Unsupported => Exit::Unsupported,
        Blame::Channel | Blame::Caller => Exit::Failed,
    }
}
