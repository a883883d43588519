//! Framing: a little-endian `u32` length, then a postcard-encoded value.
//!
//! One message is one `write`: header and payload never travel apart (two writes on a stream
//! socket cost a delayed acknowledgement each on TCP).

use alloc::vec::Vec;

use serde::{Serialize, de::DeserializeOwned};

/// The largest payload that either side accepts, in bytes. Page data never travels in messages.
pub const MAX_PAYLOAD: usize = 64 << 20;

/// The length of the header in front of each payload, in bytes.
pub const HEADER: usize = 4;

/// Why bytes could not be made a message, or a message bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// The header announces more than [`MAX_PAYLOAD`] bytes.
    TooLong(usize),
    /// The payload is not an encoding of the expected type.
    Malformed,
}

impl core::fmt::Display for WireError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooLong(len) => write!(f, "a message of {len} bytes (at most {MAX_PAYLOAD})"),
            Self::Malformed => f.write_str("a malformed message"),
        }
    }
}

impl core::error::Error for WireError {}

/// Encodes a value with its header in front, ready for one `write`.
///
/// # Errors
/// [`WireError::TooLong`] when the payload exceeds [`MAX_PAYLOAD`]; [`WireError::Malformed`] when the
/// value cannot be encoded.
pub fn frame<T: Serialize>(value: &T) -> Result<Vec<u8>, WireError> {
    let mut bytes = postcard::to_extend(value, Vec::from([0u8; HEADER])).map_err(|_| WireError::Malformed)?;
    let len = bytes.len() - HEADER;
    if len > MAX_PAYLOAD {
        return Err(WireError::TooLong(len));
    }
    bytes[..HEADER].copy_from_slice(&(len as u32).to_le_bytes());
    Ok(bytes)
}

/// Reads a header: the length in bytes of the payload that follows.
///
/// # Errors
/// [`WireError::TooLong`] when it exceeds [`MAX_PAYLOAD`].
pub fn payload_len(header: [u8; HEADER]) -> Result<usize, WireError> {
    let len = u32::from_le_bytes(header) as usize;
    if len > MAX_PAYLOAD { Err(WireError::TooLong(len)) } else { Ok(len) }
}

/// Decodes a payload (without its header).
///
/// # Errors
/// [`WireError::Malformed`] when the bytes are not exactly one value of the type.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, WireError> {
    match postcard::take_from_bytes(payload) {
        Ok((value, [])) => Ok(value),
        _ => Err(WireError::Malformed),
    }
}

/// Encodes a record that is kept rather than sent (no header).
///
/// # Errors
/// [`WireError::Malformed`] when the value cannot be encoded.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, WireError> {
    postcard::to_extend(value, Vec::new()).map_err(|_| WireError::Malformed)
}
