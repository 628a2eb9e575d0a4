//! A file's text to Kubernetes objects: documents, lists, kinds, and the line of whatever is wrong.

use std::{cell::Cell, sync::Arc};

use k8s_openapi::{
    Resource,
    api::{
        core::v1::{Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
    },
};
use serde::de::{DeserializeOwned, DeserializeSeed as _};
use serde_json::Value;

use super::{
    super::{FieldPath, Invalid, Key, Kind, Object, PolicyNotice, Record, Settings, field::Segment},
    items::Items,
    tree::{Locate, Tree, budget},
};

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The valid objects, in the file's order.
    pub(super) records: Vec<Located>,
    /// The objects that are not valid, and why.
    pub(super) invalid: Vec<(Key, Fault)>,
    /// The kinds that mean nothing here, as `apiVersion kind`.
    pub(super) unused: Vec<String>,
}

/// A valid object.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) record: Record,
    /// The line that it begins on.
    pub(super) line: usize,
    /// The line of each of its notices.
    pub(super) notice_lines: Vec<usize>,
}

/// Something wrong in a file, and the line that it stands on, counted from 1.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) line: usize,
    pub(super) message: String,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// One document of a file.
pub(super) struct Document<'a> {
    pub(super) text: &'a str,
    /// The lines before it.
    pub(super) offset: usize,
    pub(super) format: Format,
    pub(super) items: Arc<Items>,
}

/// Collects the objects of documents.
pub(super) struct Reader<'a> {
    settings: &'a Settings,
    /// The valid objects, and the steps to each from its document's root. To find the line of one takes as long as to read
    /// the whole document.
    pub(super) records: Vec<(Record, FieldPath)>,
    pub(super) invalid: Vec<(Key, Fault)>,
    unused: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(settings: &'a Settings) -> Self {
        Self { settings, records: Vec::new(), invalid: Vec::new(), unused: Vec::new() }
    }
}

/// Reads a file.
///
/// # Errors
/// Where the text is not well formed, or an object cannot be told from others: then nobody knows what the file means
/// to leave out, and nothing of it counts. An object that is only invalid is reported in the contents.
pub(super) fn read(text: &str, format: Format, settings: &Settings) -> Result<Contents, Fault> {
    let mut reader = Reader::new(settings);
    let mut located = Vec::new();
    for document in documents(text, format) {
        let value = document.parse()?;
        document.read(value, &FieldPath::default(), &mut reader)?;
        located.extend(reader.records.drain(..).map(|(record, path)| document.locate(record, &path)));
    }
    Ok(Contents { records: located, invalid: reader.invalid, unused: reader.unused })
}

