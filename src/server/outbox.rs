//! What a session sends: a bounded queue of messages. They are boxed in it, because tokio's channel
//! makes room for 32 of them at once, and each of thousands of idle sessions would hold 8 KiB.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::Status;

use crate::{limits, wire::proto::ServerMessage};

type Sent = Result<ServerMessage, Status>;

/// The session's end. Clones send to the same client.
#[derive(Debug, Clone)]
pub struct Outbox(mpsc::Sender<Box<Sent>>);

/// Room for one message.
#[derive(Debug)]
pub struct Slot(mpsc::OwnedPermit<Box<Sent>>);

/// The stream's end: what the client is sent.
#[derive(Debug)]
pub struct Outgoing(mpsc::Receiver<Box<Sent>>);

/// Why a message was not taken.
#[derive(Debug)]
pub enum NotSent {
    /// `limits::OUTBOX_MAX` messages wait already.
    Full,
    /// The stream has ended.
    Closed,
}

/// Returns both ends of a queue.
pub fn channel() -> (Outbox, Outgoing) {
    let (sender, receiver) = mpsc::channel(limits::OUTBOX_MAX);
    (Outbox(sender), Outgoing(receiver))
}

impl Outbox {
    /// Waits for room.
    pub async fn send(&self, message: Sent) -> Result<(), NotSent> {
        self.0.send(Box::new(message)).await.map_err(|_| NotSent::Closed)
    }

    pub fn try_send(&self, message: Sent) -> Result<(), NotSent> {
        self.0.try_send(Box::new(message)).map_err(|err| NotSent::of(&err))
    }

    /// Takes room for one message, which is sure to be sent then.
    pub fn try_reserve(&self) -> Result<Slot, NotSent> {
        self.0.clone().try_reserve_owned().map(Slot).map_err(|err| NotSent::of(&err))
    }
}

impl Slot {
    pub fn send(self, message: Sent) {
        self.0.send(Box::new(message));
    }
}

impl NotSent {
    fn of<T>(err: &mpsc::error::TrySendError<T>) -> Self {
        match err {
            mpsc::error::TrySendError::Full(_) => Self::Full,
            mpsc::error::TrySendError::Closed(_) => Self::Closed,
        }
    }
}

impl Stream for Outgoing {
    type Item = Sent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Sent>> {
        self.0.poll_recv(cx).map(|message| message.map(|message| *message))
    }
}
