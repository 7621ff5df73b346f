//! /proc/PID/maps and /proc/PID/smaps: see proc_pid_maps(5), proc_pid_smaps(5).

/// A line of /proc/PID/maps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Readable, writable, executable: bits 1, 2 and 4 as in mmap(2).
    pub prot: u8,
    /// `MAP_SHARED`.
    pub shared: bool,
    /// Offset into the file in bytes.
    pub offset: u64,
    /// Device number of the file: major, minor.
    pub dev: (u32, u32),
    /// Inode number of the file, 0 = none.
    pub inode: u64,
    /// Path or name as the file has it: a newline is `\\012`, and a backslash is not escaped (see [`unescape`]).
    pub name: Vec<u8>,
}

impl Area {
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// The name as text, for messages.
    pub fn label(&self) -> String {
        super::shown(&self.name)
    }
}

/// What only smaps shows of a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Smaps {
    /// The two-letter words of `VmFlags`.
    pub flags: Vec<[u8; 2]>,
    /// `KernelPageSize` in bytes.
    pub page_size: u64,
    /// `ProtectionKey`.
    pub pkey: u8,
}

impl Smaps {
    /// Whether `VmFlags` has this word.
    pub fn has(&self, flag: &[u8; 2]) -> bool {
        self.flags.contains(flag)
    }
}

/// Parses /proc/PID/maps; `None` if a line is not understood.
pub fn parse_maps(text: &[u8]) -> Option<Vec<Area>> {
    text.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(parse_line).collect()
}

/// Parses /proc/PID/smaps: the lines of maps with what it adds to them.
pub fn parse_smaps(text: &[u8]) -> Option<Vec<(Area, Smaps)>> {
    let mut all: Vec<(Area, Smaps)> = Vec::new();
    for line in text.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let key_end = line.iter().position(|b| matches!(b, b':' | b' '))?;
        if line[key_end] != b':' || line.get(key_end + 1).is_some_and(|b| !b.is_ascii_whitespace()) {
            all.push((parse_line(line)?, Smaps::default()));
            continue;
        }
        let (_, smaps) = all.last_mut()?;
        let value = std::str::from_utf8(&line[key_end + 1..]).ok()?.trim();
        match &line[..key_end] {
            b"KernelPageSize" => {
                smaps.page_size = value.strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024
            }
            b"ProtectionKey" => smaps.pkey = value.parse().ok()?,
            b"VmFlags" => {
                smaps.flags = value.split_whitespace().filter_map(|w| w.as_bytes().try_into().ok()).collect();
            }
            _ => {}
        }
    }
    Some(all)
}

fn parse_line(line: &[u8]) -> Option<Area> {
    let mut fields = line.splitn(6, |b| *b == b' ');
    let mut text = || fields.next().and_then(|f| std::str::from_utf8(f).ok());
    let (start, end) = text()?.split_once('-')?;
    let perms = text()?.as_bytes();
    let offset = text()?;
    let (major, minor) = text()?.split_once(':')?;
    let inode = text()?;
    let hex = |s: &str| u64::from_str_radix(s, 16).ok();
    let bit = |at: usize, letter: u8, bit: u8| if perms.get(at) == Some(&letter) { bit } else { 0 };
    let name = fields.next().unwrap_or_default();
    let blank = name.iter().take_while(|b| **b == b' ').count();
    Some(Area {
        start: hex(start)?,
        end: hex(end)?,
        prot: bit(0, b'r', 1) | bit(1, b'w', 2) | bit(2, b'x', 4),
        shared: perms.get(3) == Some(&b's'),
        offset: hex(offset)?,
        dev: (hex(major)? as u32, hex(minor)? as u32),
        inode: inode.parse().ok()?,
        name: name[blank..].to_vec(),
    })
}

/// A path with its newlines, which the kernel writes as `\012`. That may also be what the path has: the kernel does not
/// escape backslashes here.
pub fn unescape(name: &[u8]) -> Vec<u8> {
    const NEWLINE: &[u8] = b"\\012";
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some(byte) = rest.first() {
        let escaped = rest.starts_with(NEWLINE);
        out.push(if escaped { b'\n' } else { *byte });
        rest = &rest[if escaped { NEWLINE.len() } else { 1 }..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &[u8] =
        b"55934cc5a000-55934cc5c000 r--p 00001000 fe:00 247774                     /usr/bin/a b\\012c\n\
        7f0000000000-7f0000001000 rw-s 00000000 00:01 12                         /dev/zero (deleted)\n\
        7f947f7fb000-7f947f7fe000 rw-p 00000000 00:00 0 \n\
        ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";

    #[test]
    fn a_line_is_split_into_its_fields() {
        let areas = parse_maps(MAPS).unwrap();
        assert_eq!(areas.len(), 4);
        assert_eq!(areas[0].name, b"/usr/bin/a b\\012c");
        assert_eq!(unescape(&areas[0].name), b"/usr/bin/a b\nc");
        assert_eq!((areas[0].prot, areas[0].shared, areas[0].offset), (1, false, 0x1000));
        assert_eq!((areas[0].dev, areas[0].inode), ((0xfe, 0), 247_774));
        assert!(areas[1].shared && areas[1].prot == 3);
        assert_eq!(areas[1].label(), "/dev/zero (deleted)");
        assert!(areas[2].name.is_empty());
        assert_eq!(areas[3].prot, 4);
        assert!(parse_maps(b"garbage\n").is_none());
    }

    #[test]
    fn smaps_gives_flags_and_page_size() {
        let text = b"7f0000000000-7f0000200000 rw-p 00000000 00:00 0 \nSize:  2048 kB\nKernelPageSize:     2048 kB\n\
            ProtectionKey:         3\nVmFlags: rd wr mr mw me ac lo hg \n\
            7f0000200000-7f0000201000 r--p 00000000 00:00 0 [anon:x]\nKernelPageSize: 4 kB\nVmFlags: rd mr\n";
        let all = parse_smaps(text).unwrap();
        let (area, smaps) = &all[0];
        assert_eq!(area.end, 0x7f00_0020_0000);
        assert_eq!((smaps.page_size, smaps.pkey), (2 << 20, 3));
        assert!(smaps.has(b"lo") && smaps.has(b"hg") && !smaps.has(b"gd"));
        assert_eq!(all.len(), 2);
    }
}
