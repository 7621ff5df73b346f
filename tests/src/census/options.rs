//! Socket options by level and number, from the kernel's headers (include/uapi: asm-generic/socket.h, linux/in.h, in6.h,
//! tcp.h, udp.h, netlink.h). One that the kernel answers and that is not here fails the census.

/// A level of options.
pub struct Level {
    /// `SOL_*`.
    pub number: i32,
    /// Its name.
    pub name: &'static str,
    /// The numbers that are asked for.
    pub asked: std::ops::Range<i32>,
    /// Numbers that are not asked for, as asking would change something or load a module.
    pub never: &'static [i32],
    /// Names of options.
    pub names: &'static [(i32, &'static str)],
}

impl Level {
    /// The name of an option.
    pub fn name_of(&self, number: i32) -> String {
        let name = self.names.iter().find(|(known, _)| *known == number);
        let name = name.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned());
        format!("so/{}/{name}", self.name)
    }
}

/// SO_ERROR (takes the error away) and SO_PEERPIDFD (makes a descriptor) are not asked for.
pub const SOCKET: Level = Level { number: 1, name: "SOCKET", asked: 1..128, never: &[4, 77], names: SO };
/// From 64 on, the numbers are those of iptables.
pub const IP: Level = Level { number: 0, name: "IP", asked: 1..64, never: &[], names: IPV4 };
/// 64, 65, 68, 69 and from 80 on, the numbers are those of ip6tables.
pub const IPV6: Level =
    Level { number: 41, name: "IPV6", asked: 1..80, never: &[64, 65, 68, 69], names: IP6 };
/// TCP_ZEROCOPY_RECEIVE takes bytes away.
pub const TCP: Level = Level { number: 6, name: "TCP", asked: 1..128, never: &[35], names: TCP_NAMES };
/// UDP.
pub const UDP: Level = Level { number: 17, name: "UDP", asked: 1..128, never: &[], names: UDP_NAMES };
/// Netlink.
pub const NETLINK: Level =
    Level { number: 270, name: "NETLINK", asked: 1..32, never: &[], names: NETLINK_NAMES };

#[rustfmt::skip]
const SO: &[(i32, &str)] = &[
    (1, "DEBUG"), (2, "REUSEADDR"), (3, "TYPE"), (5, "DONTROUTE"), (6, "BROADCAST"), (7, "SNDBUF"),
    (8, "RCVBUF"), (9, "KEEPALIVE"), (10, "OOBINLINE"), (11, "NO_CHECK"), (12, "PRIORITY"), (13, "LINGER"), (14, "BSDCOMPAT"),
    (15, "REUSEPORT"), (16, "PASSCRED"), (17, "PEERCRED"), (18, "RCVLOWAT"), (19, "SNDLOWAT"),
    (20, "RCVTIMEO"), (21, "SNDTIMEO"), (25, "BINDTODEVICE"), (26, "GET_FILTER"), (28, "PEERNAME"),
    (29, "TIMESTAMP"), (30, "ACCEPTCONN"), (31, "PEERSEC"), (34, "PASSSEC"), (35, "TIMESTAMPNS"),
    (36, "MARK"), (37, "TIMESTAMPING"), (38, "PROTOCOL"), (39, "DOMAIN"), (40, "RXQ_OVFL"),
    (41, "WIFI_STATUS"), (42, "PEEK_OFF"), (43, "NOFCS"), (44, "LOCK_FILTER"), (45, "SELECT_ERR_QUEUE"),
    (46, "BUSY_POLL"), (47, "MAX_PACING_RATE"), (48, "BPF_EXTENSIONS"), (49, "INCOMING_CPU"),
    (55, "MEMINFO"), (56, "INCOMING_NAPI_ID"), (57, "COOKIE"), (59, "PEERGROUPS"), (60, "ZEROCOPY"),
    (61, "TXTIME"), (62, "BINDTOIFINDEX"), (63, "TIMESTAMP_NEW"), (64, "TIMESTAMPNS_NEW"),
    (65, "TIMESTAMPING_NEW"), (66, "RCVTIMEO_NEW"), (67, "SNDTIMEO_NEW"), (69, "PREFER_BUSY_POLL"),
    (70, "BUSY_POLL_BUDGET"), (71, "NETNS_COOKIE"), (72, "BUF_LOCK"), (73, "RESERVE_MEM"), (74, "TXREHASH"),
    (75, "RCVMARK"), (76, "PASSPIDFD"), (82, "RCVPRIORITY"), (83, "PASSRIGHTS"), (84, "INQ"),
];

