//! A client as this version speaks, and one that can send anything.

use std::{
    io::{self, IoSlice, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use stasis_protocol::{
    coordinator::Refusal,
    tracer::{Connection, Event, Hello, Reply, Request, Task, VERSION},
    wire,
};
use stasis_tests::Tracer;

pub struct Client(pub UnixStream);

impl Client {
    #[track_caller]
    pub fn connect(tracer: &Tracer) -> Self {
        Self::try_connect(tracer).expect("the tracer answers")
    }

    pub fn try_connect(tracer: &Tracer) -> io::Result<Self> {
        let stream = UnixStream::connect(tracer.socket())?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut client = Self(stream);
        client.0.write_all(&wire::frame(&Hello { version: VERSION }).unwrap())?;
        match client.receive()? {
            Reply::Hello { .. } => Ok(client),
            other => Err(io::Error::other(format!("{other:?}"))),
        }
    }

    /// Connects as another user. A thread has its own users as long as glibc is not asked to change them.
    #[track_caller]
    pub fn connect_as(tracer: &Tracer, uid: u32) -> Self {
        as_user(uid, || Self::connect(tracer))
    }

    pub fn receive(&mut self) -> io::Result<Reply> {
        let mut header = [0; wire::HEADER];
        self.0.read_exact(&mut header)?;
        let mut payload = vec![0; wire::payload_len(header).map_err(io::Error::other)?];
        self.0.read_exact(&mut payload)?;
        wire::decode(&payload).map_err(io::Error::other)
    }

    #[track_caller]
    pub fn ask(&mut self, request: &Request) -> Reply {
        self.0.write_all(&wire::frame(request).unwrap()).expect("the tracer listens");
        self.receive().expect("the tracer answers")
    }

    #[track_caller]
    pub fn ask_beside(&mut self, request: &Request, beside: BorrowedFd<'_>) -> Reply {
        let frame = wire::frame(request).unwrap();
        let descriptors = [beside.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&descriptors)];
        let sent =
            sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&frame)], &control, MsgFlags::empty(), None);
        assert_eq!(sent.expect("the tracer listens"), frame.len());
        self.receive().expect("the tracer answers")
    }

    #[track_caller]
    pub fn try_register(&mut self, computation: u64, pid: u32) -> Result<(), Refusal> {
        let request = Request::Register { computation, label: "a test's".into() };
        match self.ask_beside(&request, pidfd(pid).as_fd()) {
            Reply::Done => Ok(()),
            Reply::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub fn register(&mut self, computation: u64, pid: u32) {
        self.try_register(computation, pid).unwrap();
    }

    #[track_caller]
    pub fn tasks(&mut self, computation: u64) -> Vec<Task> {
        match self.ask(&Request::Tasks { computation: Some(computation) }) {
            Reply::Tasks { tasks, .. } => tasks,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub fn connections(&mut self, computation: u64) -> Vec<Connection> {
        match self.ask(&Request::Connections { computation }) {
            Reply::Connections(connections) => connections,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub fn watch(&mut self, computation: Option<u64>) {
        assert_eq!(self.ask(&Request::Watch { computation }), Reply::Done);
    }

    #[track_caller]
    pub fn event(&mut self) -> Event {
        match self.receive().expect("an event") {
            Reply::Event(event) => event,
            other => panic!("{other:?}"),
        }
    }
}

pub fn pidfd(pid: u32) -> OwnedFd {
    // SAFETY: pidfd_open(2) takes integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(fd >= 0, "pid {pid}");
    // SAFETY: a new descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// Runs something with another user's id, in a thread that ends with it.
#[track_caller]
pub fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the system call itself changes this thread alone (setresuid(2), C library/kernel differences).
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
            assert_eq!(changed, 0);
            act()
        });
        thread.join().expect("what was to be done as another user")
    })
}
