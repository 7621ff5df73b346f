//! A stream that holds every record at least once.

use std::net::SocketAddr;

use pc_image::*;

use super::end_round;

/// Clock readings at `t` nanoseconds.
pub fn clocks(t: i64) -> Clocks {
    Clocks {
        realtime: 1_700_000_000_000_000_000,
        monotonic: t,
        boottime: t + 5,
        monotonic_offset: 0,
        boottime_offset: 0,
    }
}

/// A machine.
pub fn machine() -> Machine {
    Machine {
        kernel: "6.18.0".into(),
        hostname: "source".into(),
        boot_id: "00000000-0000-0000-0000-000000000000".into(),
        producer: "pc-dump 0".into(),
        cpu: CpuFeatures {
            vendor: "GenuineTest".into(),
            xcr0: 7,
            xsave_size: 832,
            leaves: vec![(1, 0, 2, 0x1234)],
            flags: vec!["sse2".into(), "avx".into()],
        },
        vdso: Vdso { image: vec![0x7f, b'E', b'L', b'F'], vvar_len: 16384, vvar_vclock_len: 8192 },
        clocks: clocks(1_000_000_000),
        memory_needed: 8192,
        namespaces: vec![("pid".into(), "pid:[4026531836]".into())],
    }
}

/// A file.
pub fn file(id: u32, path: &str, need: FileNeed) -> Record {
    Record::File(File {
        id: FileId(id),
        path: path.into(),
        mode: 0o100755,
        size: 4096,
        mtime: 5,
        rdev: 0,
        build_id: Some(vec![1, 2, 3]),
        need,
    })
}

/// A mapping that can be read and written.
pub fn vma(start: u64, end: u64, backing: Backing) -> Vma {
    Vma {
        start,
        end,
        prot: prot::READ | prot::WRITE,
        flags: vma_flag::MAYWRITE,
        pkey: 0,
        backing,
        name: Some("heap of things".into()),
    }
}

fn open(id: u32, kind: OpenFileKind) -> Record {
    let owner = (id == 1).then_some(Owner { kind: 1, pid: 100, signal: 29 });
    Record::OpenFile(OpenFile { id: OpenFileId(id), flags: 2, owner, kind })
}

fn inet(state: InetState) -> OpenFileKind {
    let options = vec![SockOpt { level: 1, name: 2, value: vec![1, 0, 0, 0] }];
    OpenFileKind::Inet(Inet { family: 2, kind: 1, protocol: 6, state, options })
}

/// A connection of which much is waiting, in the midst of being ended.
fn connection(local: SocketAddr, peer: SocketAddr) -> TcpConnection {
    TcpConnection {
        local,
        peer,
        state: TcpState::FinWait1,
        receive: TcpQueue { sequence: 0xffff_fffe, bytes: b"unread".to_vec() },
        send: TcpQueue { sequence: 5, bytes: b"unacknowledged".to_vec() },
        unsent: 3,
        window: TcpWindow { snd_wl1: 1, snd_wnd: 65_536, max_window: 70_000, rcv_wnd: 64_000, rcv_wup: 2 },
        options: TcpOptions { mss: 1460, scale: Some((7, 8)), sack: true, timestamp: Some(0x1234_5678) },
        shut_read: true,
    }
}

fn unix(state: UnixState) -> OpenFileKind {
    OpenFileKind::Unix(UnixSocket {
        kind: 1,
        name: b"/run/x".to_vec(),
        file: Some((0o755, 0, 0)),
        state,
        options: vec![],
    })
}

