//! Keeps the process's memory, and the keys in it, to itself.

use std::io;

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

/// Lets the kernel write no core dump of this process, by either of the two ways to have one, and lets no process of
/// the same user read its memory: who may trace it anyway (root, CAP_SYS_PTRACE) still can.
///
/// # Errors
/// Where the kernel refuses.
pub fn keep_memory_private() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // A core_pattern that pipes to a program is not bound by the limit, where it is not 1 (core(5)).
    prctl::set_dumpable(false)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::getrlimit;

    use super::*;

    /// Of the tests' own process, which nobody needs a core dump of.
    #[test]
    fn neither_limit_nor_flag_allows_a_dump() {
        keep_memory_private().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
        assert!(!prctl::get_dumpable().unwrap());
    }
}
