//! seccomp: the calls that no client makes. A list of what is refused, not of what is allowed: the
//! latter breaks with each new version of the C library. A call is refused with an error, and the
//! process lives: a library that only tries (and a name service may) must not end the client.

use std::{collections::BTreeMap, env};

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen,
    SeccompCmpOp::{self, Eq, MaskedEq, Ne},
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
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
    // Its flags are behind a pointer, which no filter follows. Without it libraries use clone.
    let absent = numbers(libc::SYS_clone3).collect();
    for (calls, error) in [(absent, libc::ENOSYS), (refused()?, libc::EPERM)] {
        seccompiler::apply_filter(&program(calls, error)?)?;
    }
    Ok(())
}

type Calls = BTreeMap<i64, Vec<SeccompRule>>;

fn program(calls: Calls, error: i32) -> Result<BpfProgram, seccompiler::Error> {
    let error = SeccompAction::Errno(error.unsigned_abs());
    let arch = TargetArch::try_from(env::consts::ARCH)?;
    Ok(SeccompFilter::new(calls, SeccompAction::Allow, error, arch)?.try_into()?)
}

/// Returns what is refused: calls, or those of their arguments.
fn refused() -> Result<Calls, BackendError> {
    let mut refused: Calls =
        CALLS.iter().chain(&OLD_CALLS).flat_map(|call| numbers(*call)).collect();
    refused.extend(foreign());
    for (call, rules) in arguments()? {
        // Where the other table has it, its arguments are not looked at.
        refused.extend(numbers(call));
        refused.insert(call, rules);
    }
    Ok(refused)
}

/// Returns every number that a call has.
fn numbers(call: c_long) -> impl Iterator<Item = (i64, Vec<SeccompRule>)> {
    let foreign = cfg!(target_arch = "x86_64").then_some(X32 | call);
    [call].into_iter().chain(foreign).map(|number| (number, Vec::new()))
}

/// The 64-bit x86 has a second table of calls, which a filter sees as the same machine.
const X32: c_long = 0x4000_0000;

/// Returns the calls that only that table has.
fn foreign() -> impl Iterator<Item = (i64, Vec<SeccompRule>)> {
    let own = cfg!(target_arch = "x86_64").then_some(512..=547).into_iter().flatten();
    own.map(|call| (X32 | call, Vec::new()))
}

/// Returns the calls of which some arguments are refused.
fn arguments() -> Result<Vec<(c_long, Vec<SeccompRule>)>, BackendError> {
    // Data ahead of a connection connects past Landlock, which looks at connect(2).
    let fast_open = |flags| rule(&[has(flags, libc::MSG_FASTOPEN)]);
    let own = u64::from(std::process::id());
    let ioctls = IOCTLS.iter().map(|request| rule(&[is(1, *request)]));
    Ok(vec![
        (libc::SYS_clone, vec![rule(&[(0, MaskedEq(bits(libc::CLONE_THREAD)), 0)])?]),
        (libc::SYS_socket, sockets()?),
        (libc::SYS_sendto, vec![fast_open(3)?]),
        (libc::SYS_sendmsg, vec![fast_open(2)?]),
        (libc::SYS_sendmmsg, vec![fast_open(3)?]),
        (libc::SYS_ioctl, ioctls.collect::<Result<_, _>>()?),
        (libc::SYS_prlimit64, vec![rule(&[not(0, 0), not(0, own)])?]),
    ])
}

/// Returns the sockets that are refused: all but TCP, UDP (names are looked up with it), and what
/// the C library asks about the machine's addresses. One of a path would reach whatever listens on
/// this machine (containers, the service manager), and other kinds of TCP are not Landlock's.
fn sockets() -> Result<Vec<SeccompRule>, BackendError> {
    let netlink = bits(libc::AF_NETLINK);
    let is_other = || not(0, netlink);
    let families = [not(0, bits(libc::AF_INET)), not(0, bits(libc::AF_INET6)), is_other()];
    let protocols = [not(2, bits(libc::IPPROTO_TCP)), not(2, bits(libc::IPPROTO_UDP)), not(2, 0)];
    [
        rule(&families),
        rule(&protocols),
        rule(&[is(0, netlink), not(2, bits(libc::NETLINK_ROUTE))]),
        // Of the types' four bits, what is neither SOCK_STREAM (1) nor SOCK_DGRAM (2).
        rule(&[is_other(), has(1, 8)]),
        rule(&[is_other(), has(1, 4)]),
        rule(&[is_other(), has(1, 3)]),
        rule(&[is_other(), (1, MaskedEq(3), 0)]),
    ]
    .into_iter()
    .collect()
}

