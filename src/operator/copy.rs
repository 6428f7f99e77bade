//! `fts cp` and `fts get`: bring the verified bytes of a COMPLETE transfer to this machine, and
//! verify them again.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::{task::spawn_blocking, time::Instant};
use tonic::Streaming;

use super::{
    Context,
    config::{AskArgs, CopyArgs, Source},
    connection::{Connection, Heard, Patience},
    error::Error,
    local_file::{Partial, Target},
    output::{Form, clean},
    progress::Reporter,
    pull,
    view::EventView,
    watch::{self, Followed},
    words,
};
use crate::{
    chunk::crc32c,
    ids::{Digest, RemotePath, TransferId},
    limits,
    status::Reason,
    wire::proto::{ReadFileRequest, ReadFileResponse, State, Transfer},
};

/// `fts cp`
pub(super) async fn cp(
    context: &Context,
    source: &Source,
    local: PathBuf,
    ask: &AskArgs,
    copy: CopyArgs,
) -> Result<(), Error> {
    let name = source.path.as_ref().and_then(|path| path.components().last()).map(str::to_owned);
    let destination = Destination::plan(context, local, name, copy).await?;
    let until = context.until();
    let path: Option<&RemotePath> = source.path.as_ref();
    let asked = pull::trigger(context, &source.client, path, ask).await?;
    let mut reporter = Reporter::new(context);
    match watch::follow(context, asked, until, &mut reporter).await? {
        Followed::Ended(transfer) => {
            if transfer.state() != State::Complete {
                return pull::conclude(context, &transfer).await;
            }
            fetch(context, &transfer, destination, &mut reporter).await
        }
        Followed::StillWaiting(transfer) => match destination {
            // What is on standard output is the file.
            Destination::Stdout => Err(pull::is_waiting(&transfer)),
            Destination::File(_) => pull::still_waiting(context, &transfer).await,
        },
    }
}

/// `fts get`
pub(super) async fn get(
    context: &Context,
    id: TransferId,
    local: PathBuf,
    copy: CopyArgs,
) -> Result<(), Error> {
    let destination = Destination::plan(context, local, None, copy).await?;
    let transfer = context.unless_stopped(context.connection.transfer(&id.to_string())).await?;
    if transfer.state() != State::Complete {
        let standing = words::standing(&transfer, None);
        return Err(Error::Failed(format!("transfer {id} has no bytes to copy: {standing}")));
    }
    let mut reporter = Reporter::new(context);
    fetch(context, &transfer, destination, &mut reporter).await
}

/// Where the bytes go.
enum Destination {
    Stdout,
    File(Target),
}

impl Destination {
    async fn plan(
        context: &Context,
        local: PathBuf,
        name: Option<String>,
        copy: CopyArgs,
    ) -> Result<Self, Error> {
        if local == Path::new("-") {
            return match context.output.form {
                Form::Text => Ok(Self::Stdout),
                Form::Json => {
                    let text = "standard output takes the file or JSON, not both";
                    Err(Error::Usage(text.to_owned()))
                }
            };
        }
        let plan = move || Target::plan(&local, name.as_deref(), copy.force);
        blocking(plan).await?.map(Self::File)
    }
}

/// Copies the bytes of a COMPLETE transfer, and tells where they are.
async fn fetch(
    context: &Context,
    transfer: &Transfer,
    destination: Destination,
    reporter: &mut Reporter<'_>,
) -> Result<(), Error> {
    let id = clean(&transfer.id);
    let copied = copy(context, transfer, destination, reporter).await;
    reporter.clear();
    let saved = copied.map_err(|err| match err {
        Error::OutputClosed => err,
        _ if matches!(err.reason(), Some(Reason::ContentLost | Reason::NoContent)) => err,
        _ => err.and(&format!("the bytes stay on the server: `fts get {id} FILE` copies them")),
    })?;
    match (saved, context.output.form) {
        (None, _) => Ok(()),
        (Some(path), Form::Json) => {
            let saved_to = Some(path.to_string_lossy().into_owned());
            let ended = EventView { saved_to, ..EventView::new("ended", transfer) };
            context.output.json(&ended).await
        }
        (Some(path), Form::Text) => {
            let mut summary = words::summary(transfer);
            summary.push(("saved to", path.display().to_string()));
            for line in words::aligned(&summary) {
                context.output.line(&line).await?;
            }
            Ok(())
        }
    }
}

