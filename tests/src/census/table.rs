//! The table of kernel state: what of a process is carried, refused or lost, and why.
//!
//! One source for the census, which compares what is not lost and knows no other reading, and for the section KERNEL
//! STATE of pc-dump(1), which is made of it ([`section`]).

use std::fmt::Write as _;

/// What becomes of a piece of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The copy has it.
    Carried,
    /// A process that has it is not moved.
    Refused,
    /// The copy has what pc-restore has. As the tests run both tools in one place, it is compared all the same.
    Inherited,
    /// The copy begins anew, or has its own.
    Lost,
}

/// A piece of kernel state.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// What it is.
    pub what: &'static str,
    /// What becomes of it.
    pub fate: Fate,
    /// Why, or on what condition.
    pub note: &'static str,
    /// Readings of the census that show it.
    pub seen: &'static [&'static str],
}

const fn carried(what: &'static str, note: &'static str, seen: &'static [&'static str]) -> Row {
    Row { what, fate: Fate::Carried, note, seen }
}

const fn refused(what: &'static str, note: &'static str, seen: &'static [&'static str]) -> Row {
    Row { what, fate: Fate::Refused, note, seen }
}

const fn inherited(what: &'static str, note: &'static str, seen: &'static [&'static str]) -> Row {
    Row { what, fate: Fate::Inherited, note, seen }
}

const fn lost(what: &'static str, note: &'static str, seen: &'static [&'static str]) -> Row {
    Row { what, fate: Fate::Lost, note, seen }
}

/// What `--new-pid-ns` makes another, and why.
pub const NEW_PID_NS: &[(&str, &str)] = &[
    ("ns/pid", "that is what was asked for"),
    ("ns/pid_for_children", "that is what was asked for"),
    ("ns/mnt", "the new namespace has a /proc of its own"),
    ("fdinfo/mnt_id", "the same file system, mounted in the namespace of its own"),
];