/// Every kind of open file.
pub fn open_files() -> Vec<Record> {
    let local: SocketAddr = "127.0.0.1:80".parse().unwrap();
    let peer: SocketAddr = "[fe80::1%3]:81".parse().unwrap();
    let kinds = vec![
        OpenFileKind::Regular(RegularFile { file: FileId(1), offset: 77 }),
        OpenFileKind::Pipe(PipeEnd { pipe: 1, capacity: 65536, content: vec![b"waiting".to_vec()] }),
        OpenFileKind::Event(EventFd { count: 3, semaphore: true }),
        OpenFileKind::Epoll(EpollState {
            targets: vec![EpollTarget { fd: 3, file: OpenFileId(2), events: 1, data: 9 }],
        }),
        OpenFileKind::Timer(TimerFd { clock: 1, settime_flags: 0, ticks: 2, value: 5, interval: 6 }),
        OpenFileKind::Signal(SignalFd { mask: 0x200 }),
        inet(InetState::New),
        inet(InetState::Bound(local)),
        inet(InetState::Listen { local, backlog: 128 }),
        inet(InetState::ConnectedUdp { local, peer }),
        inet(InetState::Closed { local: Some(local), peer: None }),
        unix(UnixState::Unconnected),
        unix(UnixState::Listen { backlog: 5 }),
        unix(UnixState::Pair { pair: 1, queue: vec![vec![1], vec![2, 3]], shutdown: 1 }),
        OpenFileKind::External(ExternalFile { id: "tty:/dev/pts/0".into(), kind: ExternalKind::Terminal }),
        OpenFileKind::Shm(ShmFile { space: SpaceId(2), offset: 8 }),
        inet(InetState::Connected(Box::new(connection(local, peer)))),
        OpenFileKind::Proc(ProcFile { task: TaskId(0), thread: Some(101), path: b"mem".to_vec(), offset: 9 }),
    ];
    let files = kinds.into_iter().zip(1..).map(|(kind, id)| open(id, kind));
    files.chain(beside_sockets(peer)).collect()
}

/// What is said of sockets beside their records.
fn beside_sockets(peer: SocketAddr) -> Vec<Record> {
    let state = SocketState {
        binding: vec![SockOpt { level: 1, name: 15, value: vec![1, 0, 0, 0] }],
        devices: vec![DeviceOption { level: 41, name: 17, device: b"eth0".to_vec() }],
        memberships: vec![Membership {
            device: b"lo".to_vec(),
            group: vec![239, 1, 2, 3],
            include: true,
            sources: vec![vec![10, 0, 0, 1]],
        }],
        filter: vec![FilterStep { code: 6, jt: 0, jf: 0, k: 0xffff }],
        shutdown: 2,
        ended: Some(b"unread".to_vec()),
        ..SocketState::none(OpenFileId(8))
    };
    let file = |id, file| SocketState { socket_file: Some(file), ..SocketState::none(OpenFileId(id)) };
    let datagrams =
        vec![Datagram { from: Some(peer), bytes: b"first".to_vec() }, Datagram { from: None, bytes: vec![] }];
    let more = vec![Datagram { from: None, bytes: b"third".to_vec() }];
    vec![
        Record::SocketState(state),
        Record::SocketState(file(12, SocketFile::Removed)),
        Record::SocketState(file(13, SocketFile::At(b"/run/y".to_vec()))),
        Record::Queue(Queue { file: OpenFileId(10), first: 0, datagrams }),
        Record::Queue(Queue { file: OpenFileId(10), first: 2, datagrams: more }),
    ]
}

/// What is said of object 2, a sealed memfd of one page and a bit.
fn shm_state(seals: u32) -> Record {
    let state = ShmState { space: SpaceId(2), size: 5000, seals, mode: 0o644, uid: 1000, gid: 100 };
    Record::ShmState(state)
}

/// A thread with something in every field.
pub fn thread(tid: u32) -> Thread {
    Thread {
        task: TaskId(0),
        tid,
        comm: b"worker".to_vec(),
        regs: std::array::from_fn(|i| i as u64),
        xstate: vec![0; 576],
        restart: Restart::Block { left: Some(12) },
        sigmask: 1,
        pending: vec![SigInfo(vec![7; 128])],
        altstack: AltStack { sp: 0x1000, flags: 2, size: 0 },
        robust_list: (0x2000, 24),
        rseq: Some(Rseq { addr: 0x3000, len: 32, sig: 0x5305_3053 }),
        clear_child_tid: 0x4000,
        pdeath_signal: 0,
        sched: Sched {
            policy: 0,
            nice: 5,
            priority: 0,
            deadline: [0; 3],
            affinity: vec![3],
            ioprio: 0,
            timer_slack: 50_000,
        },
        creds: Creds {
            uids: [1; 4],
            gids: [2; 4],
            groups: vec![3, 4],
            cap_inheritable: 0,
            cap_permitted: 1,
            cap_effective: 1,
            cap_bounding: u64::MAX >> 23,
            cap_ambient: 0,
            securebits: 0,
            no_new_privs: true,
        },
        seccomp: Seccomp::Filter(vec![SeccompFilter { insns: vec![6, 0, 0, 0, 0, 0, 255, 127], flags: 0 }]),
    }
}