/// Returns the path of the file that was written, if it is a file.
async fn copy(
    context: &Context,
    transfer: &Transfer,
    destination: Destination,
    reporter: &mut Reporter<'_>,
) -> Result<Option<PathBuf>, Error> {
    let mut remote = Content::of(context, transfer)?;
    let mut received = Received::begin(destination).await?;
    let start = Instant::now();
    while received.offset < remote.size {
        let heard = tokio::select! {
            biased;
            () = context.stop.cancelled() => {
                return Err(Error::Interrupted("interrupted; nothing was kept".to_owned()));
            }
            heard = remote.next(received.offset) => heard?,
        };
        let piece = match heard {
            Heard::Got(piece) => piece,
            Heard::Lost(why) => {
                reporter.lost(&why).await;
                continue;
            }
        };
        let data = piece.data.clone();
        let (now, is_good) = received.take(piece).await?;
        received = now;
        if !is_good {
            let why = remote.broke("bytes without their CRC-32C came")?;
            reporter.lost(&why).await;
            continue;
        }
        remote.patience.succeeded();
        if received.file.is_none() {
            tokio::select! {
                biased;
                () = context.stop.cancelled() => {
                    return Err(Error::Interrupted("interrupted".to_owned()));
                }
                written = context.output.bytes(data) => written?,
            }
        }
        reporter.copied(received.offset, remote.size, rate(received.offset, start)).await;
    }
    received.end(remote.digest).await
}

/// The bytes of a transfer, over however many calls it takes.
struct Content {
    connection: Connection,
    id: String,
    size: u64,
    digest: Digest,
    stream: Option<Streaming<ReadFileResponse>>,
    is_first: bool,
    patience: Patience,
}

impl Content {
    fn of(context: &Context, transfer: &Transfer) -> Result<Self, Error> {
        let size = transfer.size.ok_or_else(|| Error::strange("COMPLETE without a size"))?;
        let digest = transfer.digest.parse();
        Ok(Self {
            connection: context.connection.clone(),
            id: transfer.id.clone(),
            size,
            digest: digest.map_err(|_| Error::strange("COMPLETE without a BLAKE3"))?,
            stream: None,
            is_first: true,
            patience: Patience::new(&context.timing, context.timing.gone_wait).reached(),
        })
    }

    /// Returns the bytes at `offset`, not verified yet. Dropped while it waits, it loses none.
    async fn next(&mut self, offset: u64) -> Result<Heard<ReadFileResponse>, Error> {
        let Some(stream) = &mut self.stream else {
            self.patience.pause().await;
            let request = ReadFileRequest { transfer_id: self.id.clone(), offset, length: 0 };
            return match self.connection.read(request).await {
                Ok(stream) => {
                    self.stream = Some(stream);
                    self.is_first = true;
                    Box::pin(self.next(offset)).await
                }
                Err(err) => self.patience.failed(err).map(Heard::Lost),
            };
        };
        match tokio::time::timeout(limits::OPERATOR_READ_STALL, stream.message()).await {
            Ok(Ok(Some(piece))) => {
                self.check(&piece, offset)?;
                Ok(Heard::Got(piece))
            }
            Ok(Ok(None)) => self.broke("it ended before the last byte").map(Heard::Lost),
            Ok(Err(status)) => {
                self.stream = None;
                self.patience.failed(self.connection.error(&status)).map(Heard::Lost)
            }
            Err(_) => self.broke("the bytes do not come").map(Heard::Lost),
        }
    }

    /// Asks again, unless it was asked often enough.
    fn broke(&mut self, why: &str) -> Result<String, Error> {
        self.stream = None;
        self.patience.failed(self.connection.lost(why))
    }

    /// The next bytes, of the file that was asked for: the server has no reason to send anything
    /// else.
    fn check(&mut self, piece: &ReadFileResponse, offset: u64) -> Result<(), Error> {
        if self.is_first && (piece.size != self.size || piece.digest != self.digest.to_string()) {
            return Err(Error::strange("these bytes are of another file"));
        }
        self.is_first = false;
        let bytes = piece.data.len() as u64;
        if piece.offset != offset
            || !(1..=limits::CHUNK_BYTES).contains(&piece.data.len())
            || bytes > self.size - offset
        {
            return Err(Error::strange("these are not the next bytes"));
        }
        Ok(())
    }
}

