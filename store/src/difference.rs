//! What differs between two dumped processes, in ranges of pages.

use stasis_protocol::store::{Difference, Hash};

use crate::{
    error::StoreError,
    manifest::{Manifest, Reader, spaces},
    store::Store,
};

/// The most ranges of one answer, which must fit a message.
const MAX_RANGES: usize = 2 << 20;

/// # Errors
/// A manifest is not there or damaged; there are too many differences to tell.
pub fn between(store: &Store, from: &Hash, to: &Hash) -> Result<Vec<Difference>, StoreError> {
    let load = |name| Manifest::load(store.index(), store.node_names(), name);
    let (from, to) = (load(from)?, load(to)?);
    let mut ranges: Vec<Difference> = Vec::new();
    for (space, from, to) in spaces(&from, &to) {
        let mut reader = Reader::new(store.index(), store.node_names(), store.hasher().zero());
        reader.differences(from, to, &mut |page, change| {
            if let Some(last) = ranges.last_mut()
                && (last.space, last.change, last.first_page + last.pages) == (space, change, page)
            {
                last.pages += 1;
            } else if ranges.len() <= MAX_RANGES {
                ranges.push(Difference { space, first_page: page, pages: 1, change });
            }
        })?;
    }
    if ranges.len() > MAX_RANGES {
        return Err(StoreError::Refused(format!("they differ in more than {MAX_RANGES} places")));
    }
    Ok(ranges)
}
