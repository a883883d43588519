//! The workloads of `tests/programs`, each of them with one kind of state: proved natively, then checkpointed while it
//! waits, then killed and restarted once, and twice. A test's name is the workload and what becomes of it.

use stasis_tests::Workload;

macro_rules! workloads {
    ($($name:ident: $program:literal $([$($argument:literal),*])?;)*) => {$(
        mod $name {
            use super::*;

            const THIS: Workload = Workload { program: $program, arguments: &[$($($argument),*)?] };

            #[test]
            fn notices_natively_what_it_loses() {
                THIS.notices_what_is_lost();
            }

            #[test]
            fn goes_on_after_checkpoints() {
                THIS.goes_on_after_checkpoints();
            }

            #[test]
            fn comes_back_after_kill_and_restart() {
                THIS.comes_back(1);
            }

            #[test]
            fn comes_back_from_the_second_generation() {
                THIS.comes_back(2);
            }
        }
    )*};
}

mod signals {
    use super::*;
    workloads! {
        handlers_with_and_without_restart: "signal_restart";
        pending_and_queued: "signal_queue";
        a_stream_of_queued_signals: "signal_flow";
        queued_by_another_process: "signal_order";
        a_handler_for_every_signal: "signal_all";
        masks_and_alternate_stacks: "signal_masks";
        alternate_stacks_that_are_not_to_be_used: "alternate_stacks";
        nested_handlers: "signal_nested";
        as_many_as_may_be_queued: "signal_limit";
        all_signals_blocked: "signal_block_all";
        a_handler_of_segmentation_faults: "signal_segv";
    }
}

mod threads {
    use super::*;
    workloads! {
        one: "threads" ["1"];
        two: "threads" ["2"];
        sixteen: "threads" ["16"];
        two_hundred: "threads" ["200"];
        five_thousand: "threads" ["5000"];
        that_come_and_go: "thread_churn";
        made_with_settings_of_their_own: "made_with_settings";
        mutexes_held: "mutexes";
        robust_mutexes: "robust";
        waiting_in_conditions_barriers_and_locks: "sync";
        local_storage: "tls";
        names_affinity_and_scheduling: "thread_attributes";
        restartable_sequences: "rseq";
        made_by_raw_clone: "raw_clone";
        on_small_stacks: "small_stacks";
        joined_cancelled_and_signalled: "thread_end";
        ids: "thread_ids";
        without_the_leader: "leader_exit";
        what_is_a_threads_own: "thread_own";
        membarrier_registrations: "membarrier";
    }
}

mod timers {
    use super::*;
    workloads! {
        posix: "posix_timers";
        intervals: "itimers";
        intervals_that_are_off: "itimers_off";
        time_left: "itimer_left";
        what_is_left_of_sleeps: "sleep_left";
        alarm: "alarm";
        descriptors: "timerfd";
        descriptors_of_short_periods: "timerfd_short";
        of_threads_and_with_high_ids: "timer_clocks";
        that_share_a_signal: "timer_signals";
    }

    #[test]
    fn that_share_a_signal_come_back_from_what_ran_on() {
        Workload { program: "timer_signals", arguments: &["uncounted"] }.comes_back_from_what_ran_on();
    }
}

mod memory {
    use super::*;
    workloads! {
        heap: "brk_heap";
        grown_stack: "stack";
        guard_pages: "guards";
        reserved_address_space: "reserve";
        nearly_all_addresses_reserved: "little_room";
        reserved_meanwhile: "reserved_meanwhile";
        sparse_mapping: "sparse";
        in_many_mappings: "many_mappings";
        little_for_the_library: "address_space";
        little_left_of_the_address_space: "address_space" ["full"];
        hardly_used: "holes";
        advice: "madvise";
        locked: "mlock";
        locked_on_fault: "mlock" ["on-fault"];
        sealed_and_locked_as_it_is_touched: "sealed_memory";
        growing_downwards: "growsdown";
        mapped_files: "private_file";
        shared_anonymous: "shared_memory";
        shared_between_processes: "posix_shm";
        semaphores_opened_by_name: "semaphore_names";
        a_file_mapped_by_two_processes: "mapped_file";
        shared_without_a_name: "unnamed_memory";
        shared_without_a_name_of_the_unprivileged: "unnamed_memory" ["unprivileged"];
        memfd: "memfd";
        generated_code: "codegen";
        remapped: "mremap";
        huge_pages: "huge_pages";
        policies: "memory_policy";
        mapped_between_slices_of_time: "grows_in_slices";
    }
}

mod system_v {
    use super::*;
    workloads! {
        shared_memory: "sysv_shm";
        shared_memory_in_pieces: "segment_pieces";
        semaphores: "sysv_sem";
        message_queues: "sysv_msg";
        that_count: "queue_counts";
    }
}

