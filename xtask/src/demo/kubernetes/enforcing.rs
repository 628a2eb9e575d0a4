//! Istio's policies, put on by kubectl: who is refused, and what the agent says of it.

use anyhow::{Context as _, Result, ensure};
use lab::{AccessRecord, PATIENCE, try_eventually};

use super::shop::{FOLDER, LEGACY, SHOP, Shop};
use crate::report::Report;

/// The pod outside the mesh, by its namespace and name.
pub(super) const OUTSIDER: (&str, &str) = (LEGACY, "outsider");

/// The pod that is in the mesh and no client of the web server.
const BATCH: (&str, &str) = (SHOP, "batch");

/// No plaintext any more.
pub(super) fn strict(report: &mut Report, shop: &Shop) -> Result<()> {
    report.heading("3. Policies: Istio's objects, enforced where a connection arrives");
    let answered = shop.complaint(OUTSIDER)?.is_none();
    report.check(answered, "without a policy the pod outside the mesh is answered, in plaintext");
    shop.command(report, &["apply", "-f", &format!("{FOLDER}/strict.yaml")])?;
    refused(report, shop, OUTSIDER, "plaintext_refused", "STRICT: the pod outside the mesh is refused")?;
    goes_on(report, shop, "the client in the mesh goes on, and so do the kubelets' probes")
}

/// No identity but one.
pub(super) fn by_identity(report: &mut Report, shop: &Shop) -> Result<()> {
    report.line("");
    let answered = shop.complaint(BATCH)?.is_none();
    report.check(answered, "the pod batch, which is in the mesh too, is answered");
    shop.command(report, &["apply", "-f", &format!("{FOLDER}/only-front.yaml")])?;
    refused(report, shop, BATCH, "policy_denied", "the pod batch has another identity, and is refused")?;
    goes_on(report, shop, "the client, whose service account is front, goes on")
}

/// What kubectl says of the policies.
pub(super) fn status(report: &mut Report, shop: &Shop) -> Result<()> {
    report.line("");
    let object = |kind: &str| shop.cluster().get(&["-n", SHOP, kind]);
    // One agent of the cluster writes it, within some ten seconds.
    let accepted = try_eventually(PATIENCE, || {
        for kind in ["peerauthentications", "authorizationpolicies"] {
            let policy = object(kind)?["items"][0].take();
            let conditions = policy["status"]["conditions"].as_array().context("no status yet")?;
            let wrong = conditions.iter().find(|condition| condition["status"] != "True");
            ensure!(wrong.is_none() && conditions.len() == 3, "{conditions:?}");
        }
        Ok(())
    });
    let shown = shop.command(report, &["-n", SHOP, "get", "peerauthentications,authorizationpolicies"])?;
    for line in shown.lines() {
        report.line(line);
    }
    report.check(
        accepted.is_ok(),
        "the status of both says that they were read, are enforced as they are written, and are for pods that there are",
    );
    Ok(())
}

/// Waits until a pod is refused, and shows what it hears and what the agent writes.
fn refused(report: &mut Report, shop: &Shop, pod: (&str, &str), reason: &str, claim: &str) -> Result<()> {
    let said = shop.wait_refused(pod);
    report.check(said.is_ok(), claim);
    match said {
        Ok(said) => report.line(&format!("        curl in {}: {said}", pod.1)),
        Err(error) => report.line(&format!("{error:#}")),
    }
    let of_pod = |record: &AccessRecord| {
        record.field("src.workload").as_deref() == Some(pod.1) && record.reason().as_deref() == Some(reason)
    };
    let line = try_eventually(PATIENCE, || {
        let line = shop.arrivals()?.into_iter().find(of_pod).context("no line of a refusal")?;
        let field = |name| line.field(name).with_context(|| format!("a line without {name}"));
        anyhow::Ok(format!("{} to {}: {}", field("src.workload")?, field("dst.workload")?, field("error")?))
    });
    match line {
        Ok(why) => report.line(&format!("        the agent: {why}")),
        Err(error) => report.check(false, &format!("the agent says why: {error:#}")),
    }
    Ok(())
}

/// Whether the client is answered as before.
fn goes_on(report: &mut Report, shop: &Shop, claim: &str) -> Result<()> {
    let before = shop.answers()?.len();
    shop.wait_answers(ANSWERS)?;
    let answers = shop.answers()?;
    report.check(answers[before..].iter().all(|answer| answer.starts_with("200 ")), claim);
    Ok(())
}

/// Enough for some seconds of probes.
const ANSWERS: usize = 20;
