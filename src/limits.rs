//! Every limit of fts, with its unit in its name. No number that a peer sends is trusted beyond
//! these.

use std::time::Duration;

mod trust;

pub use trust::*;

// === The data path ===

/// A chunk: the unit of checksums. 1 MiB is a whole BLAKE3 subtree, so chunk values merge into the
/// file's root.
pub const CHUNK_BYTES: usize = 1 << 20;
/// A file up to this size is kept in memory until it is whole, and then begins, finishes and is
/// published in one commit. It is sent within moments, so nobody misses seeing it on its way.
pub const SMALL_FILE_BYTES_MAX: u64 = 64 << 10;
/// The largest file.
pub const FILE_BYTES_MAX: u64 = 1 << 44;
/// Messages of `UploadFile`: a chunk and its fields.
pub const UPLOAD_MESSAGE_BYTES_MAX: usize = CHUNK_BYTES + CHUNK_BYTES / 4;
/// Messages of every other method.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Chunks between the network and the disk, on either end: enough to keep both busy.
pub const CHUNKS_IN_FLIGHT_MAX: usize = 4;
/// What a server keeps of the memory that is free at the end of a heap, for the next chunks.
pub const HEAP_KEPT_BYTES: i32 = 8 << 20;
/// What is larger is memory of its own, given back as soon as it is free: nothing of fts is, and
/// glibc takes no more.
pub const MAPPED_FROM_BYTES: i32 = 32 << 20;
/// What an upload wrote is synced and journaled this often, so that a crash costs no more …
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// … or when so much has come. More than that never waits for a sync that is under way.
pub const CHECKPOINT_BYTES: u64 = 256 << 20;
/// What a large upload wrote is sent on to the disk in pieces of this size.
pub const WRITE_OUT_EVERY_BYTES: u64 = 8 << 20;
/// HTTP/2 frames. The receiver's setting decides; 16 KiB (the default) halves the speed of an
/// upload.
pub const HTTP2_FRAME_BYTES: u32 = 256 << 10;
/// HTTP/2 window of a stream: rate over a long link is at most window / round trip.
pub const HTTP2_STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// HTTP/2 window of a connection, shared by its streams.
pub const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// HTTP/2 streams of a connection; tonic's default is no limit.
pub const HTTP2_STREAMS_MAX: u32 = 256;
/// HTTP/2 header list.
pub const HTTP2_HEADER_BYTES_MAX: u32 = 16 << 10;
/// HTTP/2 pings of the server: a second line behind the heartbeats. After a silence that is longer
/// than the pause between two of those, so that an idle fleet is not pinged as well, and shorter
/// than the shortest common idle timeout (60 s).
pub const HTTP2_PING: Duration = Duration::from_secs(40);
pub const HTTP2_PING_WAIT: Duration = Duration::from_secs(10);
/// Uploads that one server takes at a time, by default and at most; more wait with `SERVER_BUSY`.
pub const UPLOADS_MAX: usize = 256;

// === Caps ===

/// The smallest cap, in bytes a second: the smallest round one under which `JOBS_MAX` uploads that
/// share it each stay well above `UPLOAD_STALL_BYTES`.
pub const RATE_MIN_BYTES: u64 = 64_000;
/// The largest cap; no line is faster.
pub const RATE_MAX_BYTES: u64 = 1 << 40;
/// What a cap did not use may be sent later, at once, but no more than of this time: so that any
/// five seconds stay within five per cent of it.
pub const RATE_BURST: Duration = Duration::from_millis(100);
/// A capped upload is sent in pieces of a fiftieth of a second …
pub const RATE_PIECES_PER_SECOND: u64 = 50;
/// … but not smaller than a packet or two, so that a slow cap is no burden, and not larger than an
/// HTTP/2 frame.
pub const RATE_PIECE_BYTES_MIN: usize = 4 << 10;
pub const RATE_PIECE_BYTES_MAX: usize = HTTP2_FRAME_BYTES as usize;
/// A client looks this often at which uploads a cap holds back, and tells the server at once what
/// has changed.
pub const THROTTLED_LOOK: Duration = Duration::from_secs(1);

