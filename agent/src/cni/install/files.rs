//! The files of the container runtime's directories: found, and replaced whole or not at all.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{Error, NAME, list};

/// How a configuration is called that was replaced by a list: no runtime takes it for one of its own.
const ORIGINAL: &str = ".culvert-original";

/// Returns the configurations in the order in which container runtimes take the first (containerd's go-cni: by name).
pub(super) fn configurations(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let listed = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => {
            listed.and_then(|listed| listed.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>())
        }
    };
    let mut found = listed.map_err(failed(directory, "cannot be listed"))?;
    found.retain(|path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("conf" | "conflist" | "json"))
    });
    found.sort();
    Ok(found)
}

/// Makes sure that the plugin ends the chain of a configuration.
pub(super) fn insert(path: &Path, entry: &Value) -> Result<(), Error> {
    let broken = |error: list::Broken| Error::Broken { path: path.to_owned(), why: error.to_string() };
    let text = read(path)?;
    if is_list(path) {
        let Some(new) = list::insert(&text, entry).map_err(broken)? else { return Ok(()) };
        return replace(path, &text, &new);
    }
    // Of one plugin: a list in its place, and the original where it is found again.
    let new = list::from_single(&text, entry).map_err(broken)?;
    let list = path.with_extension("conflist");
    write(&list, &new, path)?;
    fs::rename(path, original(path)).map_err(failed(path, "cannot be renamed"))
}

/// Takes the plugin out of a configuration, the entry of one node's agent or all. Returns whether it was there.
pub(super) fn remove(path: &Path, node: Option<&str>) -> Result<bool, Error> {
    if !is_list(path) {
        return Ok(false);
    }
    let broken = |error: list::Broken| Error::Broken { path: path.to_owned(), why: error.to_string() };
    let text = read(path)?;
    let meant = |entry: &Value| node.is_none_or(|node| entry["node"] == node);
    let Some(new) = list::remove(&text, meant).map_err(broken)? else { return Ok(false) };
    match single_before(path, &text) {
        Some((saved, single)) => {
            fs::rename(&saved, &single).map_err(failed(&saved, "cannot be renamed"))?;
            fs::remove_file(path).map_err(failed(path, "cannot be removed"))?;
        }
        None => replace(path, &text, &new)?,
    }
    Ok(true)
}

/// Whether the configuration names the plugin, of whichever node.
pub(super) fn names_plugin(path: &Path) -> bool {
    read(path).is_ok_and(|text| list::remove(&text, |_| true).is_ok_and(|removed| removed.is_some()))
}

/// Copies this program to `path`, unless the same is there.
pub(super) fn copy_binary(path: &Path) -> Result<(), Error> {
    let own = Path::new("/proc/self/exe");
    if is_same(own, path).unwrap_or(false) {
        return Ok(());
    }
    let copy = || -> io::Result<()> {
        let temporary = beside(path);
        let mut to =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o755).open(&temporary)?;
        io::copy(&mut File::open(own)?, &mut to)?;
        to.set_permissions(fs::Permissions::from_mode(0o755))?;
        to.sync_all()?;
        drop(to);
        // A run of the old one goes on: its file lives as long as it does.
        fs::rename(&temporary, path)
    };
    copy().map_err(failed(path, "the plugin cannot be copied there"))
}

/// Removes the plugin's binary. Returns whether it was there.
pub(super) fn remove_binary(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(path, "cannot be removed")(error)),
    }
}

/// Where a list was made of one plugin's configuration, and nobody has changed it since: the original, and where it was.
fn single_before(path: &Path, text: &str) -> Option<(PathBuf, PathBuf)> {
    ["conf", "json"].into_iter().find_map(|extension| {
        let single = path.with_extension(extension);
        let saved = original(&single);
        let before = fs::read_to_string(&saved).ok()?;
        let parsed: Value = serde_json::from_str(text).ok()?;
        let entry = parsed["plugins"].as_array()?.last()?;
        (list::from_single(&before, entry).ok()? == text && !single.exists()).then_some((saved, single))
    })
}

fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "conflist")
}

fn original(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ORIGINAL);
    name.into()
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(failed(path, "cannot be read"))
}

/// Replaces a file that still holds `old`: its owner may have written it anew meanwhile, and is looked at again then.
fn replace(path: &Path, old: &str, new: &str) -> Result<(), Error> {
    if read(path)? != old {
        let source = io::Error::new(io::ErrorKind::Interrupted, "somebody else writes it; it is tried again");
        return Err(failed(path, "was not changed")(source));
    }
    write(path, new, path)
}

/// Writes a file whole or not at all, with the owner and mode of `like`.
fn write(path: &Path, text: &str, like: &Path) -> Result<(), Error> {
    let write = || -> io::Result<()> {
        let metadata = fs::metadata(like)?;
        let temporary = beside(path);
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        std::os::unix::fs::fchown(&file, Some(metadata.uid()), Some(metadata.gid()))?;
        file.set_permissions(metadata.permissions())?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    };
    write().map_err(failed(path, "cannot be written"))
}

/// A name in the same directory that no container runtime takes for a configuration or a plugin.
fn beside(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{NAME}.tmp"))
}

fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let mode = other.metadata()?.permissions().mode();
    if one.metadata()?.len() != other.metadata()?.len() || mode & 0o111 == 0 {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; BLOCK], vec![0; BLOCK]);
    loop {
        let count = fill(&mut one, &mut left)?;
        if count != fill(&mut other, &mut right)? || left[..count] != right[..count] {
            return Ok(false);
        }
        if count == 0 {
            return Ok(true);
        }
    }
}

const BLOCK: usize = 256 * 1024;

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File { path: path.to_owned(), what, source }
}
