#!/usr/bin/env python3
"""Lists what is in a stream of pc-dump, and checks it: a reader written from pc-stream(5) alone.

    read_stream.py image.pcs              one line for each frame, as `pc-show --frames` has it
    read_stream.py --bodies image.pcs     and what each record says, as JSON
    zstd -dc image.pcs.zst | read_stream.py

Exit status: 0 the stream is good, 3 it is bad, 4 it ends early, 6 it is of a kind not known here.
"""
import hashlib
import json
import struct
import sys

MAGIC = b"\x89PCS\r\n\x1a\n"
LIMIT, SKIPPABLE, COMPRESSED = 16 << 20, 1, 2
PAGES, PATCHES, COMMIT, CANCEL, END = 0x23, 0x24, 0x70, 0x71, 0xFFFF
RECORDS = {
    0x01: "Machine", 0x02: "RoundBegin", 0x03: "RoundEnd", 0x10: "Task", 0x11: "TaskGone", 0x12: "Space",
    0x13: "SpaceGone", 0x14: "File", 0x15: "ShmState", 0x16: "TaskNamespaces", 0x17: "Cgroup", 0x18: "TaskProc",
    0x20: "MapChange", 0x21: "Zap", 0x22: "ZeroPages", PAGES: "Pages",
    PATCHES: "Patches", 0x30: "MmState", 0x31: "SigTable", 0x32: "TaskState", 0x33: "Thread", 0x34: "MmSettings",
    0x35: "TaskSettings", 0x36: "ThreadSettings", 0x37: "TimerDates", 0x40: "FdTable", 0x41: "OpenFile",
    0x42: "SocketState", 0x43: "Queue",
    COMMIT: "Commit", CANCEL: "Cancel", END: "End",
}

