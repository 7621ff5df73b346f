//! Mappings: smaps and numa_maps, of each mapping.

use std::collections::BTreeMap;
use std::fs;

use super::Sample;
use super::table::{Fate, Look, look};
use super::who::{NAMELESS, Who};

/// A mapping, and what is compared of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    path: String,
    /// Readings by name.
    told: BTreeMap<String, String>,
}

/// Reads all mappings. Neighbours that differ in nothing are one: whether the kernel joins them depends on their past.
pub fn read(pid: i32, who: &mut Who, sample: &mut Sample) {
    let policies = numa_maps(&lossy(&format!("/proc/{pid}/numa_maps")), sample);
    let mut all: Vec<Mapping> = Vec::new();
    for mut mapping in smaps(&lossy(&format!("/proc/{pid}/smaps")), who, sample) {
        if let Some(policy) = policies.get(&mapping.start) {
            mapping.told.insert("numa_maps/policy".to_owned(), policy.clone());
        }
        match all.last_mut().filter(|last| last.goes_on_in(&mapping)) {
            Some(last) => last.end = mapping.end,
            None => all.push(mapping),
        }
    }
    for mapping in all {
        let of = format!("{:x}-{:x} {}", mapping.start, mapping.end, mapping.path);
        sample.note("maps/offset", &of, format!("{:x}", mapping.offset));
        for (name, value) in mapping.told {
            sample.note(name, &of, value);
        }
    }
}

impl Mapping {
    /// Whether another is the same mapping further on.
    fn goes_on_in(&self, next: &Mapping) -> bool {
        let offset =
            if self.offset == 0 && next.offset == 0 { 0 } else { self.offset + self.end - self.start };
        self.end == next.start && offset == next.offset && self.path == next.path && self.told == next.told
    }

    /// `start-end perms offset device inode path`.
    fn parse(line: &str, who: &mut Who) -> Mapping {
        let mut parts = line.splitn(6, ' ');
        let mut next = || parts.next().unwrap_or_default();
        let (range, perms, offset, device, inode) = (next(), next(), next(), next(), next());
        let path = next().trim().to_owned();
        let (start, end) = range.split_once('-').unwrap_or_default();
        let nameless = NAMELESS.iter().any(|kind| path.starts_with(kind));
        let inode = if nameless { who.inode(inode) } else { who.known_inode(inode) };
        let told = [
            ("maps/permissions".to_owned(), perms.to_owned()),
            ("maps/file".to_owned(), format!("{device} {inode} {path}")),
        ];
        Mapping { start: hex(start), end: hex(end), offset: hex(offset), path, told: told.into() }
    }
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap_or(0)
}

fn lossy(path: &str) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Mappings with what is compared of them. The rest is noted as it comes.
fn smaps(text: &str, who: &mut Who, sample: &mut Sample) -> Vec<Mapping> {
    let mut all: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        let Some((name, value)) = line.split_once(':').filter(|_| first.ends_with(':')) else {
            all.push(Mapping::parse(line, who));
            continue;
        };
        let Some(mapping) = all.last_mut() else { continue };
        let name = format!("smaps/{name}");
        if name == "smaps/VmFlags" {
            flags(value, mapping, sample);
        } else if is_compared(&name) {
            mapping.told.insert(name, value.trim().to_owned());
        } else {
            sample.note(name, "a mapping", "told");
        }
    }
    all
}

/// Each flag is a reading, so that one that the table does not know is noticed.
fn flags(value: &str, mapping: &mut Mapping, sample: &mut Sample) {
    for flag in value.split_whitespace() {
        // A shared mapping of what may not be written: the kernel marks it by the descriptor it was made through.
        let only_read = flag == "sh" && !value.contains("mw");
        let name = format!("smaps/VmFlags/{flag}{}", if only_read { " without mw" } else { "" });
        if is_compared(&name) {
            mapping.told.insert(name, "set".to_owned());
        } else {
            sample.note(name, "a mapping", "told");
        }
    }
}

fn is_compared(name: &str) -> bool {
    matches!(look(name), Look::Row(row) if row.fate != Fate::Lost)
}

/// `start policy name=value …`: the policies by the start of the mapping.
fn numa_maps(text: &str, sample: &mut Sample) -> BTreeMap<u64, String> {
    let mut policies = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let start = hex(words.next().unwrap_or_default());
        policies.insert(start, words.next().unwrap_or_default().to_owned());
        for word in words {
            let name = word.split('=').next().unwrap_or_default();
            let is_node = name.strip_prefix('N').is_some_and(|n| n.parse::<u32>().is_ok());
            sample.note(format!("numa_maps/{}", if is_node { "N" } else { name }), "a mapping", "told");
        }
    }
    policies
}
