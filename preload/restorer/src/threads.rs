//! The threads: made with their ids, and let go into restored memory.

use core::{
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use stasis_protocol::plan::{RestartInfo, Thread, step};
use stasis_sys::{Errno, Result, process};

use crate::{
    arch::{self, CloneArguments},
    fill::await_end,
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
    let stack = stacks + index * THREAD_STACK;
    let start = (stack + THREAD_STACK - size_of::<Start>()) & !15;
    // SAFETY: this part of the area is this thread's alone.
    unsafe { (start as *mut Start).write(Start { plan: *plan, thread: *thread }) };
    let tid = thread.tid as i32;
    let arguments = CloneArguments {
        flags: (flags | libc::CLONE_SETTLS) as u64,
        stack: stack as u64,
        stack_size: (start - stack) as u64,
        tls: thread.fs_base,
        ..CloneArguments::default()
    };
    // SAFETY: as above.
    let ask = || unsafe { clone(&asking(arguments, thread, &tid), begin, start) };
    let made = match plan.turns() {
        None => ask(),
        Some(turns) if tid == 0 => turns.without_id(ask),
        Some(turns) => {
            let arguments = CloneArguments {
                flags: arguments.flags | libc::CLONE_CHILD_CLEARTID as u64,
                child_tid: LIVES.as_ptr() as u64,
                ..arguments
            };
            let make = || {
                LIVES.store(1, Ordering::Release);
                // SAFETY: as above; who had this stack before has ended.
                unsafe { clone(&arguments, begin_with_id, start) }
            };
            turns.take(tid, make, |_| await_end(&LIVES))
        }
    };
    report::expect(made, step::THREAD, index + 1, thread.tid)
}

/// That the kernel is to give a thread its id, where it is to have one, and where its end is told.
fn asking(arguments: CloneArguments, thread: &Thread, tid: &i32) -> CloneArguments {
    let ends = if thread.clear_tid == 0 { 0 } else { libc::CLONE_CHILD_CLEARTID as u64 };
    CloneArguments {
        flags: arguments.flags | ends,
        child_tid: thread.clear_tid,
        // clone3(2) refuses an address of no ids.
        set_tid: if *tid == 0 { 0 } else { ptr::from_ref(tid) as u64 },
        set_tid_size: u64::from(*tid != 0),
        ..arguments
    }
}

/// clone3(2).
///
/// # Safety
/// As [`arch::clone3`]: nothing else uses the stack.
unsafe fn clone(
    arguments: &CloneArguments,
    entry: extern "C" fn(&Start) -> !,
    argument: usize,
) -> Result<i32> {
    // SAFETY: the caller's promise.
    match unsafe { arch::clone3(arguments, entry as *const () as usize, argument) } {
        made if made < 0 => Err(Errno(-made as i32)),
        made => Ok(made as i32),
    }
}

/// Whether the thread that was made last lives, as long as it is not known to have its id. The kernel writes zero
/// (CLONE_CHILD_CLEARTID).
static LIVES: AtomicU32 = AtomicU32::new(0);

extern "C" fn begin(start: &Start) -> ! {
    enter(&start.plan, &start.thread)
}

/// Ends where the thread has another id than it must have: before it has touched anything of the program's.
extern "C" fn begin_with_id(start: &Start) -> ! {
    let thread = &start.thread;
    if process::gettid() != thread.tid as i32 {
        end()
    }
    // SAFETY: set_tid_address(2) notes an address.
    unsafe { stasis_sys::raw(libc::SYS_set_tid_address, [thread.clear_tid as usize, 0, 0, 0, 0, 0]) };
    enter(&start.plan, thread)
}

fn end() -> ! {
    loop {
        // SAFETY: ends this thread; the others live on.
        unsafe { stasis_sys::raw(libc::SYS_exit, [0; 6]) };
    }
}

/// Makes the calls for which this user has no capability here, by a child that shares this memory: in a user namespace of its
/// own it has all (user_namespaces(7)), and what is set of memory is set for this process.
pub fn make_namespaced_calls(plan: &Plan) {
    if plan.namespaced().is_empty() {
        return;
    }
    extern "C" fn call(start: &Start) -> ! {
        start.plan.make_calls(start.plan.namespaced(), step::CALL);
        end()
    }
    // The first thread's, which is not made yet.
    let stack = relocate::area(plan).stacks + STACK * (1 + plan.header().fillers as usize);
    let start = (stack + THREAD_STACK - size_of::<Start>()) & !15;
    // SAFETY: nobody uses that stack yet.
    unsafe { (start as *mut Start).write(Start { plan: *plan, thread: Thread::default() }) };
    let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_NEWUSER | libc::CLONE_CHILD_CLEARTID;
    let arguments = CloneArguments {
        flags: flags as u64,
        child_tid: LIVES.as_ptr() as u64,
        stack: stack as u64,
        stack_size: (start - stack) as u64,
        ..CloneArguments::default()
    };
    LIVES.store(1, Ordering::Release);
    // SAFETY: as above.
    let make = || unsafe { clone(&arguments, call, start) };
    // Where there are no user namespaces, it stays unset.
    let Ok(made) = plan.turns().map_or_else(make, |turns| turns.without_id(make)) else { return };
    await_end(&LIVES);
    // Without a signal at its end it is waited for by name only.
    let arguments = [made as usize, 0, libc::__WALL as usize, 0, 0, 0];
    // SAFETY: no status is asked for.
    while unsafe { stasis_sys::raw(libc::SYS_wait4, arguments) } == -libc::EINTR as isize {}
}

/// Gives the calling thread what is its own, and goes on in restored memory.
fn enter(plan: &Plan, thread: &Thread) -> ! {
    arch::set_bases(thread.fs_base, thread.gs_base);
    plan.make_calls(plan.calls_of(thread), step::THREAD_CALL);
    if thread.own == 0 {
        plan.make_calls(plan.thread_calls(), step::THREAD_CALL);
    }
    if thread.exited != 0 {
        end()
    }
    // SAFETY: the plan's author vouches for both.
    unsafe { arch::leave(thread.entry, thread.sp) }
}
