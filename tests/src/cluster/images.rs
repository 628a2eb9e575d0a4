//! The images that clusters have: real programs of this machine, with their libraries.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::image::Image;

/// What keeps a pod's namespaces: a program that sleeps.
pub(crate) fn pause() -> Result<Image> {
    let mut image = Image::new("culvert.test/pause:1");
    image.programs(&["sleep"])?.entrypoint(&["/usr/bin/sleep", "infinity"]);
    Ok(image)
}

/// The image of pods that send and serve: a shell, curl, nginx (it serves port 8080, and answers with its pod's name), and
/// what looks at a network. Pods ask for it as [`TOOLS`].
///
/// # Errors
/// Where one of the programs is not installed.
pub fn tools() -> Result<Image> {
    let mut image = Image::new(TOOLS);
    image.programs(&[
        "bash", "cat", "curl", "date", "env", "getent", "grep", "head", "hostname", "id", "ip", "ls",
        "nginx", "openssl", "sh", "sleep", "sort", "ss", "tail", "true", "wc",
    ])?;
    image.link("/bin", "usr/bin");
    image.file("/etc/passwd", 0o644, "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n");
    image.file("/etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n");
    image.file("/etc/nginx/nginx.conf", 0o644, NGINX);
    image.file("/usr/bin/serve", 0o755, SERVE);
    image
        .empty_folder("/tmp", 0o1777)
        .empty_folder("/var/log/nginx", 0o755)
        .empty_folder("/var/lib/nginx", 0o755);
    image.entrypoint(&["/usr/bin/serve"]);
    Ok(image)
}

/// The image of an agent that was built: the program, what it loads, and the two files that name its users.
///
/// Its debug information, which is most of it, stays out; a trace still names functions.
///
/// # Errors
/// Where there is no such program, or no `strip`.
pub fn culvert(reference: &str, program: &Path) -> Result<Image> {
    let folder = tempfile::tempdir().context("a directory for the stripped program")?;
    let stripped = folder.path().join("culvert");
    let mut strip = Command::new("strip");
    let output = strip.arg("--strip-debug").arg("-o").arg(&stripped).arg(program).output();
    let output = output.context("starting strip (package binutils)")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "stripping {}: {complaint}", program.display());
    let mut image = Image::new(reference);
    image.program("/usr/bin/culvert", &stripped)?.entrypoint(&["/usr/bin/culvert"]);
    // By the numbers that distroless images give them: root for the agent, another for the certificate authority.
    image.file(
        "/etc/passwd",
        0o644,
        "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n",
    );
    image.file("/etc/group", 0o644, "root:x:0:\nnonroot:x:65532:\n").empty_folder("/tmp", 0o1777);
    image.label("org.opencontainers.image.title", "culvert");
    image.label("org.opencontainers.image.licenses", "Apache-2.0");
    Ok(image)
}

/// The name that the agent's image has where nobody gives another. The domain keeps Kubernetes from taking it for one of a
/// registry's.
pub const CULVERT: &str = concat!("culvert.dev/culvert:", env!("CARGO_PKG_VERSION"));

/// The name by which pods ask for [`tools`]. They must say `imagePullPolicy: Never`: it is in no registry.
pub const TOOLS: &str = "culvert.test/tools:1";

/// nginx's variables know nothing of the environment, so the name is put into its configuration.
const SERVE: &str = "#!/usr/bin/bash\nset -eu\ntext=$(cat /etc/nginx/nginx.conf)\n\
                     printf '%s\\n' \"${text//POD/$HOSTNAME}\" > /tmp/nginx.conf\n\
                     exec nginx -e stderr -c /tmp/nginx.conf\n";

const NGINX: &str = "daemon off;
worker_processes 1;
user root;
pid /tmp/nginx.pid;
error_log stderr;
events {}
http {
    access_log /dev/stdout;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    server {
        listen 8080;
        listen [::]:8080;
        location / { return 200 \"POD greets $remote_addr\\n\"; }
    }
}
";
