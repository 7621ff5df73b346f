//! netlink(7): messages put together by hand, and a socket that sends them in batches.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{check, sockopt};

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// Bit of an attribute's type: it holds attributes.
const NLA_F_NESTED: u16 = 1 << 15;
/// Room for the kernel's answers: an error quotes the message that it is about.
const ANSWER: usize = 128 << 10;

/// Messages that are sent at once.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
}

impl Batch {
    /// How many messages there are: the number that the next will have.
    pub fn len(&self) -> u32 {
        self.sequence
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sequence == 0
    }

    /// Adds a message: `fixed` is what stands between its header and its attributes.
    pub fn message(&mut self, kind: u16, flags: u16, fixed: &[u8], attributes: impl FnOnce(&mut Attributes)) {
        let start = self.bytes.len();
        let sequence = self.sequence;
        self.sequence += 1;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(fixed);
        attributes(&mut Attributes(&mut self.bytes));
        let len = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }
}

/// Attributes of a message, one after the other.
#[derive(Debug)]
pub struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    /// Bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.put(kind, |bytes| bytes.extend(value))
    }

    /// A number, in network order as netfilter has it.
    pub fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A text with its end.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.put(kind, |bytes| {
            bytes.extend(value.as_bytes());
            bytes.push(0);
        })
    }

    /// Attributes in an attribute.
    pub fn nested(&mut self, kind: u16, inner: impl FnOnce(&mut Attributes)) -> &mut Self {
        self.put(kind | NLA_F_NESTED, |bytes| inner(&mut Attributes(bytes)))
    }

    fn put(&mut self, kind: u16, value: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        value(self.0);
        let len = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// Does something in a network namespace, or in the caller's own. Sockets that it makes stay there.
pub fn within<T: Send>(
    namespace: Option<BorrowedFd<'_>>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let Some(namespace) = namespace else { return work() };
    // By a thread of its own, as a thread it is that enters a namespace.
    let done = std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            // SAFETY: setns takes two integers, and changes nothing but this thread's network namespace.
            check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }.into())?;
            work()
        });
        working.join()
    });
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A socket to one part of the kernel.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    /// The number of the next message: answers to what failed before may still be in the socket.
    next: AtomicU32,
}

impl Netlink {
    /// Opens one in the caller's network namespace, or in `namespace`.
    pub fn open(protocol: i32, namespace: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        within(namespace, || Self::open_here(protocol))
    }

