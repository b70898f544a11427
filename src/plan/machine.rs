//! What this machine has: speed, memory, free disk.

use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use serde::Serialize;

use crate::ops::Var;
use crate::ops::linear::linear;
use crate::{Error, Result, checkpoint};

/// Rows, columns and depth of the product that is timed: about that of a small model's layer on a short batch.
const SIDE: usize = 512;
/// How long the product is repeated.
const TIMED: Duration = Duration::from_millis(50);

/// What a plan must know of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Machine {
    pub threads: usize,
    /// Floating-point operations per second in [`linear`], measured.
    pub speed: f64,
    /// Bytes of memory that are free; absent where the system does not say.
    pub free_memory: Option<u64>,
}

impl Machine {
    /// Looks at this machine; takes about 50 ms.
    pub fn measure() -> Result<Machine> {
        Ok(Machine { threads: rayon::current_num_threads(), speed: speed()?, free_memory: free_memory() })
    }
}

/// The best of several runs: what others do on the machine meanwhile only slows it down.
fn speed() -> Result<f64> {
    let square = || Tensor::ones((SIDE, SIDE), DType::F32, &checkpoint::device()).map(Var::constant);
    let (x, w) = (square()?, square()?);
    let mut best = Duration::MAX;
    let began = Instant::now();
    // The first run also wakes the threads.
    while best == Duration::MAX || began.elapsed() < TIMED {
        let run = Instant::now();
        linear(&x, &w)?;
        best = best.min(run.elapsed());
    }
    Ok(2.0 * (SIDE as f64).powi(3) / best.as_secs_f64().max(1e-9))
}

/// `MemAvailable` of Linux: what can be had without pushing others out.
fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Refuses when what must be written to `folder` does not fit on its disk. What is in the folder already will be
/// replaced, so it counts as free.
pub(super) fn require_disk(folder: &Path, needed: u64) -> Result<()> {
    // Seen from the working directory, a relative path has no folder of its own to ask.
    let existing = folder.ancestors().find(|p| p.exists()).filter(|p| !p.as_os_str().is_empty());
    let existing = existing.unwrap_or(Path::new("."));
    let free = fs4::available_space(existing).map_err(Error::io(existing, "ask for its free space"))?;
    let available = free.saturating_add(size(folder));
    match available >= needed {
        true => Ok(()),
        false => Err(Error::Disk { path: folder.into(), needed, available }),
    }
}

/// Bytes of all files below a folder; links are not followed, and what cannot be read counts as nothing.
fn size(folder: &Path) -> u64 {
    let Ok(entries) = folder.read_dir() else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => size(&entry.path()),
        Ok(found) if found.is_file() => found.len(),
        _ => 0,
    });
    sizes.sum()
}
