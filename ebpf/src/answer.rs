//! What is done for each request: who may ask for it, and the answer.

use std::{collections::HashMap, os::fd::OwnedFd};

use stasis_events::{Counter, Request as Registration, Task, User, flag};
use stasis_protocol::{
    coordinator::Refusal,
    tracer::{Limits, MAX_LABEL, Reply, Request, State, Task as Told},
};

use crate::{
    connections, pidfd,
    programs::Loaded,
    server::Settings,
    turns::Wish,
    values::{LabelKeyValue, LabelValue, RequestValue, UserValue, text},
};

/// Who asks.
pub struct Asker {
    pub uid: u32,
    pub pid: u32,
    /// It is still the process that connected.
    pub lives: bool,
}

pub enum Answer {
    Reply(Reply),
    /// [`Reply::Done`] with the userfaultfd device beside.
    Userfaultfd,
    /// [`Reply::Done`], and then events.
    Watch(Option<u64>),
    /// What [`crate::turns`] says.
    InTurns(Wish),
}

pub fn refused(what: impl Into<String>, reason: impl Into<String>, remedy: impl Into<String>) -> Reply {
    Reply::Refused(Refusal { what: what.into(), reason: reason.into(), remedy: remedy.into() })
}

pub fn answer(
    loaded: &mut Loaded,
    settings: &Settings,
    asker: &Asker,
    request: Request,
    beside: Option<OwnedFd>,
) -> Answer {
    Answer::Reply(match request {
        Request::Register { computation, label } => {
            register(loaded, settings, asker, computation, &label, beside).unwrap_or_else(|refusal| refusal)
        }
        Request::Tasks { computation } => tasks(loaded, asker, computation),
        Request::Watch { computation } => return Answer::Watch(computation),
        Request::Connections { computation } => connections(loaded, asker, computation),
        Request::Userfaultfd if settings.userfaultfd.is_none() => refused(
            "the userfaultfd device",
            "is not handed out by this tracer",
            "its administrator started it with --no-userfaultfd, or the kernel has none",
        ),
        Request::Userfaultfd => match member(loaded, asker) {
            Ok(_) => return Answer::Userfaultfd,
            Err(refusal) => refusal,
        },
        Request::NextPid { pid } => match may_have_ids(loaded, asker) {
            Ok(()) => return Answer::InTurns(Wish::NextPid(pid)),
            Err(refusal) => refusal,
        },
        Request::GoOn { after } => match may_have_ids(loaded, asker) {
            Ok(()) => return Answer::InTurns(Wish::GoOn(after)),
            Err(refusal) => refusal,
        },
        Request::State => Reply::State(state(loaded)),
    })
}

fn state(loaded: &Loaded) -> State {
    State {
        version: env!("CARGO_PKG_VERSION").into(),
        features: loaded.features.clone(),
        missing: loaded.missing.clone(),
        dropped: loaded.counter(Counter::Dropped),
        untracked: loaded.counter(Counter::Untracked),
        found: loaded.counter(Counter::Found),
    }
}

fn register(
    loaded: &mut Loaded,
    settings: &Settings,
    asker: &Asker,
    computation: u64,
    label: &str,
    beside: Option<OwnedFd>,
) -> Result<Reply, Reply> {
    let pidfd = beside.ok_or_else(|| {
        refused("the registration", "came without a process", "send its pidfd with it (SCM_RIGHTS)")
    })?;
    if computation == 0 || label.len() > MAX_LABEL {
        return Err(refused(
            "the registration",
            "has no computation, or too long a label",
            "register another",
        ));
    }
    let subject = pidfd::subject(&pidfd)
        .map_err(|error| refused("the process", format!("{error}"), "register one that runs"))?;
    let what = format!("pid {}", subject.pid);
    // All four: a program of another user that acts for this one for a moment is not this one's.
    if asker.uid != 0 && subject.users != [asker.uid; 4] {
        return Err(refused(
            what,
            format!("is not uid {}'s (its users are {:?})", asker.uid, subject.users),
            "register processes of your own",
        ));
    }
    let user = UserValue(User { tasks: 0, limit: settings.limit, refused: 0 });
    // One that is there keeps its count (BPF_NOEXIST).
    let _ = loaded.users.insert(asker.uid, user, 1);
    let registration =
        Registration { computation, start_ticks: subject.start_ticks, owner: asker.uid, uid: asker.uid };
    let failed = |error: &dyn std::fmt::Display| {
        refused(what.clone(), format!("cannot be registered: {error}"), "see the tracer's log")
    };
    loaded.requests.insert(subject.pid, RequestValue(registration), 0).map_err(|error| failed(&error))?;
    let tasks = loaded.all_tasks();
    let _ = loaded.requests.remove(&subject.pid);
    let tasks = tasks.map_err(|error| failed(&error))?;
    match tasks.iter().find(|task| task.tgid == subject.pid) {
        Some(task) if task.owner == asker.uid && task.computation == computation => {
            put_label(loaded, computation, asker.uid, label);
            Ok(Reply::Done)
        }
        Some(task) if task.owner != asker.uid => Err(refused(
            what,
            "is part of another user's computation",
            "what a computation makes stays in it",
        )),
        _ => {
            let user = loaded.users.get(&asker.uid, 0).map(|user| user.0).unwrap_or_default();
            if user.tasks >= user.limit {
                let reason =
                    format!("{} of {} processes are tracked for uid {}", user.tasks, user.limit, asker.uid);
                return Err(refused(
                    what,
                    reason,
                    "end some, or start the tracer with a higher --user-tasks",
                ));
            }
            Err(refused(what, "has ended, or executed as another user, meanwhile", "register one that runs"))
        }
    }
}

