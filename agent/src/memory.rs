//! What the agent gives back to the node of the memory that it needed once.

#![expect(unsafe_code, reason = "raw library and system calls")]

use std::{io, ops::Range, ptr, time::Duration};

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

/// Lets go of the program's own code and constants now and then, for ever. Most of them served once, at the start or for a
/// new pod; what is needed again is mapped again from the page cache, some 64 KiB at a time.
pub async fn keep_program_small() {
    let mut pause = START;
    loop {
        tokio::time::sleep(pause).await;
        pause = INTERVAL;
        if let Err(error) = release_program() {
            tracing::debug!(%error, "the program stays mapped");
        }
    }
}

/// When the start is over, on a node with few pods.
const START: Duration = Duration::from_secs(3);

const INTERVAL: Duration = Duration::from_secs(15);

fn release_program() -> io::Result<()> {
    for Range { start, end } in read_only_segments() {
        // SAFETY: these pages are of a file, and nobody can have written to them, so the kernel reads the same bytes again
        // when they are next used. A file that runs cannot be written to either (ETXTBSY). What a debugger wrote there,
        // its breakpoints, is lost; uprobes are put back by the kernel as it maps a page.
        let result = unsafe {
            libc::madvise(ptr::with_exposed_provenance_mut(start), end - start, libc::MADV_DONTNEED)
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Finds where the segments of the program lie that were never writable (elf(5): without `PF_W`). What is read-only only
/// since it was relocated (RELRO) is part of a writable one.
fn read_only_segments() -> Vec<Range<usize>> {
    let mut segments = Vec::new();
    // SAFETY: the callback takes `segments` for what it is, and is called before this returns.
    unsafe { libc::dl_iterate_phdr(Some(collect), ptr::from_mut(&mut segments).cast()) };
    segments
}

/// Called for each object that is loaded, the program first (dl_iterate_phdr(3)): after that one it wants no more.
unsafe extern "C" fn collect(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    segments: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the C library gives a valid object, and what `read_only_segments` gave it.
    let (object, segments) = unsafe { (&*object, &mut *segments.cast::<Vec<Range<usize>>>()) };
    // SAFETY: as many headers as it says, which live as long as the object.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
    let read_only =
        headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    segments.extend(read_only.filter_map(|header| {
        let start = usize::try_from(object.dlpi_addr.checked_add(header.p_vaddr)?).ok()?;
        let end = start.checked_add(usize::try_from(header.p_memsz).ok()?)?;
        // A segment's mapping is of whole pages, which it shares with no other.
        Some(start / PAGE * PAGE..end.next_multiple_of(PAGE))
    }));
    1
}

/// The smallest page of x86-64 and arm64; where pages are larger, a range that is not of whole ones is refused (EINVAL).
const PAGE: usize = 4096;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_let_go_is_mapped_from_the_program_and_was_never_written_to() {
        let program = fs::read_link("/proc/self/exe").unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let segments = read_only_segments();
        assert!(!segments.is_empty());
        for Range { start, .. } in segments {
            let mapping = maps.lines().find(|line| line.starts_with(&format!("{start:x}-"))).unwrap();
            assert!(mapping.ends_with(program.to_str().unwrap()), "{mapping}");
            assert_eq!(mapping.as_bytes()[mapping.find(' ').unwrap() + 2], b'-', "writable: {mapping}");
        }
    }

    #[test]
    fn a_program_that_was_let_go_of_runs_on() {
        release_program().unwrap();
        assert_eq!(format!("{:?}", Duration::from_millis(1500)), "1.5s");
    }
}
