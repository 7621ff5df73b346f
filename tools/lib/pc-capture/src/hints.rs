//! What people can do about a refusal, and which refusals pass by themselves: the one table.

/// A known case.
#[derive(Debug)]
struct Hint {
    /// All of these are in the reason.
    words: &'static [&'static str],
    /// It is there for a moment in programs that are otherwise without it.
    passes: bool,
    /// The way out; empty if there is none but to wait.
    way: &'static str,
}

const fn hint(words: &'static [&'static str], passes: bool, way: &'static str) -> Hint {
    Hint { words, passes, way }
}

/// The first that fits counts.
const TABLE: [Hint; 14] = [
    hint(&["/hsperfdata_"], false, "Java makes this file without -XX:-UsePerfData"),
    hint(
        &["/.ZendSem."],
        false,
        "PHP's opcode cache has this lock: opcache.enable=0, and opcache.enable_cli=0",
    ),
    hint(
        &["lock or lease", "-shm"],
        true,
        "sqlite has a transaction open; PRAGMA journal_mode=DELETE keeps no lock between them",
    ),
    hint(&["lock or lease", ".db"], true, "most programs hold it for a transaction"),
    hint(&["lock or lease", ".sqlite"], true, "most programs hold it for a transaction"),
    hint(&["lock or lease"], true, ""),
    hint(
        &["-shm", "is shared and may be written"],
        false,
        "sqlite's write-ahead log: PRAGMA journal_mode=DELETE does without",
    ),
    hint(&["io_uring"], false, "node.js does without if UV_USE_IO_URING=0 is in its environment"),
    hint(&["inotify"], false, "tail does without: tail ---disable-inotify"),
    hint(&["children"], true, ""),
    hint(&["still being made"], true, ""),
    hint(&["wait to be accepted"], true, ""),
    hint(&["family netlink"], true, "the C library has one for a moment while it looks for addresses"),
    hint(
        &[".so", "has been removed"],
        false,
        "the library was replaced, by an update perhaps: start the program again",
    ),
];

/// Folders of temporary files.
const TEMPORARY: [&str; 4] = ["/tmp/", "/var/tmp/", "/dev/shm/", "/run/"];

fn find(what: &str) -> Option<&'static Hint> {
    TABLE.iter().find(|hint| hint.words.iter().all(|word| what.contains(word)))
}

/// What can be done about it, for people.
pub(crate) fn way_out(what: &str) -> Option<&'static str> {
    find(what).map(|hint| hint.way).filter(|way| !way.is_empty())
}

/// Whether a moment without it is likely: a child that ends, a lock that is given back, a temporary file.
pub(crate) fn passes(what: &str) -> bool {
    match find(what) {
        Some(hint) => hint.passes,
        None => what.contains("has been removed") && TEMPORARY.iter().any(|folder| what.starts_with(folder)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_out_and_what_passes_are_told_by_the_reason() {
        let java = "shows /tmp/hsperfdata_root/7 and is shared and may be written, which cannot be moved yet";
        assert!(way_out(java).is_some_and(|way| way.contains("-XX:-UsePerfData")) && !passes(java));
        let php = "/tmp/.ZendSem.x3 (deleted), which cannot be moved yet as the file has been removed";
        assert!(way_out(php).is_some_and(|way| way.contains("opcache.enable=0")) && !passes(php));
        let lock = "/var/lib/x/app.db with a lock or lease (1: POSIX …), which cannot be moved yet";
        assert!(passes(lock) && way_out(lock).is_some());
        assert!(passes("/tmp/scratch (deleted), which cannot be moved yet as the file has been removed"));
        assert!(!passes("/home/x/scratch (deleted), which cannot be moved yet as the file has been removed"));
        assert!(passes("it has children (process 7), which cannot be moved yet"));
        assert!(!passes("a pidfd, which cannot be moved yet") && way_out("a pidfd").is_none());
    }
}
