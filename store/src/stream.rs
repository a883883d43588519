//! Checkpoints as a stream: self-contained, read and written from the first byte to the last.
//!
//! `STASISEX`, version u32, zero u32; then frames: kind u8, zeros 3, length u32 (all little-endian), that many
//! bytes, and the blake3 of all that went before in the stream but for such hashes. Kinds:
//!
//! | | bytes |
//! |---|---|
//! | 1 | pages, raw, at most 256; counted from 0 through the stream |
//! | 2 | [`LeafFrame`]: 512 pages of an address space, by the numbers of earlier pages |
//! | 3 | [`ProcessFrame`]: a process, by the numbers of earlier leaves |
//! | 4 | [`CheckpointFrame`]: a checkpoint, by the numbers of earlier processes |
//! | 5 | [`EndFrame`]; the stream ends behind it |
//!
//! Frames but pages are postcard. There is no name of a page in the stream: names are keyed with the secret of the store
//! that they are for.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use stasis_protocol::{store::CheckpointDraft, wire};

use crate::hash::{PAGE_SIZE, Page};

const MAGIC: &[u8; 8] = b"STASISEX";

/// The format that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// The most pages of a frame.
pub const PAGES_AT_ONCE: usize = 256;

/// The longest frame, in bytes: a process with a record as long as a message, and its leaves.
const MAX_FRAME: usize = 80 << 20;

/// How much is allocated before its bytes have come.
const READ_STEP: usize = 1 << 20;

const PAGES: u8 = 1;
const LEAF: u8 = 2;
const PROCESS: u8 = 3;
const CHECKPOINT: u8 = 4;
const END: u8 = 5;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafFrame {
    pub runs: Vec<StreamRun>,
}

/// Pages one after the other, in a leaf and in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRun {
    pub first: u16,
    pub pages: u16,
    /// The number of the first; `None`: they are zeros.
    pub start: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFrame {
    /// By space, the leaves in order: where (page number divided by 512), and the number in the stream.
    pub spaces: Vec<(u32, Vec<(u64, u64)>)>,
    pub record: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointFrame {
    pub id: String,
    pub taken_us: u64,
    /// Its processes' manifests are zeros.
    pub draft: CheckpointDraft,
    /// The numbers of its processes in the stream.
    pub processes: Vec<u64>,
}

/// How many there were of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndFrame {
    pub pages: u64,
    pub leaves: u64,
    pub processes: u64,
    pub checkpoints: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Whole pages.
    Pages(Vec<u8>),
    Leaf(LeafFrame),
    Process(ProcessFrame),
    Checkpoint(CheckpointFrame),
    End(EndFrame),
}

