//! What one run does, made from a seed alone: the sources, the requests and what becomes of them,
//! and the faults. Only the order in which things happen on the machine is not in it.

use std::{fmt, time::Duration};

use fastrand::Rng;

/// How much one run is.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    pub transfers: usize,
    pub faults: usize,
    /// Everything begins within this.
    pub window: Duration,
    /// Once nothing disturbs any more, everything must have ended within this.
    pub settle: Duration,
    /// Whether the clients are started anew when the faults are over. Else they come back when their
    /// pauses end, which may be a minute.
    pub fresh_clients: bool,
}

#[derive(Debug)]
pub struct Plan {
    pub seed: u64,
    pub scale: Scale,
    pub links: Vec<Way>,
    pub sources: Vec<Source>,
    pub asks: Vec<Ask>,
    /// In order of time.
    pub faults: Vec<(Duration, Fault)>,
}

/// What is between a client and the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A relay of bytes.
    Bytes,
    /// And behind it one that understands messages.
    Messages,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    pub size: usize,
    /// Of its bytes.
    pub seed: u64,
}

/// One request, and what is done with its transfer, one after the other.
#[derive(Debug, PartialEq, Eq)]
pub struct Ask {
    pub at: Duration,
    pub client: usize,
    pub source: usize,
    /// 0: none.
    pub rate_max: u64,
    pub then: Vec<(Duration, Op)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    AskAgain,
    Cancel,
    Retry,
    Pause,
    Resume,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    Server(Trouble),
    Client(usize, Trouble),
    Link(usize, LinkFault),
    Message(usize, MessageFault),
}

/// What happens to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// SIGKILL, and a new one after this long.
    Kill(Duration),
    /// SIGSTOP, and SIGCONT after this long.
    Freeze(Duration),
    /// SIGSTOP, and SIGKILL after this long, and at once a new one.
    FreezeThenKill(Duration),
    /// SIGTERM, and a new one when it has ended.
    Restart,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkFault {
    /// RST.
    Reset(Which),
    /// FIN.
    Close(Which),
    /// Every connection is reset, and new ones are, for this long.
    Refuse(Duration),
    /// Nothing gets through for this long, in these directions; then the connections are reset, or
    /// go on.
    Dark { lasts: Duration, up: bool, down: bool, then_reset: bool },
    /// Each piece is this late.
    Slow { lasts: Duration, by: Duration },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    All,
    /// Those that have carried more than commands: the uploads'.
    Data,
}

/// What happens to messages. All but the `Old` ones wait for the next message that they fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageFault {
    CommandTwice(Duration),
    CommandLate(Duration),
    /// A command of long ago comes again.
    OldCommand,
    ReplyTwice,
    ReportTwice(Duration),
    ReportLate(Duration),
    OldReport,
    /// A byte differs, and the checksum tells.
    ChunkCorrupt,
    /// A byte differs, and the checksum agrees; once for each transfer, at most.
    ChunkForged,
    ChunkTwice,
    /// The stream ends, cleanly, where Finish was.
    FinishLost,
    /// And the whole call comes again, with its Finish, after this long: by then the server has
    /// offered the next attempt, and its command is still on its way.
    FinishLate(Duration),
    ReceiptLost,
    ReceiptLate(Duration),
    /// The whole call comes again.
    UploadAgain(Duration),
}

impl Plan {
    pub fn new(seed: u64, scale: Scale) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut links = vec![Way::Bytes, Way::Messages];
        if rng.bool() {
            links.push(Way::Messages);
        }
        let sources: Vec<Source> = (0..scale.transfers.div_ceil(4).max(6))
            .map(|nth| Source { size: size(&mut rng, nth), seed: rng.u64(..) })
            .collect();
        let asks = (0..scale.transfers)
            .map(|_| ask(&mut rng, links.len(), &sources, scale.window.mul_f64(0.8)))
            .collect();
        let mut faults: Vec<(Duration, Fault)> = (0..scale.faults)
            .map(|_| (scale.window.mul_f64(rng.f64()), fault(&mut rng, &links)))
            .collect();
        let always = ALWAYS.map(|fault| {
            let at = scale.window.mul_f64(rng.f64() / 2.0);
            (at, Fault::Message(rng.usize(1..links.len()), fault))
        });
        faults.extend(always);
        faults.sort_by_key(|(at, _)| *at);
        Self { seed, scale, links, sources, asks, faults }
    }
}

/// What hits little of a short run, if it hits at all, and stands for a defence of its own.
const ALWAYS: [MessageFault; 8] = [
    MessageFault::ChunkCorrupt,
    MessageFault::ChunkForged,
    MessageFault::ChunkForged,
    MessageFault::ChunkForged,
    MessageFault::FinishLate(Duration::from_millis(3200)),
    MessageFault::FinishLate(Duration::from_millis(3700)),
    MessageFault::FinishLate(Duration::from_millis(4200)),
    MessageFault::UploadAgain(Duration::from_millis(500)),
];

/// The first ones are one of each kind, so that a short run has them all.
fn size(rng: &mut Rng, nth: usize) -> usize {
    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;
    let kind = if nth < 6 { [0, 3, 6, 30, 60, 95][nth] } else { rng.usize(..100) };
    match kind {
        0..3 => 0,
        3..6 => 1,
        6..30 => 64 * KIB - 2 + rng.usize(..5),
        30..55 => MIB - 2 + rng.usize(..5),
        55..88 => rng.usize(2 * MIB..9 * MIB),
        _ => rng.usize(18 * MIB..48 * MIB),
    }
}