mod processor {
    use super::*;
    workloads! {
        vdso: "vdso";
        vector_registers: "vector_registers";
        floating_point_control: "float_control";
        segment_bases: "segment_base";
        protection_keys: "protection_keys";
        alignment_checks: "alignment";
    }
}

mod process {
    use super::*;
    workloads! {
        umask_and_working_directory: "umask_cwd";
        working_directory_in_proc: "cwd_in_proc";
        limits: "limits";
        settings_of_prctl: "prctl";
        credentials_as_started: "credentials";
        credentials_of_nobody: "credentials" ["nobody"];
        credentials_of_each_kind: "credentials" ["mixed"];
        root_given_up_in_all_threads: "drop_root";
        identity: "identity" ["overwritten"];
        clocks: "clocks";
        executing_itself: "exec_itself";
        group_and_session: "process_group";
        ids_that_are_remembered: "ids";
        daemons_of_a_subreaper: "subreaper";
        daemons_of_a_subreaper_that_leads_a_session: "subreaper" ["leads"];
        children_of_clone_and_of_the_first_thread: "clone_function";
        a_child_of_a_system_call_of_its_own: "inline_fork";
    }
}

mod descriptors {
    use super::*;
    workloads! {
        files: "files";
        files_of_relatives_in_proc: "proc_relatives";
        deleted_files: "deleted_files";
        files_by_names_that_are_gone: "other_names";
        directory: "directory";
        pipes: "pipes";
        pipes_and_sockets_that_are_spliced: "splicing";
        fifos: "fifo";
        devices: "devices";
        eventfd: "eventfd";
        epoll: "epoll";
        epoll_by_numbers_that_were_closed: "epoll_numbers";
        signalfd: "signalfd";
        inotify: "inotify" ["read"];
        inotify_with_events: "inotify";
        events_of_inotify_one_by_one: "inotify_unread";
        inotify_over_time: "inotify_over_time";
        pidfds: "pidfd";
        proc_files_of_the_process_itself: "proc_files";
        sockets_that_lead_to_the_kernel_and_the_network: "plain_sockets";
        options_filters_and_groups_of_sockets: "socket_options";
        options_of_ipv4_at_sockets_of_ipv6: "dual_stack";
        duplicates: "dup";
        closed_by_exec: "fd_exec";
        owners_and_signals: "fd_owner";
        file_locks: "file_locks";
        leases: "lease";
        all_closed_one_by_one: "close_all";
        all_closed_as_a_range: "close_all" ["range"];
        high_numbers: "high_fds";
        as_many_as_the_limit_allows: "few_descriptors";
        socket_pairs: "socket_pairs";
        on_their_way_through_sockets: "rights_in_flight";
        contexts_of_kernel_aio: "aio";
        direct_reads: "direct_reads";
        direct_reads_by_kernel_aio: "direct_reads" ["aio"];
        message_queues: "posix_mq";
        bound_and_listening_sockets: "listeners";
    }
}

mod connections {
    use super::*;
    workloads! {
        tcp_with_bytes_in_flight: "tcp_pair";
        tcp_over_ipv4: "tcp" ["4", "one"];
        tcp_over_ipv6: "tcp" ["6", "one"];
        tcp_over_ipv4_at_a_socket_for_both: "tcp" ["mixed", "one"];
        tcp_with_a_full_buffer_beyond_what_may_be_asked_for: "tcp_window";
        of_others_and_their_messages: "unix_peers";
        large_and_many_unix_datagrams: "unix_datagrams";
        files_of_unix_sockets: "socket_files";
        sockets_with_addresses: "named_sockets" ["one"];
        sockets_with_addresses_between_processes: "named_sockets" ["two"];
        datagrams_that_would_not_come_now: "udp_unread";
        tcp_between_processes: "tcp" ["4", "two"];
        descriptors_on_their_way_to_another_process: "rights_to_a_worker";
        tcp_that_was_refused: "tcp_refused";
        tcp_that_nobody_has_answered: "connecting";
        tcp_between_processes_over_ipv6: "tcp" ["6", "two"];
    }
}

mod calls {
    use super::*;
    workloads! {
        that_have_done_a_part: "parts";
    }
}

mod terminals {
    use super::*;
    workloads! {
        both_sides: "pty";
        full: "pty_full";
        sessions_and_job_control: "job_control";
    }
}

mod preload {
    use super::*;
    workloads! {
        a_constructor_that_runs_before_ours: "early";
        an_allocator_that_is_never_reentered: "allocates";
        memory_functions_of_the_programs_own: "memory_functions";
    }
}

/// What cannot be kept is refused with its name, and nothing has happened to the program.
mod refused {
    use super::*;

    #[test]
    fn a_pidfd_of_a_process_outside() {
        Workload { program: "pidfd_outside", arguments: &[] }.is_refused(&["pidfd", "process 1,", "fd "]);
    }

