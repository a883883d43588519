//! The programs that run in the kernel: they see every task that a tracked process makes, every program it executes,
//! its end, and what becomes of its TCP sockets. Which processes are tracked is kept here, in the kernel: a child of a
//! tracked process is tracked before it runs its first instruction.
//!
//! Only BTF tracepoints and iterators are used. What is not tracked pays for one look-up when it makes a task; a
//! tracepoint of system calls would cost every system call of the machine a third more.
//!
//! Not here: who may have what tracked, and who may see it: the service decides (`ebpf/src`).

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod iterate;
mod kernel;
mod maps;
mod report;
mod sockets;
mod tasks;

/// Helpers that read kernel memory are for programs under the GPL or a license together with it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier takes no program that could come here.
    loop {}
}
