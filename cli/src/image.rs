//! The record of a process, out of its bytes in the store: for `restart`, `show` and `diff`.

use stasis_protocol::{
    image::{IMAGE_VERSION, ProcessImage},
    wire,
};

use crate::failure::Failure;

/// Why a record is not one that can be used.
#[derive(Debug)]
pub enum Unusable {
    /// It is another Stasis' that wrote it.
    Version(u32),
    Damaged,
}

impl Unusable {
    /// `whose`: the image's name in the message; `damaged`: what a failure of the store is.
    pub fn failure(self, whose: &str, damaged: impl FnOnce(&dyn std::fmt::Display) -> Failure) -> Failure {
        match self {
            Self::Version(version) => Failure::refused(
                format!("the image of {whose}"),
                format!("it has format {version}, and this is a Stasis for format {IMAGE_VERSION}"),
                if version > IMAGE_VERSION {
                    "use the newer version of Stasis that wrote it"
                } else {
                    "use the older version of Stasis that wrote it, or take the checkpoint anew"
                },
            ),
            Self::Damaged => damaged(&format!("the image of {whose} cannot be read: run `stasis verify`")),
        }
    }
}

/// Decodes a record, whose version comes first for the purpose of being readable alone.
///
/// # Errors
/// It has another version, or is none.
pub fn decode(record: &[u8]) -> Result<ProcessImage, Unusable> {
    match postcard::take_from_bytes::<u32>(record) {
        Ok((IMAGE_VERSION, _)) => wire::decode(record).map_err(|_| Unusable::Damaged),
        Ok((version, _)) => Err(Unusable::Version(version)),
        Err(_) => Err(Unusable::Damaged),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_another_version_is_known_before_it_is_decoded() {
        assert!(
            matches!(decode(&[IMAGE_VERSION as u8 + 1, 0xff]), Err(Unusable::Version(version)) if version > IMAGE_VERSION)
        );
        // A varint of two bytes.
        assert!(matches!(decode(&[0xac, 0x02]), Err(Unusable::Version(300))));
        for damaged in [&[][..], &[0xff], &[IMAGE_VERSION as u8]] {
            assert!(matches!(decode(damaged), Err(Unusable::Damaged)));
        }
    }
}
