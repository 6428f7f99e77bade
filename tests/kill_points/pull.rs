//! The operator: asks for the files of the plan, one after the other, and follows each to its end.

use std::{
    fmt,
    process::ExitStatus,
    time::{Duration, SystemTime},
};

use fts::wire::proto::{self, control_client::ControlClient};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Status, Streaming, transport::Channel};

use crate::{
    common::{
        process::Process,
        raw::register,
        server::{PATIENCE, is_final},
    },
    stage::{Asked, CLIENT, Stage},
};

/// How a pull goes about what does not work.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For one file.
    pub wait: Duration,
    /// A transfer that is to be tried again later than this is left.
    pub pause: Duration,
}

impl Patience {
    /// While a fault may come: what the programs mend at once, they may.
    pub const SHORT: Self =
        Self { wait: Duration::from_secs(8), pause: Duration::from_millis(2500) };
    /// When nothing more goes wrong.
    pub const LONG: Self = Self { wait: Duration::from_secs(40), pause: Duration::from_secs(40) };
}

/// Why a pull did not come to its end.
#[derive(Debug)]
pub enum Stop {
    /// The program ended by itself.
    Ended(ExitStatus),
    /// A transfer says that it is tried again, but later; or it has failed.
    Waits(String),
    /// Nothing moved for as long as one may wait, and nothing said why.
    Stays(String),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(status) => write!(f, "it ended: {status}"),
            Self::Waits(standing) => write!(f, "it waits: {standing}"),
            Self::Stays(standing) => write!(f, "it stays: {standing}"),
        }
    }
}

/// Pulls every file to COMPLETE, or returns why not. `mortal` may end meanwhile.
pub async fn pull(stage: &Stage, mortal: &mut Process, patience: Patience) -> Result<(), Stop> {
    let mut waits = Ok(());
    for asked in &stage.plan {
        let id = trigger(stage, asked, mortal, patience).await?;
        let before = stage.ids.borrow_mut().insert(asked.name, id.clone());
        if before.is_some_and(|before| before != id) {
            return Err(Stop::Stays(format!("{} has become two transfers", asked.name)));
        }
        match follow(stage, &id, mortal, patience).await {
            // The others need not wait for it.
            Err(stop @ Stop::Waits(_)) => waits = waits.and(Err(stop)),
            done => done?,
        }
    }
    waits
}

