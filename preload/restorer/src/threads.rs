//! The threads: made with their ids, and let go into restored memory.

use stasis_protocol::plan::{RestartInfo, Thread, step};

use crate::{
    arch::{self, CloneArguments},
    lazy,
    plan::Plan,
    relocate::{self, STACK, THREAD_STACK},
    report, watch,
};

/// What a new thread finds at the upper end of its stack.
struct Start {
    plan: Plan,
    thread: Thread,
}

/// Makes all threads and becomes the leader.
pub fn go_on(plan: &Plan) -> ! {
    let header = plan.header();
    let area = relocate::area(plan);
    let info = RestartInfo {
        area: area.start as u64,
        area_len: area.len as u64,
        handover: plan.data(header.info.handover),
        userfaultfd: lazy::userfaultfd(),
        watching: watch::userfaultfd(),
        ..header.info
    };
    // SAFETY: the plan's author has checked that a mapping holds it.
    unsafe { (header.restart_info as *mut RestartInfo).write_unaligned(info) };

    let Some((leader, others)) = plan.threads().split_first() else {
        report::fail(step::THREAD, 0, libc::EINVAL, 0)
    };
    let shared = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM;
    let stacks = area.stacks + STACK * (1 + header.fillers as usize);
    for (index, thread) in others.iter().enumerate() {
        make(plan, thread, shared | libc::CLONE_FILES | libc::CLONE_FS, stacks, index);
    }
    // The checkpoint thread has a descriptor table of its own.
    report::set_holder(make(plan, &header.checkpoint_thread, shared, stacks, others.len()));
    // The program's table is to hold the program's descriptors only.
    for uffd in [lazy::userfaultfd(), watch::userfaultfd()].into_iter().filter(|&uffd| uffd >= 0) {
        let _ = stasis_sys::file::close(uffd);
    }
    plan.make_calls(plan.last_calls(), step::LAST_CALL);
    // SAFETY: set_tid_address(2) notes an address.
    unsafe { stasis_sys::raw(libc::SYS_set_tid_address, [leader.clear_tid as usize, 0, 0, 0, 0, 0]) };
    enter(plan, leader)
}

fn make(plan: &Plan, thread: &Thread, flags: i32, stacks: usize, index: usize) -> i32 {
    let mut flags = flags | libc::CLONE_SETTLS;
    if thread.clear_tid != 0 {
        flags |= libc::CLONE_CHILD_CLEARTID;
    }
    let stack = stacks + index * THREAD_STACK;
    let start = (stack + THREAD_STACK - size_of::<Start>()) & !15;
    // SAFETY: this part of the area is this thread's alone.
    unsafe { (start as *mut Start).write(Start { plan: *plan, thread: *thread }) };
    let tid = thread.tid as i32;
    let arguments = CloneArguments {
        flags: flags as u64,
        child_tid: thread.clear_tid,
        stack: stack as u64,
        stack_size: (start - stack) as u64,
        tls: thread.fs_base,
        // clone3(2) refuses an address of no ids.
        set_tid: if tid == 0 { 0 } else { &raw const tid as u64 },
        set_tid_size: u64::from(tid != 0),
        ..CloneArguments::default()
    };
    // SAFETY: as above.
    let made = unsafe { arch::clone3(&arguments, begin as *const () as usize, start) };
    if made < 0 {
        report::fail(step::THREAD, index + 1, -made as i32, thread.tid);
    }
    made as i32
}

extern "C" fn begin(start: &Start) -> ! {
    enter(&start.plan, &start.thread)
}

/// Gives the calling thread what is its own, and goes on in restored memory.
fn enter(plan: &Plan, thread: &Thread) -> ! {
    arch::set_bases(thread.fs_base, thread.gs_base);
    plan.make_calls(plan.calls_of(thread), step::THREAD_CALL);
    if thread.own == 0 {
        plan.make_calls(plan.thread_calls(), step::THREAD_CALL);
    }
    if thread.exited != 0 {
        loop {
            // SAFETY: ends this thread; the others live on.
            unsafe { stasis_sys::raw(libc::SYS_exit, [0; 6]) };
        }
    }
    // SAFETY: the plan's author vouches for both.
    unsafe { arch::leave(thread.entry, thread.sp) }
}
