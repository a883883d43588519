//! The store through its real server process and its socket.

mod crash;
mod damage;
mod dump;
mod fixture;
mod full_disk;
mod gc;
mod hostile;
mod inspect;
mod lifecycle;
mod names;
mod prune;
mod restricted;
mod transfer;