// === Text ===

pub const CLIENT_ID_BYTES_MAX: usize = 63;
pub const PATH_BYTES_MAX: usize = 4096;
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Details of failures, from a client.
pub const DETAIL_BYTES_MAX: usize = 512;
/// Host name, version, operating system, from a client.
pub const LABEL_BYTES_MAX: usize = 255;
pub const ALLOWED_ROOTS_MAX: usize = 64;
/// In the directory of a settings file that the sandbox may read as a whole.
pub const SANDBOX_DIR_ENTRIES_MAX: usize = 64;
/// How often the sandbox tries to open what it is to allow.
pub const SANDBOX_OPEN_TRIES: u32 = 3;
/// Patterns of one rule that include, and as many that exclude.
pub const POLICY_PATTERNS_MAX: usize = 256;

// === Connections and sessions ===

/// Connections that a server holds, if it may open as many files; the next ones wait in the listen
/// queue.
pub const CONNECTIONS_MAX: usize = 50_000;
/// Connections that wait to be accepted, if the kernel allows as many (`net.core.somaxconn`). Who
/// finds it full tries again only after 1, 3 and 7 seconds, and a fleet comes at once.
pub const LISTEN_QUEUE_MAX: u32 = 16_384;
/// Of the files that a server may open, as many are kept for its disk as half of them, and at most
/// this.
pub const FILES_RESERVED_MAX: usize = 2048;
/// Connections that have not shown yet who they are.
pub const UNKNOWN_CONNECTIONS_MAX: usize = 1024;
/// Connections of one client: a session, uploads, and what a cut left behind.
pub const CONNECTIONS_PER_CLIENT_MAX: usize = 16;
/// From accepting a connection to a request with good credentials; to the first byte, where nobody asks
/// for credentials.
pub const KNOWN_WITHIN: Duration = Duration::from_secs(10);
/// What is read of a connection before it has shown who it is: some joins, or a request's head. The
/// rest waits, unread, until it has.
pub const UNKNOWN_BYTES_MAX: usize = 64 << 10;
/// Messages of the methods that take no more than a name: health, and reflection.
pub const NAME_MESSAGE_BYTES_MAX: usize = 1 << 10;
/// A client whose identity is good no longer has this long to hear so; then its connections go.
pub const EXPELLED_WAIT: Duration = Duration::from_secs(5);
/// From the start of `Connect` to its Hello.
pub const HELLO_WAIT: Duration = Duration::from_secs(10);
/// From dialling to Welcome.
pub const WELCOME_WAIT: Duration = Duration::from_secs(20);
pub const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// Two heartbeats within the shortest common idle timeout (60 s).
pub const HEARTBEAT: Duration = Duration::from_secs(25);
/// Shortest and longest `--heartbeat`.
pub const HEARTBEAT_MIN: Duration = Duration::from_millis(200);
pub const HEARTBEAT_MAX: Duration = Duration::from_secs(300);
/// Without bytes from the server a client redials after 55 s, at a heartbeat of 25 s; it scales
/// with it.
pub const SERVER_SILENCE_PERCENT: u32 = 220;
/// Without bytes from a client it is STALE after 40 s …
pub const CLIENT_STALE_PERCENT: u32 = 160;
/// … and OFFLINE after 80 s.
pub const CLIENT_SILENCE_PERCENT: u32 = 320;
/// Messages waiting to be sent to a peer on `Connect`.
pub const OUTBOX_MAX: usize = 32;
/// A peer that does not read keeps an answer waiting for this long.
pub const OUTBOX_WAIT: Duration = Duration::from_secs(5);
/// Client messages above this rate end the session; the two that each command asks for do not count.
pub const CLIENT_MESSAGES_PER_SECOND_MAX: u32 = 200;
/// Pauses between dials: the first, and the longest while nothing works. A client is back within 60 s
/// once it can reach its server: the dial that was under way fails after at most 10 s more (what is
/// sent again comes at doubled pauses, so half of `WELCOME_WAIT`), or the session within
/// `STABLE_AFTER`; then comes a pause, and the next dial has 5 s.
pub const DIAL_PAUSE_MIN: Duration = Duration::from_secs(1);
pub const DIAL_PAUSE_MAX: Duration = Duration::from_secs(45);
/// A session that lasted this long resets the pauses: also one that the client waited for in vain,
/// until its silence (55 s), or the kernel (30 s), said so.
pub const STABLE_AFTER: Duration = Duration::from_secs(10);
/// A superseded instance stays away for this long, and up to as long again.
pub const SUPERSEDED_PAUSE: Duration = Duration::from_secs(300);
/// The longest pause of a client that the server does not take as who it is: until somebody has
/// done something about it, which takes minutes.
pub const BARRED_PAUSE_MAX: Duration = Duration::from_secs(600);
/// No hint of a server keeps a client away for longer.
pub const RECONNECT_HINT_MAX: Duration = Duration::from_secs(600);
/// Questions to one client whether a path may be read, at a time; and how long one waits.
pub const QUESTIONS_MAX: usize = 16;
pub const QUESTION_WAIT: Duration = Duration::from_secs(10);
/// For how long a client may say that its policy holds a transfer back, before it is asked again: a
/// day, and the hour by which a clock is put back.
pub const HOLD_MIN: Duration = Duration::from_secs(1);
pub const HOLD_MAX: Duration = Duration::from_secs(25 * 3600);
/// The server's hint on drain: at least this, and a second for so many clients, so that they do not
/// come back all at once.
pub const DRAIN_RECONNECT_AFTER: Duration = Duration::from_secs(1);
pub const DRAIN_CLIENTS_PER_SECOND: usize = 2000;
/// The data connection closes after this long without an upload.
pub const DATA_CONNECTION_IDLE: Duration = Duration::from_secs(30);
/// Unacknowledged bytes of a data connection end it after this long.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