fn key(computation: u64, owner: u32) -> LabelKeyValue {
    LabelKeyValue(stasis_events::LabelKey { computation, owner, unused: 0 })
}

fn put_label(loaded: &mut Loaded, computation: u64, owner: u32, label: &str) {
    let mut value = [0; MAX_LABEL + 1];
    value[..label.len()].copy_from_slice(label.as_bytes());
    // A label that finds no room costs people a name and nothing else.
    let _ = loaded.labels.insert(key(computation, owner), LabelValue(value), 0);
}

fn tasks(loaded: &Loaded, asker: &Asker, computation: Option<u64>) -> Reply {
    let all = match loaded.all_tasks() {
        Ok(all) => all,
        Err(error) => return refused("the list of tasks", error.to_string(), "see the tracer's log"),
    };
    let mut labels = HashMap::new();
    let tasks = all
        .iter()
        .filter(|task| asker.uid == 0 || task.owner == asker.uid)
        .filter(|task| computation.is_none_or(|wanted| wanted == task.computation))
        .map(|task| {
            let label = labels.entry((task.computation, task.owner)).or_insert_with(|| {
                let value = loaded.labels.get(&key(task.computation, task.owner), 0);
                value.map(|value| text(&value.0)).unwrap_or_default()
            });
            told(task, label)
        })
        .collect();
    let user = loaded.users.get(&asker.uid, 0).map(|user| user.0).unwrap_or_default();
    let limits = Limits { tasks: user.tasks, limit: user.limit, refused: user.refused };
    Reply::Tasks { tasks, limits }
}

fn told(task: &Task, label: &str) -> Told {
    let has = |bit| task.flags & bit != 0;
    Told {
        computation: task.computation,
        label: label.into(),
        owner: task.owner,
        pid: task.tgid,
        ns_pid: task.ns_pid,
        creator: task.creator,
        uid: task.uid,
        start_ns: task.start_ns,
        command: text(&task.comm),
        registered: has(flag::REGISTERED),
        found: has(flag::FOUND),
        executed: has(flag::EXECUTED),
        secure: has(flag::SECURE),
    }
}

fn connections(loaded: &Loaded, asker: &Asker, computation: u64) -> Reply {
    let sockets = match loaded.all_sockets() {
        Ok(sockets) => sockets,
        Err(error) => {
            return refused(
                "the connections",
                format!("this kernel does not tell them: {error}"),
                "see `stasis doctor`",
            );
        }
    };
    // Root may ask for anybody's: then for whoever has a computation of this number.
    let mut owners: Vec<u32> = sockets
        .iter()
        .filter(|socket| socket.computation == computation)
        .map(|socket| socket.owner)
        .collect();
    owners.sort_unstable();
    owners.dedup();
    owners.retain(|&owner| asker.uid == 0 || owner == asker.uid);
    let classify = |owner| connections::classify(&sockets, computation, owner, asker.uid);
    Reply::Connections(owners.into_iter().flat_map(classify).collect())
}

/// The asker's own process, which must be tracked as its user's.
fn member(loaded: &Loaded, asker: &Asker) -> Result<Task, Reply> {
    let what = || format!("pid {}", asker.pid);
    let task = loaded.tasks.get(&asker.pid, 0).ok().map(|task| task.0);
    match task.filter(|_| asker.lives) {
        Some(task) if task.owner == asker.uid => Ok(task),
        Some(_) => Err(refused(what(), "is part of another user's computation", "ask as its own user")),
        None => Err(refused(what(), "is not registered", "register it first")),
    }
}

/// Whether the asker may have ids given to what it makes.
fn may_have_ids(loaded: &Loaded, asker: &Asker) -> Result<(), Reply> {
    let task = member(loaded, asker)?;
    if task.ns_pid != task.tgid {
        return Err(refused(
            format!("pid {}", asker.pid),
            "is in another pid namespace, and asks for ids of this one",
            "let it choose ids there",
        ));
    }
    Ok(())
}
