//! The shared key.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::LinkError;

/// A key that both ends hold. In a file it is one line of 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub(crate) [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// Reads a key file.
    ///
    /// # Errors
    /// A file that somebody else than its owner can read or write, that belongs to neither us nor root, or holds no key.
    pub fn load(path: &Path) -> Result<Self, LinkError> {
        let bad = |why: String| LinkError::Key { path: path.into(), why };
        let mut file = File::open(path).map_err(|error| bad(error.to_string()))?;
        let found = file.metadata().map_err(|error| bad(error.to_string()))?;
        if !found.is_file() {
            return Err(bad("not a regular file".into()));
        }
        if found.mode() & 0o077 != 0 {
            let mode = found.mode() & 0o777;
            return Err(bad(format!("others can use it (mode {mode:03o}); chmod 600 it, or make a new key")));
        }
        let own = nix::unistd::geteuid().as_raw();
        if found.uid() != own && found.uid() != 0 {
            return Err(bad(format!("it belongs to user {}", found.uid())));
        }
        let mut text = String::new();
        let read = (&mut file).take(4096).read_to_string(&mut text);
        read.map_err(|error| bad(error.to_string()))?;
        parse(text.trim()).ok_or_else(|| bad("expected a line of 64 hexadecimal digits".into()))
    }

    /// Makes a new random key in a new file that only its owner can use.
    ///
    /// # Errors
    /// A file that exists, or cannot be made.
    pub fn create(path: &Path) -> Result<(), LinkError> {
        let bad = |error: io::Error| LinkError::Key { path: path.into(), why: error.to_string() };
        let key: [u8; 32] = random().map_err(bad)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(bad)?;
        let line: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        file.write_all(format!("{line}\n").as_bytes()).and_then(|()| file.sync_all()).map_err(bad)
    }
}

/// Random bytes of the kernel's.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn parse(line: &str) -> Option<Key> {
    let digits: Option<Vec<u8>> = line.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let bytes: Vec<u8> = digits?.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).unwrap_or(&0)).collect();
    (line.len() == 64).then(|| bytes.try_into().ok().map(Key)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_private_or_not_taken() {
        let path = std::env::temp_dir().join(format!("pc-link-key-{}", std::process::id()));
        Key::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let key = Key::load(&path).unwrap();
        assert_ne!(key.0, [0; 32]);
        assert!(Key::create(&path).is_err(), "an existing key is not overwritten");
        assert_eq!(Key::load(&path).unwrap(), key);
        for mode in [0o640, 0o604, 0o660, 0o601] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(Key::load(&path).is_err(), "{mode:o}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        for bad in ["", "xyz", &"0".repeat(63), &"0".repeat(66), &"g".repeat(64)] {
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            fs::write(&path, bad).unwrap();
            assert!(Key::load(&path).is_err(), "{bad}");
        }
        fs::remove_file(&path).unwrap();
        assert!(Key::load(Path::new("/dev/null")).is_err());
        assert_eq!(format!("{key:?}"), "Key(..)");
    }
}