// === Transfers ===

/// Commands that a client takes at a time, by default and at most.
pub const JOBS: u32 = 4;
pub const JOBS_MAX: u32 = 64;
/// Commands that wait at a client for one of these to end. A server sends the next ones as soon as
/// files have landed, so they may be here before the answers to the uploads.
pub const JOBS_WAITING_MAX: usize = 64;
/// `--nice`: the lowest priority that there is.
pub const NICE_MAX: u8 = 19;
/// Chunks of a file whose single values a client remembers, so that it can go on where the server
/// stopped without reading again: 4 GiB, in 128 KiB of memory …
pub const TRAIL_CHUNKS_MAX: usize = 4096;
/// … and of how many transfers.
pub const TRAILS_MAX: usize = 64;
/// Reports of ended attempts that a client keeps for the server; one for each command that was ever
/// taken and not acknowledged.
pub const REPORTS_MAX: usize = 1024;
/// Commands that a client remembers, so that a repeated one is not run again.
pub const COMMANDS_REMEMBERED_MAX: usize = 4096;
/// Threads of a client that read files. More than `JOBS_MAX`, because a read that hangs outlives
/// its attempt.
pub const READERS_MAX: usize = 128;
/// An attempt whose disk does not answer for this long has failed. Longer than two signs of life of
/// one that is read twice, and shorter than what the server bears. Tests have less time.
pub const READ_WAIT: Duration = Duration::from_secs(if cfg!(test) { 5 } else { 45 });
/// A denial is told at a multiple of this after it was asked for: how long the disk took would tell
/// what is there.
pub const DENIAL_STEP: Duration = Duration::from_millis(20);
/// An Abort that the server does not answer is reported on `Connect` all the same.
pub const ABORT_ANSWER_WAIT: Duration = Duration::from_secs(10);
/// A source that grew is read twice; the last chunk is repeated this often meanwhile, as a sign of
/// life.
pub const REPEAT_CHUNK_EVERY: Duration = Duration::from_secs(15);
/// `openat2` asks to be called again while directories are being renamed under it.
pub const OPEN_TRIES_MAX: u32 = 64;
/// Bytes of allowed roots in a Hello, which must stay below `CONTROL_MESSAGE_BYTES_MAX`.
pub const HELLO_ROOTS_BYTES_MAX: usize = 32 << 10;
/// Files in a client's state directory, which it never delivers.
pub const STATE_FILES_MAX: usize = 1024;
/// Bytes of one of them that the client reads whole.
pub const STATE_FILE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a rule's day that a client notes ahead of sending them, and a crash may lose.
pub const DAY_COUNT_AHEAD_BYTES: u64 = 64 << 20;
/// A clock that is set back to a day before the one that is counted gives nothing anew, if it is by no
/// more than this. By more, the clock was wrong before: the client warns, and begins to count anew.
pub const DAY_SET_BACK_MAX: Duration = Duration::from_secs(2 * 24 * 3600);
/// The least that `bytes_per_day` can be: a chunk.
pub const BYTES_PER_DAY_MIN: u64 = 1 << 20;
/// A client that waits for the end of the policy's hours looks at the clock as often as this, because
/// a machine may sleep, and a clock may be set.
pub const HOURS_LOOK: Duration = Duration::from_secs(30);
/// A client dials after this long, whether its roots are open, or its demo file is made, or not.
pub const PREPARE_WAIT: Duration = Duration::from_secs(30);
/// The demo file.
pub const DEMO_FILE_BYTES: u64 = 100_000_000;
/// An offer without a Header goes back to the queue.
pub const OFFER_WAIT: Duration = Duration::from_secs(30);
/// A client that said it is busy is asked again.
pub const BUSY_PAUSE: Duration = Duration::from_secs(5);
/// An attempt that the server's disk ended is tried again after this.
pub const DISK_PAUSE: Duration = Duration::from_secs(30);
/// The disk is looked at this often.
pub const DISK_LOOK: Duration = Duration::from_secs(2);
/// A transfer is not begun when less than this would be left on the disk, or less than a twentieth
/// of it. `--disk-low` says otherwise.
pub const DISK_FREE_MIN_BYTES: u64 = 1 << 30;
/// When an upload is cut, the client's session has this long to end as well: then the client is
/// lost.
pub const CUT_GRACE: Duration = Duration::from_secs(2);
/// An upload of which nothing came for this long is shown as STALLED.
pub const STALLED_AFTER: Duration = Duration::from_secs(20);
/// An upload whose client has no session any more is shown as waiting for it after this silence.
pub const SILENT_AFTER: Duration = Duration::from_secs(3);
/// An upload of which fewer bytes than these came in this time is ended.
pub const UPLOAD_STALL: Duration = Duration::from_secs(60);
/// Far below what the slowest link or the smallest cap lets through in that time, and far above
/// what keeps a connection open without moving a file.
pub const UPLOAD_STALL_BYTES: u64 = 16 << 10;
/// Attempts in a row that add no durable bytes.
pub const ATTEMPTS_MAX: u32 = 10;
/// What is kept of a transfer that failed is there for so long, for a retry.
pub const PARTIAL_KEEP: Duration = Duration::from_secs(24 * 3600);
/// Times that a source may change while it is read.
pub const SOURCE_CHANGES_MAX: u32 = 4;
/// Times that a root may differ.
pub const MISMATCHES_MAX: u32 = 2;
/// Pause after a failed attempt: doubles from the first to the last, jittered.
pub const RETRY_PAUSE_MIN: Duration = Duration::from_secs(1);
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(300);
pub const DEADLINE: Duration = Duration::from_secs(7 * 24 * 3600);
pub const DEADLINE_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// Transfers of one client that have not ended.
pub const UNFINISHED_PER_CLIENT_MAX: u64 = 100_000;
/// Offers that one look at the queue makes, in one commit.
pub const OFFERS_PER_CLAIM_MAX: u32 = 16;
/// Every queue is looked at this often, in one look for all; a ring that was missed waits as long.
pub const CLAIM_POLL: Duration = Duration::from_secs(15);
/// Deadlines, expired offers and retention are looked at this often.
pub const SWEEP: Duration = Duration::from_secs(1);
pub const ORPHAN_SWEEP: Duration = Duration::from_secs(5);
pub const RETENTION_SWEEP: Duration = Duration::from_secs(60);
/// A quiet watch reads on this often, so that pruning does not overtake it.
pub const WATCH_CATCH_UP: Duration = Duration::from_secs(60);
/// Last-seen times are written this often, and so many in one transaction: of a fleet they are
/// thousands of rows, and other writes wait meanwhile. The sessions in memory know better.
pub const SEEN_FLUSH: Duration = Duration::from_secs(60);
pub const SEEN_PER_WRITE: usize = 1000;
/// Events of ended transfers are kept this long, and this many.
pub const EVENTS_KEEP: Duration = Duration::from_secs(7 * 24 * 3600);
pub const EVENTS_KEEP_MAX: u64 = 1_000_000;

