//! Damaged packs.
