//! `culvert certs` and the metrics of certificates, asked of real agents.

use lab::{Agent, Mesh, PATIENCE, Sample, eventually};

/// An agent with two pods of one identity and one of another.
fn agent(mesh: &Mesh) -> Agent {
    for (pod, account) in [("web-0", "web"), ("web-1", "web"), ("db", "db")] {
        mesh.pod(pod).on("node-a").enrolled().service_account(account).start().unwrap();
    }
    let agent = mesh.agent("node-a").start().unwrap();
    agent.wait_ready().unwrap();
    eventually(PATIENCE, || agent.metrics().unwrap().of(EXPIRY, &[]).count() == 2);
    agent
}

const EXPIRY: &str = "culvert_certificate_expiry_seconds";

fn certs(agent: &Agent, args: &[&str]) -> String {
    let output = agent.cli(&[&["certs"], args].concat()).unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn certs_shows_each_identity_once_with_its_root_and_its_renewal() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh);
    let text = certs(&agent, &[]);
    for line in text.lines() {
        assert!(line.chars().count() <= 120, "{line}");
    }
    assert_eq!(text.lines().filter(|line| line.starts_with("spiffe://")).count(), 2, "{text}");
    assert_eq!(text.matches("  ok  ").count(), 2, "{text}");
    for wanted in
        ["certificates signed by local ", "expires in 23h 5", "renewed in 1", "TRUSTED ROOT", "INTERMEDIATE"]
    {
        assert!(text.contains(wanted), "{wanted:?} is not in\n{text}");
    }

    let page: serde_json::Value = serde_json::from_str(&certs(&agent, &["--json"])).unwrap();
    assert_eq!(page["trustDomain"], "cluster.local");
    let certificates = page["certificates"].as_array().unwrap();
    let names: Vec<_> = certificates.iter().map(|held| held["identity"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 2);
    assert!(names[0].ends_with("/sa/db") && names[1].ends_with("/sa/web"), "{names:?}");
    for held in certificates {
        assert_eq!((&held["state"], &held["failures"]), (&"ok".into(), &0.into()));
        let certificate = &held["certificate"];
        assert_eq!(certificate["issuer"], page["intermediates"][0]["subject"]);
        assert_eq!(held["root"]["fingerprint"], page["roots"][0]["fingerprint"]);
        assert_eq!(page["intermediates"][0]["issuer"], page["roots"][0]["subject"]);
        let times = [&certificate["notBefore"], &held["renewAt"], &certificate["notAfter"]];
        // RFC 3339 in UTC sorts as time does.
        assert!(times.map(|time| time.as_str().unwrap()).is_sorted(), "{held}");
        assert!(held["source"].as_str().unwrap().starts_with("local /"), "{held}");
    }
    // OpenSSL and we call a certificate by the same name.
    let root = format!("{}/ca/root.pem", held_source(&page));
    let print = ["x509", "-in", &root, "-noout", "-fingerprint", "-sha256"];
    let printed = std::process::Command::new("openssl").args(print).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap().replace(':', "").to_lowercase();
    assert!(printed.contains(page["roots"][0]["fingerprint"].as_str().unwrap()), "{printed}");
    // Whoever is not root cannot ask.
    assert_eq!(agent.get("/certs").unwrap().status, 404);
}

/// The directory above the authority's.
fn held_source(page: &serde_json::Value) -> &str {
    page["source"].as_str().unwrap().strip_prefix("local ").unwrap().strip_suffix("/ca").unwrap()
}

#[test]
fn metrics_say_how_long_each_certificate_is_good_for() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh);
    let metrics = agent.metrics().unwrap();
    let day = 24.0 * 3600.0;
    for sample in metrics.of(EXPIRY, &[]) {
        assert!(sample.value > day - 600.0 && sample.value <= day, "{sample:?}");
        let identity = [("identity", sample.labels["identity"].as_str())];
        let margin = metrics.sum("culvert_certificate_renewal_margin_seconds", &identity);
        // Renewed at half of its life, or up to a tenth of that earlier.
        assert!(margin > day * 0.49 && margin < day * 0.56, "{margin}");
    }
    for (role, years) in [("root", 10.0), ("intermediate", 3.0)] {
        let labels = [("role", role)];
        let all: Vec<_> = metrics.of("culvert_ca_certificate_expiry_seconds", &labels).collect();
        let [sample] = all.as_slice() else { panic!("{all:?}") };
        assert!((sample.value / day - years * 365.0).abs() < 2.0, "{sample:?}");
        assert!(sample.labels["subject"].contains(&format!("Culvert {role}")), "{sample:?}");
        assert_eq!(sample.labels["fingerprint"].len(), 16);
    }
    assert_eq!(metrics.of("culvert_certificate_failures", &[]).count(), 0);
    let since = metrics.of("culvert_certificate_last_success_seconds", &[]).next().unwrap().value;
    assert!((0.0..600.0).contains(&since), "{since}");
}

/// A rule over a metric that nobody exports never fires.
#[test]
fn every_metric_that_the_alerts_look_at_is_exported() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh);
    let exported = agent.get("/metrics").unwrap().body;
    let rules = include_str!("../../../deploy/alerts.yaml");
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let names: Vec<_> = rules
        .match_indices("culvert_")
        .map(|(at, _)| &rules[at..][..rules[at..].find(|c| !is_name(c)).unwrap_or(rules.len() - at)])
        .collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        let family = name.strip_suffix("_total").unwrap_or(name);
        let kind = if family == name { "gauge" } else { "counter" };
        assert!(
            exported.contains(&format!("# TYPE {family} {kind}\n")),
            "{name} is not exported:\n{exported}"
        );
    }
}

#[test]
fn a_file_that_cannot_be_used_is_counted_and_named_until_it_can() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh);
    let page: serde_json::Value = serde_json::from_str(&certs(&agent, &["--json"])).unwrap();
    let roots = format!("{}/ca/root.pem", held_source(&page));
    let good = std::fs::read(&roots).unwrap();
    let refused = || {
        let metrics = agent.metrics().unwrap();
        let sum = |name: &str| {
            let about = |sample: &&Sample| sample.name == name && sample.labels["file"].contains(&roots);
            let found: Vec<_> = metrics.samples().iter().filter(about).collect();
            assert!(!found.is_empty(), "{metrics:?}");
            found.iter().map(|sample| sample.value).sum::<f64>()
        };
        (sum("culvert_file_refused"), sum("culvert_file_reload_failures_total"))
    };
    assert_eq!(refused(), (0.0, 0.0));
    std::fs::write(&roots, "no certificate").unwrap();
    eventually(PATIENCE, || refused().0 >= 1.0);
    eventually(PATIENCE, || refused().1 >= 1.0);
    eventually(PATIENCE, || match certs(&agent, &[]) {
        text if text.contains("the newest content cannot be used") => Ok(()),
        text => Err(text),
    });
    std::fs::write(&roots, good).unwrap();
    eventually(PATIENCE, || refused().0 == 0.0);
    assert!(refused().1 >= 1.0);
}
