//! The store through its real server process and its socket.

mod damage;
mod dump;
mod fixture;
