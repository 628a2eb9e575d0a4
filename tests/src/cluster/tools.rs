//! The programs that a cluster consists of, and where `cargo xtask setup` puts them: into the cache, never into the system.
//!
//! Kubernetes itself is one program built from `tests/kubernetes`; containerd, runc and the CNI plugins are Debian's
//! packages, unpacked.

use std::{
    ffi::OsString,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

/// The variable by which the tasks say where the cache is: `sudo` changes the home directory.
pub const CACHE_VARIABLE: &str = "CULVERT_CACHE";

/// The names by which the one program is started.
pub const KUBERNETES: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
];

/// The version of Kubernetes that `tests/kubernetes/go.mod` requires. The program would not know it by itself.
const VERSION: &str = "v1.36.3";

/// Debian's packages that are unpacked.
pub const PACKAGES: [&str; 3] = ["containerd", "runc", "containernetworking-plugins"];

/// What is built with `go install`: name, module and version.
pub const GO_PROGRAMS: [(&str, &str, &str); 3] = [
    ("helm", "helm.sh/helm/v3/cmd/helm", "v3.21.4"),
    ("coredns", "github.com/coredns/coredns", "v1.14.7"),
    ("cnitool", "github.com/containernetworking/cni/cnitool", "v1.3.1"),
];

/// The plugins that a node's network consists of.
pub(crate) const PLUGINS: [&str; 5] = ["bridge", "host-local", "loopback", "portmap", "ptp"];

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Tools {
    cache: PathBuf,
}

impl Tools {
    /// Those of the cache in this folder, whether they are there or not.
    pub fn of(cache: &Path) -> Self {
        Self { cache: cache.to_owned() }
    }

    /// Finds the programs in the cache that the environment names.
    ///
    /// # Errors
    /// Where one of them is missing; `cargo xtask setup` brings it.
    pub fn find() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let cache = match (variable(CACHE_VARIABLE), variable("XDG_CACHE_HOME")) {
            (Some(cache), _) => PathBuf::from(cache),
            (None, Some(base)) => PathBuf::from(base).join("culvert"),
            (None, None) => std::env::home_dir().context("no home directory")?.join(".cache/culvert"),
        };
        let tools = Self::of(&cache);
        let mut needed = vec![tools.kubernetes("kubelet"), tools.coredns()];
        needed.extend(PACKAGES.map(|package| tools.package(package)));
        for path in needed {
            ensure!(path.exists(), "{} is not there: `cargo xtask setup` brings it", path.display());
        }
        Ok(tools)
    }

    /// The folder of Kubernetes' one program. Its name follows from the sources, so that others are never taken for it.
    pub fn kubernetes_folder(&self) -> PathBuf {
        let mut hash = Sha256::new();
        for source in [MAIN, SUMS, &self.kubernetes_link_flags()] {
            hash.update(source);
        }
        let mut key = String::new();
        for byte in &hash.finalize()[..8] {
            // Writing to a string does not fail.
            let _ = write!(key, "{byte:02x}");
        }
        self.cache.join("kubernetes").join(key)
    }

    /// What `go build` is to tell the linker about Kubernetes' one program: no debug information, and the version.
    pub fn kubernetes_link_flags(&self) -> String {
        let mut numbers = VERSION.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        let package = "k8s.io/component-base/version";
        format!(
            "-s -w -X {package}.gitVersion={VERSION} -X {package}.gitMajor={major} -X {package}.gitMinor={minor} \
             -X {package}.gitTreeState=clean -X {package}.gitCommit=unknown -X {package}.buildDate=1970-01-01T00:00:00Z"
        )
    }

    /// One of [`KUBERNETES`].
    pub fn kubernetes(&self, name: &str) -> PathBuf {
        self.kubernetes_folder().join(name)
    }

    /// The folder into which one of [`PACKAGES`] is unpacked.
    pub fn package(&self, name: &str) -> PathBuf {
        self.cache.join(name)
    }

    /// The folder of one of [`GO_PROGRAMS`], which holds the program by its name.
    pub fn go_program_folder(&self, name: &str) -> PathBuf {
        let version =
            GO_PROGRAMS.iter().find(|(known, ..)| *known == name).map_or("", |(.., version)| version);
        self.cache.join(format!("{name}-{version}"))
    }

    /// Helm.
    pub fn helm(&self) -> PathBuf {
        self.go_program_folder("helm").join("helm")
    }

    /// The cluster's DNS.
    pub(crate) fn coredns(&self) -> PathBuf {
        self.go_program_folder("coredns").join("coredns")
    }

    /// cnitool.
    pub fn cnitool(&self) -> PathBuf {
        self.go_program_folder("cnitool").join("cnitool")
    }

    pub(crate) fn containerd(&self) -> PathBuf {
        self.package("containerd").join("usr/bin/containerd")
    }

    pub(crate) fn ctr(&self) -> PathBuf {
        self.package("containerd").join("usr/bin/ctr")
    }

    pub(crate) fn runc(&self) -> PathBuf {
        self.package("runc").join("usr/sbin/runc")
    }

    pub(crate) fn plugin(&self, name: &str) -> PathBuf {
        self.package("containernetworking-plugins").join("usr/lib/cni").join(name)
    }

    /// Where the cluster's programs look for others: these first, then the system's.
    pub(crate) fn path(&self) -> OsString {
        let mut path = OsString::new();
        for folder in [
            self.kubernetes_folder(),
            self.package("containerd").join("usr/bin"),
            self.package("runc").join("usr/sbin"),
        ] {
            path.push(folder);
            path.push(":");
        }
        path.push("/usr/sbin:/usr/bin:/sbin:/bin");
        path
    }

    /// Gives a program of the cluster the environment that it needs, and nothing of this process's: a proxy that is
    /// meant for downloads would be asked for the way to a kubelet.
    pub(crate) fn equip(&self, command: &mut Command) {
        command.env_clear().env("PATH", self.path()).env("HOME", "/root").env("LANG", "C.UTF-8");
    }
}

/// The sources of Kubernetes' one program.
const MAIN: &str = include_str!("../../kubernetes/main.go");
const SUMS: &str = include_str!("../../kubernetes/go.sum");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_is_built() {
        let required = include_str!("../../kubernetes/go.mod");
        assert!(
            required.lines().any(|line| line.trim() == format!("k8s.io/kubernetes {VERSION}")),
            "{VERSION}"
        );
        let flags = Tools::of(Path::new("/")).kubernetes_link_flags();
        assert!(flags.contains("gitVersion=v1.36.3") && flags.contains("gitMinor=36"), "{flags}");
    }
}
