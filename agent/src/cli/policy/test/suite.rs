//! The format of policy tests, read strictly: all of a file's mistakes at once, each with its line and its field.

use std::{fmt, num::NonZeroU16, path::PathBuf, str::FromStr, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::Value;

use crate::{
    control::{FieldPath, Invalid, Objects, Problem, Readiness, Settings, Source},
    mesh::{Client, Identity, PodName, Query, QueryError, Server, Snapshot, TrustDomain},
};

/// One document of a test file: a mesh, and what is expected of it.
pub(super) struct Suite {
    pub(super) snapshot: Snapshot,
    /// In the order of the file.
    pub(super) cases: Vec<Case>,
    /// What is odd in the objects, and no mistake of the test.
    pub(super) warnings: Vec<Problem>,
}

/// A connection, and what is to become of it.
pub(super) struct Case {
    pub(super) name: String,
    /// Where it stands in its file.
    pub(super) line: usize,
    pub(super) query: Query,
    pub(super) expect: Verdict,
    pub(super) policy: Option<Decider>,
    pub(super) dry_run: Option<Verdict>,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Allow,
    Deny,
}

/// Which policy is to decide.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Decider {
    None,
    Policy { namespace: String, name: String },
}

/// Reads a test file.
///
/// # Errors
/// All that is wrong with it, or with a file that it names.
pub(super) fn read(path: PathBuf) -> Result<Vec<Suite>, Vec<Problem>> {
    let source = Source::read(path).map_err(|problem| vec![problem])?;
    let documents = source.documents().map_err(|problem| vec![problem])?;
    if documents.is_empty() {
        return Err(vec![source.problem(None, "holds no test".to_owned())]);
    }
    let mut suites = Vec::new();
    let mut problems = Vec::new();
    for (document, value) in documents.into_iter().enumerate() {
        let mut reader = Reader { source: &source, document, problems: Vec::new() };
        suites.extend(reader.suite(value));
        problems.append(&mut reader.problems);
    }
    if problems.is_empty() { Ok(suites) } else { Err(problems) }
}

