//! The stream going out, and files that hold secrets.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use nix::unistd::linkat;

use crate::exit::{Exit, WithExit as _};

/// Takes standard output over for a stream: unbuffered, the only descriptor of it here, and
/// closed on exec. Descriptor 1 becomes `/dev/null`, so dropping the file really ends the
/// reader's input and a stray print cannot damage the stream.
///
/// # Errors
/// A terminal, or a stdout that is closed or read-only, with [`Exit::Usage`].
pub fn output(tool: &str) -> anyhow::Result<File> {
    let stdout = io::stdout();
    if stdout.is_terminal() {
        let why = anyhow!("{tool} does not write a stream to a terminal; give it a file or a pipe");
        return Err(why).exit(Exit::Usage);
    }
    usable(stdout.as_fd()).exit(Exit::Usage)?;
    let file = stdout.as_fd().try_clone_to_owned().context("standard output")?;
    let null = OpenOptions::new().write(true).open("/dev/null").context("cannot open /dev/null")?;
    nix::unistd::dup2_stdout(null).context("standard output")?;
    enlarge(file.as_fd());
    Ok(file.into())
}

/// Makes a pipe as large as anybody may: nearly twice the throughput of the usual 64 KiB. Whatever
/// is not a pipe, or may not grow, stays as it is and works too.
pub(crate) fn enlarge(fd: BorrowedFd<'_>) {
    let _ = fcntl(fd, FcntlArg::F_SETPIPE_SZ(1 << 20));
}

/// Refuses a standard output that loses what is written to it without a word: one that was closed as the tool began, in
/// whose place Rust's runtime has opened `/dev/null`. To throw the stream away is what a `/dev/null` that the caller gave is for.
fn usable(fd: BorrowedFd<'_>) -> anyhow::Result<()> {
    if pc_sys::startup::was_closed(1) {
        return Err(anyhow!("standard output is closed (to throw the stream away use >/dev/null)"));
    }
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).context("standard output")?);
    if flags & OFlag::O_ACCMODE == OFlag::O_RDONLY {
        return Err(anyhow!("standard output is not open for writing"));
    }
    Ok(())
}

/// Creates or empties a file that only its owner can read; an older file's mode is corrected
/// before anything is written to it.
pub fn create_private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// Puts `bytes` at `path`, mode 0600, all or nothing: readers see the old file or the new one.
/// A pipe, terminal or device at `path` is simply written to.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    Pending::open(path)?.write(bytes)
}

/// A private file in the making: created at once and with room for what will be said, so that what cannot be written
/// (a full disk, say) is found early, and put in its place, all or nothing, when there is something to be said. Dropped
/// before that, nothing is left of it.
#[derive(Debug)]
pub struct Pending {
    path: PathBuf,
    file: File,
    place: Place,
}

/// Where the bytes of a file in the making are.
#[derive(Debug)]
enum Place {
    /// In a file without a name, of which nothing is left however the tool ends.
    Nameless,
    /// In a file of another name, where the file system has none without.
    Beside(PathBuf),
    /// Where they belong.
    Itself,
}

impl Pending {
    /// Begins the file at `path`.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        Self::open(path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Writes it and puts it in its place.
    pub fn put(self, bytes: &[u8]) -> anyhow::Result<()> {
        let shown = self.path.display().to_string();
        self.write(bytes).with_context(|| format!("cannot write {shown}"))
    }

    fn open(path: &Path) -> io::Result<Self> {
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            let file = OpenOptions::new().write(true).open(path)?;
            return Ok(Pending { path: path.to_owned(), file, place: Place::Itself });
        }
        // Through a symbolic link: the file that it names is replaced, not the link.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let pending = match create_nameless(&path) {
            Ok(file) => Pending { path, file, place: Place::Nameless },
            Err(_) => {
                let (temporary, file) = create_beside(&path)?;
                Pending { path, file, place: Place::Beside(temporary) }
            }
        };
        make_room(&pending.file)?;
        Ok(pending)
    }

    fn write(mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        if !matches!(self.place, Place::Itself) {
            self.file.set_len(bytes.len() as u64)?;
        }
        if let Place::Nameless = self.place {
            self.place = Place::Beside(name_beside(&self.path, &self.file)?);
        }
        if let Place::Beside(temporary) = &self.place {
            fs::rename(temporary, &self.path)?;
            self.place = Place::Itself;
        }
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Place::Beside(temporary) = &self.place {
            // Nobody is left to be informed if this fails.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// Takes room on the disk for what such files usually hold, where the file system can.
fn make_room(file: &File) -> io::Result<()> {
    const USUALLY: i64 = 16 << 10;
    match fallocate(file, FallocateFlags::empty(), 0, USUALLY) {
        // A signal is heard of elsewhere.
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINTR) => Ok(()),
        made => Ok(made?),
    }
}

/// A new file without a name in the folder of `path`.
fn create_nameless(path: &Path) -> io::Result<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    OpenOptions::new().write(true).mode(0o600).custom_flags(OFlag::O_TMPFILE.bits()).open(folder)
}

/// Gives a file without a name one in the folder of `path`.
fn name_beside(path: &Path, file: &File) -> io::Result<PathBuf> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    let follow = AtFlags::AT_SYMLINK_FOLLOW;
    let (beside, ()) = beside(path, |beside| Ok(linkat(AT_FDCWD, own.as_str(), AT_FDCWD, beside, follow)?))?;
    Ok(beside)
}

/// A new file with a name of its own in the folder of `path`.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    beside(path, |beside| OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside))
}

/// Makes something by a name that nothing has, in the folder of `path`.
fn beside<T>(path: &Path, mut make: impl FnMut(&Path) -> io::Result<T>) -> io::Result<(PathBuf, T)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let mut number = 0;
    loop {
        let beside = path.with_file_name(format!(".{name}.{}.{number}", std::process::id()));
        match make(&beside) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            made => return Ok((beside, made?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("pc-cli-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn files_are_private_even_where_an_open_one_was_before() {
        let folder = folder("private");
        let path = folder.join("f");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        create_private(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_file_in_the_making_has_no_name_that_could_be_left() {
        let folder = folder("pending");
        let path = folder.join("f");
        let pending = Pending::create(&path).unwrap();
        assert!(matches!(pending.place, Place::Nameless), "{pending:?}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        pending.put(b"x").unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().mode() & 0o777),
            (b"x".to_vec(), 0o600)
        );
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        // Where the file system has none without a name.
        let (named, file) = create_beside(&path).unwrap();
        let pending = Pending { path: path.clone(), file, place: Place::Beside(named) };
        pending.put(b"y").unwrap();
        drop(Pending {
            path: path.clone(),
            place: Place::Beside(create_beside(&path).unwrap().0),
            file: File::open(&path).unwrap(),
        });
        assert_eq!(fs::read(&path).unwrap(), b"y");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        write_private(Path::new("/dev/null"), b"x").unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    }

    #[test]
    fn a_read_only_output_is_refused_and_any_other_taken_if_it_was_open() {
        assert!(usable(File::open("/dev/zero").unwrap().as_fd()).is_err());
        let both = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        assert!(usable(both.as_fd()).is_ok());
        let one = OpenOptions::new().write(true).open("/dev/null").unwrap();
        assert!(usable(one.as_fd()).is_ok());
    }
}
