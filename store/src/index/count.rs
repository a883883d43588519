//! What the index was at its last durable change, in a file beside it: an index that is less has lost something.
//!
//! RocksDB ends the reading of its log, and of its MANIFEST, without a word at the first record that is cut. After a loss
//! of power that is right: what was not synced may be there in part. It cannot know that what it passes over was synced; then
//! checkpoints would be gone, and all packs and tables that only those records name would be removed as unused.
//!
//! The file is written after each change, over itself and not synced: what it tells was durable before. After a loss of
//! power it may tell less than there was, or nothing (it has a checksum), and then only that is found.
//!
//! Not here: what a change is (`index`).

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::{directory::CURRENT, error::StoreError, usable::COUNT_FILE as FILE};

/// What CURRENT holds before a number.
const MANIFEST: &str = "MANIFEST-";

/// The file, open for writing.
pub struct Count {
    index: PathBuf,
    /// `None`: it cannot be opened. Nothing is noted, and nothing will be found.
    file: Option<File>,
    manifest: Option<Manifest>,
}

/// The MANIFEST as far as it has been read. It only grows.
struct Manifest {
    number: u64,
    file: File,
    len: u64,
    hasher: blake3::Hasher,
}

/// What the file tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// How many durable changes there have been.
    pub changes: u64,
    /// The number of the MANIFEST, its length and its hash; zeros where they are not known.
    manifest: (u64, u64, [u8; 32]),
}

impl Count {
    #[must_use]
    pub fn open(index: &Path) -> Self {
        let path = index.with_file_name(FILE);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.inspect_err(|error| log!("cannot open {}: {error}", path.display())).ok();
        Self { index: index.to_owned(), file, manifest: None }
    }

    /// There have been so many changes, all durable. Where it cannot be written, it tells of an earlier one, or of none.
    pub fn note(&mut self, changes: u64) {
        let manifest = self.manifest().unwrap_or_default();
        let told = Told { changes, manifest };
        let _ = self.file.as_ref().map(|file| file.write_all_at(&told.encode(), 0));
    }

    fn manifest(&mut self) -> io::Result<(u64, u64, [u8; 32])> {
        let number = manifest_number(&self.index)?;
        let known = self.manifest.take().filter(|known| known.number == number);
        let mut manifest = known.map_or_else(|| Manifest::open(&self.index, number), Ok)?;
        manifest.read_to(manifest.file.metadata()?.len())?;
        let told = (number, manifest.len, *manifest.hasher.finalize().as_bytes());
        self.manifest = Some(manifest);
        Ok(told)
    }
}

impl Manifest {
    fn open(index: &Path, number: u64) -> io::Result<Self> {
        let file = File::open(index.join(format!("{MANIFEST}{number:06}")))?;
        Ok(Self { number, file, len: 0, hasher: blake3::Hasher::new() })
    }

    fn read_to(&mut self, end: u64) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        while self.len < end {
            let part = usize::try_from(end - self.len).unwrap_or(usize::MAX).min(buffer.len());
            self.file.read_exact_at(&mut buffer[..part], self.len)?;
            self.hasher.update(&buffer[..part]);
            self.len += part as u64;
        }
        Ok(())
    }
}

impl Told {
    const LEN: usize = 64;

    /// What the file beside `index` tells, if it tells anything.
    #[must_use]
    pub fn read(index: &Path) -> Option<Self> {
        let bytes = fs::read(index.with_file_name(FILE)).ok()?;
        let number = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let manifest = (number(8)?, number(16)?, *bytes.get(24..)?.first_chunk()?);
        let told = Self { changes: number(0)?, manifest };
        (bytes == told.encode()).then_some(told)
    }

    fn encode(&self) -> [u8; Self::LEN] {
        let (number, len, hash) = &self.manifest;
        let all = [&self.changes.to_le_bytes()[..], &number.to_le_bytes(), &len.to_le_bytes(), hash].concat();
        let mut bytes = [0; Self::LEN];
        bytes[..all.len()].copy_from_slice(&all);
        bytes[all.len()..].copy_from_slice(&blake3::hash(&all).as_bytes()[..Self::LEN - all.len()]);
        bytes
    }

    /// Whether the index has the MANIFEST that it had, or a later one.
    ///
    /// # Errors
    /// What is not what it was.
    pub fn check_manifest(&self, index: &Path) -> Result<(), StoreError> {
        let (told, len, hash) = self.manifest;
        // Without one, opening the index says why.
        let Ok(number) = manifest_number(index) else { return Ok(()) };
        if len == 0 || number > told {
            return Ok(());
        }
        let name = format!("{MANIFEST}{number:06}");
        if number < told {
            let instead = format!("names {name} where it named {told:06}: an older copy of it was put back");
            return Err(lost(index, &index.join(CURRENT), &instead));
        }
        let whole = || {
            let mut manifest = Manifest::open(index, number)?;
            manifest.read_to(len)?;
            io::Result::Ok(*manifest.hasher.finalize().as_bytes() == hash)
        };
        match whole() {
            Ok(true) => Ok(()),
            Ok(false) => Err(lost(index, &index.join(name), "holds something else than was written")),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(lost(index, &index.join(name), &format!("was cut: it had {len} bytes")))
            }
            // Opening the index says why.
            Err(_) => Ok(()),
        }
    }

    /// Whether an index that has had `found` changes has had them all.
    ///
    /// # Errors
    /// It has not.
    pub fn check_changes(&self, index: &Path, found: u64) -> Result<(), StoreError> {
        if found >= self.changes {
            return Ok(());
        }
        let logs = logs(index);
        let log = logs.last().map_or_else(|| index.join("*.log"), Clone::clone);
        let what = format!(
            "was cut, damaged or removed, or an older copy of it was put back: the last {} of {} changes are not there",
            self.changes - found,
            self.changes
        );
        Err(lost(index, &log, &what))
    }
}

fn lost(index: &Path, file: &Path, what: &str) -> StoreError {
    StoreError::Damaged(format!(
        "{} {what}. Checkpoints may be missing, or pages of others. Nothing was changed: put {} back as it was; or, to go \
         on with what is left, remove {}, and all packs that the index does not name will be removed",
        file.display(),
        index.display(),
        index.with_file_name(FILE).display(),
    ))
}

/// The number of the MANIFEST that CURRENT names.
fn manifest_number(index: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(index.join(CURRENT))?;
    let number = text.strip_prefix(MANIFEST).and_then(|rest| rest.trim_end().parse().ok());
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn logs(index: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(index).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut logs: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    logs.sort();
    logs
}
