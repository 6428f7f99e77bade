//! Limits of who is trusted with what: identities, credentials, certificates, quotas, the audit.

use std::time::Duration;

use super::{CHUNK_BYTES, PATH_BYTES_MAX};

// === Identities ===

/// From asking for a certificate to having it.
pub const ENROLMENT_WAIT: Duration = Duration::from_secs(20);
/// A file with a join token.
pub const TOKEN_FILE_BYTES_MAX: u64 = 4 << 10;
/// Pauses between tries to renew a certificate: the first, and the longest, which is never more
/// than a tenth of its life.
pub const RENEWAL_PAUSE_MIN: Duration = Duration::from_secs(1);
pub const RENEWAL_PAUSE_MAX: Duration = Duration::from_secs(600);
/// What waits for a moment of the wall clock looks at it this often.
pub const CLOCK_LOOK: Duration = Duration::from_secs(60);
/// Clocks of client and server that differ by more than this are told.
pub const CLOCK_OFFSET_MAX: Duration = Duration::from_secs(60);

// === The audit ===

/// A file of the audit is closed before it is larger than this …
pub const AUDIT_FILE_BYTES: u64 = 64 << 20;
/// … and so many closed ones are kept.
pub const AUDIT_FILES_MAX: usize = 100;
/// Refusals, and sessions, have files of their own: how many there are, others decide.
pub const AUDIT_REFUSED_FILES_MAX: usize = 10;
pub const AUDIT_SESSION_FILES_MAX: usize = 10;
/// Sessions that get a line for their begin or end in a minute; the rest is only counted. A fleet
/// comes and goes at once.
pub const AUDIT_SESSIONS_PER_MINUTE: usize = 20_000;
/// Refusals that get a line of their own; the rest of a minute is only counted, because whoever is
/// refused decides how many there are.
pub const AUDIT_REFUSALS_PER_MINUTE: usize = 600;
/// Callers whose entries wait to be written; what waits is written at once.
pub const AUDIT_QUEUE_MAX: usize = 4096;
/// A caller waits this long for its entries to be on stable storage.
pub const AUDIT_WAIT: Duration = Duration::from_secs(10);
/// Lines that wait for a disk that is full, of what is done all the same: rights that were taken
/// away. The rest is only counted.
pub const AUDIT_OWED_MAX: usize = 1024;
/// Whoever takes rights away waits this long for a line before it goes on without …
pub const AUDIT_OWED_WAIT: Duration = Duration::from_secs(2);
/// … and the line is tried again this often.
pub const AUDIT_RETRY: Duration = Duration::from_secs(5);
/// A line; a longer one in a file is none of ours.
pub const AUDIT_LINE_BYTES_MAX: usize = 1 << 20;
/// Client ids, and paths, of a scope in a line.
pub const AUDIT_LIST_BYTES_MAX: usize = 64 << 10;
/// Lines that are read ahead of whoever takes them.
pub const AUDIT_READ_AHEAD: usize = 64;
/// A file that was last written so long before the time that is asked for has nothing of it,
/// whatever was done to the clock meanwhile.
pub const AUDIT_CLOCK_SLACK: Duration = Duration::from_secs(3600);

// === The client's own audit ===

/// A file of it is closed once it is as large as this …
pub const CLIENT_AUDIT_FILE_BYTES: u64 = 8 << 20;
/// … and so many closed ones are kept.
pub const CLIENT_AUDIT_FILES_MAX: usize = 32;
/// A line; a longer one in a file is none of ours.
pub const CLIENT_AUDIT_LINE_BYTES_MAX: u64 = 64 << 10;
/// What a crash may leave of the last lines, which is cut off. What is more is put aside.
pub const CLIENT_AUDIT_TORN_BYTES_MAX: u64 = 1 << 20;
/// Files to be served whose lines wait for the disk.
pub const CLIENT_AUDIT_QUEUE_MAX: usize = 256;
/// Refusals and questions of which a line is noted in a minute; the rest is only counted, because the
/// server decides how many there are …
pub const CLIENT_AUDIT_NOTES_PER_MINUTE: usize = 120;
/// … and so much of them in all, because it decides how long a path is too: otherwise an hour of
/// refusals would fill all files.
pub const CLIENT_AUDIT_NOTED_BYTES_PER_MINUTE: usize = 64 << 10;
/// What nobody waits for is written after this, at once.
pub const CLIENT_AUDIT_BATCH_WAIT: Duration = Duration::from_secs(1);
/// A client that ends waits this long for its last lines.
pub const CLIENT_AUDIT_END_WAIT: Duration = Duration::from_secs(2);

