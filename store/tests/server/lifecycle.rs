//! Servers that come and go.

use std::{fs, process::Command, time::Duration};

use nix::{
    sys::{
        prctl::set_child_subreaper,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use stasis_store::client::{Client, ClientError};

use crate::fixture::{Store, checkpoint, draft, dump, memory};

fn start(store: &Store, idle: &str) -> Result<Client, ClientError> {
    // The background server is this process' to reap: not every pid 1 reaps orphans.
    set_child_subreaper(true).unwrap();
    let mut command: Command = store.command();
    command.args(["--idle-seconds", idle]);
    Client::connect_or_start_with(&store.directory, command)
}

fn reap(pid: u32) -> WaitStatus {
    waitpid(Pid::from_raw(pid as i32), None).unwrap()
}

#[test]
fn a_server_starts_by_itself_and_goes_away_when_idle() {
    let store = Store::new();
    assert!(matches!(Client::connect(&store.directory), Err(ClientError::NotRunning(_))));
    let mut client = start(&store, "0.05").unwrap();
    let pid = client.server_pid();
    checkpoint(&mut client, 1, &memory(0, 5, 0)).unwrap();
    // It stays while somebody is connected, however long nothing is asked.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(client.list().unwrap().len(), 1);
    let socket = client.socket().to_owned();
    drop(client);
    assert_eq!(reap(pid), WaitStatus::Exited(Pid::from_raw(pid as i32), 0));
    assert!(!socket.exists());

    let mut client = start(&store, "60").unwrap();
    assert_ne!(client.server_pid(), pid);
    assert_eq!(client.list().unwrap().len(), 1);
    let pid = client.server_pid();
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    let output = fs::read_link(format!("/proc/{pid}/fd/1")).unwrap();
    assert_eq!(
        (cwd.to_str(), output),
        (Some("/"), store.directory.canonicalize().unwrap().join("server.log"))
    );
    client.shutdown().unwrap();
    reap(pid);
}

#[test]
fn nothing_is_left_of_a_start_and_a_long_log_is_begun_anew() {
    let store = Store::new();
    let mut client = start(&store, "60").unwrap();
    let log = store.directory.join("server.log");
    let fill = || fs::write(&log, vec![b'x'; 2 << 20]).unwrap();
    let is_fresh = || fs::metadata(&log).is_ok_and(|meta| meta.len() < 1 << 20);
    fill();
    // The server looks when somebody comes.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !is_fresh() {
        assert!(std::time::Instant::now() < deadline, "the log grows");
        drop(Client::connect(&store.directory).unwrap());
    }
    assert_eq!(fs::metadata(store.directory.join("server.log.old")).unwrap().len(), 2 << 20);
    let socket = client.socket().to_owned();
    client.shutdown().unwrap();
    reap(client.server_pid());
    fill();
    let mut client = start(&store, "60").unwrap();
    assert!(is_fresh());
    assert!(socket.exists() && !socket.with_extension("starting").exists());
    client.shutdown().unwrap();
    reap(client.server_pid());
}

#[test]
fn many_that_start_it_at_once_share_one_server() {
    let store = Store::new();
    let pids: Vec<u32> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| start(&store, "60").unwrap())).collect();
        let clients: Vec<Client> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        clients.iter().map(Client::server_pid).collect()
    });
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    Client::connect(&store.directory).unwrap().shutdown().unwrap();
    reap(pids[0]);
}

#[test]
fn a_client_that_comes_when_it_ends_gets_the_next_one() {
    let store = Store::new();
    let mut pids = Vec::new();
    for token in 0..30 {
        let mut client = start(&store, "0").unwrap();
        if pids.last() != Some(&client.server_pid()) {
            pids.push(client.server_pid());
        }
        checkpoint(&mut client, token, &memory(0, 5, token)).unwrap();
    }
    assert_eq!(start(&store, "0").unwrap().list().unwrap().len(), 30);
    // The last may be a server that was started just now.
    if let Ok(client) = Client::connect(&store.directory) {
        pids.push(client.server_pid());
    }
    pids.dedup();
    for pid in pids {
        reap(pid);
    }
}

