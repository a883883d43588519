//! The registers of an interrupted thread, in the signal frame that the kernel built.

/// A signal frame's context, to be read and changed before the handler returns.
pub struct Frame<'a>(&'a mut libc::ucontext_t);

impl<'a> Frame<'a> {
    /// # Safety
    /// `context` is the third argument of a handler with SA_SIGINFO that has not returned yet.
    pub unsafe fn new(context: *mut libc::ucontext_t) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { &mut *context })
    }

    fn register(&mut self, index: i32) -> &mut i64 {
        &mut self.0.uc_mcontext.gregs[index as usize]
    }

    /// The result register, as the interrupted system call left it.
    pub fn result(&mut self) -> i64 {
        *self.register(libc::REG_RAX)
    }

    pub fn pc(&mut self) -> u64 {
        *self.register(libc::REG_RIP) as u64
    }

    pub fn sp(&mut self) -> u64 {
        *self.register(libc::REG_RSP) as u64
    }

    /// The argument registers of a system call: the kernel keeps them.
    pub fn arguments(&mut self) -> [u64; 6] {
        [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_R10, libc::REG_R8, libc::REG_R9]
            .map(|index| *self.register(index) as u64)
    }

    /// Changes one argument (0 to 5) of the system call that will be made again.
    pub fn set_argument(&mut self, index: usize, value: u64) {
        let registers =
            [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_R10, libc::REG_R8, libc::REG_R9];
        *self.register(registers[index]) = value as i64;
    }

    /// Whether the interrupted instruction stream stands just behind a `syscall` instruction.
    pub fn behind_system_call(&mut self) -> bool {
        let pc = self.pc() as usize;
        // SAFETY: the thread executed up to here, so the two bytes in front are mapped text, except
        // at the very start of a mapping, which no `syscall` can precede: excluded by the check.
        pc & 0xfff >= 2 && unsafe { core::ptr::read_unaligned((pc - 2) as *const [u8; 2]) } == [0x0f, 0x05]
    }

    /// Makes the thread execute system call `nr` (again) when the handler returns.
    pub fn call_again(&mut self, nr: i64) {
        *self.register(libc::REG_RIP) -= 2;
        *self.register(libc::REG_RAX) = nr;
    }

    /// R12 to R15, kept by every call: what the wrappers leave for the handler.
    pub fn kept(&mut self) -> [u64; 4] {
        [libc::REG_R12, libc::REG_R13, libc::REG_R14, libc::REG_R15].map(|index| *self.register(index) as u64)
    }

    /// The signal mask that the thread returns to.
    pub fn mask(&self) -> u64 {
        // SAFETY: sigset_t begins with the kernel's 64 bits.
        unsafe { (&raw const self.0.uc_sigmask).cast::<u64>().read() }
    }
}
