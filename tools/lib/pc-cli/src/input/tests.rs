use std::io::Write as _;

use super::*;

fn piped(bytes: Vec<u8>) -> Input {
    let (read, mut write) = io::pipe().unwrap();
    std::thread::spawn(move || write.write_all(&bytes));
    Input::new(File::from(std::os::fd::OwnedFd::from(read))).unwrap()
}

fn stored(bytes: &[u8]) -> Input {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("pc-cli-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, bytes).unwrap();
    let input = Input::new(File::open(&path).unwrap()).unwrap();
    std::fs::remove_file(path).unwrap();
    input
}

fn read_all(mut input: Input) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    input.read_to_end(&mut out).map(|_| out)
}

fn sample() -> Vec<u8> {
    (0..300_000_u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()).collect()
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

#[test]
fn plain_bytes_come_through_unchanged_however_few() {
    for len in [0, 1, 3, 4, 5, 100_000] {
        let bytes = sample()[..len].to_vec();
        assert_eq!(read_all(piped(bytes.clone())).unwrap(), bytes);
        assert_eq!(read_all(stored(&bytes)).unwrap(), bytes);
    }
}

#[test]
fn only_a_plain_regular_file_is_given_for_mapping() {
    assert!(stored(b"plain").file().is_some());
    assert!(stored(&packed(b"x")).file().is_none());
    assert!(piped(b"plain".to_vec()).file().is_none());
}

#[test]
fn zstd_is_recognised_in_files_and_pipes_with_several_and_skippable_frames() {
    let bytes = sample();
    let (first, second) = bytes.split_at(70_001);
    let skippable = [&[0x5e, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let whole = [skippable, packed(first), packed(second)].concat();
    assert_eq!(read_all(piped(whole.clone())).unwrap(), bytes);
    assert_eq!(read_all(stored(&whole)).unwrap(), bytes);
}

#[test]
fn zstd_cut_anywhere_is_truncated_or_a_whole_prefix_never_damage() {
    let one = packed(&sample()[..40_000]);
    let two = [one.clone(), one.clone()].concat();
    for cut in (4..two.len()).step_by(997).chain([4, 5, one.len() - 1, one.len() + 1, two.len() - 1]) {
        match read_all(stored(&two[..cut])) {
            Ok(bytes) => assert!(cut == one.len() && bytes.len() == 40_000),
            Err(error) => {
                let exit = crate::exit_of(&anyhow::Error::new(error).context("x"));
                assert_eq!(exit, Exit::Truncated, "cut at {cut}");
            }
        }
    }
}

#[test]
fn damaged_zstd_and_garbage_behind_it_are_a_bad_stream() {
    let mut bytes = packed(&sample());
    bytes.extend(b"garbage behind");
    let error = read_all(piped(bytes)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(crate::exit_of(&error.into()), Exit::BadStream);
}

#[test]
fn a_window_above_the_limit_is_refused_without_taking_the_memory() {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(WINDOW_LOG_MAX + 1).unwrap();
    encoder.write_all(&sample()).unwrap();
    encoder.flush().unwrap();
    let error = read_all(piped(encoder.finish().unwrap())).unwrap_err();
    assert_eq!(crate::exit_of(&error.into()), Exit::BadStream);
}

#[test]
fn what_other_programs_have_packed_is_told_by_its_magic() {
    for (head, format) in [
        (&b"\x1f\x8b\x08\0rest"[..], "gzip"),
        (b"\xfd7zXZ\0rest", "xz"),
        (b"BZh91AY", "bzip2"),
        (b"\x04\x22\x4d\x18rest", "lz4"),
        (b"age-encryption.org/v1", "age"),
    ] {
        let (read, mut write) = io::pipe().unwrap();
        write.write_all(head).unwrap();
        drop(write);
        let found = Input::of("pc-x", File::from(std::os::fd::OwnedFd::from(read)), None, None);
        let error = anyhow::Error::new(found.err().unwrap());
        let text = crate::report::chain(&error);
        assert!(text.contains(format) && text.contains(" … | pc-x"), "{text}");
        assert_eq!(crate::exit_of(&error), Exit::BadStream);
    }
}
