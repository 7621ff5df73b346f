//! The options of sockets: one table, which says of each what becomes of it.
//!
//! Numbers are Linux's, of 6.18 (include/uapi/asm-generic/socket.h, linux/in.h, in6.h, tcp.h, udp.h). pc-capture reads by
//! this table, pc-rebuild sets by it, and the manuals and tests are made from it.

/// Level `SOL_SOCKET`.
pub const SOL_SOCKET: i32 = 1;
/// Level `IPPROTO_IP`.
pub const IP: i32 = 0;
/// Level `IPPROTO_IPV6`.
pub const IPV6: i32 = 41;
/// Level `IPPROTO_TCP`.
pub const TCP: i32 = 6;
/// Level `IPPROTO_UDP`.
pub const UDP: i32 = 17;

const AF_UNIX: i32 = 1;
const AF_INET6: i32 = 10;

/// An option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOption {
    /// `SOL_SOCKET`, `IPPROTO_TCP`, …
    pub level: i32,
    /// Number at that level.
    pub name: i32,
    /// Name in the headers.
    pub label: &'static str,
    /// Which sockets have it.
    pub of: Sockets,
    /// What becomes of it.
    pub fate: Fate,
}

/// Kinds of sockets, as far as their options differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sockets {
    /// All.
    All,
    /// TCP and UDP.
    Inet,
    /// TCP and UDP over IPv6.
    Inet6,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// UDP over IPv6.
    Udp6,
    /// Unix.
    Unix,
}

impl Sockets {
    /// Whether a socket of an address family (`AF_INET` …) and protocol (`IPPROTO_TCP` …) is one of these.
    pub fn include(self, family: i32, protocol: i32) -> bool {
        let (unix, v6) = (family == AF_UNIX, family == AF_INET6);
        match self {
            Self::All => true,
            Self::Unix => unix,
            Self::Inet => !unix,
            Self::Inet6 => v6,
            Self::Tcp => !unix && protocol == TCP,
            Self::Udp => !unix && protocol == UDP,
            Self::Udp6 => v6 && protocol == UDP,
        }
    }
}

/// What becomes of an option in a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The copy has the same value. Read with getsockopt(2), set with setsockopt(2).
    Carried(Stage),
    /// The number of a network device: carried by the device's name.
    Device(ByteOrder),
    /// A socket that has it set cannot be moved.
    Refused,
    /// It tells of the socket, or does something to it once; what it is about is carried or refused by itself.
    About(&'static str),
    /// The copy does not have it, and why.
    Lost(&'static str),
}

/// When a carried option is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Before the socket is bound.
    First,
    /// Before the socket is bound; it means nothing any more to a TCP connection, which has no such value.
    Unconnected,
    /// When all else is done: it changes by what is done, or would stand in its way.
    Last,
}

/// How a device's number stands in an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    /// As the machine has numbers.
    Host,
    /// The highest byte first.
    Network,
}

/// The option of a level and number; `None` if the table does not know it.
pub fn option(level: i32, name: i32) -> Option<&'static SocketOption> {
    TABLE.iter().find(|option| (option.level, option.name) == (level, name))
}

/// Whether an option is set when all else is done.
pub fn is_last(level: i32, name: i32) -> bool {
    option(level, name).is_some_and(|option| option.fate == Fate::Carried(Stage::Last))
}

use Fate::{About, Device, Lost, Refused};
use Sockets::{All, Inet, Inet6, Tcp, Udp, Udp6, Unix};

const FIRST: Fate = Fate::Carried(Stage::First);
const UNCONNECTED: Fate = Fate::Carried(Stage::Unconnected);
const LAST: Fate = Fate::Carried(Stage::Last);
const IDENTITY: Fate = About("what the socket is");
const ACTION: Fate = About("done once, and not kept");
const TOLD: Fate = About("what the kernel tells of the socket or its peer");
const OLD_FORM: Fate = About("another form of an option that is carried");
const UNREADABLE: Fate = Lost("nothing tells it");

const fn row(level: i32, name: i32, label: &'static str, of: Sockets, fate: Fate) -> SocketOption {
    SocketOption { level, name, label, of, fate }
}