fn ask(rng: &mut Rng, clients: usize, sources: &[Source], window: Duration) -> Ask {
    let source = rng.usize(..sources.len());
    let size = sources[source].size as u64;
    // Long enough to be hit.
    let rate_max = if size > 2 << 20 && rng.f64() < 0.8 { size / rng.u64(2..9) } else { 0 };
    let soon = |rng: &mut Rng| Duration::from_millis(rng.u64(..2500));
    let mut then = Vec::new();
    if rng.f64() < 0.3 {
        then.push((soon(rng), Op::AskAgain));
    }
    match rng.usize(..100) {
        0..8 => then.push((soon(rng), Op::Cancel)),
        8..20 => then.extend([(soon(rng), Op::Cancel), (soon(rng), Op::Retry)]),
        20..35 => then.extend([(soon(rng), Op::Pause), (soon(rng), Op::Resume)]),
        _ => {}
    }
    if rng.f64() < 0.2 {
        then.push((soon(rng), Op::AskAgain));
    }
    let at = window.mul_f64(rng.f64());
    Ask { at, client: rng.usize(..clients), source, rate_max, then }
}

fn fault(rng: &mut Rng, links: &[Way]) -> Fault {
    let any = rng.usize(..links.len());
    match rng.usize(..100) {
        0..10 => Fault::Server(trouble(rng, 2500)),
        10..28 => Fault::Client(any, trouble(rng, 4500)),
        28..64 => Fault::Link(any, link_fault(rng)),
        _ => Fault::Message(rng.usize(1..links.len()), message_fault(rng)),
    }
}

fn trouble(rng: &mut Rng, longest_ms: u64) -> Trouble {
    let lasts = Duration::from_millis(rng.u64(..longest_ms));
    match rng.usize(..10) {
        0..4 => Trouble::Kill(lasts / 2),
        4..7 => Trouble::Freeze(lasts),
        7..9 => Trouble::FreezeThenKill(lasts),
        _ => Trouble::Restart,
    }
}

fn link_fault(rng: &mut Rng) -> LinkFault {
    let which = if rng.f64() < 0.7 { Which::Data } else { Which::All };
    let lasts = Duration::from_millis(rng.u64(100..5000));
    match rng.usize(..10) {
        0..3 => LinkFault::Reset(which),
        3..5 => LinkFault::Close(which),
        5 => LinkFault::Refuse(lasts / 2),
        6..8 => {
            let (up, down) = *rng.choice(&[(true, true), (true, false), (false, true)]).expect("3");
            LinkFault::Dark { lasts, up, down, then_reset: rng.bool() }
        }
        _ => LinkFault::Slow { lasts, by: Duration::from_millis(rng.u64(5..80)) },
    }
}

fn message_fault(rng: &mut Rng) -> MessageFault {
    let by = Duration::from_millis(rng.u64(..3000));
    match rng.usize(..21) {
        0..3 => MessageFault::CommandTwice(by),
        3 => MessageFault::CommandLate(by),
        4..6 => MessageFault::OldCommand,
        6 => MessageFault::ReplyTwice,
        7..9 => MessageFault::ReportTwice(by),
        9 => MessageFault::ReportLate(by),
        10 => MessageFault::OldReport,
        11..13 => MessageFault::ChunkCorrupt,
        13 => MessageFault::ChunkForged,
        14 => MessageFault::ChunkTwice,
        15 => MessageFault::FinishLost,
        16 => MessageFault::ReceiptLost,
        17 => MessageFault::ReceiptLate(by),
        18 => MessageFault::UploadAgain(by),
        _ => MessageFault::FinishLate(Duration::from_secs(3) + by / 2),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, {:?}", self.seed, self.scale)?;
        for (nth, way) in self.links.iter().enumerate() {
            writeln!(f, "client-{nth}: {way:?}")?;
        }
        for (nth, source) in self.sources.iter().enumerate() {
            writeln!(f, "source {nth}: {} bytes", source.size)?;
        }
        for (nth, ask) in self.asks.iter().enumerate() {
            writeln!(f, "ask {nth}: {ask:?}")?;
        }
        for (at, fault) in &self.faults {
            writeln!(f, "{at:?}: {fault:?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALE: Scale = Scale {
        transfers: 200,
        faults: 90,
        window: Duration::from_secs(90),
        settle: Duration::from_secs(1),
        fresh_clients: false,
    };

    #[test]
    fn the_plan_comes_from_the_seed_alone() {
        let (one, again, other) = (Plan::new(7, SCALE), Plan::new(7, SCALE), Plan::new(8, SCALE));
        assert_eq!(one.to_string(), again.to_string());
        assert_ne!(one.to_string(), other.to_string());
    }

    #[test]
    fn every_kind_of_fault_and_size_is_planned_sooner_or_later() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let plan = Plan::new(seed, SCALE);
            kinds.extend(plan.faults.iter().map(|(_, fault)| match fault {
                Fault::Server(each) | Fault::Client(_, each) => name(each),
                Fault::Link(_, each) => name(each),
                Fault::Message(_, each) => name(each),
            }));
            let sizes = || plan.sources.iter().map(|source| source.size);
            assert!(sizes().any(|size| size == 0) && sizes().any(|size| size > 18 << 20));
        }
        assert_eq!(kinds.len(), 4 + 5 + 15, "{kinds:?}");
    }

    fn name(fault: &impl fmt::Debug) -> String {
        let text = format!("{fault:?}");
        text.split([' ', '(', '{']).next().expect("a word").to_owned()
    }
}
