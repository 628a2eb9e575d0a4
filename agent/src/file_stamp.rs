//! Whether a file may have changed since it was read, without reading it again.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// What tells one content of a file from another. The time of the last change is the file system's own, which nobody sets
/// (`st_ctime`, inode(7)).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FileStamp {
    inode: (u64, u64),
    length: u64,
    changed: (i64, i64),
}

impl FileStamp {
    /// Takes the stamp of what the path leads to; to be done before it is read.
    ///
    /// # Errors
    /// Where the file cannot be looked at.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let file = fs::metadata(path)?;
        Ok(Self {
            inode: (file.dev(), file.ino()),
            length: file.len(),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }

    /// Returns how long ago the last change was; none where it is yet to come by this clock. A file system's clock moves in
    /// steps, of 10 ms here and of two seconds there, and of two changes within one step the second is invisible.
    pub(crate) fn age(&self, now: SystemTime) -> Option<Duration> {
        let (seconds, nanoseconds) = self.changed;
        let changed = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanoseconds).ok()?);
        now.duration_since(UNIX_EPOCH).ok()?.checked_sub(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_any_kind_alters_the_stamp_and_has_an_age() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.yaml");
        let stamp = || FileStamp::of(&path).unwrap();
        assert!(FileStamp::of(&path).is_err());
        fs::write(&path, "one").unwrap();
        let before = stamp();
        let age = |after: u64| before.age(SystemTime::now() + Duration::from_secs(after)).unwrap().as_secs();
        assert!((60..120).contains(&age(60)));
        assert_eq!(before.age(SystemTime::now() - Duration::from_secs(60)), None);
        assert_eq!(stamp(), before);
        // As long, and in the same place.
        while stamp() == before {
            fs::write(&path, "two").unwrap();
        }
        let moved = directory.path().join("b.yaml");
        fs::write(&moved, "six").unwrap();
        let before = stamp();
        fs::rename(moved, &path).unwrap();
        assert_ne!(stamp(), before);
    }
}
