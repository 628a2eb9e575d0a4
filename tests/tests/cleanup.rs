//! `culvert cleanup` leaves a node as it was; `culvert status` and `culvert ca init` tell who types them what is so.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use lab::{Agent, Mesh, PATIENCE, eventually, tcp};
use serde_json::Value;

/// An object of the kernel's: `link`, `prog` or `map`, and its id.
type Object = (&'static str, u64);

const KINDS: [&str; 3] = ["link", "prog", "map"];

fn bpftool(args: &[&str]) -> Value {
    let output = Command::new("bpftool").arg("-j").args(args).output().expect("package bpftool");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// All objects of the kernel's, of whoever made them.
fn all_objects() -> BTreeSet<Object> {
    let of = |kind: &'static str| {
        // It says nothing where an object goes while it looks at it.
        let listed = eventually(PATIENCE, || bpftool(&[kind, "show"]).as_array().cloned());
        let ids: Vec<_> = listed.iter().filter_map(|entry| entry["id"].as_u64()).collect();
        ids.into_iter().map(move |id| (kind, id))
    };
    KINDS.into_iter().flat_map(of).collect()
}

/// What an agent has made: what is pinned for its node, and what its process holds.
fn objects(mesh: &Mesh, agent: &Agent) -> BTreeSet<Object> {
    let mut found = BTreeSet::new();
    for pin in files(&pins(mesh, agent)) {
        for kind in KINDS {
            let shown = bpftool(&[kind, "show", "pinned", pin.to_str().unwrap()]);
            found.extend(shown["id"].as_u64().map(|id| (kind, id)));
            found.extend(shown["prog_id"].as_u64().map(|id| ("prog", id)));
        }
    }
    for entry in fs::read_dir(format!("/proc/{}/fdinfo", agent.pid())).unwrap().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        for line in text.lines() {
            let Some((name, id)) = line.split_once(':') else { continue };
            let kind = KINDS.into_iter().find(|kind| name == format!("{kind}_id"));
            found.extend(kind.zip(id.trim().parse().ok()));
        }
    }
    // A pod's map of handshakes is held by a map alone.
    let outer: Vec<_> = found.iter().filter(|(kind, _)| *kind == "map").map(|(_, id)| *id).collect();
    for id in outer {
        let dump = bpftool(&["map", "dump", "id", &id.to_string()]);
        for entry in dump.as_array().into_iter().flatten() {
            found.extend(entry["inner_map_id"].as_u64().map(|id| ("map", id)));
        }
    }
    found
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn pins(mesh: &Mesh, agent: &Agent) -> PathBuf {
    Path::new("/sys/fs/bpf/culvert").join(mesh.node(agent.node()).unique_name())
}

fn lock(mesh: &Mesh, agent: &Agent) -> PathBuf {
    Path::new("/run/culvert").join(format!("{}.lock", mesh.node(agent.node()).unique_name()))
}

fn text(output: &Output) -> String {
    let Output { stdout, stderr, .. } = output;
    format!("{}{}", String::from_utf8_lossy(stdout), String::from_utf8_lossy(stderr))
}

fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

fn count(objects: &BTreeSet<Object>, kind: &str) -> usize {
    objects.iter().filter(|(has, _)| *has == kind).count()
}

#[test]
fn nothing_of_a_node_is_left_after_cleanup_and_nothing_else_is_touched() {
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
    let server = mesh.pod("server").on("node-b").enrolled().start().unwrap();
    let near = mesh.pod("near").on("node-b").enrolled().start().unwrap();
    let (a, b) = (mesh.agent("node-a").start().unwrap(), mesh.agent("node-b").start().unwrap());
    a.wait_ready().unwrap();
    b.wait_ready().unwrap();
    let echo = server.serve(8080, tcp::echo).unwrap();
    for from in [&client, &near] {
        eventually(PATIENCE, || {
            from.connect(server.at(8080)).and_then(|mut stream| tcp::ping(&mut stream, "hello"))
        });
    }

    // The control: they are there, of every kind, and stay while and after the agent runs.
    let (of_a, of_b) = (objects(&mesh, &a), objects(&mesh, &b));
    for of_one in [&of_a, &of_b] {
        assert!(
            count(of_one, "link") >= 5 && count(of_one, "prog") >= 5 && count(of_one, "map") >= 9,
            "{of_one:?}"
        );
        assert!(of_one.is_subset(&all_objects()), "{:?}", of_one - &all_objects());
    }
    assert!(of_a.is_disjoint(&of_b), "two agents share nothing: {:?}", &of_a & &of_b);
    let refused = a.cleanup().unwrap();
    assert!(!refused.status.success() && text(&refused).contains("is running"), "{}", text(&refused));
    assert!(of_a.is_subset(&all_objects()));
    assert!(a.terminate().unwrap().success());
    assert!(all_objects().contains(of_a.iter().find(|(kind, _)| *kind == "link").unwrap()));
    assert!(lock(&mesh, &a).exists() && !files(&pins(&mesh, &a)).is_empty());
    assert!(client.connect(server.at(8080)).is_err(), "fails closed");

    // One node of two.
    let said = succeeds(&a.cleanup().unwrap());
    assert!(said.contains("removed ") && said.contains(mesh.node("node-a").unique_name()), "{said}");
    // The kernel frees late: after a grace period of RCU.
    eventually(PATIENCE, || match &of_a & &all_objects() {
        left if left.is_empty() => Ok(()),
        left => Err(format!("still there: {left:?}")),
    });
    for path in [pins(&mesh, &a), lock(&mesh, &a), a.socket().to_owned()] {
        assert!(!path.exists(), "{}", path.display());
    }
    assert!(of_b.is_subset(&all_objects()), "the other node's: {:?}", &of_b - &all_objects());
    let seen = echo.accepted();
    tcp::exchange(near.connect(server.at(8080)).unwrap(), 1000).unwrap();
    tcp::exchange(client.connect(server.at(8080)).unwrap(), 1000).unwrap();
    assert_eq!(echo.accepted(), seen + 2, "out of the mesh, the pod connects as before");

    // Again has nothing to do, and says so.
    assert!(succeeds(&a.cleanup().unwrap()).contains("nothing to remove"));

    // After a kill, which leaves the socket too.
    let of_b = objects(&mesh, &b);
    b.kill9();
    assert!(b.socket().exists() && lock(&mesh, &b).exists());
    assert!(near.connect(server.at(8080)).is_err(), "fails closed");
    succeeds(&b.cleanup().unwrap());
    eventually(PATIENCE, || match &of_b & &all_objects() {
        left if left.is_empty() => Ok(()),
        left => Err(format!("still there: {left:?}")),
    });
    for path in [pins(&mesh, &b), lock(&mesh, &b), b.socket().to_owned()] {
        assert!(!path.exists(), "{}", path.display());
    }
    tcp::exchange(near.connect(server.at(8080)).unwrap(), 1000).unwrap();

    // And a node that was cleaned up is a node like any other.
    a.restart().unwrap();
    b.restart().unwrap();
    a.wait_ready().unwrap();
    b.wait_ready().unwrap();
    tcp::exchange(client.connect(server.at(8080)).unwrap(), 1000).unwrap();
}

#[test]
fn status_shows_the_nodes_pods_and_what_is_wrong() {
    let mesh = Mesh::new().unwrap();
    let pod = mesh.pod("client").on("node-a").enrolled().service_account("shop").start().unwrap();
    let agent = mesh.agent("node-a").start().unwrap();
    agent.wait_ready().unwrap();
    mesh.apply("broken.yaml", "kind: [\n").unwrap();
    eventually(PATIENCE, || agent.get("/healthz/ready").unwrap().body.contains("broken.yaml"));

    let said = succeeds(&agent.cli(&["status"]).unwrap());
    for part in [
        "taking connections",
        "default/client",
        "enrolled",
        &pod.ip().to_string(),
        &pod.identity(),
        "broken.yaml",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let json = agent.cli(&["status", "--json"]).unwrap();
    let dump: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(dump["pods"][0]["state"], "enrolled");
    assert!(!text(&json).contains("PRIVATE KEY"));

    // Where nobody answers it says what to do.
    let mut command = Command::new(lab::culvert().unwrap());
    let nobody = command.args(["status", "--node", "no-such-node"]).output().unwrap();
    assert!(!nobody.status.success());
    assert!(
        text(&nobody).contains("no agent answers at /run/culvert/no-such-node.sock"),
        "{}",
        text(&nobody)
    );
}

#[test]
fn an_authority_is_made_once_and_its_keys_are_for_root_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca");
    let init = || {
        let mut command = Command::new(lab::culvert().unwrap());
        command.args(["ca", "init"]).arg(&ca).args(["--trust-domain", "example.org"]).output().unwrap()
    };
    let said = succeeds(&init());
    assert!(said.contains("example.org") && said.contains("root.key"), "{said}");
    let made = files(&ca);
    assert!(made.len() >= 4, "{made:?}");
    for key in made.iter().filter(|path| path.extension().is_some_and(|extension| extension == "key")) {
        assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600, "{}", key.display());
    }
    let before: Vec<_> = made.iter().map(|path| fs::read(path).unwrap()).collect();
    let again = init();
    assert!(!again.status.success(), "{}", text(&again));
    let after: Vec<_> = made.iter().map(|path| fs::read(path).unwrap()).collect();
    assert_eq!(before, after, "what is there is not overwritten");
}