# "name: field type, …" is a structure, "name| variant field type, …; …" one of several. T? is an option, [T] a list,
# (A+B) a pair, T*N an array.
SCHEMA = """
Clocks: realtime u64, monotonic i64, boottime i64, monotonic_offset i64, boottime_offset i64
Cpu: vendor str, xcr0 u64, xsave_size u32, leaves [Leaf], flags [str]
Leaf: leaf u32, subleaf u32, register u8, value u32
Vdso: image bytes, vvar_len u64, vvar_vclock_len u64
Machine: kernel str, hostname str, boot_id str, producer str, cpu Cpu, vdso Vdso, clocks Clocks, memory_needed u64, namespaces [(str+str)]
RoundBegin: number u32, last bool, clocks Clocks
Counts: pages u64, zero_pages u64, zapped_pages u64, patched_pages u64
Counts1: pages u64, zero_pages u64, zapped_pages u64
RoundEnd: number u32, counts Counts
RoundEnd1: number u32, counts Counts1
Commit: rounds u32, totals Counts, encoding_digest u8*32
Commit1: rounds u32, totals Counts1, encoding_digest u8*32
Cancel: reason str
Task: id u32, pid u32, parent u32?, space u32?, fds u32?, sigs u32?, pgid u32, sid u32, exit_signal u8, tids [u32], comm bytes
TaskGone: id u32
Space: id u32, kind SpaceKind
SpaceKind| Mm; Shm size u64, name str
SpaceGone: id u32
File: id u32, path bytes, mode u32, size u64, mtime i64, rdev u64, build_id bytes?, need FileNeed
ShmState: space u32, size u64, seals u32, mode u32, uid u32, gid u32
NamespaceKind| User; Net; Uts; Ipc; Mnt; Cgroup
Namespace: kind NamespaceKind, inode u64, copied bool
IdRange: inside u32, outside u32, count u32
TaskNamespaces: task u32, others [Namespace], uid_map [IdRange], gid_map [IdRange]
CgroupPath: controllers str, path bytes
Cgroup: task u32, paths [CgroupPath]
TaskProc: task u32, autogroup_nice i32, loginuid u32
FileNeed| Same; Exists; Kind
Vma: start u64, end u64, prot u8, flags u32, pkey u8, backing Backing, name str?
Backing| Anonymous; File file u32, offset u64; Shm space u32, offset u64; Hugetlb shift u8; Vdso; Vvar; VvarVclock; Vsyscall
MapChange: space u32, unmap [(u64+u64)], map [Vma], modify [Vma]
Zap: space u32, ranges [(u64+u64)]
ZeroPages: space u32, ranges [(u64+u64)]
MmState: space u32, start_code u64, end_code u64, start_data u64, end_data u64, start_brk u64, brk u64, start_stack u64, arg_start u64, arg_end u64, env_start u64, env_end u64, auxv bytes, exe u32, dumpable u8, thp_disable bool, coredump_filter u32, lock_future u32, guards [(u64+u64)]
MmSettings: space u32, pkeys u32, execute_only_pkey u8?, mdwe u32, thp_flags u32, memory_merge bool, ldt [(u32+u64)], sealed [(u64+u64)], policies [RangePolicy], thread_policies [ThreadPolicy]
MemPolicy: mode u32, nodes bytes
RangePolicy: start u64, end u64, policy MemPolicy
ThreadPolicy: tid u32, policy MemPolicy
SigAction: handler u64, flags u64, restorer u64, mask u64
SigTable: id u32, actions [SigAction]
ITimer: value u64, interval u64
PosixTimer: id i32, clock i32, signo i32, notify i32, tid u32, sigval u64, value u64, interval u64, overrun i32
TaskState: task u32, cwd u32, root u32?, umask u32, rlimits [(u64+u64)], itimers ITimer*3, timers [PosixTimer], pending [bytes], oom_score_adj i32, personality u32, child_subreaper bool, stopped i32?
Restart| None; Block left u64?
AltStack: sp u64, flags u32, size u64
Rseq: addr u64, len u32, sig u32
Sched: policy u32, nice i32, priority u32, deadline u64*3, affinity bytes, ioprio u32, timer_slack u64
Creds: uids u32*4, gids u32*4, groups [u32], cap_inheritable u64, cap_permitted u64, cap_effective u64, cap_bounding u64, cap_ambient u64, securebits u32, no_new_privs bool
SeccompFilter: insns bytes, flags u64
Seccomp| Disabled; Strict; Filter filters [SeccompFilter]
Thread: task u32, tid u32, comm bytes, regs u64*27, xstate bytes, restart Restart, sigmask u64, pending [bytes], altstack AltStack, robust_list (u64+u64), rseq Rseq?, clear_child_tid u64, pdeath_signal i32, sched Sched, creds Creds, seccomp Seccomp
TaskSettings: task u32, membarrier u32, chooses_timer_ids bool, label bytes?
Speculation: feature u32, state u32
ThreadSettings: task u32, tid u32, tsc_trapped bool, mce_kill u32?, speculation [Speculation], util_clamp (u32+u32)?, sched_flags u64, personality u32?, rseq_slice bool
TimerDates: task u32, dates [(i32+u64)]
Fd: fd u32, file u32, cloexec bool
FdTable: id u32, fds [Fd]
Owner: kind i32, pid u32, signal i32
OpenFile: id u32, flags u32, owner Owner?, kind Kind
Kind| Regular file u32, offset u64; Pipe pipe u32, capacity u32, content [bytes]; Event count u64, semaphore bool; Epoll targets [Target]; Timer clock i32, settime_flags u32, ticks u64, value u64, interval u64; Signal mask u64; Inet family u16, kind i32, protocol i32, state InetState, options [SockOpt]; Unix kind i32, name bytes, file Owned?, state UnixState, options [SockOpt]; External id str, kind ExternalKind; Shm space u32, offset u64; Proc task u32, thread u32?, path bytes, offset u64
Target: fd u32, file u32, events u32, data u64
SockOpt: level i32, name i32, value bytes
Addr| V4 ip u8*4, port u16; V6 ip u8*16, port u16, flow u32, scope u32
InetState| New; Bound local Addr; Listen local Addr, backlog u32; ConnectedUdp local Addr, peer Addr; Closed local Addr?, peer Addr?; Connected local Addr, peer Addr, state TcpState, receive TcpQueue, send TcpQueue, unsent u32, window TcpWindow, options TcpOptions, shut_read bool
TcpState| Established; FinWait1; FinWait2; Closing; CloseWait; LastAck
TcpQueue: sequence u32, bytes bytes
TcpWindow: snd_wl1 u32, snd_wnd u32, max_window u32, rcv_wnd u32, rcv_wup u32
TcpOptions: mss u32, scale (u8+u8)?, sack bool, timestamp u32?
Owned: mode u32, uid u32, gid u32
UnixState| Unconnected; Listen backlog u32; Pair pair u32, queue [bytes], shutdown u8
SocketState: file u32, binding [SockOpt], devices [DeviceOption], memberships [Membership], filter [FilterStep], shutdown u8, ended bytes?, socket_file SocketFile?
DeviceOption: level i32, name i32, device bytes
Membership: device bytes, group bytes, include bool, sources [bytes]
FilterStep: code u16, jt u8, jf u8, k u32
SocketFile| Removed; At path bytes
Queue: file u32, first u32, datagrams [Datagram]
Datagram: from Addr?, bytes bytes
ExternalKind| Terminal; PipeRead; PipeWrite
"""
INTEGERS = {"u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q", "i32": "<i", "i64": "<q"}