// === The record store ===

/// SQLite waits this long for another process that holds the database.
pub const STORE_BUSY_WAIT: Duration = Duration::from_secs(5);
/// A verb of the store waits this long for its turn.
pub const STORE_QUEUE_WAIT: Duration = Duration::from_secs(10);
/// Verbs that wait for their turn, and those that share a commit: as many as come while the one
/// before is written, but no more than keep it short.
pub const STORE_QUEUE_MAX: usize = 4096;
pub const STORE_BATCH_MAX: usize = 256;
/// Connections that read; one writes.
pub const STORE_READERS: u32 = 4;
/// Events that are dropped in one transaction, so that no other write waits for long.
pub const PRUNE_EVENTS_MAX: u64 = 10_000;

// === Operators ===

/// Streams of an operator look at whether its token is still good this often.
pub const RECHECK: Duration = Duration::from_secs(5);
/// A token, with room to spare.
pub const TOKEN_BYTES_MAX: usize = 1024;
/// Streams that read the audit at a time.
pub const AUDIT_READERS_MAX: usize = 8;
/// An operator's name.
pub const OPERATOR_BYTES_MAX: usize = 64;
/// Clients, and paths, that a scope names.
pub const SCOPE_ITEMS_MAX: usize = 256;

pub const PAGE_SIZE: u32 = 100;
pub const PAGE_SIZE_MAX: u32 = 1000;
/// Records that are looked through for one page of an operator who may not see all of them.
pub const PAGE_LOOKED_THROUGH_MAX: usize = 10_000;
/// A page ends early at this weight: gRPC clients take messages of 4 MiB.
pub const PAGE_BYTES_MAX: usize = 2 << 20;
/// Pieces in which `GET …/content` reads a file.
pub const HTTP_PIECE_BYTES: usize = 256 << 10;
/// The name under which a browser saves a file.
pub const FILE_NAME_BYTES_MAX: usize = 200;
pub const WAIT_MAX: Duration = Duration::from_secs(300);
pub const HTTP_BODY_BYTES_MAX: usize = 64 << 10;
/// Watches that one server serves at a time.
pub const WATCHES_MAX: usize = 1024;
/// Of these, one operator may have so many.
pub const WATCHES_PER_OPERATOR_MAX: usize = 128;
/// Changes that a watch may lag behind before it re-reads from the store.
pub const WATCH_LAG_MAX: usize = 1024;
/// Progress of one transfer is told this often.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Messages that the operator's tool takes: a page of a list, or a chunk of a file.
pub const OPERATOR_MESSAGE_BYTES_MAX: usize = 4 << 20;
/// What the tool asks for at a time: a client is up to a control message, and a page of them fits a
/// message.
pub const OPERATOR_PAGE_SIZE: u32 = 50;
/// The tool waits this long for an answer that is not a stream.
pub const OPERATOR_CALL_WAIT: Duration = Duration::from_secs(30);
/// The tool pings a server that says nothing, and waits as long for the answer.
pub const OPERATOR_PING: Duration = Duration::from_secs(20);
/// A copy whose next bytes do not come in this time is asked for again.
pub const OPERATOR_READ_STALL: Duration = Duration::from_mins(1);
/// Pauses of the tool between tries: the first, and the longest.
pub const OPERATOR_PAUSE_MIN: Duration = Duration::from_millis(500);
pub const OPERATOR_PAUSE_MAX: Duration = Duration::from_secs(10);
/// Without a server the tool gives up a request after this long …
pub const OPERATOR_ASK_WAIT: Duration = Duration::from_secs(15);
/// … and stops to follow a transfer, or to copy its bytes, after this long.
pub const OPERATOR_GONE_WAIT: Duration = Duration::from_mins(5);
/// Off a terminal, the tool tells progress this often.
pub const OPERATOR_PROGRESS_EVERY: Duration = Duration::from_secs(5);

