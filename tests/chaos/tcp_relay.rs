//! A relay of bytes between one client and what it thinks is its server: connections through it can
//! be reset, closed, held up, and slowed down. It understands nothing of what it carries.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fts::shutdown::Shutdown;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{broadcast, watch},
    time::sleep,
};

use crate::plan::{LinkFault, Which};

/// Where a server is reached; it is another one after each start.
#[derive(Debug, Clone)]
pub struct Target(Arc<Mutex<SocketAddr>>);

impl Target {
    pub fn new(address: SocketAddr) -> Self {
        Self(Arc::new(Mutex::new(address)))
    }

    pub fn get(&self) -> SocketAddr {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, address: SocketAddr) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weather {
    Clear,
    Refusing,
    Dark { up: bool, down: bool },
    Slow(Duration),
}

#[derive(Debug, Clone, Copy)]
enum Cut {
    Reset(Which),
    Close(Which),
}

#[derive(Clone)]
pub struct TcpRelay {
    pub address: SocketAddr,
    target: Target,
    weather: watch::Sender<Weather>,
    cuts: broadcast::Sender<Cut>,
    /// One fault at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl TcpRelay {
    pub async fn start(target: Target, tasks: &Shutdown) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let relay = Self {
            address: listener.local_addr()?,
            target,
            weather: watch::channel(Weather::Clear).0,
            cuts: broadcast::channel(64).0,
            turn: Arc::default(),
        };
        drop(tasks.spawn(relay.clone().serve(listener, tasks.clone())));
        Ok(relay)
    }

    /// Does it, and returns when it is over.
    pub async fn suffer(&self, fault: LinkFault) {
        let _turn = self.turn.lock().await;
        match fault {
            LinkFault::Reset(which) => self.cut(Cut::Reset(which)),
            LinkFault::Close(which) => self.cut(Cut::Close(which)),
            LinkFault::Refuse(lasts) => {
                self.cut(Cut::Reset(Which::All));
                self.have(Weather::Refusing, lasts).await;
            }
            LinkFault::Dark { lasts, up, down, then_reset } => {
                self.have(Weather::Dark { up, down }, lasts).await;
                if then_reset {
                    self.cut(Cut::Reset(Which::All));
                }
            }
            LinkFault::Slow { lasts, by } => self.have(Weather::Slow(by), lasts).await,
        }
    }

    async fn have(&self, weather: Weather, lasts: Duration) {
        self.weather.send_replace(weather);
        sleep(lasts).await;
        self.weather.send_replace(Weather::Clear);
    }

    fn cut(&self, cut: Cut) {
        // Without a connection there is nothing to cut.
        drop(self.cuts.send(cut));
    }

    async fn serve(self, listener: TcpListener, tasks: Shutdown) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = tasks.draining().cancelled() => return,
            };
            let Ok((client, _)) = accepted else { continue };
            let (relay, over) = (self.clone(), tasks.draining().clone());
            drop(tasks.spawn(async move {
                tokio::select! {
                    () = relay.carry(client) => {}
                    () = over.cancelled() => {}
                }
            }));
        }
    }

    /// Carries one connection to its end.
    async fn carry(&self, mut client: TcpStream) {
        let mut cuts = self.cuts.subscribe();
        let server = if *self.weather.borrow() == Weather::Refusing {
            Err(io::ErrorKind::ConnectionRefused.into())
        } else {
            TcpStream::connect(self.target.get()).await
        };
        let Ok(mut server) = server else { return abort(&client) };
        drop(client.set_nodelay(true));
        drop(server.set_nodelay(true));
        let carried = AtomicU64::new(0);
        let ended = {
            let (from_client, to_client) = client.split();
            let (from_server, to_server) = server.split();
            let up = self.pipe(from_client, to_server, Direction::Up, &carried);
            let down = self.pipe(from_server, to_client, Direction::Down, &carried);
            tokio::select! {
                ended = async { tokio::try_join!(up, down) } => ended.map(|_| ()),
                ended = next_cut(&mut cuts, &carried) => ended,
            }
        };
        if ended.is_err() {
            abort(&client);
            abort(&server);
        }
    }

    async fn pipe(
        &self,
        mut from: ReadHalf<'_>,
        mut to: WriteHalf<'_>,
        direction: Direction,
        carried: &AtomicU64,
    ) -> io::Result<()> {
        let mut weather = self.weather.subscribe();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let len = from.read(&mut buffer).await?;
            let is_open = |weather: &Weather| match weather {
                Weather::Dark { up, down } => !direction.is(*up, *down),
                _ => true,
            };
            let now = weather.wait_for(is_open).await.map(|now| *now);
            if let Ok(Weather::Slow(by)) = now {
                sleep(by).await;
            }
            if len == 0 {
                return to.shutdown().await;
            }
            to.write_all(&buffer[..len]).await?;
            if direction == Direction::Up {
                carried.fetch_add(len as u64, Ordering::Relaxed);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

impl Direction {
    fn is(self, up: bool, down: bool) -> bool {
        match self {
            Self::Up => up,
            Self::Down => down,
        }
    }
}

/// Waits until this connection is cut; an error means a reset.
async fn next_cut(cuts: &mut broadcast::Receiver<Cut>, carried: &AtomicU64) -> io::Result<()> {
    loop {
        let Ok(cut) = cuts.recv().await else { return Ok(()) };
        let (which, ended) = match cut {
            Cut::Reset(which) => (which, Err(io::ErrorKind::ConnectionReset.into())),
            Cut::Close(which) => (which, Ok(())),
        };
        if which == Which::All || carried.load(Ordering::Relaxed) > COMMANDS_BYTES_MAX {
            return ended;
        }
    }
}

/// What a connection that carries no file would hardly reach.
const COMMANDS_BYTES_MAX: u64 = 48 << 10;

/// Makes the end of a connection a reset.
fn abort(stream: &TcpStream) {
    // It may have ended already.
    drop(stream.set_zero_linger());
}
