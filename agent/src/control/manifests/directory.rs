//! The files of a directory, what each of them says, and what changed in it all.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::{OsStr, OsString},
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    str,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    super::{
        Key, Problem, Record, Settings,
        batch::{FileChange, Standing},
    },
    document::{self, Contents, Fault, Format, Located, POLICY_GROUP},
};
use crate::file_stamp::FileStamp;

/// A directory as it was last read.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    settings: Settings,
    /// By name. Where two say something about one object the later counts, as with `kubectl apply -f`.
    files: BTreeMap<OsString, File>,
    applied: HashMap<Key, Arc<Record>>,
    /// Why the directory could not be read, if it could not.
    unreadable: Option<Problem>,
    duplicates: Vec<Problem>,
    /// The kinds that were mentioned in the log as meaning nothing here.
    unused: HashSet<String>,
}

#[derive(Debug, Default)]
struct File {
    /// Of the bytes that were read last; none where they could not be.
    digest: Option<u64>,
    /// As long as the file has it those bytes are what it says; none where they may change and the stamp not.
    stamp: Option<FileStamp>,
    objects: BTreeMap<Key, Item>,
    problems: Vec<Problem>,
    /// It has never been read as a whole, and there may be policies in it.
    hides_policies: bool,
}

#[derive(Clone, Debug)]
struct Item {
    record: Arc<Record>,
    line: usize,
    /// What people must know about it.
    notices: Vec<Problem>,
}

/// What is new since the last time.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum News {
    None,
    /// Something is wrong, or no longer; what counts is what counted.
    Problems,
    Contents,
}

impl Directory {
    pub(super) fn new(path: PathBuf, settings: Settings) -> Self {
        Self {
            path,
            settings,
            files: BTreeMap::new(),
            applied: HashMap::new(),
            unreadable: None,
            duplicates: Vec::new(),
            unused: HashSet::new(),
        }
    }

    /// Reads what changed since the last time. Returns what that is; none where nothing is new, no problem either. `now` is the
    /// time of day.
    ///
    /// # Errors
    /// Where the directory cannot be read; everything stays in force.
    pub(super) fn scan(&mut self, now: SystemTime) -> io::Result<Option<Vec<FileChange>>> {
        let names = self.names().inspect_err(|error| {
            let message = format!("cannot be read: {error}; everything stays in force");
            self.unreadable =
                Some(Problem { file: Some(self.path.clone()), line: None, message, policy: None });
        })?;
        let mut news = if self.unreadable.take().is_some() { News::Problems } else { News::None };
        let before = self.files.len();
        self.files.retain(|name, _| names.contains(name));
        if self.files.len() != before {
            news = News::Contents;
        }
        for name in names {
            news = news.max(self.read(name, now));
        }
        Ok(match news {
            News::None => None,
            News::Problems => Some(Vec::new()),
            News::Contents => Some(self.changes()),
        })
    }

    /// Returns what is wrong with a file that has never been read and may hold policies: nobody knows what they refuse.
    pub(super) fn hidden_policies(&self) -> Option<&Problem> {
        self.files.values().find(|file| file.hides_policies)?.problems.first()
    }