/// What has arrived, and is good as far as one can tell before the end.
struct Received {
    offset: u64,
    hasher: Box<blake3::Hasher>,
    /// None: standard output.
    file: Option<Partial>,
}

impl Received {
    async fn begin(destination: Destination) -> Result<Self, Error> {
        let file = match destination {
            Destination::Stdout => None,
            Destination::File(target) => Some(blocking(move || target.create()).await??),
        };
        Ok(Self { offset: 0, hasher: Box::default(), file })
    }

    /// Takes bytes that have their CRC-32C; others change nothing. Returns itself, and whether they
    /// had.
    async fn take(mut self, piece: ReadFileResponse) -> Result<(Self, bool), Error> {
        blocking(move || {
            let data: Bytes = piece.data;
            if crc32c(&data) != piece.crc32c {
                return Ok((self, false));
            }
            self.hasher.update(&data);
            if let Some(file) = &mut self.file {
                file.write(&data)?;
            }
            self.offset += data.len() as u64;
            Ok((self, true))
        })
        .await?
    }

    /// Publishes the file if it has the right root.
    async fn end(self, expected: Digest) -> Result<Option<PathBuf>, Error> {
        blocking(move || {
            let root = Digest::from(self.hasher.finalize());
            if root == expected {
                return self.file.map(Partial::publish).transpose();
            }
            let fate = match self.file {
                Some(_) => "nothing was kept",
                None => "what was written to standard output is not the file",
            };
            Err(Error::Failed(format!(
                "the bytes have BLAKE3 {root}, not {expected} as the transfer: {fate}"
            )))
        })
        .await?
    }
}

/// Runs what touches disks or computes for long where that holds nobody up.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|err| Error::Failed(format!("a task of ours died: {err}")))
}

