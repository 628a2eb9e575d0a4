//! Over real directories; waiting is for the published value, with a deadline that only a failure reaches.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use tempfile::TempDir;

use super::*;
use crate::mesh::Enrollment;

const NAMESPACE: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {culvert.dev/mesh: enabled}}
";

fn pod(name: &str, address: &str) -> String {
    format!(
        "\
---
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: shop
spec:
  nodeName: node-a
status:
  podIP: {address}
"
    )
}

struct Fixture {
    dir: TempDir,
    manifests: Manifests,
}

impl Fixture {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let manifests = start(dir.path()).unwrap();
        Self { dir, manifests }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file as a careful program does: beside it, then over it.
    fn replace(&self, name: &str, text: &str) {
        fs::write(self.path(".new"), text).unwrap();
        fs::rename(self.path(".new"), self.path(name)).unwrap();
    }

    fn pods(&self) -> Vec<String> {
        pods(&self.manifests.snapshots().borrow())
    }

    fn problems(&self) -> Vec<String> {
        let root = format!("{}/", self.dir.path().display());
        let problems = self.manifests.problems();
        let problems = problems.borrow();
        problems.iter().map(|problem| problem.to_string().replace(&root, "")).collect()
    }

    async fn until_pods(&self, expected: &[&str]) {
        let mut snapshots = self.manifests.snapshots();
        let wait = snapshots.wait_for(|snapshot| pods(snapshot) == expected);
        let arrived = tokio::time::timeout(DEADLINE, wait).await.is_ok();
        assert!(arrived, "{:?} instead of {expected:?}; problems: {:?}", self.pods(), self.problems());
    }

    async fn until_problem(&self, expected: &str) {
        let mut problems = self.manifests.problems();
        let wait = problems.wait_for(|_| self.problems().iter().any(|problem| problem.contains(expected)));
        let arrived = tokio::time::timeout(DEADLINE, wait).await.is_ok();
        assert!(arrived, "{:?} instead of {expected:?}", self.problems());
    }

    async fn until_no_problem(&self) {
        let mut problems = self.manifests.problems();
        let wait = problems.wait_for(|problems| problems.is_empty());
        let arrived = tokio::time::timeout(DEADLINE, wait).await.is_ok();
        assert!(arrived, "still {:?}", self.problems());
    }
}

const DEADLINE: Duration = Duration::from_secs(30);

fn start(dir: &Path) -> Result<Manifests, Error> {
    Manifests::start(dir.to_owned(), "cluster.local".parse().unwrap(), "culvert-system".to_owned())
}

/// Each pod as `name address…`.
fn pods(snapshot: &Snapshot) -> Vec<String> {
    let pod = |pod: &Arc<crate::mesh::Workload>| {
        let addresses: Vec<_> = pod.addresses.iter().map(ToString::to_string).collect();
        format!("{} {}", pod.name, addresses.join(" "))
    };
    snapshot.workloads().iter().map(pod).collect()
}

#[test]
fn first_snapshot_is_complete() {
    let shop = format!("{NAMESPACE}{}", pod("web", "10.0.0.1"));
    let db = pod("db", "10.0.0.2");
    let mesh =
        Fixture::new(&[("shop.yaml", &shop), ("db.yml", &db), ("notes.txt", "x: ["), (".x.yaml", "[")]);
    assert_eq!(mesh.pods(), ["db 10.0.0.2", "web 10.0.0.1"]);
    let snapshot = mesh.manifests.snapshots().borrow().clone();
    assert!(snapshot.workloads().iter().all(|pod| pod.enrollment == Enrollment::Enrolled));
    assert!(snapshot.workloads().iter().all(|pod| pod.receives_hbone));
    assert!(mesh.problems().is_empty(), "{:?}", mesh.problems());
}

#[test]
fn a_file_at_rest_is_news_once_and_again_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        trust_domain: "cluster.local".parse().unwrap(),
        root_namespace: "culvert-system".to_owned(),
        readiness: crate::control::Readiness::Enrollment,
    };
    let mut directory = Directory::new(dir.path().to_owned(), settings);
    // As if nothing had been written for long.
    let mut scan = || {
        let changes = directory.scan(SystemTime::now() + Duration::from_secs(60)).unwrap();
        (changes.map(|changes| changes.len()), directory.problems().len())
    };
    assert_eq!(scan(), (None, 0));
    let path = dir.path().join("pods.yaml");
    fs::write(&path, format!("{}{}", pod("web", "10.0.0.1"), pod("db", "10.0.0.2"))).unwrap();
    assert_eq!(scan(), (Some(2), 0));
    assert_eq!(scan(), (None, 0));
    fs::write(&path, format!("{}{}", pod("web", "10.0.0.1"), pod("db", "10.0.0.33"))).unwrap();
    assert_eq!(scan(), (Some(2), 0));
    fs::write(&path, "[").unwrap();
    assert_eq!(scan(), (Some(0), 1));
    assert_eq!(scan(), (None, 1));
    fs::remove_file(&path).unwrap();
    assert_eq!(scan(), (Some(2), 0));
    assert_eq!(scan(), (None, 0));
}

