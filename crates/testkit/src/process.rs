//! A look at the process that a test runs in, and signals to its threads.

use std::fs;
use std::io;

use crate::sys::signal;

/// What keeps the C library's allocator (glibc's) from mapping memory for reasons of its own, so that
/// [`Footprint::mapped`] says what is in use: one arena for all threads, which is the heap, and a
/// mapping of its own for every large block. (By default the size from which on a block has one
/// grows with what is freed.) To be in the environment from the start: the first threads settle it.
pub const STEADY_MAPPINGS: (&str, &str) =
    ("GLIBC_TUNABLES", "glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=131072");

/// What a process holds of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Mappings, but for the heap's (`[heap]`), which the allocator grows and shrinks as it likes.
    pub mappings: usize,
    /// Bytes of these mappings.
    pub mapped: usize,
}

impl Footprint {
    /// What this process holds now.
    ///
    /// # Errors
    ///
    /// Where /proc cannot be read.
    pub fn now() -> io::Result<Self> {
        // Whatever reading takes is there each time.
        let maps = fs::read_to_string("/proc/self/maps")?;
        let lens = maps.lines().filter(|line| !line.ends_with("[heap]")).map(mapping_len);
        let (mappings, mapped) = lens.fold((0, 0), |(count, sum), len| (count + 1, sum + len));
        let descriptors = fs::read_dir("/proc/self/fd")?.count();
        Ok(Self {
            descriptors,
            threads: fs::read_dir("/proc/self/task")?.count(),
            mappings,
            mapped,
        })
    }
}

/// The length of a mapping from its line, which starts with `begin-end` in hexadecimal.
fn mapping_len(line: &str) -> usize {
    let range = line.split(' ').next().and_then(|range| range.split_once('-'));
    let number = |text| usize::from_str_radix(text, 16).unwrap_or(0);
    range.map_or(0, |(begin, end)| number(end).saturating_sub(number(begin)))
}

/// The kernel's numbers of this process's threads of that name (15 bytes of it).
///
/// # Errors
///
/// Where /proc cannot be read.
pub fn threads_named(name: &str) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        // A thread may end while we look.
        let comm = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let number = task.file_name().to_str().and_then(|text| text.parse::<i32>().ok());
        found.extend(number.filter(|_| comm.trim_end() == name));
    }
    Ok(found)
}

/// Makes SIGUSR1 interrupt whatever system call it meets (EINTR), in this process and for good.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn interrupt_on_usr1() -> io::Result<()> {
    signal::interrupt_on_usr1()
}

/// Sends SIGUSR1 to a thread of this process; after [`interrupt_on_usr1`].
///
/// # Errors
///
/// Where there is no such thread.
pub fn send_usr1(thread: i32) -> io::Result<()> {
    signal::send_usr1(thread)
}

/// How often SIGUSR1 has interrupted a thread.
pub fn interruptions() -> u64 {
    signal::handled()
}
