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
}

impl Place {
    /// This machine.
    pub(crate) fn here() -> Self {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let kernel = match kernel.trim() {
            "" => "of unknown release",
            release => release,
        };
        let cpu = fs::read_to_string("/proc/cpuinfo").ok().as_deref().and_then(model);
        Self {
            kernel: kernel.to_owned(),
            // aarch64 kernels name no model.
            cpu: cpu.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, cpu, cores } = self;
        write!(f, "Linux {kernel}, {cpu}, {cores} core{}", if *cores == 1 { "" } else { "s" })
    }
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
        let place = Place { kernel: "6.18.1".into(), cpu: "A CPU".into(), cores: 1 };
        assert_eq!(place.to_string(), "Linux 6.18.1, A CPU, 1 core");
        assert!(Place::here().cores >= 1);
    }
}