#[test]
fn a_second_server_on_one_directory_is_refused_by_name() {
    let store = Store::new();
    let server = store.serve();
    let output = store.command().arg(&store.directory).arg("--foreground").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(said.contains(&format!("pid {}", server.child.id())), "{said}");
    checkpoint(&mut server.client(), 1, &memory(0, 5, 0)).unwrap();
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let store = Store::new();
    fs::write(&store.directory, "a file").unwrap();
    assert!(start(&store, "60").is_err());
    fs::remove_file(&store.directory).unwrap();
    let command = Command::new("/nonexistent/stasis-store");
    let problem = Client::connect_or_start_with(&store.directory, command).unwrap_err().to_string();
    assert!(problem.contains("/nonexistent/stasis-store"), "{problem}");
    fs::write(store.directory.join("other"), "").unwrap();
    let problem = start(&store, "60").unwrap_err().to_string();
    assert!(problem.contains("is not a store"), "{problem}");
}

#[test]
fn a_server_that_is_told_to_stop_has_ended_when_that_is_said() {
    let store = Store::new();
    assert_eq!(Client::stop(&store.directory).unwrap(), None);
    let mut server = store.serve();
    let (mut coordinator, mut client) = (server.client(), server.client());
    let record = checkpoint(&mut client, 1, &memory(0, 500, 0)).unwrap();
    // A checkpoint under way is waited for.
    let dumped = dump(&mut client, 2, &memory(0, 500, 1000)).unwrap();
    let stopped = std::thread::scope(|scope| {
        let stopper = scope.spawn(|| Client::stop(&store.directory).unwrap());
        // It says so as soon as it knows: no dump begins any more.
        let mut other = server.client();
        while dump(&mut other, 3, &memory(0, 1, 2000)).is_ok() {
            other.discard(3).unwrap();
        }
        coordinator.commit(2, draft(&[dumped])).unwrap();
        stopper.join().unwrap()
    });
    assert_eq!(stopped, Some(server.child.id()));
    assert!(server.child.try_wait().unwrap().is_some(), "it has ended");
    let server = store.serve();
    let listed = server.client().list().unwrap();
    assert_eq!((listed.len(), &listed[0]), (2, &record));
}

