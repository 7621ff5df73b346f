use super::*;
use crate::*;

fn texts(found: &[Refusal]) -> Vec<String> {
    found.iter().map(Refusal::to_string).collect()
}

fn machine(image: &[u8]) -> Record {
    let clocks = Clocks { realtime: 0, monotonic: 0, boottime: 0, monotonic_offset: 0, boottime_offset: 0 };
    let cpu = CpuFeatures { vendor: String::new(), xcr0: 0, xsave_size: 0, leaves: vec![], flags: vec![] };
    let vdso = Vdso { image: image.to_vec(), vvar_len: 0x4000, vvar_vclock_len: 0 };
    let [kernel, hostname, boot_id, producer] = [const { String::new() }; 4];
    let namespaces = Vec::new();
    Record::Machine(Machine {
        kernel,
        hostname,
        boot_id,
        producer,
        cpu,
        vdso,
        clocks,
        memory_needed: 0,
        namespaces,
    })
}

fn task_of(id: u32, parent: Option<u32>, tids: &[u32]) -> Task {
    Task {
        id: TaskId(id),
        pid: tids[0],
        parent: parent.map(TaskId),
        space: Some(SpaceId(0)),
        fds: Some(FdTableId(0)),
        sigs: Some(SigTableId(0)),
        pgid: tids[0],
        sid: tids[0],
        exit_signal: 17,
        tids: tids.to_vec(),
        comm: b"x".to_vec(),
    }
}

fn vma_of(start: u64, end: u64, backing: Backing) -> Vma {
    Vma { start, end, prot: 1, flags: 0, pkey: 0, backing, name: None }
}

fn mapped(map: Vec<Vma>) -> Record {
    Record::MapChange(MapChange { space: SpaceId(0), unmap: vec![], map, modify: vec![] })
}

fn state(clocks: &[i32]) -> TaskState {
    let timer = |(id, &clock): (i32, &i32)| PosixTimer {
        id,
        clock,
        signo: 14,
        notify: 0,
        tid: 0,
        sigval: 0,
        value: 0,
        interval: 0,
        overrun: 0,
    };
    TaskState {
        task: TaskId(0),
        cwd: FileId(0),
        root: None,
        umask: 0o22,
        rlimits: vec![],
        itimers: [ITimer::default(); 3],
        timers: (0..).zip(clocks).map(timer).collect(),
        pending: vec![],
        oom_score_adj: 0,
        personality: 0,
        child_subreaper: false,
        stopped: None,
    }
}

#[test]
fn a_timerfd_of_a_clock_that_no_call_takes_is_refused_by_name() {
    let record = |clock| {
        let timer = TimerFd { clock, settime_flags: 0, ticks: 0, value: 0, interval: 0 };
        let kind = OpenFileKind::Timer(timer);
        Record::OpenFile(OpenFile { id: OpenFileId(7), flags: 0, owner: None, kind })
    };
    assert!(refusals(&record(1)).is_empty());
    let what = "a timerfd of clock 4, which cannot be moved yet".to_owned();
    assert_eq!(refusals(&record(4)), [Refusal { subject: Subject::File(OpenFileId(7)), what }]);
}

#[test]
fn only_terminals_and_standard_error_go_to_the_caller_unasked() {
    let asked = |id: &str, kind| needs_attach(&ExternalFile { id: id.to_owned(), kind });
    for (id, kind) in [("tty:/dev/pts/1", ExternalKind::Terminal), (STDERR_PIPE, ExternalKind::PipeWrite)] {
        assert_eq!(asked(id, kind), None);
    }
    assert_eq!(asked(STDOUT_TO_STDERR, ExternalKind::PipeWrite), None);
    for (id, kind) in [("pipe:1", ExternalKind::PipeWrite), ("pipe:2", ExternalKind::PipeRead)] {
        assert!(asked(id, kind).is_some_and(|text| text.contains(&format!("--attach {id}="))));
    }
}

