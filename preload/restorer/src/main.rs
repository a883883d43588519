//! stasis-restorer: replaces a fresh process by the one that a checkpoint holds.
//!
//! `stasis restart` prepares a process (its pid, session, descriptors, limits) and executes this
//! program with the number of the plan's descriptor as its only argument. It moves itself to an
//! address that is free in the layout to come, unmaps everything else, maps and fills memory
//! (each page compared with its hash), makes the threads and lets each go on where it stood: in the
//! stop handler of the restored library.
//!
//! It decides nothing: all is in the plan ([`stasis_protocol::plan`]). It allocates nothing, and
//! calls nobody but the kernel. When something fails it says what by the report pipe and ends.
//!
//! Not here: descriptors, checks, policy (cli/src/restart); what only the restored process can put
//! back (preload/src/restart.rs).

#![no_std]
#![no_main]

mod arch;
mod fill;
#[allow(dead_code, reason = "the store's file: it also looks for zeros")]
#[path = "../../../store/src/hash.rs"]
mod hash;
mod layout;
mod lazy;
mod plan;
mod relocate;
mod report;
mod threads;
mod turns;
mod watch;

use plan::Plan;

// There is no libc here to have them.
stasis_sys::define_memory_functions!();

/// The first half, in the program as the kernel loaded it: up to the move.
extern "C" fn first(stack: *const usize) -> ! {
    // SAFETY: called once by the entry code, before anything that needs a relocation.
    unsafe { relocate::apply_in_place() };
    // SAFETY: the initial stack holds argc, then argv (System V ABI, x86-64, 3.4.1).
    let argument = unsafe { (stack.read() == 2).then(|| stack.add(2).read() as *const u8) };
    let Some(plan) = argument.and_then(Plan::map) else {
        let _ = stasis_sys::file::write(2, b"stasis-restorer: run by `stasis restart` only\n");
        stasis_sys::process::exit_group(2);
    };
    report::set(plan.header());
    relocate::go_on_in_area(&plan)
}

/// The second half, in the area: nothing else that is mapped matters any more.
extern "C" fn second(plan: &Plan) -> ! {
    plan.resolve_pointers();
    layout::replace(plan);
    lazy::leave_to_pager(plan);
    fill::fill(plan);
    watch::watch(plan);
    threads::make_namespaced_calls(plan);
    plan.make_calls(plan.calls(), stasis_protocol::plan::step::CALL);
    threads::go_on(plan)
}

/// The protocol's records need an allocator to exist; the plan needs none.
struct NoAllocator;

// SAFETY: it never gives memory.
unsafe impl core::alloc::GlobalAlloc for NoAllocator {
    unsafe fn alloc(&self, _: core::alloc::Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: core::alloc::Layout) {}
}

#[global_allocator]
static NO_ALLOCATOR: NoAllocator = NoAllocator;

/// Named by the unwind tables of the prebuilt `alloc`; nothing unwinds here (panic = "abort").
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    report::fail(stasis_protocol::plan::step::PLAN, 0, 0, 0)
}
