//! A terminal made by the test: what a person at a keyboard types and sees.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    pty::{Winsize, openpty},
};

/// A pseudoterminal (pty(7)): the test holds the keyboard and the screen.
pub struct Pseudoterminal {
    keyboard: File,
    terminal: OwnedFd,
    screen: String,
}

impl Pseudoterminal {
    pub fn new(rows: u16, columns: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None).expect("a pseudoterminal");
        Self { keyboard: pair.master.into(), terminal: pair.slave, screen: String::new() }
    }

    /// The program's side, for one of its standard descriptors.
    pub fn stdio(&self) -> Stdio {
        self.terminal.try_clone().expect("dup").into()
    }

    /// Presses ctrl-C.
    pub fn interrupt(&mut self) {
        self.keyboard.write_all(b"\x03").expect("the terminal takes a byte");
    }

    /// Whether the terminal shows what is typed.
    pub fn echoes(&self) -> bool {
        let modes = nix::sys::termios::tcgetattr(&self.terminal).expect("the terminal's modes");
        modes.local_flags.contains(nix::sys::termios::LocalFlags::ECHO)
    }

    /// Types keys, no line.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal takes a few bytes");
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) {
        self.keyboard.write_all(format!("{line}\n").as_bytes()).expect("the terminal takes a line");
    }

    /// Waits until the screen shows `text` after what it showed when last asked.
    ///
    /// # Panics
    /// With all that the screen showed when it does not within `deadline`.
    #[track_caller]
    pub fn expect(&mut self, text: &str, deadline: Duration) {
        let end = Instant::now() + deadline;
        loop {
            if let Some(at) = self.screen.find(text) {
                self.screen.drain(..at + text.len());
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.keyboard.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, timeout).unwrap_or(0);
            assert!(
                ready > 0 || !left.is_zero(),
                "the screen does not show {text:?}, only {:?}",
                self.screen
            );
            if ready > 0 {
                let mut bytes = [0; 4096];
                let read = self.keyboard.read(&mut bytes).expect("the screen can be read");
                self.screen.push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        }
    }
}
