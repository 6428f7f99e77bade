//! fts pulls files, verified, from machines behind NAT. A **client** on such a machine dials out
//! and holds one stream to the **server**; an **operator** asks the server for a file; the client
//! uploads it; the server keeps it only when it has proved it whole.
//!
//! # The life of a transfer
//!
//! ```text
//! operator ─1─► control_api, http_api ─2─► coordinator ─3─► store: QUEUED
//!                                               └─4─ bell ─► sessions
//! client ◄─6─ Connect ◄─ session ◄─5─ claim: OFFERED, new epoch
//! client: link ─7─► jobs ─► upload ──UploadFile──► transfer_api ─8─► ingest ─9─► landing (partial file)
//!                                                     └─10─ Finish: VERIFYING, publish, COMPLETE ─11─► receipt
//! ```
//!
//! 3. From here it cannot be lost, whether or not the client is there.
//! 4. Only a bell: the command is never in it. A session also looks at the queue on connect, and
//!    the sweeper now and then at all queues.
//! 5. A compare-and-set in the store. Whatever carries an older epoch can write, finish and clean
//!    up nothing.
//! 8. File bytes travel on another connection than commands and heartbeats.
//! 10. The end of the stream means nothing; only a Finish whose size and BLAKE3 agree with the
//!     bytes that were written publishes the file, and only then does the record say COMPLETE.
//!     [`transfer`] has the states.
//!
//! # How a chunk travels
//!
//! The client's reader thread fills 1 MiB at its offset, computes its CRC-32C, and adds it to the
//! tree of the file's BLAKE3 ([`chunk`]); a short channel hands it to the upload, tonic frames it,
//! the caps and HTTP/2 flow control pace it. On the server the upload's task checks offset, length and CRC,
//! adds the chunk to a tree of its own, and hands it over a short channel to a thread that writes
//! it. No other copy is kept, so memory is nearly the same for any
//! file (32 bytes for each MiB while a journal is read). Behind that thread another one
//! syncs what was written, and then notes the chunks' values in a journal: what is in it outlives
//! the attempt, and is offered with the next one as what need not be sent again.
//!
//! # The map
//!
//! Dependencies point inwards: `bin → client | operator | server → wire, status → transfer, chunk,
//! ids, rate, limits`. Client and server never import each other.
//!
//! - [`limits`], [`ids`], [`rate`], [`chunk`], [`signature`], [`transfer`]: pure; no runtime, no wire, no SQL.
//! - [`wire`], [`status`]: the only shared files that name protobuf or tonic types.
//! - [`backoff`], [`settings`], [`shutdown`], [`telemetry`], [`token`]: support.
//! - `server_url`, `route`, [`tls`]: how client and operator dial a server, and know it.
//! - `client`: the link to the server, jobs and uploads, and the local policy that says what may be
//!   read.
//! - `operator`: the tool `fts`.
//! - `server`: sessions, uploads, records (`server::store`), files (`server::landing`), and what
//!   operators see.

pub mod audit_head;
pub mod backoff;
pub mod chunk;
#[cfg(feature = "client")]
pub mod client;
pub mod ids;
pub mod limits;
#[cfg(feature = "operator")]
pub mod operator;
pub mod rate;
#[cfg(any(feature = "client", feature = "operator"))]
pub mod route;
#[cfg(feature = "server")]
pub mod server;
#[cfg(any(feature = "client", feature = "operator"))]
pub mod server_url;
#[cfg(any(feature = "client", feature = "operator", feature = "server"))]
pub mod settings;
pub mod shutdown;
pub mod signature;
pub mod status;
pub mod telemetry;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(any(feature = "client", feature = "operator", feature = "server"))]
pub mod token;
pub mod transfer;
pub mod wire;
