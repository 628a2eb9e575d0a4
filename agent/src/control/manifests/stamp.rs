//! Whether a file may have changed since it was read, without reading it again.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// What the file system says of a file's bytes: as long as it says the same they are the same. The time of the last change
/// is the file system's own, which nobody sets (`st_ctime`, inode(7)).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Stamp {
    inode: (u64, u64),
    length: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// Takes the stamp of what the path leads to, before it is read.
    ///
    /// None where the bytes may yet change and the stamp not: a file system's clock stands still for some milliseconds, and
    /// on some for two seconds.
    ///
    /// # Errors
    /// Where the file cannot be looked at.
    pub(super) fn of(path: &Path, now: SystemTime) -> io::Result<Option<Self>> {
        let file = fs::metadata(path)?;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let settled = now.checked_sub(SETTLED).and_then(|then| i64::try_from(then.as_secs()).ok());
        Ok(settled.is_some_and(|then| file.ctime() < then).then(|| Self {
            inode: (file.dev(), file.ino()),
            length: file.len(),
            changed: (file.ctime(), file.ctime_nsec()),
        }))
    }
}

const SETTLED: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_not_changed_for_a_while_has_a_stamp_and_a_change_alters_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.yaml");
        let stamp = |after: u64| {
            let now = SystemTime::now() + Duration::from_secs(after);
            Stamp::of(&path, now).unwrap()
        };
        assert!(Stamp::of(&path, SystemTime::now()).is_err());
        fs::write(&path, "one").unwrap();
        assert_eq!(stamp(0), None);
        let before = stamp(10);
        assert!(before.is_some());
        assert_eq!(stamp(60), before);
        // As long, and in the same place.
        while stamp(10) == before {
            fs::write(&path, "two").unwrap();
        }
        let moved = directory.path().join("b.yaml");
        fs::write(&moved, "six").unwrap();
        let before = stamp(10);
        fs::rename(moved, &path).unwrap();
        assert_ne!(stamp(10), before);
    }
}
