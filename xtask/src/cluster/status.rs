//! What a cluster is at the moment, and what to try with it.

use anyhow::Result;
use lab::Cluster;

use super::DEFAULT;

/// Shows nodes, pods, programs and places.
pub(super) fn show(cluster: &Cluster) -> Result<()> {
    for what in ["nodes", "pods --all-namespaces"] {
        let args: Vec<_> = ["get", "--output=wide"].into_iter().chain(what.split(' ')).collect();
        let shown = cluster.kubectl_output(&args, "")?;
        println!("{}{}", String::from_utf8_lossy(&shown.stdout), String::from_utf8_lossy(&shown.stderr));
    }
    for (name, pid) in cluster.processes() {
        println!(
            "{name:<26} {}",
            pid.map_or_else(|| "does not run".to_owned(), |pid| format!("process {pid}"))
        );
    }
    hints(cluster);
    Ok(())
}

/// Says where things are, and what to type.
pub(super) fn hints(cluster: &Cluster) {
    let control = cluster.control_netns().path().display();
    println!("\nkubeconfig  {}", cluster.kubeconfig().display());
    println!("            (the API server answers in its namespace: nsenter --net={control} …)");
    println!("logs        {}/", cluster.logs().display());
    for node in cluster.nodes() {
        let (netns, own) = (format!("/run/netns/{}", node.unique_name()), node.path(""));
        println!("{:<11} {}; namespace {netns}, files {}", node.name(), node.unique_name(), own.display());
    }
    let task = match cluster.name() {
        DEFAULT => "cargo xtask cluster".to_owned(),
        name => format!("cargo xtask cluster --name {name}"),
    };
    println!("\n{task} kubectl get pods -A");
    println!("{task} enter node-a ss -tlnp");
    println!("{task} down");
}
