//! What `launch` does before the program runs.
