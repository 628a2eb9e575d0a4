//! Installing.

use crate::world::shared;

#[test]
fn the_manifest_for_kubectl_is_taken_without_a_warning() {
    let (cluster, _used) = shared();
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/culvert.yaml");
    let args = ["apply", "--dry-run=server", "--server-side", "--force-conflicts", "-f", manifest];
    let output = cluster.kubectl_output(&args, "").unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // What helm has made was not applied before.
    let odd =
        said.lines().find(|line| line.contains("Warning") && !line.contains("last-applied-configuration"));
    assert_eq!(odd, None);
}