    /// Everything that is wrong at the moment.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let files = self.files.values().flat_map(|file| file.problems.iter().chain(self.notices(file)));
        self.unreadable.iter().chain(files).chain(&self.duplicates).cloned().collect()
    }

    /// What people must know about the policies of a file that are in force.
    fn notices<'a>(&'a self, file: &'a File) -> impl Iterator<Item = &'a Problem> {
        let items = file.objects.iter().filter(|(key, item)| {
            !item.notices.is_empty()
                && self.applied.get(key).is_some_and(|applied| Arc::ptr_eq(applied, &item.record))
        });
        items.flat_map(|(_, item)| &item.notices)
    }

    fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            // Hidden files are editors' and the kubelet's own (`..data`).
            if format(&name).is_some() && !name.as_encoded_bytes().starts_with(b".") {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Reads one file, where it may have changed. Returns what is new about it.
    fn read(&mut self, name: OsString, now: SystemTime) -> News {
        let path = self.path.join(&name);
        let at_rest = |stamp: &FileStamp| stamp.age(now).is_some_and(|age| age > AT_REST);
        let stamp = FileStamp::of(&path).ok().filter(at_rest);
        if stamp.is_some() && self.files.get(&name).is_some_and(|file| file.stamp == stamp) {
            return News::None;
        }
        let problem = |Fault { line, message }| Problem {
            file: Some(path.clone()),
            line: Some(line),
            message,
            policy: None,
        };
        let bytes = match read_bounded(&path) {
            Ok(bytes) => bytes,
            // Deleted since the directory was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => {
                return if self.files.remove(&name).is_some() { News::Contents } else { News::None };
            }
            Err(error) => {
                let new = File { hides_policies: true, ..File::default() };
                let file = self.files.entry(name).or_insert(new);
                let message = format!("cannot be read: {error}; what it said before stays in force");
                file.problems = vec![Problem { file: Some(path), line: None, message, policy: None }];
                (file.digest, file.stamp) = (None, None);
                return News::Problems;
            }
        };
        let mentions = || bytes.windows(POLICY_GROUP.len()).any(|part| part == POLICY_GROUP.as_bytes());
        let file = self.files.entry(name.clone());
        let file = file.or_insert_with(|| File { hides_policies: mentions(), ..File::default() });
        file.stamp = stamp;
        let digest = Some(digest(&bytes));
        if file.digest == digest {
            return News::None;
        }
        file.digest = digest;
        let blank = bytes.iter().all(u8::is_ascii_whitespace);
        if blank && !file.objects.is_empty() {
            // What a shell's `>` leaves for as long as the command before it takes.
            let message = "is empty; what it said before stays in force until the file is deleted".to_owned();
            file.problems = vec![Problem { file: Some(path), line: None, message, policy: None }];
            return News::Problems;
        }
        let format = format(&name).unwrap_or(Format::Yaml);
        match text(&bytes).and_then(|text| document::read(text, format, &self.settings)) {
            Ok(contents) => {
                let unused = contents.unused.clone();
                file.replace(contents, &problem);
                file.hides_policies = false;
                self.mention(unused);
                News::Contents
            }
            Err(fault) => {
                let message = format!("{}; what the file said before stays in force", fault.message);
                file.problems = vec![problem(Fault { message, ..fault })];
                News::Problems
            }
        }
    }

    /// Tells what the files say together from what they said before.
    fn changes(&mut self) -> Vec<FileChange> {
        let mut wanted: HashMap<&Key, (&OsString, &Item)> = HashMap::with_capacity(self.applied.len());
        self.duplicates.clear();
        for (name, file) in &self.files {
            for (key, item) in &file.objects {
                let Some((other, earlier)) = wanted.insert(key, (name, item)) else { continue };
                let message = format!(
                    "{key} stands in {} too (line {}): this one counts",
                    Path::new(other).display(),
                    earlier.line
                );
                let file = Some(self.path.join(name));
                self.duplicates.push(Problem { file, line: Some(item.line), message, policy: None });
            }
        }
        let mut changes = Vec::new();
        self.applied.retain(|key, _| {
            let keep = wanted.contains_key(key);
            changes.extend((!keep).then(|| FileChange::Delete(key.clone())));
            keep
        });
        for (key, (name, item)) in wanted {
            if !self.applied.get(key).is_some_and(|applied| Arc::ptr_eq(applied, &item.record)) {
                let (file, line) = (self.path.join(name), item.line);
                let record = Arc::clone(&item.record);
                changes.push(FileChange::Apply(Standing { record, file, line }));
                self.applied.insert(key.clone(), Arc::clone(&item.record));
            }
        }
        changes
    }

    fn mention(&mut self, unused: Vec<String>) {
        // Bounded, as what stands in the files may be anything.
        const KINDS: usize = 64;
        for kind in unused {
            if self.unused.len() < KINDS && self.unused.insert(kind.clone()) {
                tracing::info!(kind, "the manifests hold objects of a kind that means nothing to the mesh");
            }
        }
    }
}

impl File {
    /// Takes what the file says now. An object that is no longer valid stays as it was.
    fn replace(&mut self, contents: Contents, problem: &dyn Fn(Fault) -> Problem) {
        let Contents { records, invalid, unused: _ } = contents;
        let mut objects: BTreeMap<Key, Item> = BTreeMap::new();
        let mut problems = Vec::new();
        for Located { record, line, notice_lines } in records {
            let key = record.key().clone();
            let notices = record.notices().iter().zip(notice_lines).map(|(notice, line)| {
                let policy = Some((key.kind, notice.severity));
                Problem { policy, ..problem(Fault { line, message: notice.to_string() }) }
            });
            let item = Item { notices: notices.collect(), record: Arc::new(record), line };
            if let Some(earlier) = objects.insert(key.clone(), item) {
                let message = format!("{key} stands in line {} too: this one counts", earlier.line);
                problems.push(problem(Fault { line, message }));
            }
        }
        for (key, Fault { line, message }) in invalid {
            let stays = self.objects.remove(&key).filter(|_| !objects.contains_key(&key));
            let instead = if stays.is_some() { "it stays as it was" } else { "it is left out" };
            problems.push(problem(Fault { line, message: format!("{message}; {instead}") }));
            objects.extend(stays.map(|item| (key, item)));
        }
        self.objects = objects;
        self.problems = problems;
    }
}

pub(super) fn format(name: &OsStr) -> Option<Format> {
    match Path::new(name).extension()?.to_str()? {
        "yaml" | "yml" => Some(Format::Yaml),
        "json" => Some(Format::Json),
        _ => None,
    }
}

pub(super) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    // Not to wait for the writer of a FIFO.
    let file = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("it is longer than {} MiB; split it", MAX_FILE >> 20)));
    }
    Ok(bytes)
}

pub(super) fn text(bytes: &[u8]) -> Result<&str, Fault> {
    str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        Fault { line, message: "is not UTF-8".to_owned() }
    })
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// How long a file has not changed before it is believed that a further change would show: more than the two seconds of the
/// coarsest file system.
const AT_REST: Duration = Duration::from_secs(3);

/// Some 10,000 pods as `kubectl get -o yaml` writes them would be a hundred of these; what is longer is no manifest.
const MAX_FILE: u64 = 16 << 20;
