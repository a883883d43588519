//! What the restorer reports, in words.

use std::io;

use stasis_protocol::{
    image::ProcessImage,
    plan::{Failure, step},
};

use super::layout::Pages;

/// Says what went wrong and where.
pub fn explain(failure: &Failure, image: &ProcessImage, pages: &Pages) -> String {
    let errno = io::Error::from_raw_os_error(failure.errno as i32);
    let address = failure.address;
    let mapping = || {
        let found = image.mappings.iter().find(|mapping| mapping.start <= address && address < mapping.end);
        found.map_or(format!("address {address:x}"), |mapping| {
            format!("mapping {:x}-{:x}, address {address:x}", mapping.start, mapping.end)
        })
    };
    match failure.step {
        step::CORRUPT => {
            let (hash, place) = pages.describe(address);
            format!(
                "{}: the page {hash} is damaged ({place} does not hold what its hash says); run `stasis verify`, and \
                 restart from another checkpoint",
                mapping()
            )
        }
        step::FILL => format!("{}: it cannot be read from the store: {errno}", mapping()),
        step::MAP => format!("{}: it cannot be mapped: {errno}", mapping()),
        step::KERNEL_MAPPING => format!("{}: the kernel's own mapping cannot be moved there: {errno}", mapping()),
        step::AREA | step::UNMAP => format!("no room for the restorer at {address:x}: {errno}"),
        step::THREAD => format!("thread {address} cannot be made: {errno}"),
        step::CALL | step::LAST_CALL | step::THREAD_CALL => {
            format!("system call {address} (step {}, number {}) failed: {errno}", failure.step, failure.index)
        }
        _ => "the restorer does not understand its plan: `stasis` and `stasis-restorer` are of different builds".into(),
    }
}
