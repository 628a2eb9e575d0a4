//! Debian packages: which, why, and installing them without starting a service.

use std::{collections::HashSet, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::Purpose;
use crate::command::{self, Root};

/// Packages that serve one end.
pub(super) struct Group {
    pub(super) why: &'static str,
    pub(super) packages: &'static [&'static str],
}

/// What is needed whatever compiler and linker there are, and the first purpose that needs it.
pub(super) const GROUPS: &[(Purpose, Group)] = &[
    (
        Purpose::Build,
        Group {
            why: "a C compiler, linker and libc, for Rust itself, for aws-lc (TLS), and to be linked into the agent",
            packages: &["gcc", "g++", "libc6-dev", "make", "ca-certificates", "git"],
        },
    ),
    (
        Purpose::Demo,
        Group {
            why: "network namespaces, and what is inside them: the tests and the demo",
            packages: &["iproute2", "iputils-ping", "procps", "util-linux", "tcpdump", "bpftool", "iptables"],
        },
    ),
    (
        Purpose::Demo,
        Group {
            why: "real programs for the tests and the demo to send through the mesh; none is started as a service",
            packages: &["nginx-light", "redis-server", "redis-tools", "iperf3", "curl", "openssl", "python3"],
        },
    ),
    (
        Purpose::Cluster,
        Group {
            why: "a cluster: services, runc's filter of system calls, modules of the kernel's",
            packages: &["nftables", "libseccomp2", "kmod"],
        },
    ),
    (
        Purpose::Test,
        Group {
            why: "an HBONE peer that shares no code with the agent, for the tests (tests/peers)",
            packages: &["python3-h2"],
        },
    ),
    (
        Purpose::Test,
        Group {
            why: "virtual machines with stock kernels, to run the eBPF suite in",
            packages: &["qemu-system-x86", "busybox-static", "xz-utils"],
        },
    ),
];

/// Installs what is missing of `groups`, as root. Returns whether anything was.
pub(super) fn install_missing(groups: &[&Group]) -> Result<bool> {
    let present = installed()?;
    let mut missing: Vec<&&str> = Vec::new();
    for group in groups {
        let lacking: Vec<_> = group.packages.iter().filter(|package| !present.contains(**package)).collect();
        if lacking.is_empty() {
            continue;
        }
        if missing.is_empty() {
            println!("setup: these Debian packages are missing and will be installed:");
        }
        println!("  {}\n    for {}", join(&lacking), group.why);
        missing.extend(lacking);
    }
    if missing.is_empty() {
        return Ok(false);
    }
    let root = Root::acquire("installing Debian packages")?;
    let mut script = root.command("sh", &[("DEBIAN_FRONTEND", "noninteractive")]);
    script.args(["-euc", INSTALL, "sh"]).args(&missing);
    command::run(&mut script).context("installing Debian packages")?;
    let present = installed()?;
    let lacking: Vec<_> = missing.into_iter().filter(|package| !present.contains(**package)).collect();
    ensure!(lacking.is_empty(), "apt-get reports success, and yet {} is not installed", join(&lacking));
    Ok(true)
}

/// Returns the names of the packages that are installed.
fn installed() -> Result<HashSet<String>> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${db:Status-Status} ${Package}\n"]);
    let listed = command::output(&mut query)
        .context("this is not a Debian: install the packages listed in xtask/src/setup by your own means")?;
    Ok(listed.lines().filter_map(|line| line.strip_prefix("installed ")).map(str::to_owned).collect())
}

fn join(packages: &[&&str]) -> String {
    packages.iter().map(|package| **package).collect::<Vec<_>>().join(" ")
}

/// Installs its arguments. A `policy-rc.d` that forbids it keeps the packages from starting servers (nginx, redis) now, and
/// disabling what these packages enable keeps them from starting at the next boot. Neither touches a server that was
/// installed before: only packages that were missing are arguments here. apt's lists are renewed first, because
/// the compiler lies in Debian's security archive, where old versions vanish.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    echo "setup: $policy forbids the new packages to start servers while they are being installed"
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
apt-get update -qq
echo "setup: installing; this can take some minutes"
apt-get install --yes --no-install-recommends -qq -o Dpkg::Use-Pty=0 "$@" > /dev/null
if command -v systemctl > /dev/null; then
    for package in "$@"; do
        case "$package" in
            nginx-light) systemctl disable --quiet nginx.service || true ;;
            redis-server) systemctl disable --quiet redis-server.service || true ;;
            iperf3) systemctl disable --quiet iperf3.service || true ;;
        esac
    done
fi
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_package_is_listed_twice() {
        let mut seen = HashSet::new();
        for package in GROUPS.iter().flat_map(|(_, group)| group.packages) {
            assert!(seen.insert(package), "{package} is listed twice");
        }
    }
}
