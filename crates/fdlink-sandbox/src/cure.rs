//! What may help, for the causes that users meet.
//!
//! The kernel says EPERM for half a dozen different switches. Where a switch can be read, it is
//! read and named; otherwise the likely ones are.

use std::fs;

use rustix::io::Errno;

use crate::{Error, Step};

/// Debian's and Arch's switch; 0 is off.
const DEBIAN: &str = "/proc/sys/kernel/unprivileged_userns_clone";
/// Ubuntu's switch (23.10 and later); 1 takes the capabilities away again.
const UBUNTU: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
/// Everybody's limit; 0 is off.
const LIMIT: &str = "/proc/sys/user/max_user_namespaces";

impl Error {
    /// What may help against this, a sentence or two with the commands in them; `None` where
    /// nobody knows.
    #[must_use]
    pub fn cure(&self) -> Option<String> {
        match self {
            Self::Threads { .. } => Some(
                "start the sandbox before the async runtime, the logger or whatever else starts \
                 threads"
                    .into(),
            ),
            Self::CountThreads(_) => Some("mount /proc".into()),
            Self::Namespaces(source) => namespaces(Errno::from_io_error(source)?),
            Self::Setup { step, source } => {
                setup(*step, Errno::from_io_error(source)?).map(Into::into)
            }
            Self::Descriptors { .. } => {
                Some("raise the limit of open files: ulimit -n 1024".into())
            }
            Self::ControlSocket(source) if Errno::from_io_error(source) == Some(Errno::MFILE) => {
                Some("raise the limit of open files: ulimit -n 1024".into())
            }
            _ => None,
        }
    }
}

fn namespaces(errno: Errno) -> Option<String> {
    let off = |path: &str, value: &str| {
        fs::read_to_string(path).is_ok_and(|content| content.trim() == value)
    };
    if off(DEBIAN, "0") {
        return Some("as root: sysctl -w kernel.unprivileged_userns_clone=1".into());
    }
    if off(LIMIT, "0") {
        return Some("as root: sysctl -w user.max_user_namespaces=15000".into());
    }
    if off(UBUNTU, "1") {
        return Some(UBUNTU_CURE.into());
    }
    match errno {
        // EUSERS up to Linux 4.8, ENOSPC since; for nesting deeper than 32 as well.
        Errno::NOSPC | Errno::USERS => Some(
            "too many namespaces, or nested too deeply; as root: raise \
             user.max_user_namespaces, user.max_net_namespaces, user.max_mnt_namespaces and \
             user.max_pid_namespaces by sysctl -w"
                .into(),
        ),
        Errno::PERM => Some(
            "inside a container: let it make user namespaces (docker and podman: --security-opt \
             seccomp=unconfined, or a profile that allows clone(CLONE_NEWUSER)); inside a chroot: \
             none can be made there"
                .into(),
        ),
        Errno::AGAIN => Some("too many processes of this user: ulimit -u shows the limit".into()),
        Errno::INVAL => {
            Some("this kernel has no user namespaces (CONFIG_USER_NS): use another one".into())
        }
        _ => None,
    }
}

const UBUNTU_CURE: &str = "as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or \
                           give this program an AppArmor profile with the line `userns,`";

fn setup(step: Step, errno: Errno) -> Option<&'static str> {
    let denied = matches!(errno, Errno::PERM | Errno::ACCESS);
    match step {
        // On a restricted Ubuntu the clone goes through, and the first use of a capability fails.
        Step::UidMap if denied && rustix::process::geteuid().is_root() => Some(
            "root without CAP_SETFCAP cannot map itself: run as another user, or inside a \
             container add the capability (--cap-add SETFCAP)",
        ),
        Step::UidMap | Step::GidMap | Step::SetGroups | Step::MountPropagation | Step::Netlink
            if denied =>
        {
            Some(UBUNTU_CURE)
        }
        Step::NetworkNamespace if errno == Errno::NOSPC => {
            Some("too many network namespaces; as root: raise user.max_net_namespaces by sysctl -w")
        }
        Step::CreateVeth if errno == Errno::OPNOTSUPP => Some(
            "this kernel has no veth loaded; as root: modprobe veth (or use a TAP: --link tap)",
        ),
        Step::PacketSocket if errno == Errno::AFNOSUPPORT => {
            Some("this kernel has no AF_PACKET loaded; as root: modprobe af_packet")
        }
        Step::OpenTun if denied => Some(
            "this user may not open the node; as root: chmod 0666 /dev/net/tun (most \
             distributions have it so), or use the veth link, which needs no node",
        ),
        Step::OpenTun if matches!(errno, Errno::NOENT | Errno::NODEV | Errno::NXIO) => Some(
            "there is no TUN driver here; as root: modprobe tun; inside a container: --device \
             /dev/net/tun; or use the veth link, which needs neither",
        ),
        Step::CreateTap if errno == Errno::INVAL => {
            Some("this kernel's TUN driver lacks virtio-net headers or queues: use the veth link")
        }
        Step::PacketSocket | Step::OpenTun | Step::Netlink | Step::NetworkHandle
            if errno == Errno::MFILE =>
        {
            Some("raise the limit of open files: ulimit -n 1024")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_causes_have_cures() {
        let cure = |step, errno: Errno| Error::Setup { step, source: errno.into() }.cure();
        assert!(cure(Step::OpenTun, Errno::ACCESS).unwrap().contains("chmod 0666"));
        assert!(cure(Step::OpenTun, Errno::NOENT).unwrap().contains("modprobe tun"));
        assert!(cure(Step::CreateVeth, Errno::OPNOTSUPP).unwrap().contains("modprobe veth"));
        assert!(cure(Step::GidMap, Errno::PERM).unwrap().contains("apparmor"));
        assert_eq!(cure(Step::Route4, Errno::INVAL), None);
        assert!(Error::Threads { threads: 3 }.cure().unwrap().contains("before"));
        for errno in [Errno::PERM, Errno::NOSPC, Errno::USERS, Errno::INVAL, Errno::AGAIN] {
            let error = Error::Namespaces(errno.into());
            assert!(error.cure().is_some(), "{error:?}");
        }
    }
}