// === The client's status page ===

pub const STATUS_PORT: u16 = 8080;
/// Connections to it at a time, and how long one may last.
pub const STATUS_CONNECTIONS_MAX: usize = 16;
pub const STATUS_REQUEST_WAIT: Duration = Duration::from_secs(5);

// === Shutdown ===

/// A client's Goodbye is sent for at most this long.
pub const GOODBYE_WAIT: Duration = Duration::from_secs(2);

/// Running uploads may finish for this long; what has not is kept, and goes on later …
pub const DRAIN_WAIT: Duration = Duration::from_secs(10);
/// … then everything is cut, and has this long to note it.
pub const ABORT_WAIT: Duration = Duration::from_secs(10);
/// … and connections on which nothing runs any more close within this.
pub const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// The record store is closed within this.
pub const STORE_CLOSE_WAIT: Duration = Duration::from_secs(2);
/// Blocking threads of a server: each upload has one, and the rest read and sync. (What is synced
/// behind an upload, or read again after a restart, has threads of its own.)
pub const BLOCKING_THREADS_MAX: usize = 512;

// A small file is one chunk.
const _: () = assert!(SMALL_FILE_BYTES_MAX <= CHUNK_BYTES as u64);
const _: () = assert!(CHUNK_BYTES.is_power_of_two() && CHUNK_BYTES >= 1024);
const _: () = assert!(HTTP2_PING.as_millis() > HEARTBEAT.as_millis() * 6 / 5);
const _: () = assert!(HTTP2_STREAM_WINDOW_BYTES <= HTTP2_CONNECTION_WINDOW_BYTES);
const _: () = assert!(UPLOAD_MESSAGE_BYTES_MAX > CHUNK_BYTES + 64);
const _: () = assert!(
    DRAIN_WAIT.as_secs() + ABORT_WAIT.as_secs() + CLOSE_WAIT.as_secs() + STORE_CLOSE_WAIT.as_secs()
        < 45
);
const _: () = assert!(UPLOADS_MAX < BLOCKING_THREADS_MAX / 2 + 1);
const _: () = assert!(HELLO_ROOTS_BYTES_MAX * 3 / 2 < CONTROL_MESSAGE_BYTES_MAX);
// A byte is at most six when it is escaped.
const _: () = assert!(AUDIT_LINE_BYTES_MAX > (2 * AUDIT_LIST_BYTES_MAX + 4 * PATH_BYTES_MAX) * 6);
const _: () = assert!(READERS_MAX > JOBS_MAX as usize);
const _: () = assert!(READ_WAIT.as_secs() < UPLOAD_STALL.as_secs());
const _: () = assert!(cfg!(test) || READ_WAIT.as_secs() > 2 * REPEAT_CHUNK_EVERY.as_secs());
const _: () = assert!(SERVER_SILENCE_PERCENT < CLIENT_SILENCE_PERCENT);
const _: () =
    assert!(OPERATOR_PAGE_SIZE as usize * CONTROL_MESSAGE_BYTES_MAX <= OPERATOR_MESSAGE_BYTES_MAX);
const _: () =
    assert!(RATE_MIN_BYTES * UPLOAD_STALL.as_secs() / JOBS_MAX as u64 > 2 * UPLOAD_STALL_BYTES);