/// An argument, how it is compared, and with what.
type Condition = (u8, SeccompCmpOp, u64);

/// Returns a rule for calls to which all conditions apply. The kernel takes 32 bits of all of these
/// arguments.
fn rule(conditions: &[Condition]) -> Result<SeccompRule, BackendError> {
    let condition = |(index, op, value): &Condition| {
        SeccompCondition::new(*index, SeccompCmpArgLen::Dword, op.clone(), *value)
    };
    SeccompRule::new(conditions.iter().map(condition).collect::<Result<_, _>>()?)
}

fn is(index: u8, value: u64) -> Condition {
    (index, Eq, value)
}

fn not(index: u8, value: u64) -> Condition {
    (index, Ne, value)
}

fn has(index: u8, flag: i32) -> Condition {
    (index, MaskedEq(bits(flag)), bits(flag))
}

fn bits(value: i32) -> u64 {
    u64::from(value.unsigned_abs())
}

/// What changes a file that is only read (its flags, its verity), and what types into a terminal.
const IOCTLS: [u64; 6] = [
    0x4008_6602, // FS_IOC_SETFLAGS
    0x4004_6602, // FS_IOC32_SETFLAGS
    0x401c_5820, // FS_IOC_FSSETXATTR
    0x4080_6685, // FS_IOC_ENABLE_VERITY
    0x5412,      // TIOCSTI
    0x541c,      // TIOCLINUX
];

const CALLS: [c_long; 97] = [
    // Other programs, and other processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_pidfd_send_signal,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
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
    OPEN_TREE_ATTR,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    // Files past their names, and what Landlock does not hold of them.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_truncate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    SETXATTRAT,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    REMOVEXATTRAT,
    FILE_SETATTR,
    libc::SYS_utimensat,
    libc::SYS_fanotify_init,
    libc::SYS_inotify_init1,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_acct,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    KEXEC_FILE_LOAD,
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
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    // Memory and messages of other processes, which no Landlock holds.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
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
    libc::SYS_setfsgid,
    libc::SYS_capset,
];

// Those that the bindings do not name for every C library. The newest have the same number on every
// machine.
const KEXEC_FILE_LOAD: c_long = if cfg!(target_arch = "x86_64") { 320 } else { 294 };
const FCHMODAT2: c_long = 452;
const SETXATTRAT: c_long = 463;
const REMOVEXATTRAT: c_long = 466;
const OPEN_TREE_ATTR: c_long = 467;
const FILE_SETATTR: c_long = 469;

