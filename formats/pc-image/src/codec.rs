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