#[test]
fn missing_directory_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = start(&dir.path().join("absent")).unwrap_err();
    assert!(matches!(error, Error::Directory { .. }), "{error}");
}

#[tokio::test]
async fn changes_take_effect() {
    let mesh = Fixture::new(&[("a.yaml", &pod("a", "10.0.0.1"))]);
    fs::write(mesh.path("b.yaml"), pod("b", "10.0.0.2")).unwrap();
    mesh.until_pods(&["a 10.0.0.1", "b 10.0.0.2"]).await;
    fs::write(mesh.path("b.yaml"), pod("b", "10.0.0.3")).unwrap();
    mesh.until_pods(&["a 10.0.0.1", "b 10.0.0.3"]).await;
    mesh.replace("b.yaml", &pod("c", "10.0.0.3"));
    mesh.until_pods(&["a 10.0.0.1", "c 10.0.0.3"]).await;
    fs::remove_file(mesh.path("a.yaml")).unwrap();
    mesh.until_pods(&["c 10.0.0.3"]).await;
}

#[tokio::test]
async fn unchanged_pods_are_the_same_arc() {
    let mesh = Fixture::new(&[("a.yaml", &pod("a", "10.0.0.1")), ("b.yaml", &pod("b", "10.0.0.2"))]);
    let before = mesh.manifests.snapshots().borrow().clone();
    fs::write(mesh.path("b.yaml"), pod("b", "10.0.0.3")).unwrap();
    // Written again, to the same effect.
    fs::write(mesh.path("a.yaml"), format!("# again\n{}", pod("a", "10.0.0.1"))).unwrap();
    mesh.until_pods(&["a 10.0.0.1", "b 10.0.0.3"]).await;
    let after = mesh.manifests.snapshots().borrow().clone();
    assert!(Arc::ptr_eq(&before.workloads()[0], &after.workloads()[0]));
    assert!(!Arc::ptr_eq(&before.workloads()[1], &after.workloads()[1]));
}

#[tokio::test]
async fn broken_file_is_reported_and_leaves_everything_in_force() {
    let mesh = Fixture::new(&[("a.yaml", &pod("a", "10.0.0.1")), ("b.yaml", &pod("b", "10.0.0.2"))]);
    mesh.replace("a.yaml", &format!("{}---\nkind: Pod\nmetadata: [\n", pod("a", "10.0.0.9")));
    mesh.until_problem("a.yaml:1").await;
    fs::write(mesh.path("b.yaml"), pod("b", "10.0.0.3")).unwrap();
    mesh.until_pods(&["a 10.0.0.1", "b 10.0.0.3"]).await;
    mesh.replace("a.yaml", &pod("a", "10.0.0.9"));
    mesh.until_pods(&["a 10.0.0.9", "b 10.0.0.3"]).await;
    mesh.until_no_problem().await;
}

#[tokio::test]
async fn invalid_object_stays_as_it_was_while_the_rest_of_its_file_changes() {
    let mesh = Fixture::new(&[("a.yaml", &(pod("a", "10.0.0.1") + &pod("b", "10.0.0.2")))]);
    mesh.replace("a.yaml", &(pod("a", "10.0.0.256") + &pod("b", "10.0.0.3") + &pod("c", "no")));
    mesh.until_pods(&["a 10.0.0.1", "b 10.0.0.3"]).await;
    assert_eq!(
        mesh.problems(),
        [
            "a.yaml:10: Pod shop/a: status.podIP: \"10.0.0.256\" is not an IP address; it stays as it was",
            "a.yaml:30: Pod shop/c: status.podIP: \"no\" is not an IP address; it is left out",
        ]
    );
}

#[tokio::test]
async fn emptied_file_stays_in_force_until_it_is_deleted() {
    let mesh = Fixture::new(&[("a.yaml", &pod("a", "10.0.0.1"))]);
    fs::write(mesh.path("a.yaml"), "").unwrap();
    mesh.until_problem("a.yaml: is empty").await;
    assert_eq!(mesh.pods(), ["a 10.0.0.1"]);
    fs::remove_file(mesh.path("a.yaml")).unwrap();
    mesh.until_pods(&[]).await;
    mesh.until_no_problem().await;
}