/// Those that newer machines do not have.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: [c_long; 13] = [
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_inotify_init,
    libc::SYS_uselib,
    libc::SYS_modify_ldt,
    libc::SYS_iopl,
    libc::SYS_ioperm,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: [c_long; 0] = [];

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0000 | 1;

    /// Says what the kernel would of a call: runs the filter as it does.
    fn verdict(call: c_long, arguments: &[u64]) -> u32 {
        let program = program(refused().expect("rules"), libc::EPERM).expect("a program");
        let arch = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
        // struct seccomp_data: the number, the machine, where it came from, six arguments.
        let mut data = vec![u32::try_from(call).expect("a number"), arch, 0, 0];
        let low = |value: u64| u32::try_from(value & 0xffff_ffff).expect("32 bits");
        for index in 0..6 {
            let value = arguments.get(index).copied().unwrap_or(0);
            data.extend([low(value), low(value >> 32)]);
        }
        let (mut at, mut acc) = (0, 0);
        loop {
            let step = &program[at];
            let jump = |is: bool| usize::from(if is { step.jt } else { step.jf });
            at += 1;
            match step.code {
                0x20 => acc = data[step.k as usize / 4],
                0x54 => acc &= step.k,
                0x05 => at += step.k as usize,
                0x15 => at += jump(acc == step.k),
                0x25 => at += jump(acc > step.k),
                0x35 => at += jump(acc >= step.k),
                0x06 => return step.k,
                code => panic!("{code:#x} is no instruction of these filters"),
            }
        }
    }

    fn socket(family: i32, kind: i32, protocol: i32) -> u32 {
        verdict(libc::SYS_socket, &[family, kind, protocol].map(bits))
    }

    #[test]
    fn sockets_are_tcp_udp_and_questions_about_addresses() {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        for family in [libc::AF_INET, libc::AF_INET6] {
            for protocol in [0, libc::IPPROTO_TCP] {
                assert_eq!(socket(family, libc::SOCK_STREAM | flags, protocol), ALLOW);
            }
            assert_eq!(socket(family, libc::SOCK_DGRAM | flags, libc::IPPROTO_UDP), ALLOW);
            for protocol in [1, libc::IPPROTO_SCTP, 136, 256, libc::IPPROTO_MPTCP, 1 << 31] {
                for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
                    assert_eq!(socket(family, kind | flags, protocol), EPERM, "{protocol}");
                }
            }
            for kind in (0..16).filter(|kind| ![libc::SOCK_STREAM, libc::SOCK_DGRAM].contains(kind))
            {
                assert_eq!(socket(family, kind | flags, 0), EPERM, "{kind}");
            }
        }
        assert_eq!(socket(libc::AF_NETLINK, libc::SOCK_RAW | flags, libc::NETLINK_ROUTE), ALLOW);
        assert_eq!(socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT), EPERM);
        let allowed = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
        for family in (0..64).filter(|family| !allowed.contains(family)) {
            assert_eq!(socket(family, libc::SOCK_STREAM, 0), EPERM, "{family}");
        }
        // The kernel looks at 32 bits.
        let wide = [bits(libc::AF_UNIX) | 1 << 40, 1, 0];
        assert_eq!(verdict(libc::SYS_socket, &wide), EPERM);
    }

    #[test]
    fn nothing_is_sent_ahead_of_a_connection() {
        let more = libc::MSG_NOSIGNAL | libc::MSG_MORE;
        for (call, index) in
            [(libc::SYS_sendto, 3), (libc::SYS_sendmmsg, 3), (libc::SYS_sendmsg, 2)]
        {
            let with = |flags| {
                let mut arguments = [7; 6];
                arguments[index] = bits(flags);
                verdict(call, &arguments)
            };
            assert_eq!(with(more), ALLOW, "{call}");
            assert_eq!(with(more | libc::MSG_FASTOPEN), EPERM, "{call}");
        }
    }

    #[test]
    fn calls_of_all_ages_and_both_tables_are_refused() {
        let calls = [
            libc::SYS_execve,
            FCHMODAT2,
            SETXATTRAT,
            REMOVEXATTRAT,
            OPEN_TREE_ATTR,
            FILE_SETATTR,
            libc::SYS_shmat,
            libc::SYS_setfsgid,
        ];
        for call in calls {
            assert_eq!(verdict(call, &[]), EPERM, "{call}");
        }
        if cfg!(target_arch = "x86_64") {
            let foreign = [libc::SYS_clone, libc::SYS_socket, libc::SYS_sendmsg, libc::SYS_ioctl];
            for call in calls.into_iter().chain(foreign) {
                assert_eq!(verdict(X32 | call, &[]), EPERM, "{call} of x32");
            }
        }
        for call in [libc::SYS_read, libc::SYS_openat, libc::SYS_connect, libc::SYS_futex] {
            assert_eq!(verdict(call, &[]), ALLOW, "{call}");
        }
        assert_eq!(verdict(libc::SYS_clone, &[bits(libc::SIGCHLD)]), EPERM);
        assert_eq!(verdict(libc::SYS_clone, &[bits(libc::CLONE_THREAD | libc::CLONE_VM)]), ALLOW);
    }

    #[test]
    fn limits_of_others_and_flags_of_files_stay_as_they_are() {
        let own = u64::from(std::process::id());
        for pid in [0, own] {
            assert_eq!(verdict(libc::SYS_prlimit64, &[pid]), ALLOW);
        }
        assert_eq!(verdict(libc::SYS_prlimit64, &[own + 1]), EPERM);
        for request in IOCTLS {
            assert_eq!(verdict(libc::SYS_ioctl, &[3, request]), EPERM, "{request:#x}");
        }
        // FS_IOC_GETFLAGS and TIOCGWINSZ.
        for request in [0x8008_6601, 0x5413] {
            assert_eq!(verdict(libc::SYS_ioctl, &[3, request]), ALLOW, "{request:#x}");
        }
    }
}
