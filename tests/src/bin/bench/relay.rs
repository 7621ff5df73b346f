//! The stream's way: what `pc-dump | nc` and `nc -l | pc-restore` do.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{ChildStdin, ChildStdout};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, anyhow};

use crate::host::Net;

/// Two threads that carry bytes; `io::copy` splices between pipe and socket.
pub struct Relay {
    sender: JoinHandle<io::Result<u64>>,
    receiver: JoinHandle<io::Result<u64>>,
}

impl Relay {
    /// Connects the hosts and starts to carry.
    pub fn start(net: &Net, from: ChildStdout, to: ChildStdin) -> anyhow::Result<Self> {
        let listener = net.destination.within(|| Ok(TcpListener::bind(Net::stream())?))?;
        let sending = net.source.within(|| Ok(TcpStream::connect(Net::stream())?))?;
        let (receiving, _) = listener.accept()?;
        Ok(Relay {
            sender: thread::spawn(move || send(from, sending)),
            receiver: thread::spawn(move || receive(receiving, to)),
        })
    }

    /// Waits for the end of the stream; gives the bytes that arrived.
    pub fn finish(self) -> anyhow::Result<u64> {
        let sent = self.sender.join().map_err(|_| anyhow!("the relay panicked"))?;
        let received = self.receiver.join().map_err(|_| anyhow!("the relay panicked"))?;
        sent.context("relay at the source")?;
        received.context("relay at the destination")
    }
}

fn send(mut from: ChildStdout, mut to: TcpStream) -> io::Result<u64> {
    let bytes = io::copy(&mut from, &mut to)?;
    to.shutdown(Shutdown::Write)?;
    Ok(bytes)
}

fn receive(mut from: TcpStream, mut to: ChildStdin) -> io::Result<u64> {
    io::copy(&mut from, &mut to)
}
