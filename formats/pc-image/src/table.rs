//! The one table of record numbers. A number is assigned once and never reused.

use crate::codec;
use crate::record::Record;

/// The frame type of page data, whose body is laid out by hand (see [`crate::Pages`]).
pub const PAGES: u16 = 0x23;
/// The version of every record while the format is not firm.
pub const VERSION: u16 = 0;

macro_rules! table {
    ($($number:literal $name:ident,)*) => {
        impl Record {
            /// The record's number: the type of its frame.
            pub fn number(&self) -> u16 {
                match self { $(Self::$name(_) => $number,)* }
            }

            /// The record's name, as the documentation has it.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name),)* }
            }

            /// The record's body: the payload of its frame. Fails for one that is too long.
            pub fn encode(&self) -> Result<Vec<u8>, String> {
                match self { $(Self::$name(body) => codec::encode(body),)* }
            }

            /// A record from its number and body; `None` if the number is not in the table. An error says what is wrong
            /// with the body.
            pub fn decode(number: u16, body: &[u8]) -> Option<Result<Self, String>> {
                match number {
                    $($number => Some(codec::decode(body).map(Self::$name)),)*
                    _ => None,
                }
            }
        }

        /// The name of a record number; `None` if nobody assigned it.
        pub fn record_name(number: u16) -> Option<&'static str> {
            match number {
                $($number => Some(stringify!($name)),)*
                PAGES => Some("Pages"),
                pc_frame::END => Some("End"),
                _ => None,
            }
        }
    };
}

table! {
    0x0001 Machine,
    0x0002 RoundBegin,
    0x0003 RoundEnd,
    0x0010 Task,
    0x0011 TaskGone,
    0x0012 Space,
    0x0013 SpaceGone,
    0x0014 File,
    0x0020 MapChange,
    0x0021 Zap,
    0x0022 ZeroPages,
    0x0030 MmState,
    0x0031 SigTable,
    0x0032 TaskState,
    0x0033 Thread,
    0x0040 FdTable,
    0x0041 OpenFile,
    0x0070 Commit,
    0x0071 Cancel,
}
