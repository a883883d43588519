//! Terminals: attached to the one that `stasis restart` runs on.

use std::os::fd::{AsRawFd, OwnedFd};

use stasis_protocol::{
    coordinator::Refusal,
    image::{Description, DescriptionKind},
};

use super::{Maker, failed, kernel, kernel::done, name, numbers_of, raw};
use crate::restart::plan::attempt;

/// The kernel's struct termios (asm-generic/termbits.h), in bytes.
const TERMIOS: usize = 36;

pub fn open(maker: &mut Maker<'_>, index: usize, description: &Description) -> Result<OwnedFd, Refusal> {
    let DescriptionKind::Terminal { path, termios, winsize, .. } = &description.kind else {
        return maker.inherit(index, -1);
    };
    let image = maker.image;
    let flags = description.flags as i32 & (libc::O_ACCMODE | kernel::SETTABLE) | libc::O_NOCTTY;
    // The description that a shell gave to 0, 1 and 2 is one that it shares; so it is again.
    let numbers: Vec<usize> = numbers_of(image, index).filter_map(|fd| usize::try_from(fd).ok()).collect();
    let own = |fd: &usize| maker.standard.get(*fd).and_then(Option::as_ref);
    let shared =
        || numbers.iter().filter_map(own).find(|fd| is_terminal(fd)).and_then(|fd| fd.try_clone().ok());
    let controlling = || kernel::open("/dev/tty", flags).ok();
    let another = || {
        maker
            .standard
            .iter()
            .flatten()
            .find(|fd| is_terminal(fd))
            .and_then(|fd| kernel::reopen(fd, flags).ok())
    };
    let terminal =
        if path == "/dev/tty" { controlling().or_else(shared) } else { shared().or_else(controlling) };
    let Some(terminal) = terminal.or_else(another) else {
        let standard = numbers.iter().filter_map(own).next().and_then(|fd| fd.try_clone().ok());
        let instead = if standard.is_some() { "what this command has in its place" } else { "/dev/null" };
        let warning =
            format!("{}: there is no terminal here; {instead} stands in for it", name(image, index));
        maker.installed.warnings.push(warning);
        // One terminal stood behind several numbers; what stands in for each is its own.
        for &number in &numbers {
            if let Some(own) =
                maker.standard.get(number).and_then(Option::as_ref).and_then(|own| own.try_clone().ok())
            {
                maker.instead.insert(number as i32, own);
            }
        }
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
    let mut size = [0u8; 8];
    // SAFETY: TIOCGWINSZ writes struct winsize, four u16.
    let known = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr()) } == 0;
    if known && winsize.len() == size.len() && size != winsize[..] {
        maker.installed.late.push(attempt(libc::SYS_kill, &[image.ids.pid as u64, libc::SIGWINCH as u64]));
    }
    Ok(terminal)
}

fn is_terminal(fd: &OwnedFd) -> bool {
    // SAFETY: no memory is touched that outlives the call.
    unsafe { libc::isatty(fd.as_raw_fd()) == 1 }
}
