//! Plain processes that carry out a plan of births: what the kernel makes of it is printed.
//!
//! `guest-puppets < steps`, in a pid namespace of which it is not yet a member (`unshare --pid`, no fork): its child is
//! the namespace's init and the builder of the plan. A step a line: `clone BY PID SIBLING`, `setsid PID`, `setpgid PID
//! GROUP`, `subreaper PID 0|1`, `exit PID`; BY 0 is the builder. Then a line for each process: `PID PARENT GROUP SESSION`,
//! with 0 for the builder's. All share a page through which the builder tells one of them what to do.

use std::io::{BufRead, Error};
use std::process::ExitCode;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use libc::{c_int, c_long};

/// The page: who is to act, what it is to do with which numbers, and what came of it.
#[repr(C)]
#[derive(Default)]
struct Board {
    turn: AtomicI64,
    call: AtomicI64,
    first: AtomicI64,
    second: AtomicI64,
    results: [AtomicI64; 3],
}

const CLONE: i64 = 1;
const SETSID: i64 = 2;
const SETPGID: i64 = 3;
const SUBREAPER: i64 = 4;
const EXIT: i64 = 5;
const REAP: i64 = 6;
const REPORT: i64 = 7;

/// No puppet outlives this: the test may have died.
const LONGEST: Duration = Duration::from_secs(100);

fn checked(result: c_long) -> i64 {
    if result < 0 { -i64::from(Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)) } else { result }
}

/// clone3(2) with a pid of our choice; what the kernel says, 0 in the child.
fn clone3(pid: i64, sibling: bool) -> i64 {
    let number = pid as c_int;
    let flags = if sibling { libc::CLONE_PARENT as u64 } else { 0 };
    // With CLONE_PARENT the signal is that of the caller's own birth.
    let signal = if sibling { 0 } else { libc::SIGCHLD as u64 };
    let args = [flags, 0, 0, 0, signal, 0, 0, 0, &raw const number as u64, 1, 0];
    // SAFETY: `struct clone_args` of 88 bytes, which lives across the call; the child runs on its own copy of the stack,
    // and the program has one thread.
    checked(unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) })
}

/// Does what the board tells this process, for ever.
fn act(board: &Board, began: Instant) -> ! {
    // SAFETY: without conditions.
    let me = i64::from(unsafe { libc::getpid() });
    loop {
        if began.elapsed() > LONGEST {
            std::process::exit(1);
        }
        if board.turn.load(Ordering::SeqCst) != me {
            std::thread::sleep(Duration::from_micros(100));
            continue;
        }
        let first = board.first.load(Ordering::SeqCst);
        let second = board.second.load(Ordering::SeqCst);
        // SAFETY: calls that take numbers only.
        let result = unsafe {
            match board.call.load(Ordering::SeqCst) {
                CLONE => match clone3(first, second != 0) {
                    0 => act(board, began),
                    pid => pid,
                },
                SETSID => checked(libc::setsid().into()),
                SETPGID => checked(libc::setpgid(0, first as c_int).into()),
                SUBREAPER => checked(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, first).into()),
                EXIT => {
                    board.turn.store(0, Ordering::SeqCst);
                    libc::_exit(0);
                }
                REAP => checked(libc::waitpid(first as c_int, std::ptr::null_mut(), libc::__WALL).into()),
                _ => {
                    board.results[1].store(libc::getpgid(0).into(), Ordering::SeqCst);
                    board.results[2].store(libc::getsid(0).into(), Ordering::SeqCst);
                    libc::getppid().into()
                }
            }
        };
        board.results[0].store(result, Ordering::SeqCst);
        board.turn.store(0, Ordering::SeqCst);
    }
}

/// Makes one process do a call, and waits for the result.
fn order(board: &Board, who: i64, call: i64, first: i64, second: i64) -> Result<i64, String> {
    board.call.store(call, Ordering::SeqCst);
    board.first.store(first, Ordering::SeqCst);
    board.second.store(second, Ordering::SeqCst);
    board.results[0].store(0, Ordering::SeqCst);
    board.turn.store(who, Ordering::SeqCst);
    let began = Instant::now();
    while board.turn.load(Ordering::SeqCst) != 0 {
        if began.elapsed() > LONGEST / 2 {
            return Err(format!("process {who} does not answer"));
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    match board.results[0].load(Ordering::SeqCst) {
        failed if failed < 0 => Err(Error::from_raw_os_error(-failed as i32).to_string()),
        done => Ok(done),
    }
}

fn step(board: &Board, words: &[i64], call: &str, pids: &mut Vec<i64>) -> Result<(), String> {
    let began = Instant::now();
    match (call, words) {
        ("clone", &[0, pid, 0]) => match clone3(pid, false) {
            0 => act(board, began),
            made if made == pid => pids.push(pid),
            failed => return Err(Error::from_raw_os_error(-failed as i32).to_string()),
        },
        ("clone", &[by, pid, sibling]) => {
            order(board, by, CLONE, pid, sibling)?;
            pids.push(pid);
        }
        ("setsid", &[pid]) => {
            order(board, pid, SETSID, 0, 0)?;
        }
        ("setpgid", &[pid, group]) => {
            order(board, pid, SETPGID, if group == 0 { 1 } else { group }, 0)?;
        }
        ("subreaper", &[pid, on]) => {
            order(board, pid, SUBREAPER, on, 0)?;
        }
        ("exit", &[pid]) => {
            let parent = order(board, pid, REPORT, 0, 0)?;
            order(board, pid, EXIT, 0, 0)?;
            pids.retain(|other| *other != pid);
            if parent == 1 {
                // SAFETY: a number, and nowhere to put the status.
                unsafe { libc::waitpid(pid as c_int, std::ptr::null_mut(), libc::__WALL) };
            } else {
                order(board, parent, REAP, pid, 0)?;
            }
        }
        _ => return Err("no such step".to_owned()),
    }
    Ok(())
}

fn build(board: &Board) -> Result<(), String> {
    // SAFETY: without conditions. The builder leads a session and a group, which stand for those outside the tree.
    unsafe { libc::setsid() };
    let mut pids = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|err| err.to_string())?;
        let mut words = line.split_whitespace();
        let call = words.next().unwrap_or_default();
        let words: Vec<i64> = words.filter_map(|word| word.parse().ok()).collect();
        step(board, &words, call, &mut pids).map_err(|why| format!("{line}: {why}"))?;
    }
    pids.sort_unstable();
    let own = |number: i64| if number == 1 { 0 } else { number };
    for pid in pids {
        let parent = order(board, pid, REPORT, 0, 0)?;
        let [_, group, session] = &board.results;
        let [group, session] = [group, session].map(|it| own(it.load(Ordering::SeqCst)));
        println!("{pid} {} {group} {session}", own(parent));
    }
    Ok(())
}

fn main() -> ExitCode {
    let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: new memory, of zeroes, which is a valid board, and is never unmapped.
    let board = unsafe {
        let page = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, shared, -1, 0);
        assert_ne!(page, libc::MAP_FAILED, "{}", Error::last_os_error());
        &*page.cast::<Board>()
    };
    // SAFETY: the program has one thread.
    match unsafe { libc::fork() } {
        0 => match build(board) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("guest-puppets: {why}");
                ExitCode::FAILURE
            }
        },
        child => {
            let mut status = 0;
            // SAFETY: room for a status. With the namespace's init all others end.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            ExitCode::from(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) as u8 } else { 125 })
        }
    }
}