#[test]
fn a_32_bit_program_and_one_without_a_vdso_are_refused() {
    assert_eq!(refusals(&machine(b"\x7fELF\x02\x01")), []);
    assert_eq!(
        texts(&refusals(&machine(b"\x7fELF\x01\x01"))),
        ["it is a 32-bit program, which cannot be moved yet"]
    );
    assert_eq!(texts(&refusals(&machine(b""))), [NO_VDSO]);
}

#[test]
fn trees_and_zombies_are_refused() {
    let mut rules = Rules::default();
    assert_eq!(rules.judge(&Record::Task(task_of(0, None, &[5]))), []);
    // The same again, with another thread.
    assert_eq!(rules.judge(&Record::Task(task_of(0, None, &[5, 6]))), []);
    let child = texts(&rules.clone().judge(&Record::Task(task_of(1, Some(0), &[7]))));
    assert_eq!(child, ["it has children (process 7), which cannot be moved yet"]);
    let other = texts(&rules.clone().judge(&Record::Task(task_of(1, None, &[7]))));
    assert_eq!(other, ["process 7 is another than the first, which cannot be moved yet"]);
    let zombie = Task { space: None, ..task_of(0, None, &[5]) };
    assert!(texts(&rules.judge(&Record::Task(zombie)))[0].contains("zombie"));
}

#[test]
fn one_address_space_and_shared_memory_of_known_kinds_are_taken() {
    let mut rules = Rules::default();
    let mut born = |id, kind| texts(&rules.judge(&Record::Space(Space { id: SpaceId(id), kind })));
    let shm = |name: &str| SpaceKind::Shm { size: 0, name: name.to_owned() };
    assert!(born(0, SpaceKind::Mm).is_empty());
    assert!(born(1, shm("/memfd:x (deleted)")).is_empty());
    assert!(born(2, shm("/dev/zero (deleted)")).is_empty());
    assert!(born(3, shm("/SYSV00000000 (deleted)"))[0].contains("/SYSV00000000"));
    assert_eq!(born(4, SpaceKind::Mm), ["it has several address spaces, which cannot be moved yet"]);
}

#[test]
fn mappings_that_cannot_be_made_are_refused_by_their_address() {
    let plain = vma_of(0x1000, 0x2000, Backing::Anonymous);
    assert_eq!(refusals(&mapped(vec![plain.clone()])), []);
    let keyed = Vma { pkey: 16, ..plain.clone() };
    let shared = Vma { start: 0x5000, end: 0x6000, flags: vma_flag::SHARED, ..plain };
    let found = refusals(&mapped(vec![keyed, shared]));
    assert_eq!(
        found[0].to_string(),
        "its mapping at 0x1000 has the memory protection key 16, which no processor has"
    );
    assert_eq!(found[1].subject, Subject::Mapping(0x5000));
}

#[test]
fn the_vdso_is_as_long_as_the_kernel_makes_it() {
    let judge = |map| {
        let mut rules = Rules::default();
        rules.judge(&machine(&[b"\x7fELF\x02", &[0u8; 4091][..]].concat()));
        texts(&rules.judge(&mapped(map)))
    };
    let vdso = vma_of(0x10000, 0x11000, Backing::Vdso);
    let vvar = vma_of(0x8000, 0xc000, Backing::Vvar);
    assert!(judge(vec![vvar.clone(), vdso.clone()]).is_empty());
    assert!(judge(vec![vdso.clone()]).is_empty(), "a process may have unmapped the data");
    assert_eq!(judge(vec![vvar.clone()]), [NO_VDSO]);
    assert!(judge(vec![Vma { end: 0xb000, ..vvar }, vdso])[0].starts_with("its [vvar] has another length"));
}

#[test]
fn timers_run_on_clocks_that_the_copy_has() {
    // As clock_getcpuclockid(3) and pthread_getcpuclockid(3) make them.
    let (process, thread) = (|pid: i32| !pid << 3 | 2, |tid: i32| !tid << 3 | 6);
    let judge = |tids: &[u32], clocks: &[i32]| {
        let mut rules = Rules::default();
        rules.judge(&Record::Task(task_of(0, None, tids)));
        texts(&rules.judge(&Record::TaskState(state(clocks))))
    };
    let both = [0, 1, 2, 7, 8, 9, 11, process(0), process(50), thread(50)];
    assert!(judge(&[50], &[&both[..], &[3, thread(0)]].concat()).is_empty());
    assert!(judge(&[50, 51], &[&both[..], &[thread(51)]].concat()).is_empty());
    let refused = judge(&[50, 51], &[3, thread(0), process(9), thread(9), 4]);
    let whose = ["one of its threads", "one of its threads", "of process 9", "of thread 9", "clock 4"];
    assert_eq!(refused.len(), whose.len());
    assert!(refused.iter().zip(whose).all(|(text, whose)| text.contains(whose)), "{refused:?}");
}

