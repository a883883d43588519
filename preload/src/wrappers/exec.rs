//! execve(3) and its like, posix_spawn(3): the new program joins the computation too ([`contagion`]), and the old one is
//! not lost to a checkpoint on the way.
//!
//! The stop signal stays pending over execve(2), which sets its action to the default: the program would be ended by
//! it. So it is blocked meanwhile, and the constructor unblocks it.
//!
//! What libc executes by itself (system(3), popen(3), wordexp(3)) does not come here: it uses its own execve(2), whose code
//! is led here ([`lead`]). Only where that was done is LD_PRELOAD as the user has set it ([`crate::contagion::show_theirs`]).

use core::{
    arch::naked_asm,
    ffi::{CStr, c_char, c_int},
    sync::atomic::{AtomicUsize, Ordering},
};

use stasis_sys::{
    file::{self, Fd},
    process,
};

use super::{next, returned};
use crate::{arch, contagion::Room, stop};

type Strings = *const *const c_char;

unsafe extern "C" {
    static environ: Strings;
}

/// A function that is defined behind this library.
struct Behind {
    name: &'static CStr,
    /// 0 before it was looked for.
    address: AtomicUsize,
}

/// Another library's that stands behind this one, too; else 0.
static EXECVE: Behind = Behind { name: c"execve", address: AtomicUsize::new(0) };
static EXECVPE: Behind = Behind { name: c"execvpe", address: AtomicUsize::new(0) };
static SPAWN: Behind = Behind { name: c"posix_spawn", address: AtomicUsize::new(0) };
static SPAWNP: Behind = Behind { name: c"posix_spawnp", address: AtomicUsize::new(0) };

impl Behind {
    /// Its address; `None` where nobody defines it.
    fn get(&self) -> Option<usize> {
        let mut address = self.address.load(Ordering::Acquire);
        if address == 0 {
            // SAFETY: before our constructor has run, while the program is being loaded.
            address = unsafe { next::find(self.name) }?.address;
        }
        Some(address)
    }
}

/// Finds the next definitions.
///
/// # Safety
/// In the constructor only.
pub unsafe fn init() {
    for behind in [&EXECVPE, &SPAWN, &SPAWNP] {
        behind.address.store(behind.get().unwrap_or(0), Ordering::Release);
    }
    // SAFETY: as above.
    let next = unsafe { next::find(EXECVE.name) };
    let others = next.filter(|next| !next.is_libc).map_or(0, |next| next.address);
    EXECVE.address.store(others, Ordering::Release);
}

/// Leads libc's own execve(2), which its other functions call, to this one; whether that was done.
///
/// # Safety
/// In the constructor only.
pub unsafe fn lead() -> bool {
    // SAFETY: the caller's promise.
    let Some(own) = (unsafe { next::find_in_libc(EXECVE.name) }) else { return false };
    if own.len < arch::JUMP {
        return false;
    }
    // SAFETY: the code of a function that is loaded.
    let code = || unsafe { core::slice::from_raw_parts(own.address as *const u8, own.len) };
    let jump = arch::jump(execute_itself as *const () as usize);
    if !arch::is_stub_of(code(), libc::SYS_execve) {
        return false;
    }
    // Not mprotect(2): the mapping would be three from then on. The kernel lets a process write its own code so, unless it is
    // told not to (proc_mem.force_override, Linux 6.12).
    let Ok(memory) = file::open(c"/proc/self/mem", libc::O_RDWR | libc::O_CLOEXEC, 0) else { return false };
    let written = write_at(memory, &jump, own.address);
    let _ = file::close(memory);
    written && code().starts_with(&jump)
}

fn write_at(memory: Fd, code: &[u8], address: usize) -> bool {
    let given = [memory as usize, code.as_ptr() as usize, code.len(), address, 0, 0];
    // SAFETY: reads `code`; what is written is a function that nobody is in.
    unsafe { stasis_sys::raw(libc::SYS_pwrite64, given) == code.len() as isize }
}

/// Calls `execute` with an environment that is complete; returns only when that does.
fn with<T>(environment: Strings, execute: impl FnOnce(Strings) -> T) -> T {
    let mut room = Room::new();
    let environment = room.complete(environment);
    let before = stop::leave();
    let result = execute(environment);
    process::sigmask(before);
    result
}

/// execve(2), and execvpe(3).
type Execve = unsafe extern "C" fn(*const c_char, Strings, Strings) -> c_int;

/// By the next definition, so that a library of the user's sees the call, too.
unsafe fn execute(path: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    let address = EXECVE.address.load(Ordering::Acquire);
    if address == 0 {
        // SAFETY: the caller's call.
        return unsafe { execute_itself(path, arguments, environment) };
    }
    // SAFETY: a function of this type, by its name.
    let execve: Execve = unsafe { core::mem::transmute(address) };
    // SAFETY: the caller's call, with another environment.
    with(environment, |environment| unsafe { execve(path, arguments, environment) })
}

unsafe extern "C" fn execute_itself(path: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    with(environment, |environment| {
        let given = [path as usize, arguments as usize, environment as usize, 0, 0, 0];
        // SAFETY: the caller's call, with another environment.
        returned(unsafe { stasis_sys::raw(libc::SYS_execve, given) }) as c_int
    })
}

/// execve(2).
///
/// # Safety
/// execve(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execve(path: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    // SAFETY: the caller's call.
    unsafe { execute(path, arguments, environment) }
}

