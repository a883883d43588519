//! The store through its real server process and its socket.

mod compression;
mod crash;
mod damage;
mod dump;

mod fixture;
mod full_disk;
mod gc;
mod heal;
mod history;
mod hostile;
mod index_damage;
mod inspect;
mod lifecycle;
mod manifest;
mod memory;
mod names;
mod prune;
mod restricted;
mod storm;
mod transfer;
mod working_sets;
