//! `pc-show`: look inside a stream.
#![forbid(unsafe_code)]

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use anyhow::Context;
use pc_cli::{Exit, WithExit};
use pc_image::{Blame, ImageError};
use pc_show::Args;

fn main() -> ExitCode {
    pc_cli::main("pc-show", run)
}

fn run() -> anyhow::Result<ExitCode> {
    let args: Args = pc_cli::parse();
    let input = pc_cli::input("pc-show", args.file.as_deref())?;
    let pictures = args.pictures().map(|(path, draw)| pc_cli::Pending::create(path).map(|file| (file, draw)));
    let pictures = pictures.collect::<anyhow::Result<Vec<_>>>()?;
    let mut out = BufWriter::new(io::stdout().lock());
    let shown = pc_show::show(&args, input, &mut out).and_then(|shown| out.flush().map(|()| shown));
    let shown = shown.context("standard output")?;
    for (file, draw) in pictures {
        file.put(draw(&shown).as_bytes())?;
    }
    if shown.not_searched > 0 {
        let text = format!(
            "{} times a page that is kept from the first round was changed in part: that was not searched",
            shown.not_searched
        );
        pc_cli::notice("pc-show", &text);
    }
    if let Some(path) = &args.common.stats {
        pc_cli::write_stats(path, &shown.json())?;
    }
    match shown.model.wrong {
        None => Ok(ExitCode::SUCCESS),
        Some(err) => {
            let exit = exit_for(&err);
            Err(err).context("the stream is not good").exit(exit)
        }
    }
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