    #[test]
    fn a_message_queue_that_notifies() {
        Workload { program: "mq_notified", arguments: &[] }.is_refused(&["message", "notified", "fd "]);
    }

    #[test]
    fn many_mappings_where_no_address_space_is_left() {
        Workload { program: "address_space", arguments: &["full", "mappings"] }
            .is_refused(&["no memory", "ulimit -v"]);
    }

    #[test]
    fn secret_memory() {
        Workload { program: "secret_memory", arguments: &[] }.is_refused(&["memfd_secret", "mapping "]);
    }

    #[test]
    fn urgent_data_in_a_unix_stream() {
        Workload { program: "urgent_data", arguments: &[] }.is_refused(&["urgent", "fd "]);
    }

    #[test]
    fn events_of_inotify_that_two_processes_may_read() {
        Workload { program: "inotify", arguments: &["child"] }.is_refused(&["inotify", "fd "]);
    }

    #[track_caller]
    fn refuses_socket(what: &'static str, words: &[&str]) {
        Workload { program: "unsaved_sockets", arguments: Box::leak(Box::new([what])) }.is_refused(words);
    }

    #[test]
    fn a_socket_filter_of_ebpf() {
        refuses_socket("filter", &["eBPF", "fd "]);
    }

    #[test]
    fn a_program_that_chooses_among_sockets() {
        refuses_socket("reuseport", &["BPF program", "fd "]);
    }

    #[test]
    fn half_a_datagram() {
        refuses_socket("cork", &["UDP_CORK", "fd "]);
    }

    #[track_caller]
    fn is_entangled(what: &'static str, words: &[&str]) {
        let arguments = Box::leak(Box::new([what]));
        Workload { program: "entangled", arguments }.is_refused(words);
    }

    #[test]
    fn memory_shared_with_a_child() {
        is_entangled("memory", &["memory", "CLONE_VM", "pid "]);
    }

    #[test]
    fn descriptors_shared_with_a_child() {
        is_entangled("descriptors", &["shares its descriptors", "CLONE_FILES", "pid "]);
    }

    #[test]
    fn a_working_directory_shared_with_a_child() {
        is_entangled("directory", &["working directory", "CLONE_FS", "pid "]);
    }

    #[test]
    fn a_child_that_is_traced() {
        is_entangled("traced", &["traces it", "ptrace", "pid "]);
    }

    #[track_caller]
    fn refuses(confinement: &'static str, words: &[&str]) {
        let arguments = Box::leak(Box::new([confinement]));
        Workload { program: "confined", arguments }.is_refused(words);
    }

    #[test]
    fn a_seccomp_filter() {
        refuses("seccomp", &["seccomp", "thread "]);
    }

    #[test]
    fn a_seccomp_filter_of_a_child_that_executes_nothing() {
        refuses("child", &["seccomp", "child of "]);
    }

    #[test]
    fn a_connection_of_multipath_tcp() {
        refuses_socket("multipath", &["Multipath TCP", "fd "]);
    }

    #[test]
    fn landlock() {
        refuses("landlock", &["Landlock"]);
    }

    #[test]
    fn landlock_of_who_executed_the_program() {
        refuses("executed", &["Landlock"]);
    }

    #[test]
    fn a_session_keyring_of_its_own() {
        refuses("session_keys", &["keyring"]);
    }

    #[test]
    fn keys_of_its_own() {
        refuses("own_keys", &["keyring"]);
    }

    #[test]
    fn namespaces_of_its_own() {
        refuses("namespaces", &["namespaces"]);
    }

    #[test]
    fn system_calls_that_are_dispatched() {
        refuses("dispatch", &["dispatched"]);
    }

    #[test]
    fn a_local_descriptor_table() {
        refuses("segments", &["modify_ldt"]);
    }

    #[test]
    fn a_thread_with_descriptors_of_its_own() {
        refuses("descriptors", &["descriptors of its own", "thread "]);
    }

    #[test]
    fn or_kept_a_deleted_working_directory() {
        Workload { program: "cwd_deleted", arguments: &[] }.comes_back_or_is_refused(&["directory", "gone"]);
    }

    #[test]
    fn or_kept_as_many_signals_as_may_ever_be_queued() {
        Workload { program: "signal_limit", arguments: &["hard"] }
            .comes_back_or_is_refused(&["RLIMIT_SIGPENDING", "thread "]);
    }

    #[test]
    fn or_kept_a_thread_that_blocks_the_stop_signal() {
        Workload { program: "signal_block_raw", arguments: &[] }.comes_back_or_is_refused(&["signal"]);
    }

    #[test]
    fn each_would_notice_natively_what_it_loses() {
        for program in [
            "pidfd_outside",
            "mq_notified",
            "urgent_data",
            "secret_memory",
            "cwd_deleted",
            "signal_block_raw",
            "entangled",
        ] {
            Workload { program, arguments: &[] }.notices_what_is_lost();
        }
    }
}
