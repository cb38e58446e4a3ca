//! What the command sees of the file system.
//!
//! Cases that need another /etc or /run than this machine's make them in a sandbox with `--root`,
//! and start the one that is looked at in there.

use crate::runner::{Case, Verdict, Who, text};

pub(crate) const CASES: &[Case] = &[
    ("resolv_conf_is_ours", resolv_conf_is_ours),
    ("resolv_conf_is_a_link", resolv_conf_is_a_link),
    ("resolv_conf_is_a_link_into_a_mask", resolv_conf_is_a_link_into_a_mask),
    ("resolv_conf_is_missing", resolv_conf_is_missing),
    ("resolv_conf_is_a_link_to_nothing", resolv_conf_is_a_link_to_nothing),
    ("hosts_files_are_untouched", hosts_files_are_untouched),
    ("proc_that_cannot_be_mounted", proc_that_cannot_be_mounted),
    ("control_groups_are_kept", control_groups_are_kept),
];

const OURS: &str = "nameserver 10.0.2.3\n";

/// Runs `inner` in a sandbox, in a sandbox where `outer` has been run.
fn nested(who: &Who, outer: &str, inner: &str) -> String {
    who.shell(&["--root"], &format!("set -e\n{outer}\n{} run -- sh -c '{inner}'", who.program()))
}

/// An /etc and a /run of one's own.
const EMPTY: &str = "mount -t tmpfs none /run; mount -t tmpfs none /etc";

fn resolv_conf_is_ours(who: &Who) -> Verdict {
    let seen = who.shell(&[], "cat /etc/resolv.conf");
    assert!(seen.starts_with(OURS) && seen.matches("nameserver").count() == 1, "{seen}");
    let script = "echo x >/etc/resolv.conf 2>/dev/null || echo read-only";
    assert_eq!(who.shell(&[], script), "read-only\n");
    // With a mask that lets nobody else read what we make.
    let script = format!("umask 077; exec {} run -- stat -c %a /etc/resolv.conf", who.program());
    assert_eq!(who.shell(&["--root"], &script), "644\n");
    Verdict::Passed
}

fn resolv_conf_is_a_link(who: &Who) -> Verdict {
    let outer = format!(
        "{EMPTY}; mkdir /run/resolvconf; echo beside >/run/resolvconf/beside; \
         printf 'nameserver 192.0.2.1\\nsearch a.example\\n' >/run/resolvconf/real; \
         ln -s real /run/resolvconf/resolv.conf; \
         ln -s ../run/resolvconf/resolv.conf /etc/resolv.conf"
    );
    let inner = "cat /etc/resolv.conf /run/resolvconf/beside; readlink /etc/resolv.conf";
    let expected = format!("{OURS}search a.example\nbeside\n../run/resolvconf/resolv.conf\n");
    assert_eq!(nested(who, &outer, inner), expected);
    Verdict::Passed
}

fn resolv_conf_is_a_link_into_a_mask(who: &Who) -> Verdict {
    let outer = format!(
        "{EMPTY}; mkdir -p /run/systemd/resolve/deeper /run/nscd; \
         touch /run/systemd/resolve/io.systemd.Resolve /run/nscd/socket; \
         echo 'options edns0' >/run/systemd/resolve/deeper/stub-resolv.conf; \
         ln -s ../run/systemd/resolve/deeper/stub-resolv.conf /etc/resolv.conf"
    );
    let inner = "cat /etc/resolv.conf; ls /run/nscd /run/systemd/resolve; \
                 touch /run/nscd/socket 2>/dev/null || echo read-only";
    let expected =
        format!("{OURS}options edns0\n/run/nscd:\n\n/run/systemd/resolve:\ndeeper\nread-only\n");
    assert_eq!(nested(who, &outer, inner), expected);
    Verdict::Passed
}

/// An /etc with a file, a directory, a mount, a link.
const FURNISHED: &str = "echo host >/etc/hostname; mkdir -p /etc/deep/er /etc/mounted; \
                         echo file >/etc/deep/er/file; ln -s deep/er/file /etc/link; \
                         mount -t tmpfs none /etc/mounted; echo m >/etc/mounted/m; \
                         chmod 700 /etc/deep";
const SEEN: &str = "cat /etc/resolv.conf /etc/hostname /etc/link /etc/mounted/m; \
                    readlink /etc/link; ls /etc; stat -c %a /etc/deep; \
                    touch /etc/x 2>/dev/null || echo read-only";
const EXPECTED: &str = "nameserver 10.0.2.3\nhost\nfile\nm\ndeep/er/file\n\
                        deep\nhostname\nlink\nmounted\nresolv.conf\n700\nread-only\n";

fn resolv_conf_is_missing(who: &Who) -> Verdict {
    assert_eq!(nested(who, &format!("{EMPTY}; {FURNISHED}"), SEEN), EXPECTED);
    Verdict::Passed
}

fn resolv_conf_is_a_link_to_nothing(who: &Who) -> Verdict {
    let outer = format!("{EMPTY}; {FURNISHED}; ln -s /run/no/such/file /etc/resolv.conf");
    assert_eq!(nested(who, &outer, SEEN), EXPECTED);
    // To a file that does not exist yet, in a directory that does, and is masked.
    let outer = format!(
        "{EMPTY}; mkdir -p /run/systemd/resolve; \
         ln -s /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf"
    );
    assert_eq!(nested(who, &outer, "cat /etc/resolv.conf"), OURS);
    Verdict::Passed
}

fn hosts_files_are_untouched(who: &Who) -> Verdict {
    let look = || {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        (mounts, std::fs::read("/etc/resolv.conf").ok())
    };
    let before = look();
    who.shell(&[], "true");
    assert!(look() == before);
    Verdict::Passed
}

fn proc_that_cannot_be_mounted(who: &Who) -> Verdict {
    // Partly hidden, as in a container: the kernel then refuses a fresh one.
    let outer = "mount -t tmpfs none /proc/tty; mount -t tmpfs none /sys/kernel";
    let script = format!("set -e; {outer}; {} run -- sh -c 'exit 7'", who.program());
    let output = who.command(&["--root"], &["sh", "-c", &script]).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("note: /proc could not be mounted"), "{said}");
    assert!(said.contains("note: /sys could not be mounted"), "{said}");
    Verdict::Passed
}

fn control_groups_are_kept(who: &Who) -> Verdict {
    let list = |directory: &str| {
        std::fs::read_dir(directory).map(|entries| entries.count()).unwrap_or_default()
    };
    let inside = who.shell(&[], "ls -A /sys/fs/cgroup 2>/dev/null | wc -l");
    assert_eq!(inside.trim(), list("/sys/fs/cgroup").to_string());
    Verdict::Passed
}