impl Document<'_> {
    pub(super) fn parse(&self) -> Result<Value, Fault> {
        let budget = budget(self.text);
        let tree = Tree::new(&budget);
        match self.format {
            Format::Yaml => tree
                .deserialize(serde_yaml_ng::Deserializer::from_str(self.text))
                .map_err(|error| self.yaml_fault(&error)),
            Format::Json => {
                let mut json = serde_json::Deserializer::from_str(self.text);
                let value = tree.deserialize(&mut json).and_then(|value| json.end().map(|()| value));
                value.map_err(|error| Fault { line: self.offset + error.line(), message: error.to_string() })
            }
        }
    }

    fn yaml_fault(&self, error: &serde_yaml_ng::Error) -> Fault {
        let line = error.location().map_or(1, |location| location.line());
        // The library's own line is the document's, not the file's.
        let text = error.to_string();
        let message = text.split(" at line ").next().unwrap_or(&text).to_owned();
        Fault { line: self.offset + line, message }
    }

    /// The line of a field, or of what it is missing from.
    pub(super) fn line(&self, path: &FieldPath) -> usize {
        let line = match self.format {
            Format::Yaml => {
                self.line_of_item(path.segments()).or_else(|| line_in(self.text, path.segments()))
            }
            Format::Json => {
                let found = Cell::new(false);
                let mut json = serde_json::Deserializer::from_str(self.text);
                Locate::new(path.segments(), &found).deserialize(&mut json).err().map(|error| error.line())
            }
        };
        self.offset + line.unwrap_or(1)
    }

    /// The line of a field of an element of a list, counted in the document, where the element can be read by itself.
    fn line_of_item(&self, path: &[Segment]) -> Option<usize> {
        let [Segment::Key(items), Segment::Index(index), rest @ ..] = path else { return None };
        let element = self.items.get(self.text, *index).filter(|_| items == "items")?;
        Some(element.lines + line_in(&element.text, rest)?)
    }

    /// Reads an object, or each object of a list; `path` leads to it from the document's root.
    pub(super) fn read(
        &self,
        mut value: Value,
        path: &FieldPath,
        reader: &mut Reader<'_>,
    ) -> Result<(), Fault> {
        if value.is_null() {
            return Ok(());
        }
        let (Some(version), Some(kind)) = (text(&value, "apiVersion"), text(&value, "kind")) else {
            let message = "an object needs an apiVersion and a kind".to_owned();
            return Err(Fault { line: self.line(path), message });
        };
        let (version, kind) = (version.to_owned(), kind.to_owned());
        let (Some(item_kind), Some(Value::Array(items))) =
            (kind.strip_suffix("List"), value.get_mut("items").map(Value::take))
        else {
            return self.read_object(value, &version, &kind, path, reader);
        };
        for (index, mut item) in items.into_iter().enumerate() {
            // `kubectl get` writes a List; the API server a PodList, whose items leave out what they are.
            if let (Value::Object(item), false) = (&mut item, item_kind.is_empty()) {
                item.entry("apiVersion").or_insert_with(|| version.as_str().into());
                item.entry("kind").or_insert_with(|| item_kind.into());
            }
            self.read(item, &FieldPath::of(&["items"]).index(index).under(path), reader)?;
        }
        Ok(())
    }

    fn read_object(
        &self,
        value: Value,
        version: &str,
        kind: &str,
        path: &FieldPath,
        reader: &mut Reader<'_>,
    ) -> Result<(), Fault> {
        let Some((kind, parse)) = parser(version, kind) else {
            reader.unused.push(format!("{version} {kind}"));
            return Ok(());
        };
        let key = Key::of(kind, &value).map_err(|invalid| self.fault(&invalid, path))?;
        match parse(value).and_then(|object| Record::new(&object, reader.settings)) {
            Ok(record) => reader.records.push((record, path.clone())),
            Err(invalid) => {
                let Fault { line, message } = self.fault(&invalid, path);
                reader.invalid.push((key.clone(), Fault { line, message: format!("{key}: {message}") }));
            }
        }
        Ok(())
    }

    fn locate(&self, record: Record, path: &FieldPath) -> Located {
        let line = |notice: &PolicyNotice| self.line(&notice.path.under(path));
        let notice_lines = record.notices().iter().map(line).collect();
        Located { record, line: self.line(path), notice_lines }
    }

    fn fault(&self, invalid: &Invalid, path: &FieldPath) -> Fault {
        Fault { line: self.line(&invalid.path.under(path)), message: invalid.to_string() }
    }
}

/// The line of a field of a YAML document, counted from 1, or of what it is missing from; none where it cannot be read.
fn line_in(text: &str, path: &[Segment]) -> Option<usize> {
    let found = Cell::new(false);
    let error = Locate::new(path, &found).deserialize(serde_yaml_ng::Deserializer::from_str(text)).err()?;
    error.location().filter(|_| found.get()).map(|location| location.line())
}

/// Splits a file into its documents. A line that begins with `---` or `...` begins or ends one wherever it stands,
/// also in a block of text (YAML 1.2.2, §9.1.2).
pub(super) fn documents(text: &str, format: Format) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if format == Format::Json {
        return vec![Document { text, offset: 0, format, items: Arc::default() }];
    }
    let mut documents = Vec::new();
    let document = |text, offset| Document { text, offset, format, items: Arc::new(Items::of(text)) };
    let (mut start, mut offset, mut end) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line, "---") {
            documents.push(document(&text[start..end], offset));
            (start, offset) = (end, number);
        }
        end += line.len();
        if is_marker(line, "...") {
            documents.push(document(&text[start..end], offset));
            (start, offset) = (end, number + 1);
        }
    }
    documents.push(document(&text[start..], offset));
    documents.retain(|document| !is_blank(document.text));
    documents
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Whether a document holds nothing but comments, directives and its own end.
fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        line.trim().is_empty() || line.starts_with('%') || is_marker(line, "...") || {
            line.trim_start().starts_with('#')
        }
    })
}

/// The API group of policies. Every one names it.
pub(super) const POLICY_GROUP: &str = "security.istio.io";

type Parse = fn(Value) -> Result<Object, Invalid>;

