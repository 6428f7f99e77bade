//! What a transfer does, and why not, in words for people. Pure; what a peer wrote is cleaned as it
//! is quoted.

use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use prost_types::Timestamp;

use super::{output::clean, view};
use crate::wire::proto::{self, FailReason, State, Transfer, WaitingReason};

/// Returns the state, and what is known about why it is the state, as one line. `last_seen` is of
/// the client.
pub(super) fn standing(transfer: &Transfer, last_seen: Option<SystemTime>) -> String {
    let name = view::state(transfer.state);
    match transfer.state() {
        State::Receiving => match waiting(transfer, last_seen) {
            Some(why) => format!("{name}: {}; {why}", progress(transfer)),
            None => format!("{name}: {}", progress(transfer)),
        },
        State::Queued | State::Interrupted => match waiting(transfer, last_seen) {
            Some(why) => format!("{name}; {why}"),
            None => name,
        },
        State::Failed => format!("{name}: {}", failure(transfer)),
        _ => name,
    }
}

/// Returns how far it is: `42% (42.0 MB of 100.0 MB), 11.2 MB/s, 5 s left`.
pub(super) fn progress(transfer: &Transfer) -> String {
    let done = transfer.bytes_done;
    let how_far = match transfer.size {
        Some(size) => format!("{}% ({} of {})", percent(done, size), bytes(done), bytes(size)),
        None => bytes(done),
    };
    if transfer.rate == 0 {
        return how_far;
    }
    let rate = bytes(transfer.rate);
    match transfer.size.and_then(|size| size.checked_sub(done)) {
        Some(left) => {
            let left = span(Duration::from_secs(left.div_ceil(transfer.rate)));
            format!("{how_far}, {rate}/s, {left} left")
        }
        None => format!("{how_far}, {rate}/s"),
    }
}

/// Returns what it waits for; nothing if it does not wait.
pub(super) fn waiting(transfer: &Transfer, last_seen: Option<SystemTime>) -> Option<String> {
    let waiting = transfer.waiting.as_ref()?;
    let client = clean(&transfer.client_id);
    let why = match waiting.reason() {
        // For a moment only.
        WaitingReason::Unspecified | WaitingReason::Due => return None,
        WaitingReason::Paused => {
            return Some(format!("paused: `fts resume {}` goes on", clean(&transfer.id)));
        }
        WaitingReason::ClientOffline => match last_seen {
            Some(at) => format!("client {client} is offline, last seen {}", ago(at)),
            None => format!("client {client} is offline"),
        },
        WaitingReason::ClientBusy => format!("client {client} is busy with other transfers"),
        WaitingReason::ServerBusy => "the server is busy with other uploads".to_owned(),
        WaitingReason::Backoff => match &transfer.failure {
            Some(_) => format!("the last attempt broke, {}", failure(transfer)),
            None => "the last attempt came to nothing".to_owned(),
        },
        WaitingReason::ServerDiskLow => "the server's disk is almost full, or not there".to_owned(),
        WaitingReason::Throttled => "a cap on the rate holds it back".to_owned(),
        WaitingReason::Quota => "its client has sent as much as it may in a day".to_owned(),
        WaitingReason::Stalled => "nothing comes, although the client is there".to_owned(),
        WaitingReason::ClientPolicyWindow => {
            format!("the policy of client {client} allows it only at certain hours")
        }
        WaitingReason::Draining => "the server is shutting down".to_owned(),
    };
    let next = view::moment(waiting.next_attempt_time.as_ref())
        .and_then(|at| at.duration_since(SystemTime::now()).ok())
        .map_or_else(String::new, |wait| format!("; next attempt in {}", span(wait)));
    Some(format!("waiting: {why}{next}"))
}

/// Returns the reason, what led to it, and what the other end said about it.
pub(super) fn failure(transfer: &Transfer) -> String {
    let Some(failure) = &transfer.failure else { return "for no reason given".to_owned() };
    let reason = view::fail_reason(failure.reason);
    let last = match failure.last_reason {
        0 => String::new(),
        last => format!(" (last: {})", view::fail_reason(last)),
    };
    match clean(&failure.detail).as_str() {
        "" => format!("{reason}{last}"),
        detail => format!("{reason}{last}: {detail}"),
    }
}

