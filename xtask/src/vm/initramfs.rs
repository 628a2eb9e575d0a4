//! The guest's file system: a cpio archive of programs, the libraries that they load, and kernel modules.
//!
//! The format is "newc": Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{Programs, modules::Module};
use crate::{command, layout};

/// Where the guest finds its modules, named so that their order is the order of loading.
pub(super) const MODULES: &str = "/modules";

/// The suite inside the guest.
pub(super) const SUITE: &str = "/suite";

/// The agent inside the guest.
pub(super) const AGENT: &str = "/bin/culvert";

/// Tools of the host's that busybox has no equal of. Its shell is one of them: that prefers busybox's `ip` to any other.
const TOOLS: &[&str] = &["bash", "ip", "ss", "tcpdump", "bpftool"];

/// Writes the archive and returns where it is.
pub(super) fn build(programs: &Programs, modules: &[Module]) -> Result<PathBuf> {
    let folder = layout::target()?.join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut tree =
        Tree { archive: Archive::default(), known: HashSet::new(), scratch: folder.join("stripped") };
    tree.program("/init", &programs.init)?;
    tree.program(SUITE, &programs.suite)?;
    tree.program(AGENT, &programs.agent)?;
    // Before busybox, which would be `sh` too.
    tree.link("/bin/sh", "/usr/sbin/bash");
    tree.busybox()?;
    for tool in TOOLS {
        tree.program(&format!("/usr/sbin/{tool}"), &find(tool)?)?;
    }
    for (number, module) in modules.iter().enumerate() {
        tree.file(&format!("{MODULES}/{number:02}-{}.ko", module.name), 0o644, &module.content);
    }
    tree.file("/etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n");
    tree.file(
        "/etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    );
    tree.file("/etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n");
    for folder in ["/proc", "/sys", "/dev", "/tmp", "/run", "/root", "/var/run"] {
        tree.folder(Path::new(folder));
    }
    tree.archive.console();
    let file = folder.join("initramfs.cpio");
    fs::write(&file, tree.archive.finish()).with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

/// Finds a program where root would.
fn find(program: &str) -> Result<PathBuf> {
    let folders =
        ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().map(|folder| Path::new(folder).join(program));
    folders.into_iter().find(|path| path.is_file()).with_context(|| format!("{program} is not installed"))
}

/// The files of the guest by their paths in it.
struct Tree {
    archive: Archive,
    known: HashSet<PathBuf>,
    /// Where a program is stripped to.
    scratch: PathBuf,
}

impl Tree {
    /// Adds a program without its debug information, and the libraries that it loads at the same paths as here.
    fn program(&mut self, path: &str, source: &Path) -> Result<()> {
        let mut strip = Command::new("strip");
        command::run(strip.arg("--strip-debug").arg("-o").arg(&self.scratch).arg(source))?;
        let content =
            fs::read(&self.scratch).with_context(|| format!("reading {}", self.scratch.display()))?;
        self.file(path, 0o755, &content);
        for library in libraries(source)? {
            let content = fs::read(&library).with_context(|| format!("reading {library}"))?;
            self.file(&library, 0o755, &content);
        }
        Ok(())
    }

    /// Adds busybox, with a link for each program that it can be.
    fn busybox(&mut self) -> Result<()> {
        let busybox = find("busybox")?;
        self.program("/bin/busybox", &busybox)?;
        let applets = command::output(Command::new(&busybox).arg("--list"))?;
        for applet in applets.lines().filter(|applet| !TOOLS.contains(applet)) {
            self.link(&format!("/bin/{applet}"), "busybox");
        }
        Ok(())
    }

    fn link(&mut self, path: &str, target: &str) {
        self.entry(path, &Entry { mode: 0o120_777, device: (0, 0), content: target.as_bytes() });
    }

    fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.entry(path, &Entry { mode: 0o100_000 | permissions, device: (0, 0), content });
    }

    fn folder(&mut self, path: &Path) {
        if path.parent().is_none() || self.known.contains(path) {
            return;
        }
        self.entry(&path.to_string_lossy(), &Entry { mode: 0o040_755, device: (0, 0), content: b"" });
    }

    /// Adds an entry after the folders above it; the first of a name wins.
    fn entry(&mut self, path: &str, entry: &Entry<'_>) {
        let path = Path::new(path);
        if !self.known.insert(path.to_owned()) {
            return;
        }
        if let Some(parent) = path.parent() {
            self.folder(parent);
        }
        self.archive.append(&path.to_string_lossy(), entry);
    }
}

/// Returns the libraries that the dynamic linker would load for a program, and the linker itself.
fn libraries(program: &Path) -> Result<Vec<String>> {
    // It fails for a static program, which needs none.
    let listed = command::probe(Command::new("ldd").arg(program)).unwrap_or_default();
    Ok(listed.lines().filter_map(library).map(str::to_owned).collect())
}

/// Reads a line of `ldd`: `libc.so.6 => /lib/libc.so.6 (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library(line: &str) -> Option<&str> {
    line.split_whitespace().find(|word| word.starts_with('/'))
}

/// What an entry of the archive is.
struct Entry<'a> {
    /// Type and permissions, as in `stat`.
    mode: u32,
    /// Major and minor number of a device.
    device: (u32, u32),
    content: &'a [u8],
}

/// A cpio archive in the making.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn append(&mut self, path: &str, entry: &Entry<'_>) {
        self.entries += 1;
        let name = path.trim_start_matches('/');
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let (major, minor) = entry.device;
        self.bytes.extend_from_slice(b"070701");
        let (uid, gid, links, time, checksum) = (0, 0, 1, 0, 0);
        let (content, name_size) = (length(entry.content.len()), length(name.len() + 1));
        let fields = [
            self.entries,
            entry.mode,
            uid,
            gid,
            links,
            time,
            content,
            0,
            0,
            major,
            minor,
            name_size,
            checksum,
        ];
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(entry.content);
        self.pad();
    }

    /// Adds the device that the kernel opens as the first program's standard streams.
    fn console(&mut self) {
        self.append("/dev/console", &Entry { mode: 0o020_600, device: (5, 1), content: b"" });
    }

    fn finish(mut self) -> Vec<u8> {
        self.append("TRAILER!!!", &Entry { mode: 0, device: (0, 0), content: b"" });
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_cpio_reads() {
        let mut tree = Tree { archive: Archive::default(), known: HashSet::new(), scratch: PathBuf::new() };
        tree.file("/etc/deep/hosts", 0o644, b"x");
        tree.file("/etc/deep/other", 0o644, b"hello");
        let bytes = tree.archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<_> =
            text.split("070701").filter_map(|entry| entry.get(104..)?.split('\0').next()).collect();
        assert_eq!(names, ["etc", "etc/deep", "etc/deep/hosts", "etc/deep/other", "TRAILER!!!"]);
    }

    #[test]
    fn finds_the_libraries_of_a_program() {
        assert_eq!(library("\tlibc.so.6 => /lib/libc.so.6 (0x1)"), Some("/lib/libc.so.6"));
        assert_eq!(library("\t/lib64/ld-linux-x86-64.so.2 (0x1)"), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(library("\tlinux-vdso.so.1 (0x1)"), None);
    }
}
