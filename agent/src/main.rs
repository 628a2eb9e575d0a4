//! The `culvert` binary.

use std::process::ExitCode;

use clap::Parser as _;
use culvert::cli::{Cli, cni};

fn main() -> ExitCode {
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