/// execv(3).
///
/// # Safety
/// execv(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execv(path: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the caller's call; the program's own environment.
    unsafe { execute(path, arguments, environ) }
}

/// execvpe(3). glibc's looks for the file, and has the shell execute what is no program.
///
/// # Safety
/// execvpe(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvpe(file: *const c_char, arguments: Strings, environment: Strings) -> c_int {
    let Some(address) = EXECVPE.get() else { return returned(-libc::ENOSYS as isize) as c_int };
    // SAFETY: a function of this type, by its name.
    let execvpe: Execve = unsafe { core::mem::transmute(address) };
    // SAFETY: the caller's call, with another environment.
    with(environment, |environment| unsafe { execvpe(file, arguments, environment) })
}

/// execvp(3).
///
/// # Safety
/// execvp(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvp(file: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the caller's call; the program's own environment.
    unsafe { execvpe(file, arguments, environ) }
}

/// execveat(2).
///
/// # Safety
/// execveat(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execveat(
    directory: c_int,
    path: *const c_char,
    arguments: Strings,
    environment: Strings,
    flags: c_int,
) -> c_int {
    with(environment, |environment| {
        let given =
            [directory as usize, path as usize, arguments as usize, environment as usize, flags as usize, 0];
        // SAFETY: the caller's call, with another environment.
        returned(unsafe { stasis_sys::raw(libc::SYS_execveat, given) }) as c_int
    })
}

/// fexecve(3), by execveat(2) (Linux 3.19).
///
/// # Safety
/// fexecve(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fexecve(fd: c_int, arguments: Strings, environment: Strings) -> c_int {
    // SAFETY: the caller's call.
    unsafe { execveat(fd, c"".as_ptr(), arguments, environment, libc::AT_EMPTY_PATH) }
}

/// Defines a function that has its arguments as a list: the registers that hold the first five of them are put in front of
/// those on the stack, and the list has the form that [`execve`] takes.
macro_rules! listed {
    ($(#[$documentation:meta])* $name:ident, $takes_list:path) => {
        $(#[$documentation])*
        ///
        /// # Safety
        /// The function's.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                "pop r11",
                ".cfi_adjust_cfa_offset -8",
                "push r9",
                "push r8",
                "push rcx",
                "push rdx",
                "push rsi",
                ".cfi_adjust_cfa_offset 40",
                "mov rsi, rsp",
                "push rbx",
                ".cfi_adjust_cfa_offset 8",
                "push r11",
                ".cfi_adjust_cfa_offset 8",
                // The stack was 8 bytes off a multiple of 16 at the entry, and is so again after seven words for one.
                "mov rbx, rsp",
                "and rsp, -16",
                "call {takes_list}",
                "mov rsp, rbx",
                "pop r11",
                ".cfi_adjust_cfa_offset -8",
                "pop rbx",
                ".cfi_adjust_cfa_offset -8",
                "add rsp, 40",
                ".cfi_adjust_cfa_offset -40",
                "push r11",
                ".cfi_adjust_cfa_offset 8",
                "ret",
                ".cfi_endproc",
                takes_list = sym $takes_list,
            )
        }
    };
}

listed!(
    /// execl(3).
    execl,
    execv
);
listed!(
    /// execlp(3).
    execlp,
    execvp
);
listed!(
    /// execle(3).
    execle,
    execute_with_environment_behind
);

/// The environment follows the arguments' end.
unsafe extern "C" fn execute_with_environment_behind(path: *const c_char, arguments: Strings) -> c_int {
    let mut end = arguments;
    // SAFETY: the caller's list ends with a null pointer, which the environment follows.
    unsafe {
        while !end.read().is_null() {
            end = end.add(1);
        }
        execute(path, arguments, end.add(1).cast::<Strings>().read())
    }
}

type Spawn = unsafe extern "C" fn(*mut i32, *const c_char, usize, usize, Strings, Strings) -> c_int;

unsafe fn spawn(
    behind: &Behind,
    pid: *mut i32,
    path: *const c_char,
    (actions, attributes): (usize, usize),
    arguments: Strings,
    environment: Strings,
) -> c_int {
    let Some(address) = behind.get() else { return libc::ENOSYS };
    // SAFETY: a function of this type, by its name.
    let spawn: Spawn = unsafe { core::mem::transmute(address) };
    let mut room = Room::new();
    let environment = room.complete(environment);
    // SAFETY: the caller's call, with another environment.
    unsafe { spawn(pid, path, actions, attributes, arguments, environment) }
}

/// posix_spawn(3). The child is not known to any checkpoint before it executes its program, and this thread waits for that.
///
/// # Safety
/// posix_spawn(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_spawn(
    pid: *mut i32,
    path: *const c_char,
    actions: usize,
    attributes: usize,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    // SAFETY: the caller's call.
    unsafe { spawn(&SPAWN, pid, path, (actions, attributes), arguments, environment) }
}

/// posix_spawnp(3).
///
/// # Safety
/// posix_spawnp(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_spawnp(
    pid: *mut i32,
    file: *const c_char,
    actions: usize,
    attributes: usize,
    arguments: Strings,
    environment: Strings,
) -> c_int {
    // SAFETY: the caller's call.
    unsafe { spawn(&SPAWNP, pid, file, (actions, attributes), arguments, environment) }
}
