//! Authorities and certificates by OpenSSL, right ones and wrong ones.

use std::{fs, path::PathBuf, process::Command};

/// The identity of a good workload.
pub(super) const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// A directory of authorities: `root`, `intermediate` below it, and `stranger`, a root of another mesh.
pub(super) struct Pki {
    directory: tempfile::TempDir,
}

/// A certificate to be made; the default is a good workload's.
#[derive(Clone, Debug)]
pub(super) struct Wish<'a> {
    pub(super) issuer: &'a str,
    pub(super) names: &'a str,
    pub(super) usage: &'a str,
    pub(super) extended: &'a str,
    pub(super) constraints: &'a str,
    /// Days from now, of the first and the last moment.
    pub(super) days: (i64, i64),
    /// Arguments of `openssl genpkey`.
    pub(super) key: &'a [&'a str],
    pub(super) digest: &'a str,
}

impl Default for Wish<'_> {
    fn default() -> Self {
        Self {
            issuer: "intermediate",
            names: "URI:spiffe://cluster.local/ns/shop/sa/web",
            usage: "critical, digitalSignature",
            extended: "serverAuth, clientAuth",
            constraints: "critical, CA:false",
            days: (-1, 2),
            key: P256,
            digest: "sha256",
        }
    }
}

/// What an intermediate has in it.
pub(super) const AUTHORITY: Wish<'static> = Wish {
    issuer: "root",
    names: "URI:spiffe://cluster.local",
    usage: "critical, keyCertSign, cRLSign",
    extended: "",
    constraints: "critical, CA:true",
    days: (-1, 1000),
    key: P256,
    digest: "sha256",
};

pub(super) const P256: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];

impl Pki {
    pub(super) fn new() -> Self {
        let pki = Self { directory: tempfile::tempdir().unwrap() };
        pki.issue("root", &Wish { issuer: "root", ..AUTHORITY });
        pki.issue("stranger", &Wish { issuer: "stranger", ..AUTHORITY });
        pki.issue("intermediate", &Wish { constraints: "critical, CA:true, pathlen:0", ..AUTHORITY });
        pki
    }

    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// Writes files, one after the other, into another one.
    pub(super) fn join(&self, file: &str, parts: &[&str]) -> String {
        let text: Vec<u8> = parts.iter().flat_map(|part| fs::read(self.path(part)).unwrap()).collect();
        fs::write(self.path(file), text).unwrap();
        file.to_owned()
    }

    /// Makes `NAME.pem` and `NAME.key`, signed by `ISSUER.pem` with `ISSUER.key`, or by itself.
    pub(super) fn issue(&self, name: &str, wish: &Wish<'_>) -> String {
        let (key, file) = (format!("{name}.key"), format!("{name}.pem"));
        self.openssl(&[&["genpkey", "-out", &key][..], wish.key].concat());
        self.request(name, "");
        self.configure(name, wish);
        let (from, until) = (moment(wish.days.0), moment(wish.days.1));
        let mut sign = vec!["ca", "-batch", "-notext", "-config", "config", "-in"];
        let request = format!("{name}.csr");
        sign.extend([request.as_str(), "-out", &file, "-startdate", &from, "-enddate", &until]);
        if wish.issuer == name {
            sign.extend(["-selfsign", "-keyfile", &key]);
        }
        self.openssl(&sign);
        file
    }

    /// Makes `NAME.csr` for `NAME.key`; `extensions` are lines of OpenSSL's configuration.
    pub(super) fn request(&self, name: &str, extensions: &str) -> String {
        let config =
            format!("[req]\ndistinguished_name = dn\nreq_extensions = asked\n[dn]\n[asked]\n{extensions}\n");
        fs::write(self.path("request"), config).unwrap();
        let (file, key, subject) = (format!("{name}.csr"), format!("{name}.key"), format!("/CN={name}"));
        let mut args =
            vec!["req", "-new", "-key", &key, "-subj", &subject, "-out", &file, "-config", "request"];
        if !extensions.is_empty() {
            args.extend(["-reqexts", "asked"]);
        }
        self.openssl(&args);
        file
    }

    /// Makes `NAME.crl` of an authority, due again after some days, which may have passed.
    pub(super) fn revoke(&self, name: &str, issuer: &str, revoked: &[&str], days: (i64, i64)) -> String {
        self.configure(name, &Wish { issuer, ..Wish::default() });
        for file in revoked {
            self.openssl(&["ca", "-config", "config", "-revoke", file]);
        }
        let (from, until, file) = (moment(days.0), moment(days.1), format!("{name}.crl"));
        self.openssl(&[
            "ca",
            "-config",
            "config",
            "-gencrl",
            "-crl_lastupdate",
            &from,
            "-crl_nextupdate",
            &until,
            "-out",
            &file,
        ]);
        file
    }

    /// Writes OpenSSL's configuration for `openssl ca`: `openssl x509` of 3.0 cannot set a date that has passed.
    fn configure(&self, name: &str, wish: &Wish<'_>) {
        let Wish { issuer, names, usage, extended, constraints, digest, .. } = wish;
        let directory = self.directory.path().display();
        fs::write(self.path(&format!("{name}.index")), "").unwrap();
        fs::write(self.path("crlnumber"), "01\n").unwrap();
        let line = |key: &str, value: &str| match value {
            "" => String::new(),
            value => format!("{key} = {value}\n"),
        };
        let config = format!(
            "[ca]\ndefault_ca = here\n[here]\ndatabase = {directory}/{name}.index\nnew_certs_dir = {directory}\n\
             rand_serial = yes\ncrlnumber = {directory}/crlnumber\ncertificate = {directory}/{issuer}.pem\n\
             private_key = {directory}/{issuer}.key\ndefault_md = {digest}\npolicy = any\nx509_extensions = made\n\
             unique_subject = no\n[any]\ncommonName = optional\n[made]\n{}{}{}{}",
            line("basicConstraints", constraints),
            line("keyUsage", usage),
            line("extendedKeyUsage", extended),
            line("subjectAltName", names),
        );
        fs::write(self.path("config"), config).unwrap();
    }

    fn openssl(&self, args: &[&str]) {
        let output = Command::new("openssl").args(args).current_dir(self.directory.path()).output();
        let output = output.expect("openssl (package openssl)");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {}: {complaint}", args.join(" "));
    }
}

/// A moment some days from now, as `openssl ca` reads it.
fn moment(days: i64) -> String {
    let output = Command::new("date").args(["-u", "-d", &format!("{days} days"), "+%Y%m%d%H%M%SZ"]).output();
    String::from_utf8(output.expect("date").stdout).expect("a date").trim().to_owned()
}
