//! What a process uses, by proc_pid(5). Of one that is gone it is nothing.

use std::{fs, time::Duration};

/// The resident memory of a process in bytes.
pub fn rss(pid: u32) -> u64 {
    status_field(pid, "VmRSS:") * 1024
}

/// What of that is the process's own, in bytes: neither its program nor other files, which come and go with what it runs.
pub fn own_memory(pid: u32) -> u64 {
    status_field(pid, "RssAnon:") * 1024
}

/// The processor time that a process has used, in user space and in the kernel.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Fields 14 and 15 of proc_pid_stat(5); the name in brackets before them may hold spaces.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 =
        after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on every architecture that Linux exports it for.
    Duration::from_millis(ticks * 10)
}

/// The threads of a process.
pub(crate) fn threads(pid: u32) -> u64 {
    status_field(pid, "Threads:")
}

fn status_field(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}
