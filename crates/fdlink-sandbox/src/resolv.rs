//! Name resolution inside: `/etc/resolv.conf`, and no way around it.
//!
//! # Theory of operation
//!
//! The host's files are not touched: ours are in tmpfs mounts that only the new mount namespace
//! has, read-only when done. Where `/etc/resolv.conf` leads decides how ours gets there:
//!
//! | it is | what is done |
//! |---|---|
//! | a file, or a link to one | a file of ours is bind-mounted over the one at the end |
//! | the same, below a directory that is masked (next paragraph) | ours is put into the mask |
//! | missing, or a link to nothing | nothing can be mounted over nothing, so `/etc` becomes a tmpfs with every old entry bind-mounted to its place, links copied, and ours added |
//!
//! glibc also asks resolvers by socket: nscd, systemd-resolved (nss-resolve), avahi (nss-mdns). A
//! socket in the file system crosses network namespaces, and its owner would ask outside. Their
//! directories get an empty tmpfs each; glibc then finds nobody and goes on to `resolv.conf`.
//!
//! `search`, `domain` and `options` lines of the host's file are kept: they are about names, not
//! about whom to ask.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{
        MountFlags, MoveMountFlags, UnmountFlags, mount, mount_remount, move_mount, open_tree,
        unmount,
    },
};

use crate::mounts::{COPY, PLAIN};

const ETC: &str = "/etc";
const NAME: &str = "resolv.conf";

/// Directories with the sockets of resolvers outside.
const MASKED: [&str; 4] =
    ["/run/nscd", "/var/run/nscd", "/run/systemd/resolve", "/run/avahi-daemon"];

/// Puts our `resolv.conf` in place and masks other ways to resolve names.
pub(crate) fn set_up(resolvers: &[IpAddr], notes: &mut Vec<String>) {
    let path = Path::new(ETC).join(NAME);
    let host = fs::read(&path).unwrap_or_default();
    let content = content(&String::from_utf8_lossy(&host), resolvers);
    let target = target(&path);
    let masked = mask_sockets(&target, &content, notes);
    let result = match &target {
        Target::File(file) | Target::Nothing(Some(file)) if masked.contains_parent_of(file) => {
            Ok(())
        }
        Target::File(file) => bind_over(file, &content),
        Target::Nothing(_) => rebuild_etc(&content),
    };
    if let Err(error) = result {
        notes.push(format!(
            "{} could not be replaced ({error}): the command sees the host's, and its name servers \
             may not be reachable",
            path.display()
        ));
    }
}

/// What `/etc/resolv.conf` is, links followed.
#[derive(Debug)]
enum Target {
    File(PathBuf),
    /// Where a link leads, when at least the directory exists.
    Nothing(Option<PathBuf>),
}

fn target(path: &Path) -> Target {
    if let Ok(file) = fs::canonicalize(path) {
        return Target::File(file);
    }
    let leads_to = fs::read_link(path).ok().and_then(|link| {
        let link = path.parent()?.join(link);
        Some(fs::canonicalize(link.parent()?).ok()?.join(link.file_name()?))
    });
    Target::Nothing(leads_to)
}

fn content(host: &str, resolvers: &[IpAddr]) -> String {
    let kept = |line: &&str| {
        let word = line.split_ascii_whitespace().next();
        matches!(word, Some("search" | "domain" | "options"))
    };
    let mut content: String =
        resolvers.iter().map(|resolver| format!("nameserver {resolver}\n")).collect();
    for line in host.lines().filter(kept) {
        content.push_str(line);
        content.push('\n');
    }
    content
}

/// The directories that were masked.
struct Masked(Vec<PathBuf>);

impl Masked {
    fn contains_parent_of(&self, file: &Path) -> bool {
        self.0.iter().any(|directory| file.starts_with(directory))
    }
}

fn mask_sockets(target: &Target, content: &str, notes: &mut Vec<String>) -> Masked {
    let mut masked = Masked(Vec::new());
    for directory in MASKED {
        // Under their real names, once: /var/run is a link to /run nearly everywhere.
        let Ok(directory) = fs::canonicalize(directory) else { continue };
        if !directory.is_dir() || masked.0.contains(&directory) {
            continue;
        }
        let file = match target {
            Target::File(file) | Target::Nothing(Some(file)) if file.starts_with(&directory) => {
                Some(file)
            }
            _ => None,
        };
        match mask(&directory, file.map(|f| (f.as_path(), content))) {
            Ok(()) => masked.0.push(directory),
            Err(error) => notes.push(format!(
                "{} could not be hidden ({error}): names may be resolved outside",
                directory.display()
            )),
        }
    }
    masked
}

