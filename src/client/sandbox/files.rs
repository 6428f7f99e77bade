//! Landlock: which files, which ports, and whom else the process can reach.

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};

use super::{Held, Plan};
use crate::limits;

/// The newest one that this was tested with; of what a kernel lacks of it, it leaves out.
const NEWEST: ABI = ABI::V6;

/// Forbids everything but the plan, and notes what holds of that.
pub(super) fn restrict(plan: &Plan, held: &mut Held) {
    match lay(plan) {
        Ok(status) => {
            held.no_new_privs = status.no_new_privs;
            let LandlockStatus::Available { effective_abi, kernel_abi } = status.landlock else {
                return;
            };
            let abi = kernel_abi.unwrap_or(effective_abi as i32);
            held.landlock_abi = u32::try_from(abi).ok();
            let holds = status.ruleset != RulesetStatus::NotEnforced;
            held.files = holds && effective_abi >= ABI::V1;
            held.network = holds && effective_abi >= ABI::V4;
            held.scope = holds && effective_abi >= ABI::V6;
        }
        Err(err) => tracing::warn!(error = %err, "Landlock holds nothing"),
    }
}

fn lay(plan: &Plan) -> Result<landlock::RestrictionStatus, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::from_all(NEWEST) & !(AccessFs::Execute | AccessFs::IoctlDev | DEVICES);
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(plan.readable().iter().filter_map(|path| allowing(path, read)))?
        .add_rules(allowing(&plan.state_dir, write))?;
    let ports = plan.ports.iter();
    let to = |rules: RulesetCreated, port: &u16| {
        rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))
    };
    ports.into_iter().try_fold(rules, to)?.restrict_self()
}

/// Returns the rule that allows a path; none, if it cannot be opened. It is tried more than once: a
/// root that was left out because of one error could not be read until a restart.
fn allowing(
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Option<Result<PathBeneath<PathFd>, RulesetError>> {
    let mut tries =
        (0..limits::SANDBOX_OPEN_TRIES).map(|_| path_beneath_rules([path], access).next());
    let rule = tries.find_map(|rule| rule);
    if rule.is_none() {
        tracing::warn!(path = %path.display(), "cannot be opened, so the sandbox leaves it out");
    }
    rule
}

/// What no state directory holds.
const DEVICES: BitFlags<AccessFs> = landlock::make_bitflags!(AccessFs::{
    MakeChar | MakeBlock | MakeFifo | MakeSock | MakeSym
});
