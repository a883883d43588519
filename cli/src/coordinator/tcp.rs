//! The coordinator's side of TCP: who connects is nobody before it has proved that it knows the token.
//!
//! Until then it is owed nothing: it has ten seconds, and there is room for so many at once, where who comes last takes
//! the place of who came first. Neither keeps the coordinator from its work, from commands that know the token, or from
//! ending when it is idle.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::spawn_local,
    time::{Instant, sleep, timeout},
};

use super::{
    computation::Computation,
    connection::{self, AbortOnDrop},
    log,
    serve::ACCEPT_PAUSE,
};
use crate::{
    failure::Failure,
    remote::{
        self,
        seal::{self, GREETING, Handshake, NONCE, Nonce, PROOF, Seals},
        token::Token,
    },
};

/// How long who connects may take to prove itself.
const PROOF_DEADLINE: Duration = Duration::from_secs(10);

/// How many may be about to prove themselves at once.
const STRANGERS: usize = 64;

/// Where to listen, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// `HOST:PORT`; port 0 is one that is free.
    pub at: String,
    pub token_file: PathBuf,
}

/// The listener of a coordinator, if it has one.
#[derive(Default)]
pub struct Network(RefCell<Option<Listening>>);

struct Listening {
    at: String,
    address: SocketAddr,
    listener: Rc<TcpListener>,
    _accepting: AbortOnDrop,
}

impl Network {
    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.borrow().as_ref().map(|listening| listening.address)
    }
}

/// Listens there from now on, and nowhere else; at the place where it does already, with the token that the file has now.
///
/// # Errors
/// [`Failure::Refused`] when the token is of no use, or nothing can listen there: then all is as it was.
pub async fn listen(computation: &Rc<Computation>, listen: &Listen) -> Result<(), Failure> {
    let token = Token::read(&listen.token_file)?;
    let here = computation
        .network
        .0
        .borrow()
        .as_ref()
        .filter(|here| here.at == listen.at)
        .map(|here| Rc::clone(&here.listener));
    let bound = match here {
        Some(listener) => Ok(listener),
        None => TcpListener::bind(&listen.at).await.map(Rc::new),
    };
    let bound = bound.and_then(|listener| Ok((listener.local_addr()?, listener)));
    let (address, listener) = bound.map_err(|error| {
        Failure::refused(
            format!("the coordinator at {}", computation.settings.address),
            format!("it cannot listen at tcp:{}: {error}", listen.at),
            "name an address of this host and a port that is free (0: any)",
        )
    })?;
    log::line(format_args!(
        "listens at tcp:{address} for who knows the token in {}",
        listen.token_file.display()
    ));
    let accepting = spawn_local(accept(Rc::clone(computation), Rc::clone(&listener), token));
    let accepting = AbortOnDrop(accepting.abort_handle());
    *computation.network.0.borrow_mut() =
        Some(Listening { at: listen.at.clone(), address, listener, _accepting: accepting });
    Ok(())
}

/// Lets in who knows the token.
async fn accept(computation: Rc<Computation>, listener: Rc<TcpListener>, token: Token) {
    let token = Rc::new(token);
    let complaints = Rc::new(Complaints::default());
    let mut strangers: VecDeque<AbortOnDrop> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                strangers.retain(|stranger| !stranger.0.is_finished());
                if strangers.len() == STRANGERS {
                    strangers.pop_front();
                }
                let admitting =
                    admit(Rc::clone(&computation), stream, peer, Rc::clone(&token), Rc::clone(&complaints));
                strangers.push_back(AbortOnDrop(spawn_local(admitting).abort_handle()));
            }
            Err(error) => {
                complaints.tell(format_args!("cannot accept a connection over TCP: {error}"));
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn admit(
    computation: Rc<Computation>,
    mut stream: TcpStream,
    peer: SocketAddr,
    token: Rc<Token>,
    complaints: Rc<Complaints>,
) {
    let proved = timeout(PROOF_DEADLINE, prove(&mut stream, &token)).await;
    match proved.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(seals) => {
            spawn_local(connection::serve_from_afar(computation, stream, seals));
        }
        Err(error) => complaints.tell(format_args!("{peer} was not let in: {error}")),
    }
}

/// Has the peer prove itself, and proves the coordinator to it.
async fn prove(stream: &mut TcpStream, token: &Token) -> io::Result<Seals> {
    stream.set_nodelay(true)?;
    remote::keep_alive(stream)?;
    let ours = seal::nonce()?;
    let mut greeting = Vec::from(GREETING);
    greeting.extend(ours);
    stream.write_all(&greeting).await?;
    let (mut theirs, mut proof): (Nonce, _) = ([0; NONCE], [0; PROOF]);
    stream.read_exact(&mut theirs).await?;
    stream.read_exact(&mut proof).await?;
    let handshake = Handshake::new(token, ours, theirs);
    if handshake.commands_proof() != proof {
        return Err(io::Error::other("it does not know the token"));
    }
    stream.write_all(handshake.coordinators_proof().as_bytes()).await?;
    Ok(handshake.for_the_coordinator())
}

/// What is told of those who were not let in: a line now and then, or who can connect could fill the disk with the log.
#[derive(Default)]
struct Complaints {
    last: Cell<Option<Instant>>,
    untold: Cell<u64>,
}

impl Complaints {
    fn tell(&self, message: std::fmt::Arguments<'_>) {
        const EVERY: Duration = Duration::from_secs(10);
        if self.last.get().is_some_and(|last| last.elapsed() < EVERY) {
            self.untold.set(self.untold.get() + 1);
            return;
        }
        self.last.set(Some(Instant::now()));
        match self.untold.take() {
            0 => log::line(message),
            untold => log::line(format_args!("{message} (and {untold} before)")),
        }
    }
}
