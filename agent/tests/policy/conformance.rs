//! The cases of tests/policy, each of which holds to a sentence of docs/policy.md.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize as _;
use serde_json::Value;

use crate::place::policy_in;

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn files() -> Vec<PathBuf> {
    let entries = fs::read_dir(repository().join("tests/policy")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
    files.sort();
    files
}

/// Every case of every file.
fn cases() -> Vec<(PathBuf, Value)> {
    let mut cases = Vec::new();
    for file in files() {
        let text = fs::read_to_string(&file).unwrap();
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let document = Value::deserialize(document).unwrap();
            cases.extend(
                document["cases"].as_array().unwrap().iter().map(|case| (file.clone(), case.clone())),
            );
        }
    }
    cases
}

/// White space apart.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_case_passes() {
    let ran = policy_in(repository(), &["test", "tests/policy"]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let passed = format!("test result: ok. {} passed; 0 failed; 0 filtered out\n", cases().len());
    assert!(ran.stdout.ends_with(&passed), "{}", ran.stdout);
}

#[test]
fn every_case_holds_to_a_sentence_of_the_documentation() {
    let documentation = words(&fs::read_to_string(repository().join("docs/policy.md")).unwrap());
    let cases = cases();
    for (file, case) in &cases {
        let why =
            case["why"].as_str().unwrap_or_else(|| panic!("{}: {} has no why", file.display(), case["name"]));
        let stands = !why.trim().is_empty() && documentation.contains(&words(why));
        assert!(stands, "{}: {}: docs/policy.md does not say: {why}", file.display(), case["name"]);
    }
    assert!(cases.len() >= 150, "only {} cases", cases.len());
}

#[test]
fn cases_have_names_of_their_own_and_both_outcomes() {
    let cases = cases();
    let names: BTreeSet<_> =
        cases.iter().map(|(file, case)| (file, case["name"].as_str().unwrap())).collect();
    assert_eq!(names.len(), cases.len());
    for file in files() {
        let outcomes: BTreeSet<_> =
            cases.iter().filter(|(of, _)| *of == file).map(|(_, case)| case["expect"].as_str()).collect();
        assert_eq!(outcomes.len(), 2, "{} has one outcome only", file.display());
    }
}