/// Returns how an object of a version and kind is read; none where it means nothing to the mesh. The version counts:
/// Knative has a Service too.
fn parser(version: &str, kind: &str) -> Option<(Kind, Parse)> {
    // Whatever the version: a policy must not be lost for being newer than we are. What is new in it fails closed.
    if version.split_once('/').is_some_and(|(group, _)| group == POLICY_GROUP) {
        return match kind {
            "PeerAuthentication" => {
                Some((Kind::PeerAuthentication, |v| Ok(Object::PeerAuthentication(Box::new(v)))))
            }
            "AuthorizationPolicy" => {
                Some((Kind::AuthorizationPolicy, |v| Ok(Object::AuthorizationPolicy(Box::new(v)))))
            }
            _ => None,
        };
    }
    let parsers: [(&str, &str, Kind, Parse); 5] = [
        (Namespace::API_VERSION, Namespace::KIND, Kind::Namespace, |v| Ok(Object::Namespace(typed(v)?))),
        (Node::API_VERSION, Node::KIND, Kind::Node, |v| Ok(Object::Node(typed(v)?))),
        (Pod::API_VERSION, Pod::KIND, Kind::Pod, |v| Ok(Object::Pod(typed(v)?))),
        (Service::API_VERSION, Service::KIND, Kind::Service, |v| Ok(Object::Service(typed(v)?))),
        (EndpointSlice::API_VERSION, EndpointSlice::KIND, Kind::EndpointSlice, |v| {
            Ok(Object::EndpointSlice(typed(v)?))
        }),
    ];
    let parser = parsers.into_iter().find(|parser| (parser.0, parser.1) == (version, kind))?;
    Some((parser.2, parser.3))
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<Box<T>, Invalid> {
    let typed = serde_path_to_error::deserialize(value).map(Box::new);
    typed.map_err(|error| FieldPath::from(error.path()).invalid(error.inner().to_string()))
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Readiness;

    fn settings() -> Settings {
        Settings {
            trust_domain: "cluster.local".parse().unwrap(),
            root_namespace: "culvert-system".to_owned(),
            readiness: Readiness::Enrollment,
        }
    }

    /// Each object as `line key`, each invalid one as `line! message`, or what is wrong with the whole.
    fn check_as(format: Format, text: &str, expected: &[&str]) {
        let shown = match read(text, format, &settings()) {
            Ok(contents) => {
                let valid = contents
                    .records
                    .iter()
                    .map(|Located { record, line, .. }| format!("{line} {}", record.key()));
                let invalid =
                    contents.invalid.iter().map(|(_, fault)| format!("{}! {}", fault.line, fault.message));
                let unused = contents.unused.iter().map(|kind| format!("unused {kind}"));
                valid.chain(invalid).chain(unused).collect()
            }
            Err(fault) => vec![format!("{}!! {}", fault.line, fault.message)],
        };
        assert_eq!(shown, expected, "from {text:.1000}");
    }

    fn check(text: &str, expected: &[&str]) {
        check_as(Format::Yaml, text, expected);
    }

    #[test]
    fn documents_are_told_apart() {
        check("", &[]);
        check("# nothing\n---\n# here\n---\n", &[]);
        check(
            "# first\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n\n# second\napiVersion: v1\nkind: Pod\n\
             metadata: {name: b}\n...\n--- # third\napiVersion: v1\nkind: Namespace\nmetadata: {name: c}\n",
            &["2 Pod default/a", "8 Pod default/b", "13 Namespace c"],
        );
        check(
            "\u{feff}%YAML 1.1\r\n---\r\napiVersion: v1\r\nkind: Pod\r\nmetadata: {name: a}\r\n",
            &["3 Pod default/a"],
        );
        check("--- {apiVersion: v1, kind: Pod, metadata: {name: a}}", &["1 Pod default/a"]);
        // Three dashes in the middle of a line, or before other text, separate nothing.
        check(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations: {a: x---}\n  labels:\n    b: |\n      ---\n      ---x\n",
            &["1 Pod default/a"],
        );
    }

    #[test]
    fn lists_are_opened() {
        check(
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n\
             - apiVersion: v1\n  kind: Service\n  metadata: {name: b, namespace: n}\n  spec:\n    ports:\n    - port: 0\n",
            &["4 Pod default/a", "12! Service n/b: spec.ports[0].port: 0 is not a port: 1 to 65535"],
        );
        // Elements of which one needs another, or that do not begin lines of their own.
        check(
            "apiVersion: v1\nkind: List\nitems:\n- &a\n  apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n\
             - <<: *a\n  metadata: {name: b}\n  status: {podIP: x}\n",
            &["4 Pod default/a", "10! Pod default/b: status.podIP: \"x\" is not an IP address"],
        );
        check(
            "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod,\n metadata: {name: a}},\n\
             {apiVersion: v1, kind: Pod, metadata: {name: b}}]}",
            &["1 Pod default/a", "3 Pod default/b"],
        );
        check("apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: a}\n", &["4 Pod default/a"]);
        check("apiVersion: v1\nkind: List\nitems: []\n", &[]);
    }

    #[test]
    fn json_is_read() {
        let list = "{\n\t\"apiVersion\": \"v1\", \"kind\": \"List\",\n\t\"items\": [\n\
            {\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"a\"},\n\"status\": {\"podIP\": \"x\"}}]}";
        let expected = ["5! Pod default/a: status.podIP: \"x\" is not an IP address"];
        check_as(Format::Json, list, &expected);
        check_as(Format::Yaml, list, &expected);
        check_as(Format::Json, "{\n\"a\": }", &["2!! expected value at line 2 column 6"]);
    }

    #[test]
    fn other_kinds_and_versions_mean_nothing() {
        check("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n", &["unused apps/v1 Deployment"]);
        check(
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n",
            &["unused serving.knative.dev/v1 Service"],
        );
        check("apiVersion: v1\nkind: PlayList\nmetadata: {name: a}\n", &["unused v1 PlayList"]);
    }

    #[test]
    fn text_that_is_not_well_formed_spoils_the_file() {
        let good = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n";
        let check = |bad: &str, expected: &str| check(&format!("{good}{bad}"), &[expected]);
        check("a: [\n", "6!! did not find expected node content");
        check("a: 1\na: 2\n", "5!! the key \"a\" stands here twice");
        check("a: *b\n", "5!! unknown anchor");
        check("a: !b c\n", "5!! a: invalid type: enum, expected a value that JSON has too");
        check("kind: Pod\nmetadata: {name: b}\n", "5!! an object needs an apiVersion and a kind");
        check("- x\n", "5!! an object needs an apiVersion and a kind");
        check("apiVersion: v1\nkind: Pod\nmetadata:\n  labels: {}\n", "8!! metadata.name: a name is needed");
    }

    #[test]
    fn fields_of_a_wrong_type_are_named_with_their_line() {
        check(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels:\n    app: web\n    version: 1.0\n",
            &[
                "7! Pod default/a: metadata.labels.version: invalid type: floating point `1.0`, expected a string",
            ],
        );
        check(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - name: x\n    ports:\n    - containerPort: web\n",
            &[
                "9! Pod default/a: spec.containers[0].ports[0].containerPort: invalid type: string \"web\", expected i32",
            ],
        );
    }

    #[test]
    fn label_keys_with_dots_are_found() {
        check(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  labels:\n    culvert.dev/mesh: enable\n",
            &[
                "6! Namespace a: metadata.labels[culvert.dev/mesh]: \"enable\" is neither \"enabled\" nor \"disabled\"",
            ],
        );
    }

    #[test]
    fn anchors_and_merges_work_as_in_kubectl() {
        check(
            "apiVersion: v1\nkind: List\nitems:\n- &a\n  apiVersion: v1\n  kind: Pod\n  metadata: &m {name: a, namespace: n}\n\
             - <<: *a\n  metadata: {<<: [*m], name: b}\n",
            &["4 Pod n/a", "8 Pod n/b"],
        );
    }

    #[test]
    fn aliases_cannot_expand_without_end() {
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = format!("*a{}, ", level - 1).repeat(10);
            laughs += &format!("a{level}: &a{level} [{below}]\n");
        }
        check(&laughs, &["1!! repetition limit exceeded"]);
        // The library counts aliases, not what they stand for: 9,000,000 values from 12 kB would pass it.
        let long = format!("a: &a [{}]\nb: [{}]\n", "x, ".repeat(3000), "*a, ".repeat(3000));
        let fault = read(&long, Format::Yaml, &settings()).unwrap_err();
        assert!(fault.message.ends_with("the document's aliases expand to too much"), "{fault:?}");
    }

    #[test]
    fn depth_has_a_bound() {
        let deep = "[".repeat(100_000);
        check_as(Format::Json, &deep, &["1!! recursion limit exceeded at line 1 column 128"]);
    }
}