/// Why a stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("it is not a stream of `stasis export`")]
    Foreign,
    #[error(
        "it has format {0}, this program knows formats up to {VERSION}; use the newer Stasis that wrote it"
    )]
    Newer(u32),
    #[error("it ends in the middle, after {0} bytes; export it again")]
    Truncated(u64),
    #[error("it is damaged before byte {0}; export it again")]
    Damaged(u64),
    #[error("it contradicts itself before byte {0}: {1}")]
    Contradiction(u64, &'static str),
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

pub struct Writer<W> {
    out: W,
    hasher: blake3::Hasher,
    pub bytes: u64,
}

impl<W: Write> Writer<W> {
    /// # Errors
    /// It cannot be written.
    pub fn new(out: W) -> io::Result<Self> {
        let mut writer = Self { out, hasher: blake3::Hasher::new(), bytes: 0 };
        writer.write(MAGIC)?;
        writer.write(&VERSION.to_le_bytes())?;
        writer.write(&[0; 4])?;
        Ok(writer)
    }

    /// # Errors
    /// It cannot be written, or is too long.
    pub fn frame(&mut self, frame: &Frame) -> io::Result<()> {
        let encoded = |kind, bytes: Result<Vec<u8>, wire::WireError>| {
            bytes.map(|bytes| (kind, bytes)).map_err(|error| io::Error::other(error.to_string()))
        };
        match frame {
            Frame::Pages(pages) => self.put(PAGES, pages),
            other => {
                let (kind, bytes) = match other {
                    Frame::Pages(_) => return Ok(()),
                    Frame::Leaf(leaf) => encoded(LEAF, wire::encode(leaf))?,
                    Frame::Process(process) => encoded(PROCESS, wire::encode(process))?,
                    Frame::Checkpoint(checkpoint) => encoded(CHECKPOINT, wire::encode(checkpoint))?,
                    Frame::End(end) => encoded(END, wire::encode(end))?,
                };
                self.put(kind, &bytes)
            }
        }
    }

    /// # Errors
    /// It cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn put(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        if payload.len() > MAX_FRAME {
            return Err(io::Error::other(format!(
                "a frame of {} bytes (at most {MAX_FRAME})",
                payload.len()
            )));
        }
        let mut head = [0; 8];
        head[0] = kind;
        head[4..].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        self.write(&head)?;
        self.write(payload)?;
        let sum = self.hasher.finalize();
        self.out.write_all(sum.as_bytes())?;
        self.bytes += 32;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

pub struct Reader<R> {
    source: R,
    hasher: blake3::Hasher,
    /// How many bytes have been read.
    pub at: u64,
}

impl<R: Read> Reader<R> {
    /// # Errors
    /// It is no such stream, or one of a newer format.
    pub fn new(source: R) -> Result<Self, StreamError> {
        let mut reader = Self { source, hasher: blake3::Hasher::new(), at: 0 };
        let mut head = [0; 16];
        match reader.fill(&mut head) {
            Err(StreamError::Truncated(_)) => return Err(StreamError::Foreign),
            other => other?,
        }
        reader.hasher.update(&head);
        let version = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if head[..8] != MAGIC[..] {
            return Err(StreamError::Foreign);
        }
        if version != VERSION {
            return Err(StreamError::Newer(version));
        }
        Ok(reader)
    }

    /// The next frame, whose bytes are those that were written. Behind [`Frame::End`] there is nothing.
    ///
    /// # Errors
    /// There is no whole one.
    pub fn frame(&mut self) -> Result<Frame, StreamError> {
        let mut head = [0; 8];
        self.fill(&mut head)?;
        self.hasher.update(&head);
        let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if len > MAX_FRAME {
            return Err(StreamError::Damaged(self.at));
        }
        let mut payload = Vec::new();
        while payload.len() < len {
            let start = payload.len();
            payload.resize(len.min(start + READ_STEP), 0);
            self.fill(&mut payload[start..])?;
        }
        self.hasher.update(&payload);
        let mut sum = [0; 32];
        self.fill(&mut sum)?;
        if self.hasher.finalize().as_bytes() != &sum {
            return Err(StreamError::Damaged(self.at));
        }
        match head[0] {
            PAGES if len.is_multiple_of(PAGE_SIZE) && len <= PAGES_AT_ONCE * PAGE_SIZE => {
                Ok(Frame::Pages(payload))
            }
            PAGES => Err(StreamError::Contradiction(self.at, "pages that are none")),
            LEAF => self.decode(&payload).map(Frame::Leaf),
            PROCESS => self.decode(&payload).map(Frame::Process),
            CHECKPOINT => self.decode(&payload).map(Frame::Checkpoint),
            END => {
                if self.source.read(&mut [0])? != 0 {
                    return Err(StreamError::Contradiction(self.at, "something follows its end"));
                }
                self.decode(&payload).map(Frame::End)
            }
            _ => Err(StreamError::Contradiction(self.at, "a part of an unknown kind")),
        }
    }

    fn decode<T: DeserializeOwned>(&self, payload: &[u8]) -> Result<T, StreamError> {
        wire::decode(payload).map_err(|_| StreamError::Contradiction(self.at, "a malformed part"))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), StreamError> {
        match self.source.read_exact(buffer) {
            Ok(()) => {
                self.at += buffer.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(StreamError::Truncated(self.at))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The pages of a frame.
#[must_use]
pub fn pages(bytes: &[u8]) -> &[Page] {
    bytes.as_chunks::<PAGE_SIZE>().0
}