/// What is said beside [`task`].
fn surroundings() -> Vec<Record> {
    let namespace = |kind, copied| Namespace { kind, inode: 4_026_532_000, copied };
    let range = |outside| vec![IdRange { inside: 0, outside, count: 65_536 }];
    vec![
        Record::TaskNamespaces(TaskNamespaces {
            task: TaskId(0),
            others: vec![namespace(NamespaceKind::User, false), namespace(NamespaceKind::Mnt, true)],
            uid_map: range(100_000),
            gid_map: range(200_000),
        }),
        Record::Cgroup(Cgroup {
            task: TaskId(0),
            paths: vec![CgroupPath { controllers: "cpu,cpuacct".into(), path: b"/a/b".to_vec() }],
        }),
        Record::TaskProc(TaskProc { task: TaskId(0), autogroup_nice: 5, loginuid: 1000 }),
    ]
}

/// A task with two threads.
pub fn task() -> Task {
    Task {
        id: TaskId(0),
        pid: 100,
        parent: None,
        space: Some(SpaceId(0)),
        fds: Some(FdTableId(0)),
        sigs: Some(SigTableId(0)),
        pgid: 100,
        sid: 0,
        exit_signal: 17,
        tids: vec![100, 101],
        comm: b"guest".to_vec(),
    }
}

/// Settings of its address space, one of each.
fn mm_settings() -> MmSettings {
    let policy = MemPolicy { mode: 3, nodes: vec![1] };
    MmSettings {
        space: SpaceId(0),
        pkeys: 0b110,
        execute_only_pkey: Some(3),
        mdwe: 1,
        thp_flags: 2,
        memory_merge: true,
        ldt: vec![(1, 0x00cf_fb00_0000_ffff)],
        sealed: vec![(0x1000, 0x2000)],
        policies: vec![RangePolicy { start: 0x3000, end: 0x4000, policy: policy.clone() }],
        thread_policies: vec![ThreadPolicy { tid: 100, policy }],
    }
}

/// Controls of [`task`], something in every field.
fn task_settings() -> TaskSettings {
    TaskSettings {
        task: TaskId(0),
        membarrier: 0x110,
        chooses_timer_ids: true,
        label: Some(b"user_u:user_r:user_t:s0".to_vec()),
    }
}

/// Controls of its thread 101.
fn thread_settings() -> ThreadSettings {
    ThreadSettings {
        task: TaskId(0),
        tid: 101,
        tsc_trapped: true,
        mce_kill: Some(1),
        speculation: vec![Speculation { feature: 0, state: 8 }],
        util_clamp: Some((10, 500)),
        sched_flags: 4,
        personality: Some(0x0020_0000),
        rseq_slice: true,
    }
}

/// What exists only at the stop, of [`task`].
pub fn states() -> Vec<Record> {
    let mm = MmState {
        space: SpaceId(0),
        start_code: 1,
        end_code: 2,
        start_data: 3,
        end_data: 4,
        start_brk: 5,
        brk: 6,
        start_stack: 7,
        arg_start: 8,
        arg_end: 9,
        env_start: 10,
        env_end: 11,
        auxv: vec![0; 16],
        exe: FileId(0),
        dumpable: 1,
        thp_disable: false,
        coredump_filter: 0x33,
        lock_future: 0,
        guards: vec![(0x7000, 0x8000)],
    };
    let state = TaskState {
        task: TaskId(0),
        cwd: FileId(1),
        root: None,
        umask: 0o22,
        rlimits: vec![(1, u64::MAX); 16],
        itimers: [ITimer { value: 5, interval: 0 }, ITimer::default(), ITimer::default()],
        timers: vec![PosixTimer {
            id: 1,
            clock: 1,
            signo: 34,
            notify: 0,
            tid: 0,
            sigval: 9,
            value: 100,
            interval: 200,
            overrun: 0,
        }],
        pending: vec![SigInfo(vec![1; 128])],
        oom_score_adj: 100,
        personality: 0,
        child_subreaper: false,
        stopped: None,
    };
    let fds = (1..=16).map(|n| Fd { fd: n + 2, file: OpenFileId(n), cloexec: n % 2 == 0 }).collect();
    vec![
        Record::MmState(mm),
        Record::MmSettings(mm_settings()),
        Record::SigTable(SigTable { id: SigTableId(0), actions: vec![SigAction::default(); 64] }),
        Record::TaskState(state),
        Record::FdTable(FdTable { id: FdTableId(0), fds }),
        Record::TaskSettings(task_settings()),
        Record::ThreadSettings(thread_settings()),
        Record::TimerDates(TimerDates { task: TaskId(0), dates: vec![(1, 1_800_000_000_000_000_000)] }),
        Record::Thread(thread(100)),
        Record::Thread(thread(101)),
    ]
}

