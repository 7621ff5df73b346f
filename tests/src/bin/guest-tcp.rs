//! One end of a TCP connection, which does what it is told step by step.
//!
//! `guest-tcp REPORT ADDRESS STEP...`: it listens on ADDRESS and accepts one connection. `send:N` and `receive:N` are
//! about N bytes, known to both ends by their place; `end` expects the end of what the peer sends, `echo` gives back what comes until then, `shut-write` and
//! `shut-read` shut one direction down, `wait:NAME` says `REPORT.NAME` and goes
//! on once `REPORT.NAME.go` is there. REPORT says `OK` or what is wrong.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use pc_tests::guest::finish;
use pc_tests::net::Pattern;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [report, address, steps @ ..] = &args[..] else { return ExitCode::from(2) };
    let listener = TcpListener::bind(address).expect("an address");
    fs::write(format!("{report}.ready"), "").expect("a report");
    let (mut peer, _) = listener.accept().expect("a connection");
    let (mut sent, mut received) = (Pattern::default(), Pattern::default());
    let mut wrong = Vec::new();
    for step in steps {
        let (what, about) = step.split_once(':').unwrap_or((step, ""));
        let done = match what {
            "send" => peer.write_all(&sent.next(about.parse().expect("a number"))),
            "receive" => {
                let expected = received.next(about.parse().expect("a number"));
                let mut got = vec![0; expected.len()];
                let read = peer.read_exact(&mut got);
                read.and_then(|()| same(&got, &expected))
            }
            "echo" => echo(&mut peer),
            "end" => peer.read(&mut [0]).and_then(|n| same(&[n as u8], &[0])),
            "shut-write" => peer.shutdown(Shutdown::Write),
            "shut-read" => peer.shutdown(Shutdown::Read),
            "wait" => {
                fs::write(format!("{report}.{about}"), "").expect("a report");
                wait(&format!("{report}.{about}.go"));
                Ok(())
            }
            _ => return ExitCode::from(2),
        };
        if let Err(error) = done {
            wrong.push(format!("{step}: {error}"));
            break;
        }
    }
    drop(peer);
    finish(report, &wrong)
}

/// Gives back what comes, until the end.
fn echo(peer: &mut TcpStream) -> std::io::Result<()> {
    let mut piece = [0; 4096];
    loop {
        match peer.read(&mut piece)? {
            0 => return Ok(()),
            n => peer.write_all(&piece[..n])?,
        }
    }
}

fn wait(path: &str) {
    while !Path::new(path).exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn same(got: &[u8], expected: &[u8]) -> std::io::Result<()> {
    if got == expected { Ok(()) } else { Err(std::io::Error::other("another byte than was sent")) }
}