/// Returns what to do about a failed transfer, in one line.
pub(super) fn advice(transfer: &Transfer) -> String {
    let (id, client) = (clean(&transfer.id), clean(&transfer.client_id));
    let failure = transfer.failure.as_ref();
    let last = failure.map_or_else(String::new, |f| view::fail_reason(f.last_reason));
    match failure.map_or(FailReason::Unspecified, proto::Failure::reason) {
        FailReason::SourceNotFound if transfer.path.is_empty() => format!(
            "there is no default file on {client}: name a path, as `fts pull {client} /PATH`; \
             `fts client {client}` lists what it allows"
        ),
        FailReason::SourceNotFound => {
            format!("there is no such file on {client}: check the path, then `fts retry {id}`")
        }
        FailReason::SourceUnreadable => {
            format!("let the user that the client runs as read the file, then `fts retry {id}`")
        }
        FailReason::SourceNotRegular => {
            "only regular files can be pulled: ask for one file".to_owned()
        }
        FailReason::DeniedByPolicy => {
            "the client's policy does not allow it: its log names the --allow that would do, or \
             asks for --sign-key"
                .to_owned()
        }
        FailReason::SourceChanged => format!(
            "the file kept changing: `fts retry {id}` when it is quiet; a file that only grows \
             can be pulled without --strict"
        ),
        FailReason::TooLarge => "the file is larger than the server takes".to_owned(),
        FailReason::Integrity => format!(
            "what arrived was not what the client had read: look for bad memory or disks, \
             then `fts retry {id}`"
        ),
        FailReason::Io => {
            format!("a disk failed: see the logs of client and server, then `fts retry {id}`")
        }
        FailReason::Attempts => format!(
            "too many attempts without progress, the last one ended with {last}: \
             `fts retry {id}` once that is mended"
        ),
        FailReason::Deadline => {
            format!("it was not done in time: `fts retry {id}` gives it as much time again")
        }
        FailReason::Unspecified => format!("`fts retry {id}` tries again"),
    }
}

/// Returns what a COMPLETE transfer has brought, a name and a value per line.
pub(super) fn summary(transfer: &Transfer) -> Vec<(&'static str, String)> {
    let size = transfer.size.unwrap_or(transfer.bytes_done);
    let mut lines = vec![("transfer", transfer.id.clone()), ("size", exact(size))];
    if let Some(took) = view::duration(transfer) {
        lines.push(("duration", span(took)));
    }
    if transfer.rate > 0 {
        lines.push(("rate", format!("{}/s", bytes(transfer.rate))));
    }
    lines.push(("BLAKE3", transfer.digest.clone()));
    if transfer.delivered() == proto::Delivered::Prefix {
        let text = "PREFIX: the source grew meanwhile; these are its first bytes, read twice";
        lines.push(("delivered", text.to_owned()));
    }
    if transfer.bytes_trusted > 0 {
        let bytes = exact(transfer.bytes_trusted);
        let text = format!("{bytes} not read again: their fingerprint was equal");
        lines.push(("trusted", text));
    }
    if transfer.content_deleted {
        lines.push(("location", "the bytes were deleted from the server".to_owned()));
    } else if !transfer.location.is_empty() {
        lines.push(("location", format!("{} on the server", transfer.location)));
    }
    lines
}

