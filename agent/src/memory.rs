//! What the agent gives back to the node of the memory that it needed once.

#![expect(unsafe_code, reason = "raw library and system calls")]

use std::{fs, io, time::Duration};

/// Gives memory that has been freed back to the kernel (malloc_trim(3)), where the C library is one that keeps it.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has the C library give back what is free at the end of any thread's heap. malloc_trim(3) does that for the first heap
/// alone; of the others it is kept up to a threshold, which glibc raises to twice the largest block that was ever freed
/// (mallopt(3)): the kernel's BTF has several MB.
///
/// A threshold that is set no longer adapts, and neither does the size from which a block is a mapping of its own: a
/// buffer of a bulk transfer would be mapped, faulted in and unmapped for each read, half of the transfer's cost.
pub fn keep_heaps_short() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and may be called by any thread at any time.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, HEAP_THRESHOLD);
        libc::mallopt(libc::M_MMAP_THRESHOLD, HEAP_THRESHOLD);
    }
}

/// Bytes: several times the largest buffer of a connection, a fraction of what an agent needs at all.
#[cfg(target_env = "gnu")]
const HEAP_THRESHOLD: libc::c_int = 1024 * 1024;

/// Lets go of the program's own code now and then, for ever. Most of it ran once, at the start or for a new pod; what runs
/// is mapped again as it is called, from the page cache, some 64 KiB at a time.
pub async fn keep_code_small() {
    loop {
        tokio::time::sleep(CODE_INTERVAL).await;
        if let Err(error) = release_code() {
            tracing::debug!(%error, "the program's code stays mapped");
        }
    }
}

const CODE_INTERVAL: Duration = Duration::from_secs(15);

fn release_code() -> io::Result<()> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let program = fs::read_link("/proc/self/exe")?;
    let program = program.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
    for (start, length) in code(&maps, program) {
        // SAFETY: the mapping is of a file and never written to, so the kernel reads the same bytes again when they are next
        // run. A file that runs cannot be written to (ETXTBSY).
        let result = unsafe {
            libc::madvise(std::ptr::with_exposed_provenance_mut(start), length, libc::MADV_DONTNEED)
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Finds the mappings of the program's code (proc_pid_maps(5)), address and length: private, and executable, so never
/// writable.
fn code(maps: &str, program: &str) -> Vec<(usize, usize)> {
    let address = |text: &str| usize::from_str_radix(text, 16).ok();
    maps.lines()
        .filter_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let path = rest.find('/').map(|at| &rest[at..]);
            let is_code = rest.starts_with("r-xp ") && path == Some(program);
            let (start, end) = (address(start)?, address(end)?);
            is_code.then_some((start, end.checked_sub(start)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_programs_own_code_is_let_go() {
        let maps = "\
            00400000-00500000 r--p 00000000 fe:00 7 /usr/bin/culvert\n\
            00500000-00900000 r-xp 00100000 fe:00 7                  /usr/bin/culvert\n\
            00900000-00a00000 r--p 00500000 fe:00 7 /usr/bin/culvert\n\
            00a00000-00b00000 rw-p 00600000 fe:00 7 /usr/bin/culvert\n\
            7f0000000000-7f0000100000 r-xp 00000000 fe:00 8 /usr/lib/libc.so.6\n\
            7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0 [vdso]\n";
        assert_eq!(code(maps, "/usr/bin/culvert"), [(0x50_0000, 0x40_0000)]);
        assert!(code(maps, "/usr/bin/other").is_empty());
    }

    #[test]
    fn a_program_whose_code_was_let_go_runs_on() {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let program = fs::read_link("/proc/self/exe").unwrap();
        assert!(!code(&maps, program.to_str().unwrap()).is_empty());
        release_code().unwrap();
    }
}