/// A document as it is written. Cases are read one by one, so that each can say what is wrong with it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    files: Vec<PathBuf>,
    #[serde(default)]
    objects: Vec<Value>,
    root_namespace: Option<String>,
    trust_domain: Option<Parsed<TrustDomain>>,
    cases: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CaseText {
    name: String,
    #[serde(default, rename = "why")]
    _why: Option<String>,
    from: ClientText,
    to: ServerText,
    expect: Verdict,
    policy: Option<Parsed<Decider>>,
    dry_run: Option<Verdict>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientText {
    pod: Option<Parsed<PodName>>,
    identity: Option<Parsed<Identity>>,
    ip: Option<Parsed<std::net::IpAddr>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerText {
    pod: Parsed<PodName>,
    port: NonZeroU16,
    ip: Option<Parsed<std::net::IpAddr>>,
}

/// A text with a meaning of its own.
struct Parsed<T>(T);

struct Reader<'a> {
    source: &'a Arc<Source>,
    document: usize,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    /// Reads a document; none where something is wrong with it.
    fn suite(&mut self, value: Value) -> Option<Suite> {
        let document = mapping(&value, FieldPath::default()).and_then(|()| typed(value));
        let document: Document = self.noting(&FieldPath::default(), document)?;
        let mut objects = Objects::new(Settings {
            trust_domain: document.trust_domain.map_or_else(default_trust_domain, |Parsed(domain)| domain),
            root_namespace: document.root_namespace.unwrap_or_else(|| ROOT_NAMESPACE.to_owned()),
            readiness: Readiness::Enrollment,
        });
        self.objects(&document.files, document.objects, &mut objects);
        let snapshot = objects.snapshot_enrolling_by_default();
        let cases = (0..).zip(document.cases);
        let cases: Vec<_> = cases.filter_map(|(index, case)| self.case(index, case, &snapshot)).collect();
        Some(Suite { snapshot, cases, warnings: objects.problems() })
    }

    fn objects(&mut self, files: &[PathBuf], inline: Vec<Value>, objects: &mut Objects) {
        let beside = self.source.path().parent().map(PathBuf::from).unwrap_or_default();
        for (index, file) in files.iter().enumerate() {
            let path = FieldPath::of(&["files"]).index(index);
            let read = Source::read(beside.join(file)).and_then(|source| objects.read(&source));
            self.noting(&path, read.map_err(|problem| FieldPath::default().invalid(problem.to_string())));
        }
        for (index, object) in inline.into_iter().enumerate() {
            let path = FieldPath::of(&["objects"]).index(index);
            if let Err(problem) = objects.insert(self.source, self.document, object, &path) {
                self.problems.push(problem);
            }
        }
    }

    fn case(&mut self, index: usize, value: Value, snapshot: &Snapshot) -> Option<Case> {
        let path = FieldPath::of(&["cases"]).index(index);
        let line = self.source.line(self.document, &path);
        let case = mapping(&value, FieldPath::default())
            .and_then(|()| mapping(&value["from"], from()))
            .and_then(|()| mapping(&value["to"], to()))
            .and_then(|()| typed(value));
        let case: CaseText = self.noting(&path, case)?;
        let server = case.to.server();
        let query = case.from.client().and_then(|client| {
            Query::resolve(&client, &server, snapshot).map_err(|error| at_fault(&error, &server))
        });
        Some(Case {
            name: case.name,
            line,
            query: self.noting(&path, query)?,
            expect: case.expect,
            policy: case.policy.map(|Parsed(policy)| policy),
            dry_run: case.dry_run,
        })
    }

    /// Keeps a mistake, which stands somewhere under `path`.
    fn noting<T>(&mut self, path: &FieldPath, read: Result<T, Invalid>) -> Option<T> {
        read.map_err(|invalid| {
            let path = invalid.path.under(path);
            let line = self.source.line(self.document, &path);
            let message = match path == FieldPath::default() {
                true => invalid.message,
                false => Invalid { path, ..invalid }.to_string(),
            };
            self.problems.push(self.source.problem(Some(line), message));
        })
        .ok()
    }
}

impl ClientText {
    fn client(self) -> Result<Client, Invalid> {
        let address = self.ip.map(|Parsed(address)| address.to_canonical());
        match (self.pod, self.identity, address) {
            (Some(Parsed(name)), None, address) => Ok(Client::Pod { name, address }),
            (None, Some(Parsed(identity)), address) => Ok(Client::Identity { identity, address }),
            (None, None, Some(address)) => Ok(Client::Address(address)),
            (None, None, None) => Err(from().invalid("it needs a pod, an identity or an ip")),
            (Some(_), Some(_), _) => {
                Err(from().invalid("a pod has its own identity: leave one of the two out"))
            }
        }
    }
}

impl ServerText {
    fn server(self) -> Server {
        let Self { pod: Parsed(pod), port, ip } = self;
        Server { pod, port: port.get(), address: ip.map(|Parsed(address)| address.to_canonical()) }
    }
}

/// Which field of a case is why it cannot be asked.
fn at_fault(error: &QueryError, server: &Server) -> Invalid {
    let path = match error {
        QueryError::NotEnrolled(..) => to().key("pod"),
        QueryError::UnknownPod(pod) if *pod == server.pod => to().key("pod"),
        QueryError::NotItsAddress(_, address) if Some(*address) == server.address => to().key("ip"),
        QueryError::NotItsAddress(..) => from().key("ip"),
        QueryError::UnknownPod(_) | QueryError::NoAddress(_) => from().key("pod"),
        _ => from(),
    };
    path.invalid(error.to_string())
}

fn from() -> FieldPath {
    FieldPath::of(&["from"])
}

fn to() -> FieldPath {
    FieldPath::of(&["to"])
}

/// Refuses a list where fields with names are wanted, which `serde` would take for their values in order.
fn mapping(value: &Value, path: FieldPath) -> Result<(), Invalid> {
    match value {
        Value::Array(_) => Err(path.invalid("must be a mapping, and is a list")),
        _ => Ok(()),
    }
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Invalid> {
    serde_path_to_error::deserialize(value)
        .map_err(|error| FieldPath::from(error.path()).invalid(error.inner().to_string()))
}

impl FromStr for Decider {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            None if text == "none" => Ok(Self::None),
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self::Policy { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{text:?} is neither namespace/name nor none")),
        }
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(D::Error::custom)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

impl fmt::Display for Decider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Policy { namespace, name } => write!(f, "{namespace}/{name}"),
        }
    }
}

fn default_trust_domain() -> TrustDomain {
    "cluster.local".parse().expect("it is a trust domain")
}

/// The default of `culvert agent --root-namespace`.
const ROOT_NAMESPACE: &str = "culvert-system";
