//! From processes that are being made to a computation that runs: `stasis restart` waits until all of them are there, and
//! ends all of them if one fails.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{Pid, getpgid},
};
use stasis_protocol::coordinator::{ClientReply, ClientRequest};

use super::{
    assembly,
    board::{Board, Stage},
    namespace::{Init, News},
    progress::Progress,
    report,
    spawn::{Request, Unspawned},
    tree::{Kind, Tree},
};
use crate::{
    client::Client,
    failure::Failure,
    process::{self, Pidfd},
};

/// A restarted process.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    /// The pid that it knows itself by, and its pid here.
    pub own: i32,
    pub here: Pid,
}

/// The restarted computation.
pub struct Child {
    /// The process that `stasis restart` stands in for, by its pid here.
    pub pid: Pid,
    /// The same, in a form that no other process can come to have.
    pub handle: Pidfd,
    /// Whose child it is: ours, or that of the first process of its pid namespace.
    pub init: Option<Init>,
    /// The process group of the computation's own that is to have the terminal.
    pub terminal: Option<Pid>,
    /// The process that is stood in for stood stopped, and stops again.
    pub stood_stopped: bool,
    /// All live processes, in the order of the checkpoint.
    pub processes: Vec<Process>,
}

/// How often it is looked whether a process was killed, while all goes as it should.
const LOOK: u16 = 1000;
/// How long it may take to make all processes, which move no data before they are there.
const PATIENCE: Duration = Duration::from_secs(30);

/// The processes in the making.
struct Watch<'a> {
    request: &'a Request<'a>,
    board: &'a Board,
    init: Option<Init>,
    /// In a namespace: their pids here, by their own.
    here: BTreeMap<i32, Pid>,
}

/// Waits until all threads of all processes are there.
///
/// # Errors
/// What was told. Nobody is left then.
pub fn await_all(
    request: &Request<'_>,
    report: File,
    init: Option<Init>,
    board: &Board,
) -> Result<Child, Unspawned> {
    let mut watch = Watch { request, board, init, here: BTreeMap::new() };
    match watch.until_told(report).and_then(|()| watch.child().map_err(Into::into)) {
        Ok(pid) => {
            let (root, processes) = pid;
            let terminal = terminal(request, &processes);
            // In a namespace init may have collected it already: what init then tells is its end, and signals are for nobody.
            let handle = Pidfd::open(root.as_raw() as u32)
                .or_else(|error| watch.init.as_ref().map_or(Err(error), |init| Pidfd::open(init.pid())));
            let handle = match handle.context("the program was killed") {
                Ok(handle) => handle,
                Err(error) => {
                    watch.end();
                    return Err(error.into());
                }
            };
            let stood_stopped = processes
                .iter()
                .zip(&request.computation.processes)
                .any(|(process, saved)| process.here == root && saved.image.settings.stopped);
            Ok(Child { pid: root, handle, init: watch.init, terminal, stood_stopped, processes })
        }
        Err(unspawned) => {
            watch.end();
            Err(unspawned)
        }
    }
}

