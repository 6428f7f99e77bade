//! seccomp: the calls that no client makes. A list of what is refused, not of what is allowed: the
//! latter breaks with each new version of the C library. A call is refused with an error, and the
//! process lives: a library that only tries (and a name service may) must not end the client.

use std::{collections::BTreeMap, env};

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Held;

/// Forbids the calls, and notes whether that holds.
pub(super) fn restrict(held: &mut Held) {
    match lay() {
        Ok(()) => {
            held.seccomp = true;
            // Which it needs, and sets.
            held.no_new_privs = true;
        }
        Err(err) => tracing::warn!(error = %err, "seccomp holds nothing"),
    }
}

fn lay() -> Result<(), seccompiler::Error> {
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().chain(&OLD_CALLS).flat_map(|call| numbers(*call)).collect();
    refused.extend(foreign());
    refused.insert(libc::SYS_clone, vec![new_process()?]);
    // Its flags are behind a pointer, which no filter follows. Without it libraries use clone.
    let absent = numbers(libc::SYS_clone3).collect();
    for (calls, error) in [(absent, libc::ENOSYS), (refused, libc::EPERM)] {
        seccompiler::apply_filter(&program(calls, error)?)?;
    }
    Ok(())
}

fn program(
    calls: BTreeMap<i64, Vec<SeccompRule>>,
    error: i32,
) -> Result<BpfProgram, seccompiler::Error> {
    let error = SeccompAction::Errno(error.unsigned_abs());
    let arch = TargetArch::try_from(env::consts::ARCH)?;
    Ok(SeccompFilter::new(calls, SeccompAction::Allow, error, arch)?.try_into()?)
}

/// A clone that makes no thread.
fn new_process() -> Result<SeccompRule, seccompiler::Error> {
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let is = SeccompCmpOp::MaskedEq(thread);
    Ok(SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Qword, is, 0)?])?)
}

/// Returns every number that a call has.
fn numbers(call: c_long) -> impl Iterator<Item = (i64, Vec<SeccompRule>)> {
    let foreign = cfg!(target_arch = "x86_64").then_some(X32 | call);
    [call].into_iter().chain(foreign).map(|number| (number, Vec::new()))
}

/// The 64-bit x86 has a second table of calls, which a filter sees as the same machine.
const X32: c_long = 0x4000_0000;

/// Returns the calls that only that table has, and the one whose arguments are not looked at there.
fn foreign() -> impl Iterator<Item = (i64, Vec<SeccompRule>)> {
    let own = (512..=547).chain([libc::SYS_clone]);
    let own = cfg!(target_arch = "x86_64").then_some(own).into_iter().flatten();
    own.map(|call| (X32 | call, Vec::new()))
}

const CALLS: [c_long; 68] = [
    // Other programs, and other processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_personality,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    // Files past their names, and what Landlock does not hold of them.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_truncate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_utimensat,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_acct,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    // Keys, users, and what they may.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_setfsuid,
    libc::SYS_capset,
];

/// Those that newer machines do not have.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: [c_long; 9] = [
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_kexec_file_load,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: [c_long; 0] = [];
