//! The images that clusters have: real programs of this machine, with their libraries.

use anyhow::Result;

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
