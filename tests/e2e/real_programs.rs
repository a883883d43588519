//! real_programs
