//! The `culvert` binary.

use std::process::ExitCode;

use clap::Parser as _;
use culvert::cli::{Cli, cni};

fn main() -> ExitCode {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    keep_to_own_name_service();
    if cni::is_called(std::env::args_os().next().as_deref()) {
        return cni::run();
    }
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("culvert: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Has names of hosts looked up by what is linked in: /etc/hosts and DNS.
///
/// A program without libraries would still load those that the machine's nsswitch.conf names (nss(5)), made for the machine's
/// glibc, which is another one than its own.
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
#[expect(unsafe_code, reason = "a function of glibc that no crate has")]
fn keep_to_own_name_service() {
    use std::ffi::{c_char, c_int};

    // SAFETY: as <nss.h> declares it.
    unsafe extern "C" {
        fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
    }
    // SAFETY: both are strings with an end, and there is no other thread yet. Where it fails, nsswitch.conf counts.
    unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
}
