//! The machine: what it is, and how busy.

use std::{fs, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};

/// Returns what figures belong to.
pub(super) fn describe() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map(|it| it.1);
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the kernel's release")?;
    Ok(format!("{count} × {}, Linux {}", model.unwrap_or("processor").trim(), kernel.trim()))
}

/// Returns a warning where the machine has something else to do.
pub(super) fn noise() -> Result<Option<String>> {
    let (busy, stolen) = (busy()?, stolen()?);
    sleep(LOOK);
    let busy = (self::busy()? - busy) / LOOK.as_secs_f64();
    let stolen = (self::stolen()? - stolen) / LOOK.as_secs_f64();
    let noisy = busy > NOISY || stolen > NOISY;
    Ok(noisy.then(|| {
        format!(
            "the machine is not quiet: {:.0} % of a processor is busy before anything runs, {:.0} % is taken by its host",
            busy * 100.0,
            stolen * 100.0
        )
    }))
}

/// Returns the processor time that the machine has used since it started, in seconds: everything but idle and waiting.
pub(super) fn busy() -> Result<f64> {
    let times = times()?;
    // user, nice, system, irq, softirq; guests are in user, and what the host took is nobody's here (proc_stat(5)).
    Ok([0, 1, 2, 5, 6].iter().map(|at| times[*at]).sum())
}

fn stolen() -> Result<f64> {
    Ok(times()?[7])
}

fn times() -> Result<[f64; 8]> {
    let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let mut fields = stat.split_whitespace().skip(1).map_while(|field| field.parse::<f64>().ok());
    let mut times = [0.0; 8];
    for time in &mut times {
        // USER_HZ is 100 on every architecture that Linux exports it for.
        *time = fields.next().context("/proc/stat has too few fields")? / 100.0;
    }
    Ok(times)
}

/// For how long is looked.
const LOOK: Duration = Duration::from_secs(2);
/// From which part of a processor on figures suffer.
const NOISY: f64 = 0.05;