/// What the table says of a reading.
#[derive(Debug, Clone, Copy)]
pub enum Look {
    /// Nothing.
    Unknown,
    /// It shows what this row is about.
    Row(&'static Row),
}

/// Looks a reading up.
pub fn look(name: &str) -> Look {
    let shows = |row: &&Row| row.seen.iter().any(|seen| matches(seen, name));
    ROWS.iter().flat_map(|(_, rows)| *rows).find(shows).map_or(Look::Unknown, Look::Row)
}

/// A name that ends in `*` stands for all that begin so.
fn matches(seen: &str, name: &str) -> bool {
    seen.strip_suffix('*').map_or(seen == name, |start| name.starts_with(start))
}

/// The section of pc-dump(1), in the language of man(7) and tbl(1).
pub fn section() -> String {
    let mut text = INTRODUCTION.to_owned();
    for (title, rows) in ROWS {
        let _ = write!(text, ".SS {title}\n.TS\ntab(|);\nlx l lx.\n");
        for row in *rows {
            let fate = match row.fate {
                Fate::Carried => "carried",
                Fate::Refused => "refused",
                Fate::Inherited | Fate::Lost => "lost",
            };
            let _ = write!(text, "T{{\n{}\nT}}|{fate}|T{{\n{}\nT}}\n", escaped(row.what), escaped(row.note));
        }
        text += ".TE\n";
    }
    text
}

const INTRODUCTION: &str = "\
What becomes of the state that the kernel keeps for a process.
.I Carried
is what the copy has as the original had it;
.I refused
what is named and not moved;
.I lost
what the copy has anew, or as it is at the destination.
The tests compare all that can be observed of a process and its copy, and let only what is lost here differ.
";

fn escaped(text: &str) -> String {
    text.replace('-', "\\-")
}

/// All rows by section.
#[rustfmt::skip]
pub const ROWS: &[(&str, &[Row])] = &[
    ("Identity", &[
        carried("process and thread ids", "the same in the process's own pid namespace", &[
            "status/Tgid", "status/Pid", "status/NStgid", "status/NSpid", "stat/pid",
        ]),
        lost("parent", "pc-restore, or whoever takes over its orphans", &["status/PPid", "stat/ppid"]),
        carried("process group and session", "one led from outside becomes pc-restore's own, with --detach a new one", &[
            "status/NSpgid", "status/NSsid",
        ]),
        inherited("controlling terminal", "pc-restore's own; none with --detach", &["stat/tty_nr"]),
        carried("name, arguments, environment, auxiliary vector", "", &[
            "status/Name", "stat/comm", "comm", "cmdline", "environ", "auxv",
        ]),
        carried("program, working and root directory, umask", "by path", &["exe", "cwd", "root", "status/Umask"]),
        carried("state", "running or stopped by a signal", &["status/State", "stat/state", "status/CoreDumping", "status/Kthread"]),
        refused("child processes", "", &["children"]),
        refused("a tracer", "", &[]),
        carried("signal to the parent at the end", "", &["stat/exit_signal", "stat/exit_code"]),
    ]),
    ("Rights", &[
        carried("user and group ids, supplementary groups", "", &["status/Uid", "status/Gid", "status/Groups"]),
        carried("capabilities, secure bits, no_new_privs", "", &[
            "status/CapInh", "status/CapPrm", "status/CapEff", "status/CapBnd", "status/CapAmb",
            "status/NoNewPrivs", "prctl/SECUREBITS", "prctl/KEEPCAPS", "prctl/NO_NEW_PRIVS",
        ]),
        carried("seccomp filters", "", &["status/Seccomp", "status/Seccomp_filters", "ptrace/seccomp filter"]),
        carried("dumpability", "", &["prctl/DUMPABLE"]),
        carried("resource limits", "", &[
            "limits/Max cpu time", "limits/Max file size", "limits/Max data size", "limits/Max stack size",
            "limits/Max core file size", "limits/Max resident set", "limits/Max processes", "limits/Max open files",
            "limits/Max locked memory", "limits/Max address space", "limits/Max file locks",
            "limits/Max pending signals", "limits/Max msgqueue size", "limits/Max nice priority",
            "limits/Max realtime priority", "limits/Max realtime timeout", "stat/rsslim",
        ]),
        carried("audit login uid", "where pc-restore may set it", &["loginuid"]),
        inherited("audit session", "the kernel gives one with each login uid", &["sessionid"]),
        carried("labels of security modules", "pc-restore must run under the same", &["attr/*"]),
        carried("speculation controls", "", &[
            "prctl/SPECULATION_CTRL", "status/Speculation_Store_Bypass", "status/SpeculationIndirectBranch",
        ]),
        carried("memory-deny-write-execute", "", &["prctl/MDWE"]),
        refused("keyrings of a thread or a process, Landlock domains, syscall user dispatch, I/O ports", "", &[
            "keyctl/thread keyring", "keyctl/process keyring",
        ]),
        inherited("session keyring", "keys that are left behind are named at the stop", &["keyctl/session keyring"]),
        refused("shadow stack", "", &[
            "prctl/SHADOW_STACK_STATUS", "arch_prctl/SHSTK_STATUS", "status/x86_Thread_features",
            "status/x86_Thread_features_locked",
        ]),
    ]),
    ("Namespaces and control groups", &[
        refused("user, network, UTS, IPC, mount and cgroup namespaces", "other than pc-dump's own; --join of pc-restore says which the copy gets", &[
            "ns/user", "ns/net", "ns/uts", "ns/ipc", "ns/mnt", "ns/cgroup", "uid_map", "gid_map", "projid_map", "setgroups",
        ]),
        carried("pid namespace", "the number in its own; --new-pid-ns makes another", &["ns/pid", "ns/pid_for_children"]),
        carried("clocks", "a time namespace where the machine's own would go back", &[
            "ns/time", "ns/time_for_children", "timens_offsets",
        ]),
        inherited("control groups", "pc-restore's own, or as its --cgroup says", &["cgroup", "cpuset"]),
    ]),
    ("Scheduling", &[
        carried("policy, priority, nice, deadline", "", &[
            "sched_getattr", "stat/priority", "stat/nice", "stat/rt_priority", "stat/policy", "sched/policy", "sched/prio",
        ]),
        carried("processors allowed", "", &["status/Cpus_allowed", "status/Cpus_allowed_list", "sched_getaffinity"]),
        inherited("memory nodes allowed", "of the control group", &["status/Mems_allowed", "status/Mems_allowed_list"]),
        carried("memory policy", "", &["get_mempolicy", "numa_maps/policy"]),
        carried("I/O priority, timer slack", "", &["ioprio_get", "timerslack_ns", "prctl/TIMERSLACK"]),
        carried("nice value of the autogroup", "its number is that of a session", &["autogroup"]),
        carried("score of the out-of-memory killer", "", &["oom_score_adj", "oom_adj"]),
    ]),
    ("Memory", &[
        carried("mappings: place, protection, file, offset, flags", "", &[
            "maps/permissions", "maps/offset", "maps/file", "smaps/KernelPageSize",
            "smaps/VmFlags/rd", "smaps/VmFlags/wr", "smaps/VmFlags/ex", "smaps/VmFlags/sh", "smaps/VmFlags/mr",
            "smaps/VmFlags/mw", "smaps/VmFlags/me", "smaps/VmFlags/ms", "smaps/VmFlags/gd", "smaps/VmFlags/pf",
            "smaps/VmFlags/dw", "smaps/VmFlags/lo", "smaps/VmFlags/io", "smaps/VmFlags/sr", "smaps/VmFlags/rr",
            "smaps/VmFlags/dc", "smaps/VmFlags/de", "smaps/VmFlags/ht", "smaps/VmFlags/nr", "smaps/VmFlags/sf",
            "smaps/VmFlags/ar", "smaps/VmFlags/wf", "smaps/VmFlags/dd", "smaps/VmFlags/bt", "smaps/VmFlags/mm",
            "smaps/VmFlags/hg", "smaps/VmFlags/nh", "smaps/VmFlags/mg",
            "smaps/VmFlags/sl", "smaps/VmFlags/ss", "smaps/VmFlags/dp", "smaps/VmFlags/lf",
            "smaps/VmFlags/mt", "smaps/VmFlags/sd", "smaps/VmFlags/gu", "smaps/VmFlags/sn", "smaps/VmFlags/dr",
            "smaps/MMUPageSize", "smaps/ProtectionKey", "status/VmSize", "status/VmData", "status/VmStk", "status/VmExe",
            "status/VmLib", "status/VmLck", "status/HugetlbPages", "stat/vsize",
        ]),
        lost("registration with a userfaultfd", "pc-dump's own, to find what is written; a process with one is refused", &[
            "smaps/VmFlags/um", "smaps/VmFlags/uw", "smaps/VmFlags/ui",
        ]),
        lost("that a mapping could be written before", "its pages are not counted as promised", &[
            "smaps/VmFlags/ac", "smaps/VmFlags/sh without mw",
        ]),
        carried("places of code, data, heap, stack, arguments", "", &[
            "stat/startcode", "stat/endcode", "stat/startstack", "stat/start_data", "stat/end_data", "stat/start_brk",
            "stat/arg_start", "stat/arg_end", "stat/env_start", "stat/env_end", "brk",
        ]),
        carried("settings of huge pages", "", &["status/THP_enabled", "prctl/THP_DISABLE", "smaps/THPeligible"]),
        carried("merging of all pages of the process", "", &["prctl/MEMORY_MERGE", "ksm_stat/ksm_merge_any"]),
        carried("which parts of memory a core dump has", "", &["coredump_filter"]),
        carried("a trap for the time-stamp counter", "", &["prctl/TSC"]),
        refused("a trap for CPUID", "once the process is stopped; it then runs on", &["arch_prctl/CPUID"]),
        carried("local descriptor table", "", &["modify_ldt"]),
        inherited("address masking, permission for large register sets", "", &[
            "status/untag_mask", "arch_prctl/UNTAG_MASK", "arch_prctl/XCOMP_PERM", "arch_prctl/XCOMP_GUEST_PERM",
        ]),
        lost("which pages are present, shared, merged or swapped out, and where they lie", "the content is the same", &[
            "smaps/Size", "smaps/Rss", "smaps/Pss", "smaps/Pss_Dirty", "smaps/Shared_Clean", "smaps/Shared_Dirty",
            "smaps/Private_Clean", "smaps/Private_Dirty", "smaps/Referenced", "smaps/Anonymous", "smaps/KSM",
            "smaps/LazyFree", "smaps/AnonHugePages", "smaps/ShmemPmdMapped", "smaps/FilePmdMapped",
            "smaps/Shared_Hugetlb", "smaps/Private_Hugetlb", "smaps/Swap", "smaps/SwapPss", "smaps/Locked",
            "status/VmPeak", "status/VmHWM", "status/VmRSS", "status/RssAnon", "status/RssFile", "status/RssShmem",
            "status/VmPTE", "status/VmSwap", "status/VmPin", "stat/rss", "stat/nswap", "stat/cnswap", "statm",
            "numa_maps/file", "numa_maps/anon", "numa_maps/dirty", "numa_maps/mapped", "numa_maps/mapmax",
            "numa_maps/active", "numa_maps/N", "numa_maps/kernelpagesize_kB", "numa_maps/heap", "numa_maps/stack",
            "numa_maps/huge", "numa_maps/swapcache", "numa_maps/writeback", "ksm_merging_pages",
            "ksm_stat/ksm_rmap_items", "ksm_stat/ksm_zero_pages", "ksm_stat/ksm_merging_pages",
            "ksm_stat/ksm_process_profit", "ksm_stat/ksm_mergeable", "oom_score",
        ]),
    ]),
    ("Threads", &[
        carried("number and order of threads", "", &["status/Threads", "stat/num_threads"]),
        carried("registers", "", &["registers/r15", "registers/r14", "registers/r13", "registers/r12", "registers/rbp", "registers/rbx", "registers/r11", "registers/r10", "registers/r9", "registers/r8", "registers/rax", "registers/rcx", "registers/rdx", "registers/rsi", "registers/rdi", "registers/orig_rax", "registers/rip", "registers/cs", "registers/eflags", "registers/rsp", "registers/ss", "registers/fs_base", "registers/gs_base", "registers/ds", "registers/es", "registers/fs", "registers/gs", "ptrace/extended registers", "arch_prctl/FS", "arch_prctl/GS"]),
        carried("signal mask, alternative stack, parent-death signal", "", &[
            "status/SigBlk", "ptrace/signal mask", "stat/blocked", "sigaltstack", "prctl/PDEATHSIG",
        ]),
        carried("address cleared at the end, restartable sequences", "", &["prctl/TID_ADDRESS", "ptrace/rseq"]),
        carried("memory-error policy, personality", "", &["prctl/MCE_KILL", "stat/flags/MCE_EARLY", "stat/flags/MCE_PROCESS", "personality"]),
        inherited("I/O flusher", "", &["prctl/IO_FLUSHER"]),
        inherited("what prctl(2) has on other machines only", "there is none on x86-64", &[
            "prctl/UNALIGN", "prctl/FPEMU", "prctl/FPEXC", "prctl/TIMING", "prctl/ENDIAN", "prctl/FP_MODE", "prctl/SVE_VL",
            "prctl/TAGGED_ADDR_CTRL", "prctl/RISCV_V_CONTROL",
        ]),
    ]),
    ("Signals and timers", &[
        carried("actions of all 64 signals", "", &[
            "sigaction", "status/SigIgn", "status/SigCgt", "stat/sigignore", "stat/sigcatch",
        ]),
        carried("pending signals with their data", "", &[
            "ptrace/pending",
        ]),
        carried("interval timers, POSIX timers", "with the time that they had left", &[
            "itimer/REAL", "itimer/VIRTUAL", "itimer/PROF", "timer/time", "timers/signal",
            "timers/notify", "timers/ClockID", "stat/itrealvalue",
        ]),
        lost("how many expirations a POSIX timer's last signal stood for", "no call sets what timer_getoverrun(2) gives", &[
            "timer/overrun",
        ]),
        carried("being a subreaper", "", &["prctl/CHILD_SUBREAPER"]),
        carried("membarrier registrations", "", &["membarrier"]),
    ]),
    ("Descriptors", &[
        carried("numbers, close-on-exec, which share a file description", "", &["fd/link", "fd/same as"]),
        carried("status flags, position, owner and signal of signal-driven I/O", "", &[
            "fdinfo/pos", "fdinfo/flags", "fdinfo/mnt_id", "fdinfo/ino", "fcntl/F_GETOWN_EX", "fcntl/F_GETSIG",
        ]),
        carried("pipes: size and content", "", &["fcntl/F_GETPIPE_SZ", "queue/bytes"]),
        carried("memfd: seals", "", &["fcntl/F_GET_SEALS"]),
        carried("eventfd, signalfd, timerfd, epoll", "EPOLLWAKEUP where pc-restore has CAP_BLOCK_SUSPEND; else it says so", &[
            "fdinfo/eventfd-count", "fdinfo/eventfd-semaphore", "fdinfo/sigmask", "fdinfo/clockid", "fdinfo/ticks",
            "fdinfo/settime flags", "fdinfo/it_value", "fdinfo/it_interval", "fdinfo/tfd",
        ]),
        lost("terminals and pipes whose other end is outside", "the copy has what --attach says", &["fd/outside"]),
        lost("number of an eventfd in the kernel", "", &["fdinfo/eventfd-id"]),
        refused("file locks and leases", "", &["fdinfo/lock"]),
        refused("descriptors passed in a socket and not received", "", &["fdinfo/scm_fds"]),
        refused("inotify, fanotify, io_uring, bpf, perf, kvm, pidfd, device files", "", &["fdinfo/inotify", "fdinfo/Pid", "fdinfo/NSpid"]),
    ]),
    ("Sockets", &[
        carried("addresses", "", &["socket/name", "socket/peer"]),
        carried("TCP connections", "with --tcp-established, else they are closed", &["socket/tcp state"]),
        refused("keys of TCP-MD5 and TCP-AO", "", &[]),
        lost("the process that SO_PEERCRED names", "pc-restore's number; user and groups are the copy's own", &[
            "socket/peer process",
        ]),
        lost("counters and numbers of the kernel", "", &[
            "so/SOCKET/MEMINFO", "so/SOCKET/COOKIE", "so/SOCKET/INCOMING_NAPI_ID", "so/SOCKET/INCOMING_CPU", "so/TCP/INFO", "so/TCP/CC_INFO",
            "so/TCP/TIMESTAMP",
        ]),
        carried("options", "but for those named in SOCKETS", &[
            "so/SOCKET/DEBUG", "so/SOCKET/REUSEADDR", "so/SOCKET/TYPE", "so/SOCKET/DONTROUTE", "so/SOCKET/BROADCAST",
            "so/SOCKET/SNDBUF", "so/SOCKET/RCVBUF", "so/SOCKET/KEEPALIVE", "so/SOCKET/OOBINLINE",
            "so/SOCKET/NO_CHECK", "so/SOCKET/PRIORITY", "so/SOCKET/LINGER", "so/SOCKET/BSDCOMPAT", "so/SOCKET/REUSEPORT",
            "so/SOCKET/PASSCRED", "so/SOCKET/PEERCRED", "so/SOCKET/RCVLOWAT", "so/SOCKET/SNDLOWAT",
            "so/SOCKET/RCVTIMEO", "so/SOCKET/SNDTIMEO", "so/SOCKET/BINDTODEVICE", "so/SOCKET/GET_FILTER",
            "so/SOCKET/PEERNAME", "so/SOCKET/TIMESTAMP", "so/SOCKET/ACCEPTCONN", "so/SOCKET/PEERSEC",
            "so/SOCKET/PASSSEC", "so/SOCKET/TIMESTAMPNS", "so/SOCKET/MARK", "so/SOCKET/TIMESTAMPING",
            "so/SOCKET/PROTOCOL", "so/SOCKET/DOMAIN", "so/SOCKET/RXQ_OVFL", "so/SOCKET/WIFI_STATUS",
            "so/SOCKET/PEEK_OFF", "so/SOCKET/NOFCS", "so/SOCKET/LOCK_FILTER", "so/SOCKET/SELECT_ERR_QUEUE",
            "so/SOCKET/BUSY_POLL", "so/SOCKET/MAX_PACING_RATE", "so/SOCKET/BPF_EXTENSIONS", "so/SOCKET/PEERGROUPS",
            "so/SOCKET/ZEROCOPY", "so/SOCKET/TXTIME", "so/SOCKET/BINDTOIFINDEX", "so/SOCKET/TIMESTAMP_NEW",
            "so/SOCKET/TIMESTAMPNS_NEW", "so/SOCKET/TIMESTAMPING_NEW", "so/SOCKET/RCVTIMEO_NEW",
            "so/SOCKET/SNDTIMEO_NEW", "so/SOCKET/PREFER_BUSY_POLL", "so/SOCKET/BUSY_POLL_BUDGET",
            "so/SOCKET/NETNS_COOKIE", "so/SOCKET/BUF_LOCK", "so/SOCKET/RESERVE_MEM", "so/SOCKET/TXREHASH",
            "so/SOCKET/RCVMARK", "so/SOCKET/PASSPIDFD", "so/SOCKET/RCVPRIORITY", "so/SOCKET/PASSRIGHTS",
            "so/SOCKET/INQ", "so/IP/TOS", "so/IP/TTL", "so/IP/HDRINCL", "so/IP/OPTIONS", "so/IP/ROUTER_ALERT",
            "so/IP/RECVOPTS", "so/IP/RETOPTS", "so/IP/PKTINFO", "so/IP/PKTOPTIONS", "so/IP/MTU_DISCOVER",
            "so/IP/RECVERR", "so/IP/RECVTTL", "so/IP/RECVTOS", "so/IP/MTU", "so/IP/FREEBIND", "so/IP/IPSEC_POLICY",
            "so/IP/XFRM_POLICY", "so/IP/PASSSEC", "so/IP/TRANSPARENT", "so/IP/RECVORIGDSTADDR", "so/IP/MINTTL",
            "so/IP/NODEFRAG", "so/IP/CHECKSUM", "so/IP/BIND_ADDRESS_NO_PORT", "so/IP/RECVFRAGSIZE",
            "so/IP/RECVERR_RFC4884", "so/IP/MULTICAST_IF", "so/IP/MULTICAST_TTL", "so/IP/MULTICAST_LOOP",
            "so/IP/MSFILTER", "so/IP/MCAST_MSFILTER", "so/IP/MULTICAST_ALL", "so/IP/UNICAST_IF",
            "so/IP/LOCAL_PORT_RANGE", "so/IP/PROTOCOL", "so/IPV6/ADDRFORM", "so/IPV6/2292PKTINFO",
            "so/IPV6/2292HOPOPTS", "so/IPV6/2292DSTOPTS", "so/IPV6/2292RTHDR", "so/IPV6/2292PKTOPTIONS",
            "so/IPV6/CHECKSUM", "so/IPV6/2292HOPLIMIT", "so/IPV6/FLOWINFO", "so/IPV6/UNICAST_HOPS",
            "so/IPV6/MULTICAST_IF", "so/IPV6/MULTICAST_HOPS", "so/IPV6/MULTICAST_LOOP", "so/IPV6/ROUTER_ALERT",
            "so/IPV6/MTU_DISCOVER", "so/IPV6/MTU", "so/IPV6/RECVERR", "so/IPV6/V6ONLY", "so/IPV6/MULTICAST_ALL",
            "so/IPV6/ROUTER_ALERT_ISOLATE", "so/IPV6/RECVERR_RFC4884", "so/IPV6/FLOWLABEL_MGR",
            "so/IPV6/FLOWINFO_SEND", "so/IPV6/HDRINCL", "so/IPV6/MCAST_MSFILTER", "so/IPV6/RECVPKTINFO",
            "so/IPV6/PKTINFO", "so/IPV6/RECVHOPLIMIT", "so/IPV6/HOPLIMIT", "so/IPV6/RECVHOPOPTS", "so/IPV6/HOPOPTS",
            "so/IPV6/RTHDRDSTOPTS", "so/IPV6/RECVRTHDR", "so/IPV6/RTHDR", "so/IPV6/RECVDSTOPTS", "so/IPV6/DSTOPTS",
            "so/IPV6/RECVPATHMTU", "so/IPV6/PATHMTU", "so/IPV6/DONTFRAG", "so/IPV6/USE_MIN_MTU", "so/IPV6/RECVTCLASS",
            "so/IPV6/TCLASS", "so/IPV6/AUTOFLOWLABEL", "so/IPV6/ADDR_PREFERENCES", "so/IPV6/MINHOPCOUNT",
            "so/IPV6/RECVORIGDSTADDR", "so/IPV6/TRANSPARENT", "so/IPV6/UNICAST_IF", "so/IPV6/RECVFRAGSIZE",
            "so/IPV6/FREEBIND", "so/TCP/NODELAY", "so/TCP/MAXSEG", "so/TCP/CORK", "so/TCP/KEEPIDLE",
            "so/TCP/KEEPINTVL", "so/TCP/KEEPCNT", "so/TCP/SYNCNT", "so/TCP/LINGER2", "so/TCP/DEFER_ACCEPT",
            "so/TCP/WINDOW_CLAMP", "so/TCP/QUICKACK", "so/TCP/CONGESTION", "so/TCP/THIN_LINEAR_TIMEOUTS",
            "so/TCP/THIN_DUPACK", "so/TCP/USER_TIMEOUT", "so/TCP/REPAIR", "so/TCP/REPAIR_QUEUE", "so/TCP/QUEUE_SEQ",
            "so/TCP/FASTOPEN", "so/TCP/NOTSENT_LOWAT", "so/TCP/SAVE_SYN", "so/TCP/SAVED_SYN",
            "so/TCP/REPAIR_WINDOW", "so/TCP/FASTOPEN_CONNECT", "so/TCP/ULP", "so/TCP/FASTOPEN_KEY",
            "so/TCP/FASTOPEN_NO_COOKIE", "so/TCP/INQ", "so/TCP/TX_DELAY", "so/TCP/AO_INFO", "so/TCP/AO_GET_KEYS",
            "so/TCP/AO_REPAIR", "so/TCP/IS_MPTCP", "so/TCP/RTO_MAX_MS", "so/TCP/RTO_MIN_US", "so/TCP/DELACK_MAX_US",
            "so/UDP/CORK", "so/UDP/LITE_SEND_CSCOV", "so/UDP/LITE_RECV_CSCOV", "so/UDP/ENCAP", "so/UDP/NO_CHECK6_TX", "so/UDP/NO_CHECK6_RX", "so/UDP/SEGMENT",
            "so/UDP/GRO", "so/NETLINK/ADD_MEMBERSHIP", "so/NETLINK/PKTINFO", "so/NETLINK/BROADCAST_ERROR",
            "so/NETLINK/NO_ENOBUFS", "so/NETLINK/LISTEN_ALL_NSID", "so/NETLINK/LIST_MEMBERSHIPS",
            "so/NETLINK/CAP_ACK", "so/NETLINK/EXT_ACK", "so/NETLINK/GET_STRICT_CHK",
        ]),
    ]),
    ("Accounting", &[
        lost("times and counts", "they begin again", &[
            "io/*", "schedstat", "sched/*", "stat/minflt", "stat/majflt", "stat/utime", "stat/stime", "stat/starttime",
            "stat/cutime", "stat/cstime", "stat/cminflt", "stat/cmajflt", "stat/cguest_time",
            "stat/processor", "stat/delayacct_blkio_ticks", "stat/guest_time", "status/voluntary_ctxt_switches",
            "status/nonvoluntary_ctxt_switches", "status/SigQ", "status/FDSize", "status/Ngid", "arch_status/AVX512_elapsed_ms",
            "stat/flags/FORKNOEXEC", "stat/flags/SUPERPRIV", "stat/flags/RANDOMIZE", "stat/flags/USED_MATH",
        ]),
        lost("where it sleeps in the kernel", "it is of the moment", &[
            "stack", "wchan", "syscall", "stat/wchan", "stat/kstkesp", "stat/kstkeip",
        ]),
    ]),
];