class Wrong(Exception):
    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


def fields_of(text):
    return [tuple(field.split()) for field in text.split(",") if field.strip()]


STRUCTURES, VARIANTS = {}, {}
for line in SCHEMA.strip().splitlines():
    head, _, rest = line.partition(" ")
    if head.endswith(":"):
        STRUCTURES[head[:-1]] = fields_of(rest)
    else:
        parts = [variant.strip().partition(" ") for variant in rest.split(";")]
        VARIANTS[head[:-1]] = [(variant, fields_of(body)) for variant, _, body in parts]


class Body:
    """A record's body: integers little-endian and of fixed width, lists and texts after a u64 length."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        if n > len(self.data) - self.at:
            raise Wrong(3, "a body that ends early")
        self.at += n
        return self.data[self.at - n:self.at]

    def integer(self, kind):
        return struct.unpack(INTEGERS[kind], self.take(struct.calcsize(INTEGERS[kind])))[0]

    def value(self, kind):
        if kind in INTEGERS:
            return self.integer(kind)
        if kind == "bool":
            if self.data[self.at:self.at + 1] not in (b"\0", b"\1"):
                raise Wrong(3, "no 0 or 1 where a flag was due")
            return self.take(1) == b"\1"
        if kind in ("bytes", "str"):
            return self.take(self.integer("u64")).decode("utf-8", "strict" if kind == "str" else "backslashreplace")
        if kind.endswith("?"):
            return self.value(kind[:-1]) if self.value("bool") else None
        if kind.startswith("["):
            return [self.value(kind[1:-1]) for _ in range(self.integer("u64"))]
        if kind.startswith("("):
            return [self.value(part) for part in kind[1:-1].split("+")]
        if "*" in kind:
            part, _, count = kind.partition("*")
            return [self.value(part) for _ in range(int(count))]
        if kind in STRUCTURES:
            return self.structure(STRUCTURES[kind])
        number = self.integer("u32")
        if number >= len(VARIANTS[kind]):
            raise Wrong(3, f"variant {number} of {kind}")
        name, fields = VARIANTS[kind][number]
        return {name: self.structure(fields)} if fields else name

    def structure(self, fields):
        return {name: self.value(kind) for name, kind in fields}


TABLE = list(range(256))
for _ in range(8):
    TABLE = [entry >> 1 ^ (0x82F63B78 if entry & 1 else 0) for entry in TABLE]


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


class Stream:
    def __init__(self, source):
        self.source, self.offset = source, 0

    def take(self, n):
        data = self.source.read(n)
        self.offset += len(data)
        if len(data) < n:
            raise Wrong(4, f"the stream ends early, at byte {self.offset}")
        return data


def by_hand(payload, layout, unit):
    space, count = struct.unpack_from("<II", payload.ljust(8, b"\0"))
    head = 8 + struct.calcsize(layout) * count
    table = list(struct.iter_unpack(layout, payload[8:head])) if head <= len(payload) else []
    if sum(length for _, length in table) * unit != len(payload) - head:
        raise Wrong(3, "a table and data of different length")
    return {"space": space, "table": table}


def frame(stream, number, digest, bodies):
    offset, head = stream.offset, stream.take(32)
    kind, version, flags, length, found, payload_crc, crc = struct.unpack("<HHIQQII", head)
    if crc32c(head[:28]) != crc or flags & ~3 or found != number or length > (0 if kind == END else LIMIT):
        raise Wrong(3, f"at byte {offset}, frame {number}: a bad header")
    payload = stream.take(length)
    if crc32c(payload) != payload_crc:
        raise Wrong(3, f"at byte {offset}, frame {number}: a payload whose checksum is wrong")
    name = RECORDS.get(kind, "unknown")
    newest = 0 if kind == END else 2 if name in ("RoundEnd", "Commit", "OpenFile") else 1
    known = kind in RECORDS and (version == newest or version == 1 < newest)
    if not known and not flags & SKIPPABLE or known and flags & COMPRESSED:
        raise Wrong(6, f"at byte {offset}: type {kind:#06x} ({name}) version {version} is not known here")
    said, layout = None, {PAGES: ("<QQ", 4096), PATCHES: ("<QH", 1)}.get(kind)
    if known and layout:
        said = by_hand(payload, *layout)
    elif known and kind != END:
        body = Body(payload)
        said = body.value(name if version == newest or name == "OpenFile" else f"{name}{version}")  # which only gained Proc
        if name == "OpenFile" and version == 1 and "Proc" in said["kind"]:
            raise Wrong(3, f"at byte {offset}, frame {number}: what only version 2 of {name} can say")
        if body.at != length:
            raise Wrong(3, f"at byte {offset}, frame {number}: {length - body.at} bytes too many in {name}")
        if kind == COMMIT and bytes(said["encoding_digest"]) != digest.digest():
            raise Wrong(3, f"at byte {offset}, frame {number}: the digest in Commit is not that of the stream")
    digest.update(head)
    print(f"{offset:>12} {number:>8} {kind:#06x} {name:<10} v{version} {length:>9} crc {payload_crc:08x}")
    if bodies and said is not None:
        print(json.dumps({name: said}))
    return kind


def segment(stream, preamble, bodies):
    version, arch, page_size, _, incompatible = struct.unpack_from("<HHIQQ", preamble, 8)
    if preamble[:8] != MAGIC or crc32c(preamble[:60]) != int.from_bytes(preamble[60:], "little") or any(preamble[48:60]):
        raise Wrong(3, "not a pc-tools stream, or a bad preamble")
    if (version, arch, page_size, incompatible) != (1, 62, 4096, 0):
        raise Wrong(6, "a stream of another version, architecture or page size")
    print(f"{stream.offset - 64:>12} preamble v{version} {preamble[32:48].hex()}")
    digest, number, before, kind = hashlib.sha256(), 0, None, None
    while kind != END:
        before, kind = kind, frame(stream, number, digest, bodies)
        number += 1
    if before not in (COMMIT, CANCEL):
        raise Wrong(3, "an End without a Commit")


def main():
    paths = [argument for argument in sys.argv[1:] if argument != "--bodies"]
    stream = Stream(open(paths[0], "rb") if paths else sys.stdin.buffer)
    try:
        while True:
            preamble = stream.source.read(64)
            if not preamble and stream.offset:
                return 0
            stream.offset += len(preamble)
            if len(preamble) < 64:
                raise Wrong(4, f"the stream ends early, at byte {stream.offset}")
            segment(stream, preamble, "--bodies" in sys.argv)
    except (Wrong, UnicodeDecodeError) as wrong:
        print(f"read_stream.py: {wrong}", file=sys.stderr)
        return getattr(wrong, "status", 3)


if __name__ == "__main__":
    sys.exit(main())