/// All options, in the order in which they are read and set.
#[rustfmt::skip]
pub const TABLE: &[SocketOption] = &[
    row(SOL_SOCKET, 1, "SO_DEBUG", All, FIRST),
    row(SOL_SOCKET, 2, "SO_REUSEADDR", All, FIRST),
    row(SOL_SOCKET, 3, "SO_TYPE", All, IDENTITY),
    row(SOL_SOCKET, 4, "SO_ERROR", All, About("reading it would take it away: a socket with a pending error is refused")),
    row(SOL_SOCKET, 5, "SO_DONTROUTE", All, FIRST),
    row(SOL_SOCKET, 6, "SO_BROADCAST", All, FIRST),
    row(SOL_SOCKET, 9, "SO_KEEPALIVE", All, FIRST),
    row(SOL_SOCKET, 10, "SO_OOBINLINE", All, FIRST),
    row(SOL_SOCKET, 11, "SO_NO_CHECK", All, FIRST),
    row(SOL_SOCKET, 13, "SO_LINGER", All, FIRST),
    row(SOL_SOCKET, 14, "SO_BSDCOMPAT", All, About("without effect since Linux 2.2")),
    row(SOL_SOCKET, 15, "SO_REUSEPORT", All, FIRST),
    row(SOL_SOCKET, 16, "SO_PASSCRED", Unix, FIRST),
    row(SOL_SOCKET, 17, "SO_PEERCRED", Unix, TOLD),
    row(SOL_SOCKET, 18, "SO_RCVLOWAT", All, FIRST),
    row(SOL_SOCKET, 19, "SO_SNDLOWAT", All, About("always 1")),
    row(SOL_SOCKET, 20, "SO_RCVTIMEO", All, FIRST),
    row(SOL_SOCKET, 21, "SO_SNDTIMEO", All, FIRST),
    row(SOL_SOCKET, 22, "SO_SECURITY_AUTHENTICATION", All, About("without effect")),
    row(SOL_SOCKET, 23, "SO_SECURITY_ENCRYPTION_TRANSPORT", All, About("without effect")),
    row(SOL_SOCKET, 24, "SO_SECURITY_ENCRYPTION_NETWORK", All, About("without effect")),
    row(SOL_SOCKET, 25, "SO_BINDTODEVICE", Inet, FIRST),
    row(SOL_SOCKET, 26, "SO_ATTACH_FILTER", All, About("carried; a filter in eBPF is refused")),
    row(SOL_SOCKET, 27, "SO_DETACH_FILTER", All, ACTION),
    row(SOL_SOCKET, 28, "SO_PEERNAME", All, TOLD),
    row(SOL_SOCKET, 29, "SO_TIMESTAMP", All, FIRST),
    row(SOL_SOCKET, 30, "SO_ACCEPTCONN", All, TOLD),
    row(SOL_SOCKET, 31, "SO_PEERSEC", All, TOLD),
    row(SOL_SOCKET, 32, "SO_SNDBUFFORCE", All, OLD_FORM),
    row(SOL_SOCKET, 33, "SO_RCVBUFFORCE", All, OLD_FORM),
    row(SOL_SOCKET, 34, "SO_PASSSEC", Unix, FIRST),
    row(SOL_SOCKET, 35, "SO_TIMESTAMPNS", All, FIRST),
    row(SOL_SOCKET, 36, "SO_MARK", All, FIRST),
    row(SOL_SOCKET, 37, "SO_TIMESTAMPING", All, FIRST),
    row(SOL_SOCKET, 38, "SO_PROTOCOL", All, IDENTITY),
    row(SOL_SOCKET, 39, "SO_DOMAIN", All, IDENTITY),
    row(SOL_SOCKET, 40, "SO_RXQ_OVFL", All, FIRST),
    row(SOL_SOCKET, 41, "SO_WIFI_STATUS", All, FIRST),
    row(SOL_SOCKET, 43, "SO_NOFCS", All, FIRST),
    row(SOL_SOCKET, 45, "SO_SELECT_ERR_QUEUE", All, FIRST),
    row(SOL_SOCKET, 46, "SO_BUSY_POLL", All, FIRST),
    row(SOL_SOCKET, 47, "SO_MAX_PACING_RATE", All, FIRST),
    row(SOL_SOCKET, 48, "SO_BPF_EXTENSIONS", All, TOLD),
    row(SOL_SOCKET, 49, "SO_INCOMING_CPU", Inet, UNCONNECTED),
    row(SOL_SOCKET, 50, "SO_ATTACH_BPF", All, About("refused")),
    row(SOL_SOCKET, 51, "SO_ATTACH_REUSEPORT_CBPF", Inet, UNREADABLE),
    row(SOL_SOCKET, 52, "SO_ATTACH_REUSEPORT_EBPF", Inet, UNREADABLE),
    row(SOL_SOCKET, 53, "SO_CNX_ADVICE", All, ACTION),
    row(SOL_SOCKET, 54, "SCM_TIMESTAMPING_OPT_STATS", All, About("a message, not an option")),
    row(SOL_SOCKET, 55, "SO_MEMINFO", All, TOLD),
    row(SOL_SOCKET, 56, "SO_INCOMING_NAPI_ID", All, TOLD),
    row(SOL_SOCKET, 57, "SO_COOKIE", All, Lost("the kernel gives every socket its own number")),
    row(SOL_SOCKET, 58, "SCM_TIMESTAMPING_PKTINFO", All, About("a message, not an option")),
    row(SOL_SOCKET, 59, "SO_PEERGROUPS", Unix, TOLD),
    row(SOL_SOCKET, 60, "SO_ZEROCOPY", Inet, FIRST),
    row(SOL_SOCKET, 61, "SO_TXTIME", All, FIRST),
    row(SOL_SOCKET, 62, "SO_BINDTOIFINDEX", Inet, OLD_FORM),
    row(SOL_SOCKET, 63, "SO_TIMESTAMP_NEW", All, FIRST),
    row(SOL_SOCKET, 64, "SO_TIMESTAMPNS_NEW", All, FIRST),
    row(SOL_SOCKET, 65, "SO_TIMESTAMPING_NEW", All, FIRST),
    row(SOL_SOCKET, 66, "SO_RCVTIMEO_NEW", All, OLD_FORM),
    row(SOL_SOCKET, 67, "SO_SNDTIMEO_NEW", All, OLD_FORM),
    row(SOL_SOCKET, 68, "SO_DETACH_REUSEPORT_BPF", All, ACTION),
    row(SOL_SOCKET, 69, "SO_PREFER_BUSY_POLL", All, FIRST),
    row(SOL_SOCKET, 70, "SO_BUSY_POLL_BUDGET", All, UNREADABLE),
    row(SOL_SOCKET, 71, "SO_NETNS_COOKIE", All, TOLD),
    row(SOL_SOCKET, 73, "SO_RESERVE_MEM", All, FIRST),
    row(SOL_SOCKET, 74, "SO_TXREHASH", Tcp, LAST),
    row(SOL_SOCKET, 75, "SO_RCVMARK", All, FIRST),
    row(SOL_SOCKET, 76, "SO_PASSPIDFD", Unix, FIRST),
    row(SOL_SOCKET, 77, "SO_PEERPIDFD", Unix, TOLD),
    row(SOL_SOCKET, 78, "SO_DEVMEM_LINEAR", All, About("a message, not an option")),
    row(SOL_SOCKET, 79, "SO_DEVMEM_DMABUF", All, About("a message, not an option")),
    row(SOL_SOCKET, 80, "SO_DEVMEM_DONTNEED", Tcp, ACTION),
    row(SOL_SOCKET, 81, "SCM_TS_OPT_ID", All, About("a message, not an option")),
    row(SOL_SOCKET, 82, "SO_RCVPRIORITY", All, FIRST),
    row(SOL_SOCKET, 83, "SO_PASSRIGHTS", Unix, FIRST),
    row(SOL_SOCKET, 84, "SO_INQ", Unix, UNREADABLE),

    row(IP, 1, "IP_TOS", Inet, FIRST),
    row(IP, 2, "IP_TTL", Inet, FIRST),
    row(IP, 3, "IP_HDRINCL", Inet, About("of raw sockets, which are refused")),
    row(IP, 4, "IP_OPTIONS", Inet, FIRST),
    row(IP, 5, "IP_ROUTER_ALERT", Inet, About("of raw sockets, which are refused")),
    row(IP, 6, "IP_RECVOPTS", Inet, FIRST),
    row(IP, 7, "IP_RETOPTS", Inet, FIRST),
    row(IP, 8, "IP_PKTINFO", Inet, FIRST),
    row(IP, 9, "IP_PKTOPTIONS", Tcp, TOLD),
    row(IP, 10, "IP_MTU_DISCOVER", Inet, FIRST),
    row(IP, 11, "IP_RECVERR", Inet, FIRST),
    row(IP, 12, "IP_RECVTTL", Inet, FIRST),
    row(IP, 13, "IP_RECVTOS", Inet, FIRST),
    row(IP, 14, "IP_MTU", Inet, TOLD),
    row(IP, 15, "IP_FREEBIND", Inet, FIRST),
    row(IP, 16, "IP_IPSEC_POLICY", Inet, UNREADABLE),
    row(IP, 17, "IP_XFRM_POLICY", Inet, UNREADABLE),
    row(IP, 18, "IP_PASSSEC", Inet, FIRST),
    row(IP, 19, "IP_TRANSPARENT", Inet, FIRST),
    row(IP, 20, "IP_RECVORIGDSTADDR", Inet, FIRST),
    row(IP, 21, "IP_MINTTL", Inet, LAST),
    row(IP, 22, "IP_NODEFRAG", Inet, About("of raw sockets, which are refused")),
    row(IP, 23, "IP_CHECKSUM", Inet, FIRST),
    row(IP, 24, "IP_BIND_ADDRESS_NO_PORT", Inet, FIRST),
    row(IP, 25, "IP_RECVFRAGSIZE", Udp, FIRST),
    row(IP, 26, "IP_RECVERR_RFC4884", Inet, FIRST),
    row(IP, 32, "IP_MULTICAST_IF", Udp, FIRST),
    row(IP, 33, "IP_MULTICAST_TTL", Udp, FIRST),
    row(IP, 34, "IP_MULTICAST_LOOP", Inet, FIRST),
    row(IP, 35, "IP_ADD_MEMBERSHIP", Inet, About("memberships are carried")),
    row(IP, 36, "IP_DROP_MEMBERSHIP", Inet, ACTION),
    row(IP, 37, "IP_UNBLOCK_SOURCE", Inet, ACTION),
    row(IP, 38, "IP_BLOCK_SOURCE", Inet, About("carried with its membership")),
    row(IP, 39, "IP_ADD_SOURCE_MEMBERSHIP", Inet, About("memberships are carried")),
    row(IP, 40, "IP_DROP_SOURCE_MEMBERSHIP", Inet, ACTION),
    row(IP, 41, "IP_MSFILTER", Inet, About("carried with its membership")),
    row(IP, 42, "MCAST_JOIN_GROUP", Inet, About("memberships are carried")),
    row(IP, 43, "MCAST_BLOCK_SOURCE", Inet, About("carried with its membership")),
    row(IP, 44, "MCAST_UNBLOCK_SOURCE", Inet, ACTION),
    row(IP, 45, "MCAST_LEAVE_GROUP", Inet, ACTION),
    row(IP, 46, "MCAST_JOIN_SOURCE_GROUP", Inet, About("memberships are carried")),
    row(IP, 47, "MCAST_LEAVE_SOURCE_GROUP", Inet, ACTION),
    row(IP, 48, "MCAST_MSFILTER", Inet, About("carried with its membership")),
    row(IP, 49, "IP_MULTICAST_ALL", Inet, FIRST),
    row(IP, 50, "IP_UNICAST_IF", Inet, Device(ByteOrder::Network)),
    row(IP, 51, "IP_LOCAL_PORT_RANGE", Inet, FIRST),
    row(IP, 52, "IP_PROTOCOL", Inet, IDENTITY),

    row(IPV6, 1, "IPV6_ADDRFORM", Inet6, About("makes an IPv4 socket of it")),
    row(IPV6, 2, "IPV6_2292PKTINFO", Inet6, FIRST),
    row(IPV6, 3, "IPV6_2292HOPOPTS", Inet6, FIRST),
    row(IPV6, 4, "IPV6_2292DSTOPTS", Inet6, FIRST),
    row(IPV6, 5, "IPV6_2292RTHDR", Inet6, FIRST),
    row(IPV6, 6, "IPV6_2292PKTOPTIONS", Inet6, TOLD),
    row(IPV6, 7, "IPV6_CHECKSUM", Inet6, About("of raw sockets, which are refused")),
    row(IPV6, 8, "IPV6_2292HOPLIMIT", Inet6, FIRST),
    row(IPV6, 9, "IPV6_NEXTHOP", Inet6, About("without effect")),
    row(IPV6, 10, "IPV6_AUTHHDR", Inet6, About("without effect")),
    row(IPV6, 11, "IPV6_FLOWINFO", Inet6, FIRST),
    row(IPV6, 16, "IPV6_UNICAST_HOPS", Inet6, FIRST),
    row(IPV6, 17, "IPV6_MULTICAST_IF", Udp6, Device(ByteOrder::Host)),
    row(IPV6, 18, "IPV6_MULTICAST_HOPS", Udp6, FIRST),
    row(IPV6, 19, "IPV6_MULTICAST_LOOP", Inet6, FIRST),
    row(IPV6, 20, "IPV6_ADD_MEMBERSHIP", Inet6, About("memberships are carried")),
    row(IPV6, 21, "IPV6_DROP_MEMBERSHIP", Inet6, ACTION),
    row(IPV6, 22, "IPV6_ROUTER_ALERT", Inet6, About("of raw sockets, which are refused")),
    row(IPV6, 23, "IPV6_MTU_DISCOVER", Inet6, FIRST),
    row(IPV6, 24, "IPV6_MTU", Inet6, TOLD),
    row(IPV6, 25, "IPV6_RECVERR", Inet6, FIRST),
    row(IPV6, 26, "IPV6_V6ONLY", Inet6, FIRST),
    row(IPV6, 27, "IPV6_JOIN_ANYCAST", Inet6, UNREADABLE),
    row(IPV6, 28, "IPV6_LEAVE_ANYCAST", Inet6, ACTION),
    row(IPV6, 29, "IPV6_MULTICAST_ALL", Inet6, FIRST),
    row(IPV6, 30, "IPV6_ROUTER_ALERT_ISOLATE", Inet6, FIRST),
    row(IPV6, 31, "IPV6_RECVERR_RFC4884", Inet6, FIRST),
    row(IPV6, 32, "IPV6_FLOWLABEL_MGR", Inet6, Lost("labels are leased from this machine")),
    row(IPV6, 33, "IPV6_FLOWINFO_SEND", Inet6, FIRST),
    row(IPV6, 34, "IPV6_IPSEC_POLICY", Inet6, UNREADABLE),
    row(IPV6, 35, "IPV6_XFRM_POLICY", Inet6, UNREADABLE),
    row(IPV6, 36, "IPV6_HDRINCL", Inet6, About("of raw sockets, which are refused")),
    row(IPV6, 49, "IPV6_RECVPKTINFO", Inet6, FIRST),
    row(IPV6, 50, "IPV6_PKTINFO", Inet6, UNREADABLE),
    row(IPV6, 51, "IPV6_RECVHOPLIMIT", Inet6, FIRST),
    row(IPV6, 52, "IPV6_HOPLIMIT", Inet6, About("a message, not an option")),
    row(IPV6, 53, "IPV6_RECVHOPOPTS", Inet6, FIRST),
    row(IPV6, 54, "IPV6_HOPOPTS", Inet6, FIRST),
    row(IPV6, 55, "IPV6_RTHDRDSTOPTS", Inet6, FIRST),
    row(IPV6, 56, "IPV6_RECVRTHDR", Inet6, FIRST),
    row(IPV6, 57, "IPV6_RTHDR", Inet6, FIRST),
    row(IPV6, 58, "IPV6_RECVDSTOPTS", Inet6, FIRST),
    row(IPV6, 59, "IPV6_DSTOPTS", Inet6, FIRST),
    row(IPV6, 60, "IPV6_RECVPATHMTU", Inet6, FIRST),
    row(IPV6, 61, "IPV6_PATHMTU", Inet6, TOLD),
    row(IPV6, 62, "IPV6_DONTFRAG", Inet6, FIRST),
    row(IPV6, 63, "IPV6_USE_MIN_MTU", Inet6, About("known to the headers alone")),
    row(IPV6, 66, "IPV6_RECVTCLASS", Inet6, FIRST),
    row(IPV6, 67, "IPV6_TCLASS", Inet6, FIRST),
    row(IPV6, 70, "IPV6_AUTOFLOWLABEL", Inet6, FIRST),
    row(IPV6, 72, "IPV6_ADDR_PREFERENCES", Inet6, FIRST),
    row(IPV6, 73, "IPV6_MINHOPCOUNT", Inet6, LAST),
    row(IPV6, 74, "IPV6_RECVORIGDSTADDR", Inet6, FIRST),
    row(IPV6, 75, "IPV6_TRANSPARENT", Inet6, About("IP_TRANSPARENT under another name")),
    row(IPV6, 76, "IPV6_UNICAST_IF", Inet6, Device(ByteOrder::Network)),
    row(IPV6, 77, "IPV6_RECVFRAGSIZE", Inet6, FIRST),
    row(IPV6, 78, "IPV6_FREEBIND", Inet6, About("IP_FREEBIND under another name")),

    row(TCP, 1, "TCP_NODELAY", Tcp, FIRST),
    row(TCP, 2, "TCP_MAXSEG", Tcp, UNCONNECTED),
    row(TCP, 3, "TCP_CORK", Tcp, LAST),
    row(TCP, 4, "TCP_KEEPIDLE", Tcp, FIRST),
    row(TCP, 5, "TCP_KEEPINTVL", Tcp, FIRST),
    row(TCP, 6, "TCP_KEEPCNT", Tcp, FIRST),
    row(TCP, 7, "TCP_SYNCNT", Tcp, FIRST),
    row(TCP, 8, "TCP_LINGER2", Tcp, FIRST),
    row(TCP, 9, "TCP_DEFER_ACCEPT", Tcp, FIRST),
    row(TCP, 10, "TCP_WINDOW_CLAMP", Tcp, UNCONNECTED),
    row(TCP, 11, "TCP_INFO", Tcp, TOLD),
    row(TCP, 12, "TCP_QUICKACK", Tcp, Lost("the kernel changes it with every packet")),
    row(TCP, 13, "TCP_CONGESTION", Tcp, FIRST),
    row(TCP, 14, "TCP_MD5SIG", Tcp, About("a socket with keys is refused")),
    row(TCP, 16, "TCP_THIN_LINEAR_TIMEOUTS", Tcp, FIRST),
    row(TCP, 17, "TCP_THIN_DUPACK", Tcp, About("without effect since Linux 4.11")),
    row(TCP, 18, "TCP_USER_TIMEOUT", Tcp, FIRST),
    row(TCP, 19, "TCP_REPAIR", Tcp, Refused),
    row(TCP, 20, "TCP_REPAIR_QUEUE", Tcp, About("of TCP_REPAIR")),
    row(TCP, 21, "TCP_QUEUE_SEQ", Tcp, About("of TCP_REPAIR")),
    row(TCP, 22, "TCP_REPAIR_OPTIONS", Tcp, About("of TCP_REPAIR")),
    row(TCP, 23, "TCP_FASTOPEN", Tcp, UNCONNECTED),
    row(TCP, 24, "TCP_TIMESTAMP", Tcp, TOLD),
    row(TCP, 25, "TCP_NOTSENT_LOWAT", Tcp, FIRST),
    row(TCP, 26, "TCP_CC_INFO", Tcp, TOLD),
    row(TCP, 27, "TCP_SAVE_SYN", Tcp, UNCONNECTED),
    row(TCP, 28, "TCP_SAVED_SYN", Tcp, About("reading it would take it away: a connection with a saved SYN is refused")),
    row(TCP, 29, "TCP_REPAIR_WINDOW", Tcp, About("of TCP_REPAIR")),
    row(TCP, 30, "TCP_FASTOPEN_CONNECT", Tcp, UNCONNECTED),
    row(TCP, 31, "TCP_ULP", Tcp, Refused),
    row(TCP, 32, "TCP_MD5SIG_EXT", Tcp, About("a socket with keys is refused")),
    row(TCP, 33, "TCP_FASTOPEN_KEY", Tcp, UNCONNECTED),
    row(TCP, 34, "TCP_FASTOPEN_NO_COOKIE", Tcp, UNCONNECTED),
    row(TCP, 35, "TCP_ZEROCOPY_RECEIVE", Tcp, ACTION),
    row(TCP, 36, "TCP_INQ", Tcp, FIRST),
    row(TCP, 37, "TCP_TX_DELAY", Tcp, LAST),
    row(TCP, 38, "TCP_AO_ADD_KEY", Tcp, About("a socket with keys is refused")),
    row(TCP, 39, "TCP_AO_DEL_KEY", Tcp, ACTION),
    row(TCP, 40, "TCP_AO_INFO", Tcp, About("a socket with keys is refused")),
    row(TCP, 41, "TCP_AO_GET_KEYS", Tcp, TOLD),
    row(TCP, 42, "TCP_AO_REPAIR", Tcp, About("of TCP_REPAIR")),
    row(TCP, 43, "TCP_IS_MPTCP", Tcp, IDENTITY),
    row(TCP, 44, "TCP_RTO_MAX_MS", Tcp, FIRST),
    row(TCP, 45, "TCP_RTO_MIN_US", Tcp, FIRST),
    row(TCP, 46, "TCP_DELACK_MAX_US", Tcp, FIRST),

    row(UDP, 1, "UDP_CORK", Udp, LAST),
    row(UDP, 100, "UDP_ENCAP", Udp, FIRST),
    row(UDP, 101, "UDP_NO_CHECK6_TX", Udp, FIRST),
    row(UDP, 102, "UDP_NO_CHECK6_RX", Udp, FIRST),
    row(UDP, 103, "UDP_SEGMENT", Udp, FIRST),
    row(UDP, 104, "UDP_GRO", Udp, FIRST),
    row(UDP, 10, "UDPLITE_SEND_CSCOV", Udp, About("of UDP-Lite, which is refused")),
    row(UDP, 11, "UDPLITE_RECV_CSCOV", Udp, About("of UDP-Lite, which is refused")),

    // After those that change them.
    row(SOL_SOCKET, 12, "SO_PRIORITY", All, FIRST),
    row(SOL_SOCKET, 7, "SO_SNDBUF", All, LAST),
    row(SOL_SOCKET, 8, "SO_RCVBUF", All, LAST),
    row(SOL_SOCKET, 72, "SO_BUF_LOCK", All, LAST),
    row(SOL_SOCKET, 42, "SO_PEEK_OFF", All, LAST),
    row(SOL_SOCKET, 44, "SO_LOCK_FILTER", All, LAST),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_option_stands_once_in_the_table_by_number_and_by_name() {
        let numbers: HashSet<_> = TABLE.iter().map(|option| (option.level, option.name)).collect();
        let labels: HashSet<_> = TABLE.iter().map(|option| option.label).collect();
        assert_eq!((numbers.len(), labels.len()), (TABLE.len(), TABLE.len()));
    }

    #[test]
    fn sockets_have_the_options_of_their_family_and_protocol() {
        assert!(Udp6.include(10, 17) && !Udp6.include(2, 17) && !Udp6.include(10, 6));
        assert!(Unix.include(1, 0) && !Inet.include(1, 0) && All.include(1, 0));
        assert!(is_last(SOL_SOCKET, 44) && !is_last(SOL_SOCKET, 9));
    }
}