/// An empty read-only tmpfs over `directory`, or one with a single file in it.
fn mask(directory: &Path, file: Option<(&Path, &str)>) -> io::Result<()> {
    mount_tmpfs(directory)?;
    if let Some((path, content)) = file {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        write_file(path, content)?;
    }
    make_read_only(directory)
}

/// Mounts a file of ours over `file`.
fn bind_over(file: &Path, content: &str) -> io::Result<()> {
    let parent = file.parent().unwrap_or_else(|| Path::new("/"));
    // A tmpfs has to be somewhere while the file is made and a copy of its mount taken: over the
    // directory of the file itself, which is sure to exist. Nobody else sees this namespace.
    mount_tmpfs(parent)?;
    let ours = write_file(file, content).and_then(|()| Ok(open_tree(CWD, file, COPY)?));
    unmount(parent, UnmountFlags::DETACH)?;
    move_mount(ours?, "", CWD, file, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    make_read_only(file)
}

/// Makes `/etc` a tmpfs that has everything the old one has, and our file.
fn rebuild_etc(content: &str) -> io::Result<()> {
    let etc = Path::new(ETC);
    // Stays the old directory after something is mounted over it.
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let old = rustix::fs::open(etc, flags, Mode::empty())?;
    let entries = fs::read_dir(etc)?.collect::<io::Result<Vec<_>>>()?;
    mount_tmpfs(etc)?;
    let result = (|| {
        for entry in entries {
            let name = entry.file_name();
            if name != NAME {
                take_over(&old, &name, entry.file_type()?, &etc.join(&name))?;
            }
        }
        write_file(&etc.join(NAME), content)?;
        make_read_only(etc)
    })();
    if result.is_err() {
        // Rather the old one than half of it.
        unmount(etc, UnmountFlags::DETACH)?;
    }
    result
}

/// Makes `new` what `name` in `old` is: a copy of a link, a mount of anything else.
fn take_over(
    old: &impl std::os::fd::AsFd,
    name: &std::ffi::OsStr,
    kind: fs::FileType,
    new: &Path,
) -> io::Result<()> {
    if kind.is_symlink() {
        let link = rustix::fs::readlinkat(old, name, Vec::new())?;
        return Ok(rustix::fs::symlink(link, new)?);
    }
    if kind.is_dir() {
        fs::create_dir(new)?;
    } else {
        File::create_new(new)?;
    }
    let mounted = open_tree(old, name, COPY)?;
    Ok(move_mount(mounted, "", CWD, new, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

fn mount_tmpfs(directory: &Path) -> io::Result<()> {
    // A megabyte is for the inodes of a rebuilt /etc; the one file of ours is one page.
    Ok(mount("tmpfs", directory, "tmpfs", PLAIN, Some(c"mode=0755,size=1m"))?)
}

fn make_read_only(path: &Path) -> io::Result<()> {
    let flags = PLAIN | MountFlags::RDONLY | MountFlags::BIND;
    Ok(mount_remount(path, flags, c"")?)
}

/// A file that everybody may read, whatever the umask.
fn write_file(path: &Path, content: &str) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(content.as_bytes())?;
    file.set_permissions(Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_name_servers_are_replaced_and_its_domains_kept() {
        let host = "# comment\nnameserver 192.0.2.1\nsearch a.example b.example\n\
                    nameserver 2001:db8::1\noptions edns0 trust-ad\nsortlist 10/8\n";
        let ours = content(host, &["10.0.2.3".parse().unwrap(), "fd00:fd::3".parse().unwrap()]);
        assert_eq!(
            ours,
            "nameserver 10.0.2.3\nnameserver fd00:fd::3\n\
             search a.example b.example\noptions edns0 trust-ad\n"
        );
        assert_eq!(content("", &[]), "");
    }

    #[test]
    fn links_to_nothing_are_followed_as_far_as_they_lead() {
        let directory = std::env::temp_dir().join(format!("fdlink-resolv-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let (file, link) = (directory.join("file"), directory.join("link"));
        assert!(matches!(target(&link), Target::Nothing(None)));
        std::os::unix::fs::symlink("file", &link).unwrap();
        let real = fs::canonicalize(&directory).unwrap().join("file");
        assert!(matches!(target(&link), Target::Nothing(Some(t)) if t == real));
        fs::write(&file, "").unwrap();
        assert!(matches!(target(&link), Target::File(t) if t == real));
        fs::remove_dir_all(&directory).unwrap();
    }
}
