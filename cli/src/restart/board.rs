//! Where the processes that are being made wait for each other: a page that all of them have.

use std::{
    io, ptr,
    sync::atomic::{AtomicU32, Ordering},
};

/// What all must have done before any goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It exists, in its session.
    Made = 0,
    /// It leads its process group.
    Leads = 1,
    /// It has joined the group of another.
    Joined = 2,
    /// All are where they belong.
    Settled = 3,
}

const STAGES: usize = 4;
const CLOSED: u32 = 0;
const OPEN: u32 = 1;
const FAILED: u32 = 2;

#[repr(C)]
struct Barrier {
    arrived: AtomicU32,
    state: AtomicU32,
}

/// Shared with all processes that are made from now on.
pub struct Board {
    barriers: *const [Barrier; STAGES],
    /// How many processes there are.
    count: u32,
}

/// Another one has failed, and has said why.
pub struct GivenUp;

impl Board {
    /// # Errors
    /// mmap(2)'s.
    pub fn new(count: usize) -> io::Result<Self> {
        // SAFETY: a new mapping where the kernel finds room.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size_of::<[Barrier; STAGES]>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { barriers: page.cast(), count: u32::try_from(count).unwrap_or(u32::MAX) })
    }

    fn barrier(&self, stage: Stage) -> &Barrier {
        // SAFETY: mapped for as long as the board lives; zeros are valid for atomic numbers.
        unsafe { &(*self.barriers)[stage as usize] }
    }

    /// Says that this process has come so far, and waits until all have.
    ///
    /// # Errors
    /// One has failed.
    pub fn meet(&self, stage: Stage) -> Result<(), GivenUp> {
        let barrier = self.barrier(stage);
        if barrier.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.count
            && barrier.state.compare_exchange(CLOSED, OPEN, Ordering::AcqRel, Ordering::Acquire).is_ok()
        {
            wake(&barrier.state);
        }
        loop {
            match barrier.state.load(Ordering::Acquire) {
                OPEN => return Ok(()),
                FAILED => return Err(GivenUp),
                state => wait(&barrier.state, state),
            }
        }
    }

    /// Lets nobody go on from where not all have come.
    pub fn give_up(&self) {
        for stage in [Stage::Made, Stage::Leads, Stage::Joined, Stage::Settled] {
            let state = &self.barrier(stage).state;
            if state.compare_exchange(CLOSED, FAILED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                wake(state);
            }
        }
    }

    /// Whether all have come so far.
    pub fn is_past(&self, stage: Stage) -> bool {
        self.barrier(stage).state.load(Ordering::Acquire) == OPEN
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and borrowed by nobody any more.
        unsafe { libc::munmap(self.barriers.cast_mut().cast(), size_of::<[Barrier; STAGES]>()) };
    }
}

fn wait(word: &AtomicU32, value: u32) {
    let no_timeout: *const libc::timespec = ptr::null();
    // SAFETY: a shared futex; whatever the reason for which it returns, the word is looked at again.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, no_timeout) };
}

fn wake(word: &AtomicU32) {
    // SAFETY: only the address is used.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_goes_on_before_the_last_has_come_or_after_one_has_failed() {
        let board = Board::new(2).unwrap();
        // SAFETY: the child only uses the board and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let first = board.meet(Stage::Made).is_ok();
            let second = board.meet(Stage::Leads).is_err();
            // SAFETY: takes an integer.
            unsafe { libc::_exit(if first && second { 0 } else { 1 }) }
        }
        assert!(!board.is_past(Stage::Made));
        assert!(board.meet(Stage::Made).is_ok() && board.is_past(Stage::Made));
        board.give_up();
        assert!(board.meet(Stage::Joined).is_err());
        let mut status = 0;
        // SAFETY: waits for our own child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
    }
}
