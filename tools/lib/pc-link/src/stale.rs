//! Files of Unix sockets: one that nobody listens on any more is in the way only, and goes, as does our own in the end.
//! Nothing else does.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use socket2::{Domain, SockAddr, Socket, Type};

/// One that was bound a moment ago does not listen yet, and is no less alive.
const BETWEEN_BIND_AND_LISTEN: Duration = Duration::from_millis(20);

/// Which file it is.
type Identity = (u64, u64);

/// Removes the file at `path` if it is a socket that nobody listens on. Fails if it is anything but a socket: connect(2)
/// answers `ECONNREFUSED` for that, too.
pub fn clear(path: &Path) -> io::Result<()> {
    let Some(found) = look(path)? else { return Ok(()) };
    if !nobody_listens(path)? {
        return Ok(()); // to bind will fail
    }
    std::thread::sleep(BETWEEN_BIND_AND_LISTEN);
    // Between this and what comes next somebody else may put another file there.
    if look(path)? == Some(found) && nobody_listens(path)? { remove(path, found) } else { Ok(()) }
}

/// The file of a socket of ours, which goes with us unless it is another by then.
#[derive(Debug)]
pub struct Own {
    path: PathBuf,
    identity: Identity,
}

impl Own {
    /// What was just bound at `path`; `None` if somebody has taken it away already.
    pub fn at(path: &Path) -> Option<Self> {
        let identity = look(path).ok()??;
        Some(Self { path: path.to_owned(), identity })
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // It may have been removed by others.
        let _ = remove(&self.path, self.identity);
    }
}

fn identity(meta: &Metadata) -> Identity {
    (meta.dev(), meta.ino())
}

/// What is there: a socket, or nothing.
fn look(path: &Path) -> io::Result<Option<Identity>> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => Ok(Some(identity(&meta))),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file that is no socket; it is left as it is",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn nobody_listens(path: &Path) -> io::Result<bool> {
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // One whose queue is full would keep us waiting.
    probe.set_nonblocking(true)?;
    let tried = probe.connect(&SockAddr::unix(path)?);
    Ok(tried.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}

/// Removes that very file, where the file system can rename without replacing: it is taken out of the way under a name of our own and looked at there, where nobody else puts
/// another in its place. If it is another, it is put back.
fn remove(path: &Path, wanted: Identity) -> io::Result<()> {
    let aside = aside(path);
    match rename(path, &aside) {
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => return Ok(()),
        moved => moved?,
    }
    let taken = fs::symlink_metadata(&aside).map(|meta| identity(&meta));
    if taken.is_ok_and(|taken| taken == wanted) {
        return fs::remove_file(&aside);
    }
    rename(&aside, path)
}

/// Replaces nothing.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE)?)
}

fn aside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    /// A folder that goes with the guard.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("pc-link-stale-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn names(&self) -> usize {
            fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn only_a_socket_that_nobody_listens_on_goes() {
        let folder = Folder::new("kinds");
        let path = folder.0.join("s");
        clear(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        clear(&path).unwrap();
        assert!(!path.exists());
        let listens = UnixListener::bind(&path).unwrap();
        clear(&path).unwrap();
        assert!(path.exists(), "somebody listens");
        drop(listens);
        fs::remove_file(&path).unwrap();
        let datagrams = UnixDatagram::bind(&path).unwrap();
        clear(&path).unwrap();
        assert!(path.exists(), "somebody takes datagrams");
        drop(datagrams);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "kept").unwrap();
        assert_eq!(clear(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"kept");
        let link = folder.0.join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(clear(&link).is_err() && link.exists());
        assert_eq!(folder.names(), 2);
    }

    #[test]
    fn what_takes_its_place_at_the_last_moment_stays() {
        let folder = Folder::new("race");
        let path = folder.0.join("s");
        drop(UnixListener::bind(&path).unwrap());
        let stale = look(&path).unwrap().unwrap();
        fs::rename(&path, folder.0.join("old")).unwrap();
        fs::write(&path, "another's").unwrap();
        remove(&path, stale).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"another's");
        assert_eq!(folder.names(), 2);
    }
}
