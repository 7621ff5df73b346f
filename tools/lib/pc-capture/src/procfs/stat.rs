//! /proc/PID/stat: see proc_pid_stat(5).

/// The fields that matter here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stat {
    /// State letter: `R`, `S`, `D`, `Z`, `T`, `t`, `X`.
    pub state: u8,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub session: i32,
    /// Kernel flags (`PF_*`).
    pub flags: u64,
    /// Start time in clock ticks since boot: with the pid the identity of a process.
    pub start_time: u64,
    /// Signal sent to the parent at exit.
    pub exit_signal: i32,
    /// Code and stack borders.
    pub start_code: u64,
    /// End of code.
    pub end_code: u64,
    /// Bottom of the main stack.
    pub start_stack: u64,
    /// Start of data.
    pub start_data: u64,
    /// End of data.
    pub end_data: u64,
    /// Start of the heap.
    pub start_brk: u64,
    /// Command line.
    pub arg_start: u64,
    /// End of the command line.
    pub arg_end: u64,
    /// Environment.
    pub env_start: u64,
    /// End of the environment.
    pub env_end: u64,
}

impl Stat {
    /// Parses the line. The name in parentheses may hold anything.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = &text[text.rfind(')')? + 1..];
        // Field N of proc_pid_stat(5) is word N - 3 here: the state is field 3.
        let words: Vec<&str> = rest.split_whitespace().collect();
        let word = |field: usize| words.get(field - 3).copied();
        let int = |field: usize| word(field)?.parse::<i32>().ok();
        let long = |field: usize| word(field)?.parse::<u64>().ok();
        Some(Self {
            state: *word(3)?.as_bytes().first()?,
            ppid: int(4)?,
            pgrp: int(5)?,
            session: int(6)?,
            flags: long(9)?,
            start_time: long(22)?,
            exit_signal: int(38)?,
            start_code: long(26)?,
            end_code: long(27)?,
            start_stack: long(28)?,
            start_data: long(45)?,
            end_data: long(46)?,
            start_brk: long(47)?,
            arg_start: long(48)?,
            arg_end: long(49)?,
            env_start: long(50)?,
            env_end: long(51)?,
        })
    }

    /// Reads that of process `pid`.
    pub fn read(pid: i32) -> std::io::Result<Self> {
        let text = super::read(pid, "stat")?;
        Self::parse(&text).ok_or_else(|| std::io::Error::other(format!("/proc/{pid}/stat is not understood")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = Stat::parse(
            "16129 (sl) (ee p) S 16125 16125 14789 0 -1 4194304 131 0 0 0 0 0 0 0 20 0 1 0 581115 2990080 404 \
             18446744073709551615 94091136581632 94091136599561 140731318043856 0 0 0 0 6 0 1 0 0 17 0 0 0 0 0 0 \
             94091136613648 94091136614912 94091645743104 140731318045218 140731318045228 140731318045228 \
             140731318046697 0",
        )
        .unwrap();
        assert_eq!((stat.state, stat.ppid, stat.session), (b'S', 16125, 14789));
        assert_eq!((stat.start_time, stat.exit_signal), (581_115, 17));
        assert_eq!((stat.start_code, stat.start_stack), (94_091_136_581_632, 140_731_318_043_856));
        assert_eq!((stat.start_data, stat.env_end), (94_091_136_613_648, 140_731_318_046_697));
    }
}
