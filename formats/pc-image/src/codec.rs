//! Record bodies. The one place that knows bincode: fixed-width little-endian integers, `u64` lengths, `u32` variants.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

/// Most bytes that a body may make us allocate.
const LIMIT: usize = 16 << 20;

type Config = Configuration<LittleEndian, Fixint, Limit<LIMIT>>;

const CONFIG: Config =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<LIMIT>();

/// A record's body as bytes.
pub(crate) fn encode<T: Encode>(value: &T) -> Result<Vec<u8>, String> {
    bincode::encode_to_vec(value, CONFIG).map_err(|err| err.to_string())
}

/// A record from its body, all of which must be used.
pub(crate) fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, String> {
    let (value, used) = bincode::decode_from_slice(bytes, CONFIG).map_err(|err| err.to_string())?;
    if used == bytes.len() { Ok(value) } else { Err(format!("{} bytes too many", bytes.len() - used)) }
}

/// A record from a body of an older version, `Old`.
pub(crate) fn decode_older<Old: Decode<()>, New: From<Old>>(bytes: &[u8]) -> Result<New, String> {
    decode::<Old>(bytes).map(New::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Encode, Decode)]
    struct Old {
        size: u32,
    }

    #[derive(Debug, PartialEq, Encode, Decode)]
    struct New {
        size: u64,
        note: Option<String>,
    }

    impl From<Old> for New {
        fn from(old: Old) -> Self {
            Self { size: old.size.into(), note: None }
        }
    }

    #[test]
    fn a_body_of_the_last_version_is_read_as_the_record_of_today() {
        let old = encode(&Old { size: 7 }).unwrap();
        assert_eq!(decode_older::<Old, New>(&old), Ok(New { size: 7, note: None }));
        assert!(decode::<New>(&old).is_err(), "the versions are told apart by the frame, not by luck");
    }

    #[test]
    fn a_body_with_bytes_behind_it_is_refused() {
        let body = [encode(&Old { size: 7 }).unwrap(), vec![0]].concat();
        assert_eq!(decode::<Old>(&body).err().as_deref(), Some("1 bytes too many"));
    }
}