    fn open_here(protocol: i32) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: socket takes three integers.
        let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) }.into())?;
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(Self { socket, next: AtomicU32::new(1) })
    }

    /// Sends a batch and waits until the kernel has acknowledged the message of that number. The first error is that of
    /// the whole batch.
    pub fn send(&self, mut batch: Batch, acknowledged: u32) -> io::Result<()> {
        let first = self.next.fetch_add(batch.len(), Ordering::Relaxed);
        number(&mut batch.bytes, first, acknowledged);
        self.put(&batch.bytes)?;
        loop {
            if let Some(outcome) = outcome(&self.receive()?, first, first + acknowledged) {
                return outcome;
            }
        }
    }

    /// Asks for all that there is of something; `fixed` as in [`Batch::message`]. Gives the messages without their headers.
    pub fn dump(&self, kind: u16, fixed: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        const NLM_F_DUMP: u16 = 0x300;
        let mut batch = Batch::default();
        batch.message(kind, NLM_F_DUMP, fixed, |_| {});
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        number(&mut batch.bytes, first, u32::MAX);
        self.put(&batch.bytes)?;
        let mut found = Vec::new();
        while !dumped(&self.receive()?, first, &mut found)? {}
        Ok(found)
    }

    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.put_at_once(bytes).or_else(|err| {
            if err.raw_os_error() != Some(libc::EMSGSIZE) {
                return Err(err);
            }
            // A batch is one message, and the socket has less room than that.
            let room = i32::try_from(bytes.len()).unwrap_or(i32::MAX).to_ne_bytes();
            sockopt::setsockopt(self.socket.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &room)?;
            self.put_at_once(bytes)
        })?;
        if sent != bytes.len() {
            return Err(io::Error::other("a netlink message was sent in part"));
        }
        Ok(())
    }

    fn put_at_once(&self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: the kernel reads `bytes.len()` bytes.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        check(sent as libc::c_long).map(|sent| sent as usize)
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut answer = vec![0u8; ANSWER];
        let (fd, at) = (self.socket.as_raw_fd(), answer.as_mut_ptr().cast());
        // SAFETY: the kernel writes at most `answer.len()` bytes.
        let got = check(unsafe { libc::recv(fd, at, answer.len(), 0) } as libc::c_long)?;
        answer.truncate(got as usize);
        Ok(answer)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Numbers the messages from `first` on, and marks one of them to be acknowledged.
fn number(bytes: &mut [u8], first: u32, acknowledged: u32) {
    let mut at = 0;
    while let (Some(len), Some(sequence)) = (word(bytes, at), word(bytes, at + 8)) {
        if sequence == acknowledged {
            bytes[at + 6] |= NLM_F_ACK as u8;
        }
        bytes[at + 8..at + 12].copy_from_slice(&(first + sequence).to_ne_bytes());
        at += (len as usize).next_multiple_of(4).max(HEADER);
    }
}

/// What the kernel says in one packet of answers to messages from `first` on: an error, that the acknowledged message is
/// through, or nothing yet.
fn outcome(mut answers: &[u8], first: u32, acknowledged: u32) -> Option<io::Result<()>> {
    const NLMSG_ERROR: u16 = 2;
    while answers.len() >= HEADER + 4 {
        let len = (word(answers, 0)? as usize).max(HEADER);
        let (kind, sequence) = (u16::from_ne_bytes([answers[4], answers[5]]), word(answers, 8)?);
        let error = word(answers, HEADER)? as i32;
        if kind == NLMSG_ERROR && error != 0 && sequence >= first {
            return Some(Err(io::Error::from_raw_os_error(-error)));
        }
        if kind == NLMSG_ERROR && sequence == acknowledged {
            return Some(Ok(()));
        }
        answers = answers.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

/// Takes the messages of one packet of answers to the dump of that number. Gives whether it was the last.
fn dumped(mut answers: &[u8], number: u32, found: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    while let (Some(len), Some(sequence)) = (word(answers, 0), word(answers, 8)) {
        let len = (len as usize).max(HEADER);
        let kind = u16::from_ne_bytes([answers[4], answers[5]]);
        let body =
            answers.get(HEADER..len).ok_or_else(|| io::Error::other("a netlink message that ends early"))?;
        match kind {
            _ if sequence != number => {}
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let error = word(body, 0).unwrap_or(0) as i32;
                return Err(io::Error::from_raw_os_error(-error));
            }
            _ => found.push(body.to_vec()),
        }
        answers = answers.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_carry_their_lengths_and_end_at_whole_words() {
        let mut batch = Batch::default();
        batch.message(7, 0x400, &[1, 0, 0, 0], |attributes| {
            attributes.text(1, "ab").nested(2, |inner| {
                inner.number(3, 5);
            });
        });
        let expected = [
            &40u32.to_ne_bytes()[..],
            &7u16.to_ne_bytes(),
            &0x401u16.to_ne_bytes(),
            &[0; 8],
            &[1, 0, 0, 0],
            &[7, 0, 1, 0, b'a', b'b', 0, 0],
            &[12, 0, 2, 0x80, 8, 0, 3, 0, 0, 0, 0, 5],
        ];
        assert_eq!(batch.bytes, expected.concat());
        number(&mut batch.bytes, 9, 0);
        assert_eq!((batch.bytes[6], batch.bytes[8]), (5, 9));
    }

    #[test]
    fn an_error_ends_a_batch_and_so_does_the_answer_to_its_last_message() {
        let answer = |sequence: u32, error: i32| {
            let head =
                [&20u32.to_ne_bytes()[..], &2u16.to_ne_bytes(), &[0; 2], &sequence.to_ne_bytes(), &[0; 4]];
            [head.concat(), error.to_ne_bytes().to_vec()].concat()
        };
        assert!(outcome(&answer(1, 0), 1, 3).is_none());
        assert!(outcome(&answer(1, -1), 2, 3).is_none());
        assert!(outcome(&[answer(1, 0), answer(3, 0)].concat(), 1, 3).unwrap().is_ok());
        let error = outcome(&[answer(1, 0), answer(2, -1)].concat(), 1, 3).unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}
