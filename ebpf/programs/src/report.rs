//! Putting records into the ring buffer.

use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_probe_read_kernel_str};
use stasis_events::{COMM, Counter, Kind, NAME, Task, TaskEvent};

use crate::maps::{EVENTS, count};

/// What is different between the records of tasks.
pub struct Report {
    pub kind: Kind,
    pub tgid: u32,
    pub other: u32,
    pub flags: u64,
    pub uid: u32,
    pub ns_pid: u32,
    pub comm: [u8; COMM],
}

/// Tells what a task did. `name`: the address of a string in the kernel, or 0.
///
/// The service is woken by the first record that it has not asked for yet and reads all some milliseconds later: a
/// wake-up for each would cost a fork more than all the rest.
#[inline(always)]
pub fn task(task: &Task, report: &Report, name: u64) {
    let Some(mut entry) = EVENTS.reserve::<TaskEvent>(0) else {
        count(Counter::Dropped);
        return;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the entry is large enough, aligned, and ours until it is submitted; every field is written.
    unsafe {
        (*event).kind = report.kind as u32;
        (*event).owner = task.owner;
        (*event).computation = task.computation;
        (*event).time_ns = bpf_ktime_get_boot_ns();
        (*event).tgid = report.tgid;
        (*event).other = report.other;
        (*event).flags = report.flags;
        (*event).uid = report.uid;
        (*event).ns_pid = report.ns_pid;
        (*event).comm = report.comm;
        if name == 0 {
            (*event).name = [0; NAME];
        } else {
            let to = (&raw mut (*event).name).cast();
            bpf_probe_read_kernel_str(to, NAME as u32, name as *const _);
        }
    }
    entry.submit(0);
}
