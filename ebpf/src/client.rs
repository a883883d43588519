//! One client's connection: what it sent and was not understood yet, what it has not read yet, what it may have.
//! Nothing here blocks, and nothing grows beyond a bound, whatever the client does.

use std::{
    io::{self, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Instant,
};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg,
    sockopt::{PeerCredentials, PeerPidfd},
};
use stasis_protocol::{tracer::MAX_REQUEST, wire};

use crate::pidfd;

/// What a watcher may leave unread: more than 50,000 events. What comes then is counted, and told it when it reads on.
const LONGEST_OUTPUT: usize = 4 << 20;

pub struct Client {
    stream: UnixStream,
    pub uid: u32,
    pub pid: u32,
    /// The process that connected; `None` before Linux 6.5.
    process: Option<OwnedFd>,
    pub since: Instant,
    pub greeted: bool,
    /// Events of one computation, or of all of the user's.
    pub watches: Option<Option<u64>>,
    /// Events that it was not told.
    pub lost: u64,
    /// No request of its is looked at before this.
    pub not_before: Option<Instant>,
    /// Its turn, and with it the answer to its request, is to come.
    pub waits: bool,
    pub ended: bool,
    input: Vec<u8>,
    beside: Option<OwnedFd>,
    output: Vec<u8>,
    sent: usize,
}

impl Client {
    /// # Errors
    /// When the kernel does not tell who connected.
    pub fn new(stream: UnixStream, now: Instant) -> io::Result<Self> {
        let peer = getsockopt(&stream, PeerCredentials)?;
        let process = getsockopt(&stream, PeerPidfd).ok();
        Ok(Self {
            stream,
            uid: peer.uid(),
            pid: u32::try_from(peer.pid()).unwrap_or(0),
            process,
            since: now,
            greeted: false,
            watches: None,
            lost: 0,
            not_before: None,
            waits: false,
            ended: false,
            input: Vec::new(),
            beside: None,
            output: Vec::new(),
            sent: 0,
        })
    }

    /// Whether the process that connected is still there, and its pid is its own.
    pub fn lives(&self) -> bool {
        self.pid != 0 && self.process.as_ref().is_none_or(|process| !pidfd::has_ended(process.as_fd()))
    }

    /// Takes what has come. No call waits, as its flags say: the socket is left as accept(2) made it. A client that closes its end, or sends too much, has ended.
    pub fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; MAX_REQUEST + wire::HEADER];
        let room = buffer.len().saturating_sub(self.input.len());
        if room == 0 {
            return Ok(());
        }
        let mut control = nix::cmsg_space!([i32; 4]);
        let mut parts = [IoSliceMut::new(&mut buffer[..room])];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(self.stream.as_raw_fd(), &mut parts, Some(&mut control), flags);
        let (length, descriptors) = match received {
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(()),
            Err(error) => return Err(error.into()),
            Ok(message) => {
                let mut descriptors = Vec::new();
                for part in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(numbers) = part {
                        // SAFETY: the kernel has just made these descriptors for this process.
                        descriptors.extend(numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                (message.bytes, descriptors)
            }
        };
        // A descriptor goes with the request that it came with; others are closed.
        if let Some(descriptor) = descriptors.into_iter().next() {
            self.beside = Some(descriptor);
        }
        if length == 0 {
            self.ended = true;
        }
        self.input.extend_from_slice(&buffer[..length]);
        Ok(())
    }

    /// Whether a whole request is there.
    pub fn has_request(&self) -> io::Result<bool> {
        let Some((header, rest)) = self.input.split_first_chunk::<{ wire::HEADER }>() else {
            return Ok(false);
        };
        let length = u32::from_le_bytes(*header) as usize;
        if length > MAX_REQUEST {
            return Err(io::Error::other(format!("a request of {length} bytes")));
        }
        Ok(rest.len() >= length)
    }

    /// The next request's payload, and what came beside it.
    pub fn take_request(&mut self) -> (Vec<u8>, Option<OwnedFd>) {
        let Some(header) = self.input.first_chunk::<{ wire::HEADER }>() else { return (Vec::new(), None) };
        let end = (wire::HEADER + u32::from_le_bytes(*header) as usize).min(self.input.len());
        let mut request: Vec<u8> = self.input.drain(..end).collect();
        request.drain(..wire::HEADER);
        (request, self.beside.take())
    }

    /// Whether all that it was sent has been taken over by the kernel.
    pub fn is_flushed(&self) -> bool {
        self.output.is_empty()
    }

    pub fn has_room(&self) -> bool {
        self.output.len() - self.sent < LONGEST_OUTPUT
    }

    pub fn queue(&mut self, frame: &[u8]) {
        self.output.extend_from_slice(frame);
    }

    /// Sends with a descriptor beside; only what is flushed can be sent so.
    pub fn send_beside(&mut self, frame: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let descriptors = [descriptor.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&descriptors)];
        let parts = [io::IoSlice::new(frame)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<()>(self.stream.as_raw_fd(), &parts, &control, flags, None)?;
        self.queue(&frame[sent..]);
        Ok(())
    }

    /// Sends what it will take.
    pub fn flush(&mut self) -> io::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while self.sent < self.output.len() {
            let parts = [io::IoSlice::new(&self.output[self.sent..])];
            match sendmsg::<()>(self.stream.as_raw_fd(), &parts, &[], flags, None) {
                Ok(length) => self.sent += length,
                Err(nix::Error::EAGAIN) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
