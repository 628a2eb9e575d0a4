//! Compiles `agent-ebpf` for the kernel; the object ends up in `OUT_DIR`, where `capture` includes it.

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-env-changed=CULVERT_BPF_TOOLCHAIN");
    // `cargo xtask setup` picks the toolchain and links it under this name.
    let toolchain = std::env::var("CULVERT_BPF_TOOLCHAIN").unwrap_or_else(|_| "bpf".to_owned());
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent-ebpf");
    aya_build::build_ebpf(
        [Package { name: "agent-ebpf", root_dir, ..Default::default() }],
        Toolchain::Custom(&toolchain),
    )
    .context("building agent-ebpf failed; `cargo xtask setup` installs what it needs")
}
