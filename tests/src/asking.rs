//! Servers that are moved while a client asks, and checks every answer.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Guest;
use crate::net::{Host, Hosts};

/// Moves a server from host to host so many times, each by `mover`, while `work` talks to it. Nothing is left.
pub fn moved_under(
    hosts: &Hosts,
    mut guest: Guest,
    moves: usize,
    mut mover: impl FnMut(Guest, Host) -> Guest,
    work: impl FnOnce(Arc<AtomicBool>) + Send + 'static,
) {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let client = std::thread::spawn(move || work(seen));
    let mut at = Host::One;
    let began = Instant::now();
    for _ in 0..moves {
        std::thread::sleep(Duration::from_millis(100));
        guest = mover(guest, at);
        at = at.other();
        assert!(!client.is_finished(), "the client has given up");
    }
    println!("{moves} moves in {:?}", began.elapsed());
    std::thread::sleep(Duration::from_millis(300));
    stop.store(true, Ordering::Relaxed);
    client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    hosts.assert_no_tables();
    drop(guest);
}

/// Asks in groups, and checks that every answer comes, in its order; gives how many there were.
pub fn pipelined(
    stream: &mut TcpStream,
    stop: &AtomicBool,
    ask: impl Fn(u64) -> String,
    answer: impl Fn(u64) -> String,
) -> u64 {
    const GROUP: u64 = 50;
    let mut answers = BufReader::new(stream.try_clone().expect("a descriptor"));
    let (mut number, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let questions: String = (number..number + GROUP).map(&ask).collect();
        stream.write_all(questions.as_bytes()).expect("the connection lives");
        for n in number..number + GROUP {
            let mut line = String::new();
            answers.read_line(&mut line).expect("the connection lives");
            assert_eq!(line, answer(n), "answer {n}");
        }
        number += GROUP;
        longest = longest.max(began.elapsed());
    }
    println!("{number} answers, the longest wait {longest:?}");
    number
}

/// A redis-server at the first host.
pub fn redis(hosts: &Hosts, address: SocketAddr) -> Guest {
    let mut redis = hosts.command(Host::One, "redis-server");
    redis.args(["--save", "", "--protected-mode", "no", "--bind", &address.ip().to_string()]);
    Guest::start(redis.args(["--port", &address.port().to_string()]))
}

/// A client of redis that writes and counts in turn until it is stopped, checks every answer, and reads what it wrote
/// last.
pub fn sets_and_counts(mut stream: TcpStream, stop: &AtomicBool) {
    let ask =
        |n| if n % 2 == 0 { format!("SET key{} {n}\r\n", n % 1000) } else { "INCR count\r\n".to_owned() };
    let answer = |n| if n % 2 == 0 { "+OK\r\n".to_owned() } else { format!(":{}\r\n", n / 2 + 1) };
    let number = pipelined(&mut stream, stop, ask, answer);
    let mut answers = BufReader::new(stream.try_clone().expect("a descriptor"));
    for n in (number.saturating_sub(1000)..number).filter(|n| n % 2 == 0) {
        stream.write_all(format!("GET key{}\r\n", n % 1000).as_bytes()).expect("it lives");
        let (mut head, mut value) = (String::new(), String::new());
        answers.read_line(&mut head).expect("a length");
        answers.read_line(&mut value).expect("a value");
        assert_eq!(value.trim_end(), n.to_string());
    }
}
