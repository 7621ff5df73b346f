//! The one table of record numbers. A number is assigned once and never reused.

use crate::codec;
use crate::older::{Commit1, RoundEnd1};
use crate::openfile::OpenFile;
use crate::record::Record;

/// The frame type of page data, whose body is laid out by hand (see [`crate::Pages`]).
pub const PAGES: u16 = 0x23;
/// The frame type of changed bytes of pages, laid out by hand too (see [`crate::Patches`]).
pub const PATCHES: u16 = 0x24;
/// The version that a record has as long as its body is that of the first firm format, and that of [`PAGES`] and [`PATCHES`].
pub const VERSION: u16 = 1;

/// `number Name = version`, and after it `[older version => type]` for each older version that is still read: `type` is
/// the body as it was, and `From` makes today's record of it. To change a body: keep the struct as it is under another
/// name, give the new one the next version, and list the old one here.
///
/// A body that only gains variants keeps its type: `number Name = first, newest by lowest`, where `lowest` gives the lowest
/// version that can express a body. It is written in that, so that an older reader says "not supported" of what it cannot
/// know, and reads all else.
macro_rules! table {
    ($($number:literal $name:ident = $version:literal $(, $newest:literal by $lowest:path)? $([$old:literal => $older:ty])*;)*) => {
        impl Record {
            /// The record's number: the type of its frame.
            pub fn number(&self) -> u16 {
                match self { $(Self::$name(_) => $number,)* }
            }

            /// The version in which the record is written: the lowest that can express it.
            pub fn version(&self) -> u16 {
                match self { $(Self::$name(_body) => lowest!(_body, $version $(, $lowest)?),)* }
            }

            /// The record's name, as the documentation has it.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name),)* }
            }

            /// The record's body: the payload of its frame. Fails for one that is too long.
            pub fn encode(&self) -> Result<Vec<u8>, String> {
                match self { $(Self::$name(body) => codec::encode(body),)* }
            }

            /// A record from its number, version and body; `None` if nobody here knows that number or version. An error
            /// says what is wrong with the body.
            pub fn decode(number: u16, version: u16, body: &[u8]) -> Option<Result<Self, String>> {
                match (number, version) {
                    $(
                        ($number, $version) => Some(codec::decode(body).map(Self::$name).and_then(|it| it.expressible(version))),
                        $(($number, $version..=$newest) => Some(codec::decode(body).map(Self::$name).and_then(|it| it.expressible(version))),)?
                        $(($number, $old) => Some(codec::decode_older::<$older, _>(body).map(Self::$name)),)*
                    )*
                    _ => None,
                }
            }
        }

        impl Record {
            /// Refuses a body that its version cannot express.
            fn expressible(self, version: u16) -> Result<Self, String> {
                let lowest = self.version();
                if lowest <= version { Ok(self) } else { Err(format!("what only version {lowest} can say")) }
            }
        }

        /// The name of a record number; `None` if nobody assigned it.
        pub fn record_name(number: u16) -> Option<&'static str> {
            match number {
                $($number => Some(stringify!($name)),)*
                PAGES => Some("Pages"),
                PATCHES => Some("Patches"),
                pc_frame::END => Some("End"),
                _ => None,
            }
        }

        /// The newest version of frames of a type; `None` if nobody assigned it.
        pub fn record_version(number: u16) -> Option<u16> {
            match number {
                $($number => Some(newest!($version $(, $newest)?)),)*
                PAGES | PATCHES => Some(VERSION),
                pc_frame::END => Some(0),
                _ => None,
            }
        }
    };
}

macro_rules! lowest {
    ($body:ident, $version:literal) => {
        $version
    };
    ($body:ident, $version:literal, $lowest:path) => {
        $lowest($body)
    };
}

macro_rules! newest {
    ($version:literal) => {
        $version
    };
    ($version:literal, $newest:literal) => {
        $newest
    };
}

table! {
    0x0001 Machine = 1;
    0x0002 RoundBegin = 1;
    0x0003 RoundEnd = 2 [1 => RoundEnd1];
    0x0010 Task = 1;
    0x0011 TaskGone = 1;
    0x0012 Space = 1;
    0x0013 SpaceGone = 1;
    0x0014 File = 1;
    0x0015 ShmState = 1;
    0x0016 TaskNamespaces = 1;
    0x0017 Cgroup = 1;
    0x0018 TaskProc = 1;
    0x0020 MapChange = 1;
    0x0021 Zap = 1;
    0x0022 ZeroPages = 1;
    0x0030 MmState = 1;
    0x0031 SigTable = 1;
    0x0032 TaskState = 1;
    0x0033 Thread = 1;
    0x0034 MmSettings = 1;
    0x0035 TaskSettings = 1;
    0x0036 ThreadSettings = 1;
    0x0037 TimerDates = 1;
    0x0040 FdTable = 1;
    0x0041 OpenFile = 1, 2 by OpenFile::lowest_version;
    0x0042 SocketState = 1;
    0x0043 Queue = 1;
    0x0070 Commit = 2 [1 => Commit1];
    0x0071 Cancel = 1;
}