#[test]
fn a_dump_that_nobody_can_commit_any_more_is_waited_for_by_nobody() {
    let store = Store::new();
    let server = store.serve();
    let (coordinator, mut client) = (server.client(), server.client());
    let dumped = dump(&mut client, 1, &memory(0, 500, 0)).unwrap();
    // The coordinator is killed; the process keeps its connection.
    drop(coordinator);
    let before = std::time::Instant::now();
    assert_eq!(Client::stop(&store.directory).unwrap(), Some(server.child.id()));
    assert!(before.elapsed() < Duration::from_secs(10));
    drop(server);

    // Or it ends as well.
    let server = store.serve();
    let (coordinator, mut client, mut other) = (server.client(), server.client(), server.client());
    dump(&mut client, 1, &memory(0, 500, 0)).unwrap();
    dump(&mut other, 2, &memory(0, 500, 0)).unwrap();
    drop((coordinator, client));
    let mut left = server.client();
    let mut commit = |token| left.commit(token, draft(&[([0; 32], dumped.1)])).unwrap_err().to_string();
    while !commit(1).contains("nothing has been dumped") {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(commit(2).contains("pid 1"), "its process is there");
}

#[test]
fn a_directory_that_cannot_be_written_is_refused_by_name() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mounting a tmpfs read-only needs root");
        return;
    }
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let disk = tempfile::TempDir::new().unwrap();
    mount(Some("tmpfs"), disk.path(), Some("tmpfs"), MsFlags::empty(), Some("size=64m")).unwrap();
    let store = Store::below(disk.path());
    let server = store.serve();
    checkpoint(&mut server.client(), 1, &memory(0, 50, 0)).unwrap();
    Client::stop(&store.directory).unwrap();
    drop(server);
    let remount =
        |flags| mount(None::<&str>, disk.path(), None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>);
    remount(MsFlags::MS_RDONLY).unwrap();
    let output = store.command().arg(&store.directory).arg("--foreground").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    remount(MsFlags::empty()).unwrap();
    assert!(!output.status.success() && said.contains("Read-only file system"), "{said}");
    assert!(said.contains(&store.directory.display().to_string()), "{said}");
    let server = store.serve();
    let verified = server.client().verify(None).unwrap();
    assert_eq!((verified.pages, verified.damage.len()), (50, 0));
    server.crash();
    umount2(disk.path(), MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn a_store_that_was_deleted_or_moved_takes_no_checkpoint_and_is_made_or_found_anew() {
    for is_moved in [false, true] {
        let store = Store::new();
        let mut client = start(&store, "60").unwrap();
        let first = checkpoint(&mut client, 1, &memory(0, 5, 0)).unwrap();
        let pids = [client.server_pid()];
        let dumped = dump(&mut client, 2, &memory(0, 5, 10)).unwrap();
        let elsewhere = store.directory.with_extension("moved");
        if is_moved {
            fs::rename(&store.directory, &elsewhere).unwrap();
        } else {
            fs::remove_dir_all(&store.directory).unwrap();
        }
        let problem = client.commit(2, draft(&[dumped])).unwrap_err().to_string();
        assert!(problem.contains("was deleted or moved away"), "{problem}");
        reap(pids[0]);
        let mut client = start(&store, "60").unwrap();
        assert!(client.list().unwrap().is_empty());
        checkpoint(&mut client, 1, &memory(0, 5, 0)).unwrap();
        client.shutdown().unwrap();
        reap(client.server_pid());
        if is_moved {
            let mut client = Client::connect_or_start_with(&elsewhere, store.command()).unwrap();
            assert_eq!(client.list().unwrap(), [first]);
            client.shutdown().unwrap();
            reap(client.server_pid());
        }
    }
}

#[test]
fn who_comes_to_a_store_that_was_deleted_or_moved_gets_another_server() {
    for is_moved in [false, true] {
        let store = Store::new();
        let mut client = start(&store, "60").unwrap();
        checkpoint(&mut client, 1, &memory(0, 5, 0)).unwrap();
        let pid = client.server_pid();
        let elsewhere = store.directory.with_extension("moved");
        fs::rename(&store.directory, &elsewhere).unwrap();
        let (directory, count) = if is_moved { (&elsewhere, 1) } else { (&store.directory, 0) };
        let mut client = Client::connect_or_start_with(directory, store.command()).unwrap();
        assert_ne!(client.server_pid(), pid);
        assert_eq!(client.list().unwrap().len(), count);
        reap(pid);
        assert!(client.socket().exists());
        client.shutdown().unwrap();
        reap(client.server_pid());
    }
}

#[test]
fn a_copy_of_a_store_is_not_served_by_the_server_of_the_original() {
    let store = Store::new();
    let mut client = start(&store, "60").unwrap();
    let record = checkpoint(&mut client, 1, &memory(0, 5, 0)).unwrap();
    let elsewhere = store.directory.with_extension("copy");
    assert!(Command::new("cp").arg("-a").args([&store.directory, &elsewhere]).status().unwrap().success());
    assert!(matches!(Client::connect(&elsewhere), Err(ClientError::NotRunning(_))));
    let mut other = Client::connect_or_start_with(&elsewhere, store.command()).unwrap();
    assert_ne!(other.server_pid(), client.server_pid());
    assert_eq!(other.prune(vec![record.id.clone()]).unwrap().len(), 1);
    assert_eq!(client.list().unwrap(), [record]);
    for mut client in [client, other] {
        client.shutdown().unwrap();
        reap(client.server_pid());
    }
}
