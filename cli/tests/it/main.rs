//! The real coordinator and the real commands, with processes and a store that are played by the tests:
//! [`peers`] speaks their protocols, well or badly.

mod checkpoint;
mod help;
mod hostile;
mod launch;
mod lifecycle;
mod peers;
mod tcp;