#[tokio::test]
async fn later_of_two_files_counts_and_the_clash_is_reported() {
    let mesh = Fixture::new(&[("a.yaml", &pod("a", "10.0.0.1")), ("b.yaml", &pod("a", "10.0.0.2"))]);
    assert_eq!(mesh.pods(), ["a 10.0.0.2"]);
    assert_eq!(mesh.problems(), ["b.yaml:2: Pod shop/a stands in a.yaml too (line 2): this one counts"]);
    fs::remove_file(mesh.path("b.yaml")).unwrap();
    mesh.until_pods(&["a 10.0.0.1"]).await;
    mesh.until_no_problem().await;
}

#[tokio::test]
async fn configmap_swap_takes_effect() {
    let dir = tempfile::tempdir().unwrap();
    let version = |name: &str, address: &str| {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("a.yaml"), pod("a", address)).unwrap();
    };
    version("..1", "10.0.0.1");
    symlink("..1", dir.path().join("..data")).unwrap();
    symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
    let manifests = start(dir.path()).unwrap();
    version("..2", "10.0.0.2");
    symlink("..2", dir.path().join("..data_tmp")).unwrap();
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    let mesh = Fixture { dir, manifests };
    mesh.until_pods(&["a 10.0.0.2"]).await;
}

#[tokio::test]
async fn vanished_directory_is_reported_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifests");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), pod("a", "10.0.0.1")).unwrap();
    let manifests = start(&path).unwrap();
    let mesh = Fixture { dir, manifests };
    fs::rename(&path, mesh.path("elsewhere")).unwrap();
    mesh.until_problem("manifests: cannot be read").await;
    assert_eq!(mesh.pods(), ["a 10.0.0.1"]);
    fs::create_dir(&path).unwrap();
    fs::write(path.join("b.yaml"), pod("b", "10.0.0.2")).unwrap();
    mesh.until_pods(&["b 10.0.0.2"]).await;
    mesh.until_no_problem().await;
}

#[tokio::test]
async fn unreadable_file_is_reported_and_stays_in_force() {
    let mesh = Fixture::new(&[("a.yaml", &pod("a", "10.0.0.1"))]);
    fs::remove_file(mesh.path("a.yaml")).unwrap();
    symlink("nowhere", mesh.path("b.yaml")).unwrap();
    fs::create_dir(mesh.path("c.yaml")).unwrap();
    nix::unistd::mkfifo(&mesh.path("d.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for name in ["b.yaml", "c.yaml", "d.yaml"] {
        mesh.until_problem(&format!("{name}: cannot be read")).await;
    }
    mesh.until_pods(&[]).await;
}

#[test]
fn address_conflict_is_published_as_such() {
    let mesh = Fixture::new(&[("a.yaml", &(pod("a", "10.0.0.1") + &pod("b", "10.0.0.1")))]);
    let snapshot = mesh.manifests.snapshots().borrow().clone();
    let conflicts = snapshot.conflicts();
    assert_eq!(conflicts.len(), 1);
    assert_eq!(
        (conflicts[0].first.to_string(), conflicts[0].second.to_string()),
        ("shop/a".into(), "shop/b".into())
    );
}

#[tokio::test]
async fn watching_ends_when_nobody_wants_it() {
    let mesh = Fixture::new(&[("a.yaml", &pod("a", "10.0.0.1"))]);
    let mut snapshots = mesh.manifests.snapshots();
    drop(mesh.manifests);
    let ended = tokio::time::timeout(DEADLINE, snapshots.changed()).await.expect("the thread goes on");
    assert!(ended.is_err(), "a snapshot was published instead");
}

/// An AuthorizationPolicy for all of `shop`, whose spec is on line 4 of its document.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\n\
         metadata: {{name: readers, namespace: shop}}\nspec: {spec}\n"
    )
}

/// What the policies say to plaintext from 10.0.0.9 to port 80 of the pod `web`.
fn is_permitted(snapshot: &Snapshot) -> bool {
    let workload = snapshot.workload("10.0.0.1".parse().unwrap()).unwrap();
    let connection = crate::mesh::Connection {
        source: "10.0.0.9".parse().unwrap(),
        identity: None,
        destination: "10.0.0.1:80".parse().unwrap(),
    };
    snapshot.policies().authorize(workload, &connection).verdict.is_ok()
}

