//! Who is who to the API server: a certificate authority, the keys of service accounts, tokens, kubeconfigs. By OpenSSL.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::network::{API_PORT, API_SERVICE};

/// The files of one API server.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    directory: PathBuf,
    server: IpAddr,
}

/// Somebody who shows a token: the name of the file, the user, and its group.
struct User {
    file: String,
    name: String,
    group: &'static str,
}

impl Credentials {
    /// Those in this directory, made or not, of the API server at this address.
    pub(crate) fn of(directory: PathBuf, server: IpAddr) -> Self {
        Self { directory, server }
    }

    /// Makes all of them. `nodes` are the nodes' names in Kubernetes.
    pub(crate) fn create(&self, nodes: &[String]) -> Result<()> {
        fs::create_dir_all(&self.directory).context("making the directory of credentials")?;
        fs::set_permissions(&self.directory, fs::Permissions::from_mode(0o700))
            .context("closing the directory of credentials")?;
        self.openssl(&[
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
            "service-accounts.key",
        ])?;
        self.openssl(&["ec", "-in", "service-accounts.key", "-pubout", "-out", "service-accounts.pub"])?;
        self.authority()?;
        let names = format!(
            "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
             DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:{API_SERVICE},IP:{},IP:127.0.0.1",
            self.server
        );
        self.certificate("apiserver", "/CN=kube-apiserver", "serverAuth", Some(&names))?;
        // By it kubelets know the API server, when it asks for logs.
        self.certificate(
            "kubelet-client",
            "/O=system:masters/CN=kube-apiserver-kubelet-client",
            "clientAuth",
            None,
        )?;
        self.users(nodes)
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    /// The kubeconfig of one user: `admin`, `kube-scheduler`, …, or a node's name.
    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.path(&format!("{user}.kubeconfig"))
    }

    fn authority(&self) -> Result<()> {
        let usage = "keyUsage=critical,keyCertSign,cRLSign,digitalSignature";
        self.sign(&["-subj", "/CN=cluster-ca", "-addext", usage, "-keyout", "ca.key", "-out", "ca.crt"])
    }

    fn certificate(&self, file: &str, subject: &str, usage: &str, names: Option<&str>) -> Result<()> {
        let (key, certificate) = (format!("{file}.key"), format!("{file}.crt"));
        let usage = format!("extendedKeyUsage={usage}");
        let names = names.map(|names| format!("subjectAltName={names}"));
        let mut args = vec!["-CA", "ca.crt", "-CAkey", "ca.key", "-subj", subject];
        args.extend(["-addext", "basicConstraints=critical,CA:false", "-addext", &usage]);
        args.extend(names.iter().flat_map(|names| ["-addext", names]));
        args.extend(["-keyout", &key, "-out", &certificate]);
        self.sign(&args)
    }

    /// Makes a key, and a certificate for it that lasts longer than any cluster; `args` say whose.
    fn sign(&self, args: &[&str]) -> Result<()> {
        let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        self.openssl(&[&new[..], &["-days", "3650"], args].concat()).map(drop)
    }

    /// Writes the file of tokens that the API server reads, and a kubeconfig for each user.
    fn users(&self, nodes: &[String]) -> Result<()> {
        let user = |name: &str, group| User { file: name.to_owned(), name: format!("system:{name}"), group };
        let mut users = vec![
            User { file: "admin".to_owned(), name: "admin".to_owned(), group: "system:masters" },
            user("kube-controller-manager", ""),
            user("kube-scheduler", ""),
            user("kube-proxy", "system:node-proxier"),
        ];
        users.extend(nodes.iter().map(|node| User {
            file: node.clone(),
            name: format!("system:node:{node}"),
            group: "system:nodes",
        }));
        let mut lines = String::new();
        for User { file, name, group } in &users {
            let token = random_token()?;
            lines.push_str(&format!("{token},{name},{file},\"{group}\"\n"));
            self.write_kubeconfig(file, &token)?;
        }
        self.write("tokens.csv", &lines)
    }

    /// Writes a kubeconfig that shows `token`, and returns where it is.
    pub(crate) fn write_kubeconfig(&self, user: &str, token: &str) -> Result<PathBuf> {
        let authority = self.openssl(&["base64", "-A", "-in", "ca.crt"])?;
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": {
                "server": format!("https://{}", SocketAddr::new(self.server, API_PORT)),
                "certificate-authority-data": authority,
            }}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": user, "context": {"cluster": "cluster", "user": user}}],
            "current-context": user,
        });
        self.write(&format!("{user}.kubeconfig"), &format!("{kubeconfig:#}\n"))?;
        Ok(self.kubeconfig(user))
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path(file);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Runs OpenSSL in the directory and returns what it printed.
    fn openssl(&self, args: &[&str]) -> Result<String> {
        let output = Command::new("openssl").args(args).current_dir(&self.directory).output();
        let output = output.context("starting openssl (package openssl)")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "openssl {}: {complaint}", args.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// 128 bits that nobody can guess.
fn random_token() -> Result<String> {
    let random = Path::new("/proc/sys/kernel/random/uuid");
    let text = fs::read_to_string(random).with_context(|| format!("reading {}", random.display()))?;
    Ok(text.trim().to_owned())
}
