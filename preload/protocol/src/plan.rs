//! The plan that `stasis restart` writes and the restorer follows, and what the restored library is
//! told.