/// A server notes where a client's audit stands not more often than this; the next heartbeat tells
/// again.
pub const CLIENT_AUDIT_NOTED_EVERY: Duration = Duration::from_millis(500);

// === Quotas ===

/// Requests for files that one operator may make in a minute, by default.
pub const TRIGGERS_PER_MINUTE: u32 = 6000;
/// Certificates that are issued for one client in a minute: the shortest lives need a few.
pub const CERTIFICATES_PER_MINUTE: u32 = 30;
/// Times in a minute that one operator may ask who it is, which is on record as a login.
pub const LOGINS_PER_MINUTE: u32 = 60;
/// Clients, and operators, whose use is remembered; of others the records are asked.
pub const QUOTA_PARTIES_MAX: usize = 65_536;

// === Credentials ===

/// No credential is made for less.
pub const TTL_MIN: Duration = Duration::from_secs(10);
/// Of a join token, by default and at most.
pub const JOIN_TOKEN_TTL: Duration = Duration::from_secs(3600);
pub const JOIN_TOKEN_TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
pub const JOIN_TOKEN_USES_MAX: u32 = 100_000;
pub const JOIN_TOKENS_PER_CALL_MAX: usize = 1_000;
pub const OPERATOR_TTL_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

// === Signed requests ===

/// What an operator signs: a path, and room for the rest of it.
pub const SIGNED_REQUEST_BYTES_MAX: usize = PATH_BYTES_MAX + 256;
/// Keys that a policy lists; each may be tried for each command.
pub const SIGNERS_MAX: usize = 16;
/// What is signed holds for so long, by default and at most.
pub const SIGNED_FOR: Duration = super::DEADLINE;
pub const SIGNED_FOR_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Signed requests that a client remembers until they expire; without room for one more, it takes
/// none.
pub const SIGNED_REMEMBERED_MAX: usize = 65_536;

// === Certificates ===

/// A certificate begins to hold so long before it is made, for clocks that are a little wrong.
pub const CLOCK_SLACK: Duration = Duration::from_secs(300);
pub const ROOT_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
pub const INTERMEDIATE_LIFE: Duration = Duration::from_secs(5 * 365 * 24 * 3600);
pub const SERVER_CERTIFICATE_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// Of a client's certificate, by default, at least, and at most.
pub const CLIENT_CERTIFICATE_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
pub const CLIENT_CERTIFICATE_LIFE_MIN: Duration = Duration::from_secs(60);
pub const CLIENT_CERTIFICATE_LIFE_MAX: Duration = Duration::from_secs(398 * 24 * 3600);
/// A certificate that expired no longer ago than this renews by proof of its key.
pub const RENEW_WITHIN: Duration = Duration::from_secs(180 * 24 * 3600);
pub const CERTIFICATE_REQUEST_BYTES_MAX: usize = 4 << 10;
/// What a busy TLS stream is read in.
pub const TLS_READ_AHEAD_BYTES: usize = 128 << 10;
/// What a dialler encrypts before it waits for its socket: a chunk, in one system call and not in
/// sixteen.
pub const TLS_WRITE_AHEAD_BYTES: usize = CHUNK_BYTES;
/// The server's own certificate is looked at this often: by its time, and for another one on disk.
pub const CERTIFICATE_LOOK: Duration = Duration::from_secs(10);
/// How often it says that the intermediate is old.
pub const AGEING_WARNING: Duration = Duration::from_secs(24 * 3600);