#[tokio::test]
async fn policies_take_effect_and_are_never_lost() {
    let web = pod("web", "10.0.0.1");
    let mesh = Fixture::new(&[("pods.yaml", &web), ("policy.yaml", &policy("{}"))]);
    let mut snapshots = mesh.manifests.snapshots();
    assert!(!is_permitted(&snapshots.borrow_and_update()));
    assert!(mesh.problems().is_empty(), "{:?}", mesh.problems());

    mesh.replace("policy.yaml", &policy("{rules: [{}]}"));
    tokio::time::timeout(DEADLINE, snapshots.wait_for(|mesh| is_permitted(mesh))).await.unwrap().unwrap();

    // Not well formed: what the file said before stays in force.
    mesh.replace("policy.yaml", &policy("{rules: ["));
    mesh.until_problem("policy.yaml:").await;
    assert!(is_permitted(&snapshots.borrow_and_update()));

    // Well formed, and no policy: it fails closed.
    mesh.replace("policy.yaml", &policy("\n  rules: 5"));
    tokio::time::timeout(DEADLINE, snapshots.wait_for(|mesh| !is_permitted(mesh))).await.unwrap().unwrap();
    mesh.until_problem("policy.yaml:5: AuthorizationPolicy shop/readers: spec.rules: must be a list").await;

    fs::remove_file(mesh.path("policy.yaml")).unwrap();
    tokio::time::timeout(DEADLINE, snapshots.wait_for(|mesh| is_permitted(mesh))).await.unwrap().unwrap();
    mesh.until_no_problem().await;
}

#[test]
fn nothing_starts_without_policies_that_may_be_there() {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let error = || start(dir.path()).map(drop).unwrap_err().to_string();
    write("pods.yaml", &pod("web", "10.0.0.1"));
    write("policy.yaml", &policy("{rules: ["));
    assert!(error().contains("policy.yaml:"), "{}", error());
    assert!(error().contains("it may hold policies"), "{}", error());
    fs::remove_file(dir.path().join("policy.yaml")).unwrap();
    symlink("nowhere", dir.path().join("link.yaml")).unwrap();
    assert!(error().contains("link.yaml: cannot be read"), "{}", error());
    fs::remove_file(dir.path().join("link.yaml")).unwrap();
    // Whatever is in there, it is no policy.
    write("broken.yaml", "kind: Pod\nmetadata: [\n");
    let manifests = start(dir.path()).unwrap();
    assert_eq!(manifests.snapshots().borrow().workloads().len(), 1);
}

#[tokio::test]
async fn policy_of_a_version_that_nobody_knows_yet_counts() {
    let newer = policy("{}").replace("v1beta1", "v7");
    let mesh = Fixture::new(&[("pods.yaml", &pod("web", "10.0.0.1")), ("policy.yaml", &newer)]);
    assert!(!is_permitted(&mesh.manifests.snapshots().borrow()));
}

#[test]
fn notices_about_policies_are_listed_and_counted() {
    let odd = policy("{action: CUSTOM, rules: [{to: [{operation: {paths: [/x]}}]}]}");
    let mesh =
        Fixture::new(&[("a.yaml", &odd), ("b.yaml", &odd.replace("readers", "typo").replace("[/x]", "7"))]);
    let starts: Vec<_> = mesh.problems().iter().map(|problem| problem[..46].to_owned()).collect();
    assert_eq!(
        starts,
        [
            "a.yaml:4: AuthorizationPolicy shop/readers: sp",
            "a.yaml:4: AuthorizationPolicy shop/readers: sp",
            "b.yaml:4: AuthorizationPolicy shop/typo: spec.",
            "b.yaml:4: AuthorizationPolicy shop/typo: spec.",
        ]
    );
    let faults = mesh.manifests.problems().borrow().iter().filter(|problem| problem.is_fault()).count();
    assert_eq!(faults, 1, "{:?}", mesh.problems());

    let mut registry = Registry::default();
    mesh.manifests.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let series =
        |kind, severity| format!("culvert_policy_problems{{kind=\"{kind}\",severity=\"{severity}\"}}");
    for (kind, severity, count) in [
        ("AuthorizationPolicy", "error", 1),
        ("AuthorizationPolicy", "warning", 3),
        ("PeerAuthentication", "error", 0),
        ("PeerAuthentication", "warning", 0),
    ] {
        assert!(text.contains(&format!("{} {count}\n", series(kind, severity))), "{kind} {severity}: {text}");
    }
}