/// Asks for files in the name of a client that has been there, and has gone.
pub async fn queue(stage: &Stage, names: &[&'static str]) {
    let mut control = control(stage).await.expect("connected");
    register(channel(stage).await.expect("connected"), CLIENT).await;
    let until = Instant::now() + PATIENCE;
    loop {
        let request = proto::GetClientRequest { client_id: CLIENT.to_owned() };
        let answer = control.get_client(request).await.expect("known").into_inner();
        if answer.client.expect("a client").presence() == proto::Presence::Offline {
            break;
        }
        assert!(Instant::now() < until, "the client has not gone");
        sleep(LOOK).await;
    }
    for asked in stage.plan.iter().filter(|asked| names.contains(&asked.name)) {
        let answer = control.trigger_download(request(stage, asked)).await.expect("triggered");
        let id = answer.into_inner().transfer.expect("a transfer").id;
        stage.ids.borrow_mut().insert(asked.name, id);
    }
}

/// Waits until half of a file that was asked for has come.
pub async fn follow_half(
    stage: &Stage,
    asked: &Asked,
    mortal: &mut Process,
    patience: Patience,
) -> Result<(), Stop> {
    let id = stage.ids.borrow()[asked.name].clone();
    let until = Instant::now() + patience.wait;
    loop {
        let why = match watched(mortal, until, transfer(stage, &id)).await? {
            Ok(transfer) if transfer.bytes_done >= asked.data.len() as u64 / 2 => return Ok(()),
            Ok(transfer)
                if is_final(transfer.state()) || waits_longer(&transfer, patience.pause) =>
            {
                return Err(Stop::Waits(standing(&transfer)));
            }
            Ok(transfer) => Status::unavailable(standing(&transfer)),
            Err(status) => status,
        };
        again(mortal, until, &why).await?;
    }
}

/// Waits until the server has noted that an attempt broke, and what it keeps.
pub async fn follow_break(stage: &Stage, name: &str) {
    let is_broken = |transfer: &proto::Transfer| {
        transfer.state() == proto::State::Interrupted && transfer.bytes_kept > 0
    };
    shown(stage, name, is_broken).await;
}

async fn shown(stage: &Stage, name: &str, wanted: impl Fn(&proto::Transfer) -> bool) {
    let id = stage.ids.borrow()[name].clone();
    let until = Instant::now() + PATIENCE;
    loop {
        let transfer = transfer(stage, &id).await.expect("known");
        if wanted(&transfer) {
            return;
        }
        assert!(Instant::now() < until && !is_final(transfer.state()), "{transfer:?}");
        sleep(LOOK).await;
    }
}

fn request(stage: &Stage, asked: &Asked) -> proto::TriggerDownloadRequest {
    proto::TriggerDownloadRequest {
        client_id: CLIENT.to_owned(),
        path: stage.source(asked),
        request_id: asked.name.to_owned(),
        ..Default::default()
    }
}

/// Asks for a file until there is an answer.
async fn trigger(
    stage: &Stage,
    asked: &Asked,
    mortal: &mut Process,
    patience: Patience,
) -> Result<String, Stop> {
    let until = Instant::now() + patience.wait;
    loop {
        let ask = async { control(stage).await?.trigger_download(request(stage, asked)).await };
        let why = match watched(mortal, until, ask).await? {
            Ok(answer) => return Ok(answer.into_inner().transfer.expect("a transfer").id),
            Err(status) => status,
        };
        again(mortal, until, &why).await?;
    }
}

/// Follows a transfer to COMPLETE.
async fn follow(
    stage: &Stage,
    id: &str,
    mortal: &mut Process,
    patience: Patience,
) -> Result<(), Stop> {
    let until = Instant::now() + patience.wait;
    loop {
        let request =
            proto::WatchTransfersRequest { transfer_id: id.to_owned(), ..Default::default() };
        let ask = async { control(stage).await?.watch_transfers(request).await };
        let why = match watched(mortal, until, ask).await? {
            Ok(events) => {
                let watch = watch(events.into_inner(), patience);
                match watched(mortal, until, watch).await? {
                    Ok(transfer) if transfer.state() == proto::State::Complete => return Ok(()),
                    Ok(transfer) => return Err(Stop::Waits(standing(&transfer))),
                    Err(status) => status,
                }
            }
            Err(status) => status,
        };
        if Instant::now() >= until {
            let ask = timeout(Duration::from_secs(2), transfer(stage, id)).await;
            if let Ok(Ok(transfer)) = ask {
                if transfer.waiting.is_some() {
                    return Err(Stop::Waits(standing(&transfer)));
                }
                return Err(Stop::Stays(standing(&transfer)));
            }
        }
        again(mortal, until, &why).await?;
    }
}

async fn transfer(stage: &Stage, id: &str) -> Result<proto::Transfer, Status> {
    let request = proto::GetTransferRequest { transfer_id: id.to_owned() };
    let answer = control(stage).await?.get_transfer(request).await?.into_inner();
    Ok(answer.transfer.expect("a transfer"))
}

/// Reads events until there is no more to wait for.
async fn watch(
    mut events: Streaming<proto::WatchTransfersResponse>,
    patience: Patience,
) -> Result<proto::Transfer, Status> {
    let mut last = None;
    while let Some(event) = events.message().await? {
        let transfer = event.transfer.expect("a transfer");
        if is_final(transfer.state()) || waits_longer(&transfer, patience.pause) {
            return Ok(transfer);
        }
        last = Some(transfer);
    }
    last.ok_or_else(|| Status::unavailable("a watch without events"))
}

fn waits_longer(transfer: &proto::Transfer, pause: Duration) -> bool {
    let next = transfer.waiting.as_ref().and_then(|waiting| waiting.next_attempt_time);
    let next = next.and_then(|next| SystemTime::try_from(next).ok());
    next.is_some_and(|next| next > SystemTime::now() + pause)
}

fn standing(transfer: &proto::Transfer) -> String {
    let reason = transfer.waiting.as_ref().map(|waiting| waiting.reason().as_str_name());
    let failure = transfer.failure.as_ref();
    let failure = failure.map(|failure| (failure.reason().as_str_name(), &failure.detail));
    let name = &transfer.request_id;
    format!("{name} {} {reason:?} {failure:?}", transfer.state().as_str_name())
}

async fn control(stage: &Stage) -> Result<ControlClient<Channel>, Status> {
    channel(stage).await.map(ControlClient::new)
}

async fn channel(stage: &Stage) -> Result<Channel, Status> {
    let endpoint = tonic::transport::Endpoint::from_shared(stage.url()).expect("an address");
    endpoint.connect().await.map_err(|err| Status::unavailable(err.to_string()))
}

/// Waits for an answer, for as long as the program lives and the time is not up.
async fn watched<T>(
    mortal: &mut Process,
    until: Instant,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<Result<T, Status>, Stop> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            () = sleep(LOOK) => {}
        }
        if let Some(status) = mortal.ended() {
            return Err(Stop::Ended(status));
        }
        if Instant::now() >= until {
            return Ok(Err(Status::deadline_exceeded("no answer in time")));
        }
    }
}

/// Waits a little, unless there is no point in asking again.
async fn again(mortal: &mut Process, until: Instant, why: &Status) -> Result<(), Stop> {
    sleep(LOOK).await;
    if let Some(status) = mortal.ended() {
        return Err(Stop::Ended(status));
    }
    if Instant::now() >= until {
        return Err(Stop::Stays(format!("no answer: {why}")));
    }
    Ok(())
}

/// Between two looks at a process, of which no event tells.
const LOOK: Duration = Duration::from_millis(10);