/// Two rounds with every record but Cancel.
pub fn stream() -> Vec<u8> {
    let mut w = Writer::new(Vec::new(), *b"a golden stream!").unwrap();
    let mut put = |record: Record| w.record(&record).unwrap();
    put(Record::Machine(machine()));
    put(Record::RoundBegin(RoundBegin { number: 0, last: false, clocks: clocks(2_000_000_000) }));
    put(Record::Space(Space { id: SpaceId(0), kind: SpaceKind::Mm }));
    put(Record::Space(Space { id: SpaceId(1), kind: SpaceKind::Shm { size: 4096, name: "memfd:x".into() } }));
    put(Record::Space(Space { id: SpaceId(2), kind: SpaceKind::Shm { size: 4096, name: "memfd:y".into() } }));
    put(shm_state(0));
    put(Record::Task(task()));
    put(Record::Task(Task { id: TaskId(1), parent: Some(TaskId(0)), space: None, ..task() }));
    surroundings().into_iter().for_each(&mut put);
    put(file(0, "/bin/guest", FileNeed::Same));
    put(file(1, "/tmp", FileNeed::Kind));
    let kept = Backing::Shm { space: SpaceId(2), offset: 0 };
    let change = MapChange {
        space: SpaceId(0),
        unmap: vec![],
        map: vec![
            vma(0x1000, 0x9000, Backing::Anonymous),
            vma(0x9000, 0xa000, Backing::File { file: FileId(0), offset: 4096 }),
            vma(0xa000, 0xb000, Backing::Shm { space: SpaceId(1), offset: 0 }),
            vma(0xb000, 0xc000, Backing::Vdso),
            Vma { flags: vma_flag::SHARED | vma_flag::MAYWRITE, ..vma(0xc000, 0xe000, kept) },
        ],
        modify: vec![],
    };
    put(Record::MapChange(change));
    put(Record::ZeroPages(ZeroPages { space: SpaceId(0), ranges: vec![(0x5000, 0x7000)] }));
    let data = vec![0xab; 2 * 4096];
    let runs = [PageRun { addr: 0x1000, pages: 1 }, PageRun { addr: 0x4000, pages: 1 }];
    w.pages(SpaceId(0), &runs, &[&data]).unwrap();
    w.pages(SpaceId(0), &[PageRun { addr: 0x7000, pages: 2 }], &[&data]).unwrap();
    w.pages(SpaceId(2), &[PageRun { addr: 0, pages: 2 }], &[&data]).unwrap();
    end_round(&mut w, 0);
    let mut put = |record: Record| w.record(&record).unwrap();
    put(Record::RoundBegin(RoundBegin { number: 1, last: true, clocks: clocks(3_000_000_000) }));
    put(Record::TaskGone(TaskId(1)));
    put(Record::SpaceGone(SpaceId(1)));
    put(shm_state(15));
    let change = MapChange {
        space: SpaceId(0),
        unmap: vec![(0xa000, 0xb000)],
        map: vec![],
        modify: vec![vma(0x1000, 0x2000, Backing::Anonymous)],
    };
    put(Record::MapChange(change));
    put(Record::Zap(Zap { space: SpaceId(0), ranges: vec![(0x4000, 0x5000)] }));
    w.pages(SpaceId(0), &[PageRun { addr: 0x1000, pages: 1 }], &[&data[..4096]]).unwrap();
    let patch = |addr, len| Patch { addr, len };
    w.patches(SpaceId(0), &[patch(0x7003, 2), patch(0x8fff, 1)], b"abc").unwrap();
    w.patches(SpaceId(2), &[patch(0, 1), patch(0x1010, 3)], b"defg").unwrap();
    open_files().into_iter().chain(states()).for_each(|record| w.record(&record).unwrap());
    end_round(&mut w, 1);
    w.commit().unwrap();
    w.finish().unwrap()
}
