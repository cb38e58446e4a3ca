//! Where the numbers come from: a figure without its machine says nothing.

use std::fmt;
use std::fs;

use serde::Serialize;

/// The machine.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Place {
    /// The kernel's release.
    pub(crate) kernel: String,
    /// What the processor calls itself.
    pub(crate) cpu: String,
    /// How many processors this program may use.
    pub(crate) cores: usize,
    /// How the host's TCP controls congestion; the sandbox sets its own.
    pub(crate) congestion_control: String,
}

impl Place {
    /// This machine.
    pub(crate) fn here() -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").ok().as_deref().and_then(model);
        Self {
            kernel: setting("kernel/osrelease"),
            congestion_control: setting("net/ipv4/tcp_congestion_control"),
            // aarch64 kernels name no model.
            cpu: cpu.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, cpu, cores, congestion_control } = self;
        let s = if *cores == 1 { "" } else { "s" };
        write!(
            f,
            "Linux {kernel}, {cpu}, {cores} core{s}, TCP {congestion_control} on the host, reno in the sandbox"
        )
    }
}

/// What the kernel says of itself.
fn setting(name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
    let text = text.trim();
    if text.is_empty() { "unknown".to_owned() } else { text.to_owned() }
}

/// The model of the first processor in /proc/cpuinfo, its spaces made single.
fn model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    let (_, name) = line.split_once(':')?;
    let words: Vec<_> = name.split_whitespace().collect();
    (!words.is_empty()).then(|| words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_read() {
        let text = "processor\t: 0\nmodel name\t: AMD  EPYC 7B13 \nflags\t: fpu\n";
        assert_eq!(model(text).as_deref(), Some("AMD EPYC 7B13"));
        assert_eq!(model("processor\t: 0\nBogoMIPS\t: 243.75\n"), None);
    }

    #[test]
    fn it_is_one_line() {
        let place = Place {
            kernel: "6.18.1".into(),
            cpu: "A CPU".into(),
            cores: 1,
            congestion_control: "cubic".into(),
        };
        assert_eq!(
            place.to_string(),
            "Linux 6.18.1, A CPU, 1 core, TCP cubic on the host, reno in the sandbox"
        );
        assert!(Place::here().cores >= 1);
    }
}