impl Watch<'_> {
    /// Reads the report pipe to its end, which comes when all threads are there.
    fn until_told(&mut self, mut report: File) -> Result<(), Unspawned> {
        let begun = Instant::now();
        let mut told = Vec::new();
        let progress = Progress::new(self.request);
        let (mut looked, step) = (begun, progress.step().unwrap_or(LOOK));
        loop {
            let mut ready = vec![PollFd::new(report.as_fd(), PollFlags::POLLIN)];
            ready.extend(self.init.as_ref().map(|init| PollFd::new(init.channel(), PollFlags::POLLIN)));
            let count = match poll(&mut ready, PollTimeout::from(step)) {
                Err(Errno::EINTR) => continue,
                count => count?,
            };
            let has_come = |fd: Option<&PollFd<'_>>| fd.and_then(PollFd::any).unwrap_or(false);
            let (report_has, channel_has) = (has_come(ready.first()), has_come(ready.get(1)));
            drop(ready);
            if channel_has && let Err(error) = self.hear() {
                // A process that failed has said why before init could end.
                while report::read(&mut report, &mut told, self.request.computation)?.is_some() {}
                return Err(Unspawned::Ids(format!("{error:#}")));
            }
            if report_has && report::read(&mut report, &mut told, self.request.computation)?.is_none() {
                return Ok(self.hear()?);
            }
            if count > 0 {
                continue;
            }
            if self.board.is_past(Stage::Settled)
                && let Ok((_, processes)) = self.child()
            {
                progress.show(&processes);
            }
            if looked.elapsed() >= Duration::from_millis(LOOK.into()) {
                self.look(begun)?;
                looked = Instant::now();
            }
        }
    }

    /// Takes note of who says that it is there.
    fn hear(&mut self) -> anyhow::Result<()> {
        let Some(init) = &self.init else { return Ok(()) };
        loop {
            match init.news()? {
                News::Made(own, here) => drop(self.here.insert(own, here)),
                News::Other => {}
                News::None => return Ok(()),
            }
        }
    }

    /// Whether anybody was killed that the others wait for.
    fn look(&self, begun: Instant) -> anyhow::Result<()> {
        if !self.board.is_past(Stage::Settled) {
            if begun.elapsed() > PATIENCE {
                bail!("the processes could not be made within {PATIENCE:?}: were some of them killed?");
            }
            return Ok(());
        }
        let (_, processes) = self.child()?;
        match processes.iter().find(|process| has_ended(process.here)) {
            Some(process) => bail!("pid {}: it was killed while it was being restored", process.own),
            None => Ok(()),
        }
    }

    /// The pids here of the process that is stood in for, and of all.
    fn child(&self) -> anyhow::Result<(Pid, Vec<Process>)> {
        let mut processes = Vec::new();
        for saved in &self.request.computation.processes {
            let own = saved.image.ids.pid;
            let here = match &self.init {
                None => Pid::from_raw(own),
                Some(_) => *self
                    .here
                    .get(&own)
                    .ok_or_else(|| anyhow!("pid {own}: it was killed before it was restored"))?,
            };
            processes.push(Process { own, here });
        }
        let tree: &Tree = self.request.tree;
        let Kind::Process(root) = tree.nodes[tree.root].kind else { bail!("nothing was restarted") };
        Ok((processes[root].here, processes))
    }

    fn end(&self) {
        match &self.init {
            Some(init) => {
                self.board.give_up();
                init.end();
            }
            None => assembly::end_all(self.request.tree, self.board),
        }
    }
}

fn has_ended(pid: Pid) -> bool {
    matches!(process::state(pid.as_raw() as u32), None | Some('Z' | 'X'))
}

/// The group that had the terminal, where it is not that of `stasis restart`.
fn terminal(request: &Request<'_>, processes: &[Process]) -> Option<Pid> {
    getpgid(Some(processes.get(request.foreground?)?.here)).ok()
}

impl Child {
    /// Waits until the coordinator has heard from all processes, which then go on. One that is alone goes on without a
    /// coordinator, too.
    ///
    /// # Errors
    /// One was killed before. Nobody is left then.
    pub fn await_others(&self, request: &Request<'_>, mut client: Client) -> anyhow::Result<()> {
        let heard = self.try_await_others(&mut client);
        if self.processes.len() < 2 {
            return Ok(());
        }
        if heard.is_err() {
            match &self.init {
                Some(init) => init.end(),
                None => Board::new(0).map_or((), |board| assembly::end_all(request.tree, &board)),
            }
        }
        heard
    }

    fn try_await_others(&self, client: &mut Client) -> anyhow::Result<()> {
        let processes = u32::try_from(self.processes.len())?;
        client.send(&ClientRequest::AwaitProcesses { processes })?;
        loop {
            let mut ready = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::from(LOOK)) {
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
                Ok(0) => {
                    if let Some(process) = self.processes.iter().find(|process| has_ended(process.here)) {
                        bail!(Failure::refused(
                            format!("pid {}", process.own),
                            "it was killed before the computation could go on",
                            "restart again"
                        ));
                    }
                }
                Ok(_) => {
                    return match client.reply()? {
                        ClientReply::Done { .. } => Ok(()),
                        reply => Err(client.unexpected(&reply)),
                    };
                }
            }
        }
    }
}
