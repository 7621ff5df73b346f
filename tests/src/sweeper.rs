//! What a test program leaves behind, however it ends, is swept away: processes that were given a path in one of its
//! folders (every guest is, and so is its copy), the folders, and control groups of their name.

use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicI32, Ordering};

/// Waits until the test program is gone: then the other end of its standard input is closed.
const SCRIPT: &str = r#"
import glob, os, shutil, signal, sys, time
os.setsid()
sys.stdin.buffer.read()
mark = sys.argv[1]
for _ in range(3):
    for process in filter(str.isdigit, os.listdir('/proc')):
        try:
            line = open(f'/proc/{process}/cmdline', 'rb').read()
            if int(process) != os.getpid() and mark.encode() in line:
                os.kill(int(process), signal.SIGKILL)
        except OSError:
            pass
for folder in glob.glob(mark + '*'):
    shutil.rmtree(folder, ignore_errors=True)
for root in '/sys/fs/cgroup/memory/', '/sys/fs/cgroup/', '/sys/fs/cgroup/unified/':
    for group in glob.glob(root + os.path.basename(mark) + '*'):
        for _ in range(100):
            try:
                os.rmdir(group)
                break
            except OSError:
                time.sleep(0.02)
"#;

/// Has what carries `mark` (how the paths of this program's folders begin) swept away when this program has ended.
pub fn start(mark: &str) {
    static START: Once = Once::new();
    START.call_once(|| {
        crate::keep_what_was_inherited();
        let mut sweeper = Command::new("python3");
        let sweeper = sweeper.args(["-c", SCRIPT, mark]).stdin(Stdio::piped()).stdout(Stdio::null());
        // It outlives us, and its standard input ends with us.
        let sweeper = sweeper.stderr(Stdio::null()).spawn().expect("python3 starts");
        PID.store(sweeper.id() as i32, Ordering::SeqCst);
        std::mem::forget(sweeper);
    });
}

static PID: AtomicI32 = AtomicI32::new(0);

/// The process that sweeps, which is nobody's to sweep away; 0 for none yet.
pub fn pid() -> i32 {
    PID.load(Ordering::SeqCst)
}