#[rustfmt::skip]
const IPV4: &[(i32, &str)] = &[
    (1, "TOS"), (2, "TTL"), (3, "HDRINCL"), (4, "OPTIONS"), (5, "ROUTER_ALERT"), (6, "RECVOPTS"),
    (7, "RETOPTS"), (8, "PKTINFO"), (9, "PKTOPTIONS"), (10, "MTU_DISCOVER"), (11, "RECVERR"),
    (12, "RECVTTL"), (13, "RECVTOS"), (14, "MTU"), (15, "FREEBIND"), (16, "IPSEC_POLICY"),
    (17, "XFRM_POLICY"), (18, "PASSSEC"), (19, "TRANSPARENT"), (20, "RECVORIGDSTADDR"), (21, "MINTTL"),
    (22, "NODEFRAG"), (23, "CHECKSUM"), (24, "BIND_ADDRESS_NO_PORT"), (25, "RECVFRAGSIZE"),
    (26, "RECVERR_RFC4884"), (32, "MULTICAST_IF"), (33, "MULTICAST_TTL"), (34, "MULTICAST_LOOP"),
    (41, "MSFILTER"), (48, "MCAST_MSFILTER"), (49, "MULTICAST_ALL"), (50, "UNICAST_IF"),
    (51, "LOCAL_PORT_RANGE"), (52, "PROTOCOL"),
];

#[rustfmt::skip]
const IP6: &[(i32, &str)] = &[
    (1, "ADDRFORM"), (2, "2292PKTINFO"), (3, "2292HOPOPTS"), (4, "2292DSTOPTS"), (5, "2292RTHDR"),
    (6, "2292PKTOPTIONS"), (7, "CHECKSUM"), (8, "2292HOPLIMIT"), (11, "FLOWINFO"), (16, "UNICAST_HOPS"),
    (17, "MULTICAST_IF"), (18, "MULTICAST_HOPS"), (19, "MULTICAST_LOOP"), (22, "ROUTER_ALERT"),
    (23, "MTU_DISCOVER"), (24, "MTU"), (25, "RECVERR"), (26, "V6ONLY"), (29, "MULTICAST_ALL"),
    (30, "ROUTER_ALERT_ISOLATE"), (31, "RECVERR_RFC4884"), (32, "FLOWLABEL_MGR"), (33, "FLOWINFO_SEND"),
    (36, "HDRINCL"), (48, "MCAST_MSFILTER"), (49, "RECVPKTINFO"), (50, "PKTINFO"), (51, "RECVHOPLIMIT"),
    (52, "HOPLIMIT"), (53, "RECVHOPOPTS"), (54, "HOPOPTS"), (55, "RTHDRDSTOPTS"), (56, "RECVRTHDR"),
    (57, "RTHDR"), (58, "RECVDSTOPTS"), (59, "DSTOPTS"), (60, "RECVPATHMTU"), (61, "PATHMTU"),
    (62, "DONTFRAG"), (63, "USE_MIN_MTU"), (66, "RECVTCLASS"), (67, "TCLASS"), (70, "AUTOFLOWLABEL"),
    (72, "ADDR_PREFERENCES"), (73, "MINHOPCOUNT"), (74, "RECVORIGDSTADDR"), (75, "TRANSPARENT"),
    (76, "UNICAST_IF"), (77, "RECVFRAGSIZE"), (78, "FREEBIND"),
];

#[rustfmt::skip]
const TCP_NAMES: &[(i32, &str)] = &[
    (1, "NODELAY"), (2, "MAXSEG"), (3, "CORK"), (4, "KEEPIDLE"), (5, "KEEPINTVL"), (6, "KEEPCNT"),
    (7, "SYNCNT"), (8, "LINGER2"), (9, "DEFER_ACCEPT"), (10, "WINDOW_CLAMP"), (11, "INFO"),
    (12, "QUICKACK"), (13, "CONGESTION"), (16, "THIN_LINEAR_TIMEOUTS"), (17, "THIN_DUPACK"),
    (18, "USER_TIMEOUT"), (19, "REPAIR"), (20, "REPAIR_QUEUE"), (21, "QUEUE_SEQ"), (23, "FASTOPEN"),
    (24, "TIMESTAMP"), (25, "NOTSENT_LOWAT"), (26, "CC_INFO"), (27, "SAVE_SYN"), (28, "SAVED_SYN"),
    (29, "REPAIR_WINDOW"), (30, "FASTOPEN_CONNECT"), (31, "ULP"), (33, "FASTOPEN_KEY"),
    (34, "FASTOPEN_NO_COOKIE"), (36, "INQ"), (37, "TX_DELAY"), (40, "AO_INFO"), (41, "AO_GET_KEYS"),
    (42, "AO_REPAIR"), (43, "IS_MPTCP"), (44, "RTO_MAX_MS"), (45, "RTO_MIN_US"), (46, "DELACK_MAX_US"),
];

#[rustfmt::skip]
const UDP_NAMES: &[(i32, &str)] = &[
    (1, "CORK"), (10, "LITE_SEND_CSCOV"), (11, "LITE_RECV_CSCOV"), (100, "ENCAP"), (101, "NO_CHECK6_TX"), (102, "NO_CHECK6_RX"), (103, "SEGMENT"),
    (104, "GRO"),
];

#[rustfmt::skip]
const NETLINK_NAMES: &[(i32, &str)] = &[
    (1, "ADD_MEMBERSHIP"), (3, "PKTINFO"), (4, "BROADCAST_ERROR"), (5, "NO_ENOBUFS"),
    (8, "LISTEN_ALL_NSID"), (9, "LIST_MEMBERSHIPS"), (10, "CAP_ACK"), (11, "EXT_ACK"),
    (12, "GET_STRICT_CHK"),
];