/// Returns names and values as aligned lines.
pub(super) fn aligned(pairs: &[(&'static str, String)]) -> Vec<String> {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs.iter().map(|(name, value)| format!("{name:<width$}  {}", clean(value))).collect()
}

/// Returns a size to be read: `42.0 MB`.
pub(super) fn bytes(count: u64) -> String {
    ByteSize(count).display().si().to_string()
}

/// Returns a size to be read, and to the byte.
pub(super) fn exact(count: u64) -> String {
    if count < 1000 { bytes(count) } else { format!("{} ({count} bytes)", bytes(count)) }
}

fn percent(done: u64, size: u64) -> u64 {
    let percent = u128::from(done.min(size)) * 100 / u128::from(size.max(1));
    if size == 0 { 100 } else { u64::try_from(percent).unwrap_or(100) }
}

/// Returns how long ago a moment is, by our own clock: `3 min ago`.
pub(super) fn ago(at: SystemTime) -> String {
    // The clocks of two machines may differ: what seems to be to come is now.
    let passed = SystemTime::now().duration_since(at).unwrap_or_default();
    if passed < Duration::from_secs(1) {
        "just now".to_owned()
    } else {
        format!("{} ago", span(Duration::from_secs(passed.as_secs())))
    }
}

/// As [`ago`]; a dash for a moment that is not known.
pub(super) fn ago_or_dash(at: Option<&Timestamp>) -> String {
    view::moment(at).map_or_else(|| "-".to_owned(), ago)
}

/// Returns a length of time, with as much detail as matters: `0.4 s`, `12 s`, `3 min`, `5 h`, `2
/// d`.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 if time.subsec_millis() > 0 => format!("{:.1} s", time.as_secs_f64()),
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(reason: WaitingReason) -> Transfer {
        Transfer {
            id: "T".into(),
            client_id: "web-1".into(),
            state: State::Queued.into(),
            waiting: Some(proto::Waiting { reason: reason.into(), ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn waiting_is_told_in_words() {
        let seen = SystemTime::now() - Duration::from_secs(185);
        assert_eq!(
            standing(&waits(WaitingReason::ClientOffline), Some(seen)),
            "QUEUED; waiting: client web-1 is offline, last seen 3 min ago"
        );
        assert_eq!(
            standing(&waits(WaitingReason::Paused), None),
            "QUEUED; paused: `fts resume T` goes on"
        );
        let mut moves = waits(WaitingReason::Throttled);
        moves.state = State::Receiving.into();
        let told = "RECEIVING: 0 B; waiting: a cap on the rate holds it back";
        assert_eq!(standing(&moves, None), told);
        let mut soon = waits(WaitingReason::ClientBusy);
        let at = SystemTime::now() + Duration::from_secs(3601);
        soon.waiting.as_mut().expect("waiting").next_attempt_time = Some(at.into());
        assert!(standing(&soon, None).ends_with("; next attempt in 60 min"), "{soon:?}");
    }

    #[test]
    fn progress_is_told_as_far_as_it_is_known() {
        let mut transfer = Transfer { bytes_done: 42_000_000, ..Default::default() };
        assert_eq!(progress(&transfer), "42.0 MB");
        transfer.size = Some(100_000_000);
        transfer.rate = 10_000_000;
        assert_eq!(progress(&transfer), "42% (42.0 MB of 100.0 MB), 10.0 MB/s, 6 s left");
        transfer.bytes_done = u64::MAX;
        assert!(progress(&transfer).starts_with("100%"));
    }

    #[test]
    fn every_failure_has_its_advice() {
        for number in 0..=10 {
            let failure = proto::Failure { reason: number, last_reason: 8, detail: "d".into() };
            let transfer = Transfer { failure: Some(failure), ..Default::default() };
            assert!(!advice(&transfer).contains('\n'), "{number}");
        }
        let failure = proto::Failure {
            reason: FailReason::Attempts.into(),
            last_reason: FailReason::Io.into(),
            detail: "\u{1b}[2J".into(),
        };
        let transfer = Transfer { failure: Some(failure), ..Default::default() };
        assert!(advice(&transfer).contains("ended with IO"));
        assert_eq!(super::failure(&transfer), "ATTEMPTS (last: IO): \\u{1b}[2J");
    }

    #[test]
    fn lengths_of_time_have_one_unit() {
        let cases = [(0, "0 s"), (400, "0.4 s"), (12_000, "12 s"), (180_000, "3 min")];
        for (ms, text) in cases {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
        assert_eq!(span(Duration::from_hours(5)), "5 h");
        assert_eq!(span(Duration::from_hours(72)), "3 d");
    }
}
