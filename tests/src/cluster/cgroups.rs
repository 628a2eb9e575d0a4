//! The cgroups of nodes: one for each node at the top of every hierarchy, in which its kubelet keeps its pods.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::wait::try_eventually;

/// Makes a node's cgroup in every hierarchy.
pub(crate) fn create(node: &str) -> Result<()> {
    let roots = roots()?;
    if let [only] = roots.as_slice() {
        hand_down_controllers(only)?;
    }
    for root in roots {
        let cgroup = root.join(node);
        fs::create_dir_all(&cgroup).with_context(|| format!("making {}", cgroup.display()))?;
        // Of the first version: a cgroup without processors and memory takes no process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if root.join("cpuset.sched_load_balance").exists() {
                fs::copy(root.join(file), cgroup.join(file))
                    .with_context(|| format!("copying {file} into {}", cgroup.display()))?;
            }
        }
    }
    Ok(())
}

/// Lets the cgroups at the top have the controllers that a kubelet demands (cgroup-v2, "Enabling and Disabling"), where the
/// second version is all there is. systemd has done so for most; what it has not stays enabled.
fn hand_down_controllers(root: &Path) -> Result<()> {
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap_or_default();
    let (there, given) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
    for controller in there.split_whitespace() {
        if CONTROLLERS.contains(&controller) && !given.split_whitespace().any(|known| known == controller) {
            fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"))
                .with_context(|| format!("enabling {controller} below {}", root.display()))?;
        }
    }
    Ok(())
}

/// The processes in the cgroups at the top whose names begin with `prefix`, and below them.
pub(crate) fn processes(prefix: &str) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    for cgroup in tops(prefix) {
        for path in with_children(&cgroup) {
            let listed = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            found.extend(listed.lines().filter_map(|pid| pid.parse::<i32>().ok()));
        }
    }
    found
}

/// Removes the cgroups at the top whose names begin with `prefix`, which have no process any more.
pub(crate) fn remove(prefix: &str) -> Result<()> {
    for cgroup in tops(prefix) {
        // The children come after their parents.
        for path in with_children(&cgroup).into_iter().rev() {
            // A cgroup is busy for a moment after its last process has ended.
            try_eventually(Duration::from_secs(10), || match fs::remove_dir(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            })
            .with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

pub(crate) fn tops(prefix: &str) -> Vec<PathBuf> {
    let roots = roots().unwrap_or_default();
    let entries = roots.iter().filter_map(|root| fs::read_dir(root).ok()).flatten().flatten();
    let fits = |path: &PathBuf| {
        path.is_dir()
            && path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
    };
    entries.map(|entry| entry.path()).filter(fits).collect()
}

fn with_children(cgroup: &Path) -> Vec<PathBuf> {
    let mut found = vec![cgroup.to_owned()];
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    found.extend(folders.flat_map(|entry| with_children(&entry.path())));
    found
}

/// Where hierarchies are mounted, of either version.
fn roots() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading this process's mounts")?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(place))
    });
    Ok(mounts.collect())
}

/// The controllers by which kubelets limit pods.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "hugetlb", "memory", "pids"];
