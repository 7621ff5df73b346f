//! By which method written pages are found: as asked, or the best that the kernel and the process allow.

use pc_trace::Tracees;
use pc_track::{SoftDirty, TrackError, Tracker, Uffd};

use crate::error::{Result, unsupported};
use crate::rounds::tracking::failed;
use crate::settings::{Caller, Track};

/// Room for the one remote call that tracking needs.
const REMOTE_ROOM: usize = 4096;

/// Makes the process, which must stand still for it, do what the method takes. None: hashing, which takes nothing.
pub(crate) fn choose(
    tracees: &mut Tracees,
    track: Track,
    caller: &mut dyn Caller,
) -> Result<Option<Box<dyn Tracker>>> {
    let pid = tracees.pid();
    Ok(match track {
        Track::Uffd => Some(Box::new(uffd(tracees)?.or_else(|why| no_tracker(pid, &why))?)),
        Track::SoftDirty => Some(Box::new(soft_dirty(pid)?.or_else(|why| no_tracker(pid, &why))?)),
        Track::Hash => None,
        Track::Auto => automatic(tracees, caller)?,
    })
}

type Tried<T> = std::result::Result<T, String>;

fn uffd(tracees: &mut Tracees) -> Result<Tried<Uffd>> {
    let mut remote = tracees.remote(REMOTE_ROOM)?;
    let begun = Uffd::begin(&mut remote);
    remote.finish()?;
    match begun {
        Ok(uffd) => Ok(Ok(uffd)),
        Err(TrackError::Unsupported(what)) => Ok(Err(format!("this kernel lacks {what}"))),
        Err(TrackError::Trace(err @ pc_trace::TraceError::Remote { .. })) => {
            Ok(Err(format!("the process cannot make a userfaultfd ({err})")))
        }
        Err(err) => Err(failed(tracees.pid(), err)),
    }
}

fn soft_dirty(pid: i32) -> Result<Tried<SoftDirty>> {
    if !SoftDirty::supported() {
        return Ok(Err("this kernel has no soft-dirty bits".to_owned()));
    }
    SoftDirty::begin(pid).map(Ok).map_err(|err| failed(pid, err))
}

fn automatic(tracees: &mut Tracees, caller: &mut dyn Caller) -> Result<Option<Box<dyn Tracker>>> {
    let why = match uffd(tracees)? {
        Ok(uffd) => return Ok(Some(Box::new(uffd))),
        Err(why) => why,
    };
    let second = match soft_dirty(tracees.pid())? {
        Ok(soft_dirty) => {
            caller.notice(&format!("{why}: written pages are found by soft-dirty bits"));
            return Ok(Some(Box::new(soft_dirty)));
        }
        Err(why) => why,
    };
    caller.notice(&format!("{why}, {second}: every page is hashed in every round, and at the stop"));
    Ok(None)
}

fn no_tracker<T>(pid: i32, why: &str) -> Result<T> {
    unsupported(pid, None, format!("its memory cannot be tracked as asked: {why}"))
}
