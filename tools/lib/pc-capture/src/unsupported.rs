//! What of a process cannot be moved, as people read it: one reason a line, said once with all places that have it.

use std::fmt;

use crate::hints;

/// Something of a process that cannot be rebuilt yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// The process.
    pub pid: i32,
    /// The descriptor, if it is one.
    pub fd: Option<i32>,
    /// The address of the mapping, if it is one.
    pub mapping: Option<u64>,
    /// What it is and why it cannot be moved: follows "descriptor N is", "its mapping at N: " or "pid N: ".
    pub what: String,
}

impl Unsupported {
    pub(crate) fn new(pid: i32, fd: Option<i32>, what: impl Into<String>) -> Self {
        Self { pid, fd, mapping: None, what: what.into() }
    }

    /// Of the mapping that begins at `start`.
    pub(crate) fn mapping(pid: i32, start: u64, what: impl Into<String>) -> Self {
        Self { pid, fd: None, mapping: Some(start), what: what.into() }
    }

    /// Whether a moment without it is likely: waiting may help.
    pub fn passes(&self) -> bool {
        hints::passes(&self.what)
    }

    /// What can be done about it, for people.
    pub fn way_out(&self) -> Option<&'static str> {
        hints::way_out(&self.what)
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&line(&[self]))
    }
}

/// A line for each reason, in the order in which they were found.
pub(crate) fn lines(all: &[Unsupported]) -> String {
    let mut groups: Vec<Vec<&Unsupported>> = Vec::new();
    for one in all {
        match groups.iter_mut().find(|group| (group[0].pid, &group[0].what) == (one.pid, &one.what)) {
            Some(group) => group.push(one),
            None => groups.push(vec![one]),
        }
    }
    groups.iter().map(|group| line(group)).collect::<Vec<_>>().join("\n")
}

/// One reason, and all places that have it.
fn line(group: &[&Unsupported]) -> String {
    let Some(first) = group.first() else { return String::new() };
    let (pid, what) = (first.pid, &first.what);
    let mut text = match (group, first.fd, first.mapping) {
        ([_], Some(fd), _) => format!("pid {pid}: descriptor {fd} is {what}"),
        ([_], None, Some(start)) => format!("pid {pid}: its mapping at {start:#x}: {what}"),
        _ => match places(group) {
            places if places.is_empty() => format!("pid {pid}: {what}"),
            places => format!("pid {pid}: {what}: {places}"),
        },
    };
    let passes = first.passes().then_some("it may pass: --retry DUR waits for that");
    let more: Vec<&str> = first.way_out().into_iter().chain(passes).collect();
    if !more.is_empty() {
        text += &format!(" ({})", more.join("; "));
    }
    text
}

/// "7 mappings, descriptors 3, 9"
fn places(group: &[&Unsupported]) -> String {
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    let mappings = group.iter().filter(|one| one.mapping.is_some()).count();
    let mut fds: Vec<i32> = group.iter().filter_map(|one| one.fd).collect();
    fds.sort_unstable();
    let mut places = Vec::new();
    if mappings > 0 {
        places.push(format!("{mappings} mapping{}", plural(mappings)));
    }
    if !fds.is_empty() {
        let numbers: Vec<String> = fds.iter().map(i32::to_string).collect();
        places.push(format!("descriptor{} {}", plural(fds.len()), numbers.join(", ")));
    }
    places.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_the_same_reason_is_said_once_with_all_its_places() {
        let why = "/x/libfoo.so.1 (deleted), which cannot be moved yet as the file has been removed";
        let mut all: Vec<_> = (1..8).map(|i| Unsupported::mapping(7, i << 12, why)).collect();
        all.push(Unsupported::new(7, Some(9), why));
        all.push(Unsupported::new(7, Some(4), "a pidfd, which cannot be moved yet"));
        all.push(Unsupported::new(7, Some(3), why));
        let text = lines(&all);
        let text: Vec<&str> = text.lines().collect();
        assert_eq!(text.len(), 2);
        let start = format!("pid 7: {why}: 7 mappings, descriptors 3, 9 (");
        assert!(text[0].starts_with(&start) && text[0].ends_with("start the program again)"), "{}", text[0]);
        assert_eq!(text[1], "pid 7: descriptor 4 is a pidfd, which cannot be moved yet");
    }

    #[test]
    fn what_passes_says_how_it_is_waited_for() {
        let child = Unsupported::new(7, None, "it has children (process 8), which cannot be moved yet");
        let twice = lines(&[child.clone(), child]);
        assert_eq!(
            twice,
            "pid 7: it has children (process 8), which cannot be moved yet (it may pass: --retry DUR waits for that)"
        );
    }
}
