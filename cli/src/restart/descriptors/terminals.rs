//! Terminals: attached to the one that `stasis restart` runs on.

use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};

use stasis_protocol::{
    coordinator::Refusal,
    image::{Description, DescriptionKind, ProcessImage},
};

use super::{Installed, Maker, failed, kernel, kernel::done, name, numbers_of, raw};
use crate::restart::plan::attempt;

/// The kernel's struct termios (asm-generic/termbits.h), in bytes.
const TERMIOS: usize = 36;

pub fn open(maker: &mut Maker<'_>, index: usize, description: &Description) -> Result<OwnedFd, Refusal> {
    let DescriptionKind::Terminal { path, termios, .. } = &description.kind else {
        return maker.inherit(index, -1);
    };
    let image = maker.image;
    let flags = description.flags as i32 & (libc::O_ACCMODE | kernel::SETTABLE) | libc::O_NOCTTY;
    // The description that a shell gave to 0, 1 and 2 is one that it shares; so it is again.
    let passed = maker.common.passed;
    let places = maker.common.relations.places((maker.process, index));
    let numbers =
        || places.iter().flat_map(|&(process, index)| numbers_of(maker.common.images[process], index));
    let standard = || numbers().filter(|fd| *fd <= 2).filter_map(|fd| passed.copy(fd));
    let shared = || standard().find(is_terminal);
    let controlling = || kernel::open("/dev/tty", flags).ok();
    let another = || {
        (0..=2)
            .filter_map(|fd| passed.copy(fd))
            .find(is_terminal)
            .and_then(|fd| kernel::reopen(&fd, flags).ok())
    };
    let terminal =
        if path == "/dev/tty" { controlling().or_else(shared) } else { shared().or_else(controlling) };
    let Some(terminal) = terminal.or_else(another) else {
        let standard = standard().next();
        let instead = if standard.is_some() { "what this command has in its place" } else { "/dev/null" };
        let warning =
            format!("{}: there is no terminal here; {instead} stands in for it", name(image, index));
        maker.installed.warnings.push(warning);
        return match standard {
            Some(fd) => Ok(fd),
            None => kernel::open("/dev/null", libc::O_RDWR)
                .map_err(|error| failed(image, index, "/dev/null cannot be opened", &error)),
        };
    };
    if termios.len() == TERMIOS && termios.iter().any(|&byte| byte != 0) {
        // SIGTTOU is blocked here, so that this works from the background as well (tcsetattr(3)).
        // SAFETY: TCSETS reads struct termios, whose length was checked.
        done(unsafe { libc::ioctl(raw(&terminal), libc::TCSETS, termios.as_ptr()) })
            .map_err(|error| failed(image, index, "its settings cannot be put back", &error))?;
    }
    Ok(terminal)
}

/// One terminal stood behind several numbers. Where there is none, what stands in for each standard one is its own.
pub fn stand_ins(maker: &mut Maker<'_>, index: usize, made: &OwnedFd) -> Vec<(RawFd, RawFd)> {
    if is_terminal(made) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for fd in numbers_of(maker.image, index).filter(|fd| *fd <= 2) {
        let own = maker.common.passed.copy(fd);
        if let Some(own) = own.and_then(|own| maker.numbers.out_of_the_way(own, None).ok()) {
            found.push((fd, own.into_raw_fd()));
        }
    }
    found
}

/// Tells the program of a size that is not what it was.
pub fn tell_size(image: &ProcessImage, description: &Description, fd: RawFd, installed: &mut Installed) {
    let DescriptionKind::Terminal { winsize, .. } = &description.kind else { return };
    let mut size = [0u8; 8];
    // SAFETY: TIOCGWINSZ writes struct winsize, four u16.
    let known = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, size.as_mut_ptr()) } == 0;
    if known && winsize.len() == size.len() && size != winsize[..] {
        installed.late.push(attempt(libc::SYS_kill, &[image.ids.pid as u64, libc::SIGWINCH as u64]));
    }
}

fn is_terminal(fd: &OwnedFd) -> bool {
    // SAFETY: no memory is touched that outlives the call.
    unsafe { libc::isatty(fd.as_raw_fd()) == 1 }
}
