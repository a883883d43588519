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

    /// Where the last system call returned to, or is to return to: the `syscall` instruction leaves it in
    /// RCX, the kernel keeps it (also on FRED hardware, arch/x86/entry/entry_fred.c).
    fn behind(&mut self) -> u64 {
        *self.register(libc::REG_RCX) as u64
    }

    /// Whether the thread stands just behind the `syscall` instruction that it executed last.
    pub fn behind_system_call(&mut self) -> bool {
        self.behind() == self.pc() && is_system_call(self.pc().wrapping_sub(2))
    }

    /// Whether the thread stands on the `syscall` instruction that it executed last: the kernel has it
    /// make the same call again.
    pub fn at_system_call(&mut self) -> bool {
        self.behind() == self.pc().wrapping_add(2) && is_system_call(self.pc())
    }

    /// Makes the thread execute system call `nr` (again) when the handler returns.
    pub fn call_again(&mut self, nr: i64) {
        *self.register(libc::REG_RIP) -= 2;
        *self.register(libc::REG_RAX) = nr;
    }

    /// Makes a call that the kernel wanted to restart return `result`.
    pub fn finish(&mut self, result: i64) {
        *self.register(libc::REG_RIP) += 2;
        self.set_result(result);
    }

    pub fn set_result(&mut self, result: i64) {
        *self.register(libc::REG_RAX) = result;
    }

    pub fn set_pc(&mut self, pc: u64) {
        *self.register(libc::REG_RIP) = pc as i64;
    }

    /// A general register by its number in instructions (Intel SDM 2, table 2-2). A system call keeps all but RAX (0),
    /// RCX (1) and R11 (11).
    pub fn numbered(&mut self, number: u8) -> u64 {
        const REGISTERS: [i32; 16] = [
            libc::REG_RAX,
            libc::REG_RCX,
            libc::REG_RDX,
            libc::REG_RBX,
            libc::REG_RSP,
            libc::REG_RBP,
            libc::REG_RSI,
            libc::REG_RDI,
            libc::REG_R8,
            libc::REG_R9,
            libc::REG_R10,
            libc::REG_R11,
            libc::REG_R12,
            libc::REG_R13,
            libc::REG_R14,
            libc::REG_R15,
        ];
        *self.register(REGISTERS[usize::from(number & 15)]) as u64
    }

    pub fn rbx(&mut self) -> u64 {
        *self.register(libc::REG_RBX) as u64
    }

    pub fn set_rbx(&mut self, value: u64) {
        *self.register(libc::REG_RBX) = value as i64;
    }

    /// The signal mask that the thread returns to.
    pub fn mask(&self) -> u64 {
        // SAFETY: sigset_t begins with the kernel's 64 bits.
        unsafe { (&raw const self.0.uc_sigmask).cast::<u64>().read() }
    }
}

/// Whether a `syscall` instruction is at `address`.
fn is_system_call(address: u64) -> bool {
    let mut code = [0u8; 2];
    // Text may be mapped execute-only, or not at all where a jump through RCX makes this up.
    let read = stasis_sys::process::read_memory(address as usize, &mut code);
    read.map_or(true, |read| read == 2 && code == [0x0f, 0x05])
}