#[test]
fn threads_of_32_bit_code_and_paths_without_a_root_are_refused() {
    let file = |path: &[u8]| {
        let (mode, need) = (0o100_644, FileNeed::Same);
        Record::File(File {
            id: FileId(0),
            path: path.to_vec(),
            mode,
            size: 0,
            mtime: 0,
            rdev: 0,
            build_id: None,
            need,
        })
    };
    assert_eq!(refusals(&file(b"/x")), []);
    assert!(texts(&refusals(&file(b"x")))[0].contains("not absolute"));
    let mut it = some_thread();
    assert_eq!(refusals(&Record::Thread(it.clone())), []);
    it.regs[17] = 0x23;
    let found = refusals(&Record::Thread(it));
    assert_eq!(texts(&found), ["its thread 50 runs 32-bit code, which cannot be moved yet"]);
}

fn some_thread() -> Thread {
    let creds = Creds {
        uids: [0; 4],
        gids: [0; 4],
        groups: vec![],
        cap_inheritable: 0,
        cap_permitted: 0,
        cap_effective: 0,
        cap_bounding: 0,
        cap_ambient: 0,
        securebits: 0,
        no_new_privs: false,
    };
    let sched = Sched {
        policy: 0,
        nice: 0,
        priority: 0,
        deadline: [0; 3],
        affinity: vec![],
        ioprio: 0,
        timer_slack: 0,
    };
    let mut regs = [0; 27];
    regs[17] = 0x33;
    Thread {
        task: TaskId(0),
        tid: 50,
        comm: vec![],
        regs,
        xstate: vec![],
        restart: Restart::None,
        sigmask: 0,
        pending: vec![],
        altstack: AltStack { sp: 0, flags: 2, size: 0 },
        robust_list: (0, 0),
        rseq: None,
        clear_child_tid: 0,
        pdeath_signal: 0,
        sched,
        creds,
        seccomp: Seccomp::Disabled,
    }
}

#[test]
fn a_filter_that_asks_another_process_is_known_by_its_return() {
    let insn = |code: u16, value: u32| [&code.to_le_bytes()[..], &[0, 0], &value.to_le_bytes()].concat();
    assert!(asks_another(&[insn(0x20, 0x7fc0_0000), insn(0x06, 0x7fc0_0000)].concat()));
    assert!(!asks_another(&[insn(0x20, 0x7fc0_0000), insn(0x06, 0x7fff_0000)].concat()));
}

#[test]
fn files_of_proc_are_those_of_a_task_and_nobody_elses() {
    for path in ["/proc/self/mem", "/proc/1", "/proc/77/maps", "/proc/thread-self/comm"] {
        assert!(by_number(path.as_bytes()).is_some(), "{path}");
    }
    for path in ["/proc", "/proc/", "/proc/meminfo", "/proc/sys/kernel/pid_max", "/process/1", "/proc/1st"] {
        assert!(by_number(path.as_bytes()).is_none(), "{path}");
    }
    let refused = |path: &str, flags| {
        let file = ProcFile { task: TaskId(0), thread: None, path: path.into(), offset: 0 };
        procfs_file(&file, flags).is_some()
    };
    for path in ["", "mem", "fd", "net/tcp", "fdinfo/3"] {
        assert!(!refused(path, 2), "{path}");
    }
    for path in ["../1/mem", "fd/3", "root/etc/shadow", "/etc", "a//b", "x\0"] {
        assert!(refused(path, 0), "{path}");
    }
    assert!(refused("uid_map", 1) && !refused("uid_map", 0));
}