/// Returns bytes per second.
fn rate(bytes: u64, since: Instant) -> u64 {
    let ms = since.elapsed().as_millis().max(1);
    u64::try_from(u128::from(bytes) * 1000 / ms).unwrap_or(u64::MAX)
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use std::fs;

    use tempfile::TempDir;
    use tonic::Status;

    use super::*;
    use crate::{
        operator::fake::{self, Fake, ID, Ran, Say, Script, piece, transfer},
        status,
        wire::proto::FailReason,
    };

    const CHUNK: usize = limits::CHUNK_BYTES;

    fn bytes(len: usize) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(len as u64);
        std::iter::repeat_with(|| rng.u8(..)).take(len).collect()
    }

    /// A transfer that delivered `data` before it is even watched, and what each read of it says.
    fn script(data: &[u8], reads: Vec<Vec<Say<ReadFileResponse>>>) -> Script {
        Script {
            triggers: [Ok(fake::complete(data))].into(),
            transfers: vec![fake::complete(data)],
            reads: reads.into(),
            ..Script::default()
        }
    }

    fn item(data: &[u8], offset: usize, len: usize) -> Say<ReadFileResponse> {
        Say::Item(piece(data, offset, len))
    }

    async fn cp(fake: &Fake, dir: &TempDir, more: &[&str]) -> Ran {
        let target = dir.path().join("copy");
        let line = ["cp", "web-1:/var/log/a.log", target.to_str().expect("text")];
        fake.run(&[&line, more].concat()).await
    }

    fn names(dir: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(dir.path()).expect("a directory");
        entries.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect()
    }

    fn dir() -> TempDir {
        tempfile::tempdir().expect("a directory")
    }

    #[tokio::test]
    async fn a_copy_is_the_file() {
        let (data, dir) = (bytes(2 * CHUNK + 7), dir());
        let reads =
            vec![vec![item(&data, 0, CHUNK), item(&data, CHUNK, CHUNK), item(&data, 2 * CHUNK, 7)]];
        let fake = Fake::start(script(&data, reads)).await;
        let ran = cp(&fake, &dir, &[]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(fs::read(dir.path().join("copy")).expect("a file") == data);
        assert!(ran.out().contains("saved to"), "{}", ran.out());
        assert_eq!(names(&dir), ["copy"]);
    }

    #[tokio::test]
    async fn an_empty_file_is_a_file() {
        let dir = dir();
        let fake = Fake::start(script(b"", vec![])).await;
        let ran = cp(&fake, &dir, &[]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(fs::read(dir.path().join("copy")).expect("a file"), b"");
    }

    #[tokio::test]
    async fn a_broken_read_goes_on_where_it_broke() {
        let (data, dir) = (bytes(CHUNK + 10), dir());
        let corrupt = ReadFileResponse { crc32c: 0, ..piece(&data, CHUNK + 4, 6) };
        let fake = Fake::start(script(
            &data,
            vec![
                vec![item(&data, 0, CHUNK), Say::Fail(Status::unavailable("reset"))],
                vec![item(&data, CHUNK, 4)], // ends cleanly, too early
                vec![Say::Item(corrupt)],
                vec![item(&data, CHUNK + 4, 6)],
            ],
        ))
        .await;
        let ran = cp(&fake, &dir, &[]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(fs::read(dir.path().join("copy")).expect("a file") == data);
        let offsets: Vec<u64> = fake.script().asked_reads.iter().map(|r| r.offset).collect();
        assert_eq!(offsets, [0, CHUNK as u64, CHUNK as u64 + 4, CHUNK as u64 + 4]);
    }

    /// The second half is other bytes, each message good in itself.
    fn forged(data: &[u8]) -> Script {
        let mut other = data.to_vec();
        other[5] ^= 1;
        script(data, vec![vec![item(data, 0, 5), item(&other, 5, data.len() - 5)]])
    }

    #[tokio::test]
    async fn bytes_with_another_root_leave_no_file() {
        let dir = dir();
        let fake = Fake::start(forged(&bytes(10))).await;
        let ran = cp(&fake, &dir, &[]).await;
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains("nothing was kept"), "{}", ran.stderr);
        assert_eq!(names(&dir), [""; 0]);
    }

    #[tokio::test]
    async fn standard_output_gets_the_bytes_and_nothing_else() {
        let data = bytes(CHUNK + 1);
        let reads = vec![vec![item(&data, 0, CHUNK), item(&data, CHUNK, 1)]];
        let fake = Fake::start(script(&data, reads)).await;
        let ran = fake.run(&["cp", "web-1:", "-"]).await;
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(ran.stdout == data);
    }

    #[tokio::test]
    async fn standard_output_with_another_root_is_a_failure() {
        let fake = Fake::start(forged(&bytes(10))).await;
        let ran = fake.run(&["cp", "web-1:", "-"]).await;
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains("is not the file"), "{}", ran.stderr);
    }

    #[tokio::test]
    async fn bytes_out_of_place_leave_no_file() {
        let data = bytes(100);
        let other = bytes(50);
        let wrong = [
            piece(&data, 10, 10),
            ReadFileResponse { offset: 0, ..piece(&data, 0, 0) },
            piece(&other, 0, 50),
            ReadFileResponse { data: bytes(101).into(), ..piece(&data, 0, 0) },
        ];
        for message in wrong {
            let dir = dir();
            let fake = Fake::start(script(&data, vec![vec![Say::Item(message)]])).await;
            let ran = cp(&fake, &dir, &[]).await;
            assert_eq!(ran.code, 1);
            assert!(ran.stderr.contains("makes no sense"), "{}", ran.stderr);
            assert_eq!(names(&dir), [""; 0]);
        }
    }

    #[tokio::test]
    async fn an_existing_file_is_refused_before_anything_is_asked_for() {
        let (data, dir) = (bytes(10), dir());
        fs::write(dir.path().join("copy"), "old").expect("written");
        let fake = Fake::start(script(&data, vec![vec![item(&data, 0, 10)]])).await;
        let ran = cp(&fake, &dir, &[]).await;
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains("--force"), "{}", ran.stderr);
        assert_eq!(fake.script().asked_triggers.len(), 0);

        let ran = cp(&fake, &dir, &["--force"]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(fs::read(dir.path().join("copy")).expect("a file"), data);
    }

    #[tokio::test]
    async fn in_a_directory_the_copy_has_the_name_that_was_asked_for() {
        let (data, dir) = (bytes(10), dir());
        let local = dir.path().to_str().expect("text").to_owned();
        let mut sly = script(&data, vec![vec![item(&data, 0, 10)]]);
        sly.triggers[0].as_mut().expect("a transfer").path = "/etc/passwd".into();
        let fake = Fake::start(sly).await;
        let ran = fake.run(&["cp", "web-1:/var/log/a.log", &local]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(names(&dir), ["a.log"]);
        let ran = fake.run(&["cp", "web-1:", &local]).await;
        assert_eq!(ran.code, 2);
    }

    #[tokio::test]
    async fn interrupted_it_leaves_no_file_and_tells_how_to_get_it() {
        let (data, dir) = (bytes(10), dir());
        let reads = vec![vec![item(&data, 0, 5), Say::Hang]];
        let fake = Fake::start(script(&data, reads)).await;
        let target = dir.path().join("copy");
        let line = ["get", ID, target.to_str().expect("text")];
        let ran = fake.run_until_it_says(&line, "copying: 50%").await;
        assert_eq!(ran.code, 130);
        assert!(ran.stderr.contains(&format!("fts get {ID}")), "{}", ran.stderr);
        assert_eq!(names(&dir), [""; 0]);
    }

    #[tokio::test]
    async fn without_bytes_there_is_no_copy() {
        let dir = dir();
        let gone = vec![vec![Say::Fail(status::status(Reason::NoContent, "deleted"))]];
        let fake = Fake::start(script(b"x", gone)).await;
        let ran = cp(&fake, &dir, &[]).await;
        assert_eq!((ran.code, names(&dir).len()), (1, 0));

        let failed = fake::failed(FailReason::Io, FailReason::Unspecified, "");
        for ended in [failed, transfer(State::Cancelled, 9)] {
            let triggers = [Ok(ended.clone())].into();
            let transfers = vec![ended];
            let fake = Fake::start(Script { triggers, transfers, ..Script::default() }).await;
            let ran = cp(&fake, &dir, &[]).await;
            assert_eq!((ran.code, names(&dir).len()), (1, 0));
            let ran = fake.run(&["get", ID, "-"]).await;
            assert_eq!((ran.code, ran.stdout.len()), (1, 0));
        }
    }

    #[tokio::test]
    async fn what_is_gone_from_the_servers_disk_is_not_asked_for_again() {
        let dir = dir();
        let gone = vec![vec![Say::Fail(status::status(Reason::ContentLost, "no such file"))]];
        let fake = Fake::start(script(b"x", gone)).await;
        let ran = cp(&fake, &dir, &[]).await;
        assert_eq!((ran.code, names(&dir).len()), (1, 0));
        assert!(ran.stderr.contains("gone from the server's disk"), "{}", ran.stderr);
        assert!(!ran.stderr.contains("stay on the server"), "{}", ran.stderr);
        assert_eq!(fake.script().asked_reads.len(), 1);
    }

    #[tokio::test]
    async fn the_same_trouble_is_told_once_and_the_end_as_well() {
        let (data, dir) = (bytes(10), dir());
        let reset = || vec![Say::Fail(Status::unavailable("reset"))];
        let half = vec![item(&data, 0, 5), Say::Fail(Status::unavailable("reset"))];
        let reads = vec![half, reset(), reset(), vec![item(&data, 5, 5)]];
        let fake = Fake::start(script(&data, reads)).await;
        let ran = cp(&fake, &dir, &[]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(ran.stderr.matches("trying again").count(), 1, "{}", ran.stderr);
        let last = ran.stderr.lines().last().expect("a line");
        assert!(last.starts_with("copying: 100%"), "{}", ran.stderr);
    }

    #[tokio::test]
    async fn the_last_line_of_a_copy_is_that_it_is_all_there() {
        let (data, dir) = (bytes(10), dir());
        let fake =
            Fake::start(script(&data, vec![vec![item(&data, 0, 5), item(&data, 5, 5)]])).await;
        let ran = cp(&fake, &dir, &[]).await;
        let last = ran.stderr.lines().last().expect("a line");
        assert!(last.starts_with("copying: 100%"), "{}", ran.stderr);
    }

    #[tokio::test]
    async fn json_ends_with_where_the_copy_is() {
        let (data, dir) = (bytes(10), dir());
        let fake = Fake::start(script(&data, vec![vec![item(&data, 0, 10)]])).await;
        let ran = cp(&fake, &dir, &["--json"]).await;
        let last = ran.json().pop().expect("a line");
        assert_eq!(last["event"], "ended");
        assert_eq!(last["saved_to"], dir.path().join("copy").to_str().expect("text"));
        let ran = fake.run(&["--json", "cp", "web-1:", "-"]).await;
        assert_eq!(ran.code, 2);
    }
}
