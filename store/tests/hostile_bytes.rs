//! Whatever bytes come: readers give an error or a value, and allocate no more than they were given (times what a value
//! takes in memory). What once failed is kept in `proptest-regressions/`.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::Write as _,
};

use proptest::prelude::*;
use stasis_protocol::{
    image::ProcessImage,
    store::{Reply, Request},
    wire,
};
use stasis_store::{
    pack::{
        Form,
        footer::{Footer, Run, check_header, sound_runs, trailer},
    },
    stream::{CheckpointFrame, EndFrame, Frame, LeafFrame, ProcessFrame, Reader, StreamRun, Writer},
    unpack::Unpacker,
};

/// Notes the largest allocation of each thread.
struct Noting;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

// SAFETY: every request goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc`, hence from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The largest allocation that `work` makes, in bytes.
fn largest(work: impl FnOnce()) -> usize {
    LARGEST.set(0);
    work();
    LARGEST.get()
}

/// More than any reader may allocate for a few KiB: a step of reading, or what serde gives a sequence at once.
const BOUND: usize = 4 << 20;

fn read_all(bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    let Ok(mut reader) = Reader::new(bytes) else { return frames };
    while let Ok(frame) = reader.frame() {
        let end = matches!(frame, Frame::End(_));
        frames.push(frame);
        if end {
            break;
        }
    }
    frames
}

fn write_all(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes).unwrap();
    frames.iter().for_each(|frame| writer.frame(frame).unwrap());
    bytes
}

/// Bytes with the checksum that a stream would have, so that what is behind the checksum is reached.
fn framed(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = write_all(&[]);
    bytes.extend_from_slice(&[kind, 0, 0, 0]);
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(payload);
    let sum = blake3::hash(&bytes);
    bytes.extend_from_slice(sum.as_bytes());
    bytes
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let run = (any::<u16>(), any::<u16>(), any::<Option<u64>>());
    let run = run.prop_map(|(first, pages, start)| StreamRun { first, pages, start });
    let leaves = prop::collection::vec(any::<(u64, u64)>(), 0..5);
    prop_oneof![
        (0..3usize, any::<u8>()).prop_map(|(pages, byte)| Frame::Pages(vec![byte; pages * 4096])),
        prop::collection::vec(run, 0..20).prop_map(|runs| Frame::Leaf(LeafFrame { runs })),
        (prop::collection::vec((any::<u32>(), leaves), 0..4), any::<Vec<u8>>())
            .prop_map(|(spaces, record)| Frame::Process(ProcessFrame { spaces, record })),
        any::<(u64, u64, u64, u64)>().prop_map(|(pages, leaves, processes, checkpoints)| Frame::End(
            EndFrame { pages, leaves, processes, checkpoints }
        )),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_stream_of_anything(bytes in prop::collection::vec(any::<u8>(), 0..4096), kind in 0..8u8) {
        let largest = largest(|| {
            read_all(&bytes);
            read_all(&framed(kind, &bytes));
        });
        prop_assert!(largest <= BOUND, "{largest} bytes");
    }

    #[test]
    fn a_stream_reads_back_up_to_the_first_flipped_bit(
        frames in prop::collection::vec(any_frame(), 1..6),
        at in any::<prop::sample::Index>(),
        bit in 0..8u8,
    ) {
        // An end is the end.
        let whole = frames.iter().take_while(|frame| !matches!(frame, Frame::End(_))).count();
        let frames = &frames[..whole];
        let mut bytes = write_all(frames);
        prop_assert_eq!(&read_all(&bytes)[..], frames);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // Never something else than was written.
        let read = read_all(&bytes);
        prop_assert!(read.len() <= frames.len() && read[..] == frames[..read.len()]);
        // The last four bytes of the head mean nothing yet.
        prop_assert!(read.len() < frames.len() || frames.is_empty());
    }

    #[test]
    fn messages_and_records_of_anything(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let largest = largest(|| {
            let _ = wire::decode::<Request>(&bytes);
            let _ = wire::decode::<Reply>(&bytes);
            let _ = wire::decode::<ProcessImage>(&bytes);
            let _ = wire::decode::<CheckpointFrame>(&bytes);
        });
        prop_assert!(largest <= BOUND, "{largest} bytes");
    }

    #[test]
    fn footers_and_headers_of_anything(
        mut bytes in prop::collection::vec(any::<u8>(), 0..4096),
        counts in any::<(u32, u64)>(),
        sealed in any::<bool>(),
    ) {
        if sealed && bytes.len() >= 64 {
            // One that has its checksum and contradicts itself.
            bytes[..8].copy_from_slice(b"STASISFT");
            bytes[8..12].copy_from_slice(&(1 + counts.0 % 2).to_le_bytes());
            bytes[12..16].copy_from_slice(&counts.0.to_le_bytes());
            bytes[16..24].copy_from_slice(&counts.1.to_le_bytes());
            let sum = blake3::hash(&bytes);
            bytes.extend_from_slice(sum.as_bytes());
        }
        let largest = largest(|| {
            let _ = Footer::decode(&bytes);
            let _ = sound_runs(&bytes, 4096, counts.1).count();
        });
        prop_assert!(largest <= BOUND, "{largest} bytes");
        let mut page = [0; 4096];
        page[..bytes.len().min(4096)].copy_from_slice(&bytes[..bytes.len().min(4096)]);
        let _ = trailer(&page);
        prop_assert!(check_header(&page, 1).is_err());
    }

    #[test]
    fn a_footer_reads_back(pages in 0..300usize, segment in 1..1000u64, at in any::<prop::sample::Index>()) {
        let names = (0..pages).map(|page| *blake3::hash(&[page as u8]).as_bytes()).collect();
        let segment = segment * 4096;
        let runs = vec![Run::raw(pages as u32, segment)];
        let footer = Footer { form: Form::Plain, segment, runs, names };
        let encoded = footer.encode(segment + pages as u64 * 4096);
        let mut bytes: Vec<u8> = encoded.iter().flat_map(|page| page.0).collect();
        prop_assert_eq!(Footer::decode(&bytes), Ok(footer));
        let at = at.index(bytes.len());
        bytes[at] ^= 1;
        prop_assert!(Footer::decode(&bytes).is_err());
    }

    #[test]
    fn a_block_of_anything_is_unpacked_into_its_room_or_refused(
        mut bytes in prop::collection::vec(any::<u8>(), 0..2000),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        real in any::<bool>(),
        (stored, skipped) in any::<(u32, u32)>(),
        pages in 1..40usize,
    ) {
        let mut memory = vec![7u8; 16 * 4096];
        if real {
            memory.iter_mut().zip(bytes.iter().cycle()).for_each(|(to, from)| *to = *from);
            bytes = lz4_flex::block::compress(&memory);
        }
        let whole = bytes.clone();
        for (at, byte) in flips {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= byte;
            }
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let mut unpacker = Unpacker::default();
        let mut to = vec![0; pages * 4096];
        let _ = unpacker.read(&file, u64::from(skipped), stored, skipped, &mut to);
        let _ = unpacker.read(&file, 0, bytes.len() as u32, skipped % 20, &mut to);
        let largest = largest(|| drop(unpacker.read(&file, 0, stored, skipped, &mut to)));
        prop_assert!(largest <= BOUND, "{largest} bytes");
        let skipped = skipped as usize % 16;
        if real && bytes == whole && skipped + pages <= 16 {
            unpacker.read(&file, 0, bytes.len() as u32, skipped as u32, &mut to).unwrap();
            prop_assert!(to == memory[skipped * 4096..][..to.len()]);
        }
    }
}
