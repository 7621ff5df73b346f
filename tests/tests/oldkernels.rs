//! What the engine does on a kernel that lacks a call, which a filter of seccomp(2) makes of the one that is here.

#![forbid(unsafe_code)]

use std::fs::File;
use std::process::{Command, Stdio};

use pc_tests::{Folder, Writer, program, restored, said};

/// Runs a program in whose processes `ioctl(PAGEMAP_SCAN)` fails with `ENOTTY`, as before Linux 6.7.
const WITHOUT_PAGEMAP_SCAN: &str = "import ctypes, os, struct, sys
def op(code, jt, jf, k): return struct.pack('HBBI', code, jt, jf, k)
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
filter = op(LOAD, 0, 0, 0) + op(EQUAL, 0, 3, 16) + op(LOAD, 0, 0, 24) + op(EQUAL, 0, 1, 0xc0606610)
filter += op(RETURN, 0, 0, 0x00050000 | 25) + op(RETURN, 0, 0, 0x7fff0000)
program = ctypes.create_string_buffer(filter)
class Prog(ctypes.Structure): _fields_ = [('len', ctypes.c_ushort), ('filter', ctypes.c_void_p)]
prog = Prog(len(filter) // 8, ctypes.addressof(program))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(prog), 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])";

#[test]
fn a_kernel_without_pagemap_scan_moves_the_guest_with_every_method_that_it_has() {
    for args in [&["--once"][..], &["--track=hash", "--rounds=4"], &["--track=auto", "--rounds=4"]] {
        let folder = Folder::new();
        let image = folder.file("image");
        let writer = Writer::start();
        let moved = writer.moved_by(|mut guest| {
            let mut dump = Command::new("python3");
            dump.args(["-c", WITHOUT_PAGEMAP_SCAN])
                .arg(program("pc-dump"))
                .args(args)
                .args(["--kill", &guest.arg()]);
            let out = File::create(&image).expect("an image");
            let output = dump.stdin(Stdio::null()).stdout(out).output().expect("python3 runs");
            assert!(output.status.success(), "{args:?}: {:?}: {}", output.status, said(&output));
            guest.ended(std::time::Duration::from_secs(20));
            restored(&image, &[])
        });
        moved.goes_on();
        moved.end();
    }
}
