//! On what it was measured: figures without that mean nothing.

use std::{fmt, fs, path::Path, thread};

use serde_json::{Value, json};

pub struct Machine {
    kernel: String,
    processor: String,
    processors: usize,
    memory_gib: f64,
    /// Of the last minute, before the first measurement.
    load: f64,
    directory: String,
    file_system: String,
}

impl Machine {
    /// Describes this machine, and the file system of the directory.
    pub fn describe(directory: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map_or("", |(_, value)| value.trim()).to_owned()
        };
        let kibibytes = field(&read("/proc/meminfo"), "MemTotal");
        let kibibytes = kibibytes.split(' ').next().and_then(|number| number.parse::<f64>().ok());
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: field(&read("/proc/cpuinfo"), "model name"),
            processors: thread::available_parallelism().map_or(1, Into::into),
            memory_gib: kibibytes.unwrap_or(0.0) / f64::from(1 << 20),
            load: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            directory: directory.display().to_string(),
            file_system: file_system(directory),
        }
    }

    pub fn json(&self) -> Value {
        json!({
            "kernel": self.kernel,
            "processor": self.processor,
            "processors": self.processors,
            "memory_gib": self.memory_gib,
            "load_before": self.load,
            "directory": self.directory,
            "file_system": self.file_system,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, processor, processors, memory_gib, load, directory, file_system } = self;
        writeln!(f, "Linux {kernel}, {processors} × {processor}, {memory_gib:.0} GiB")?;
        write!(f, "stores in {directory} ({file_system})")?;
        if *load > 0.3 {
            write!(f, "\nthe machine is busy (load {load:.1}): read ratios, not times")?;
        }
        Ok(())
    }
}

/// The type of the file system: the longest mount point that leads to the directory.
fn file_system(directory: &Path) -> String {
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut best = (0, "unknown");
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        if let (Some(point), Some(kind)) = (words.next(), words.next())
            && directory.starts_with(point)
            && point.len() >= best.0
        {
            best = (point.len(), kind);
        }
    }
    best.1.to_owned()
}
