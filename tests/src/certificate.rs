//! Certificates by OpenSSL, right ones and wrong ones, for peers that are not our agent.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};

use crate::mesh::Shared;

/// What a peer of the mesh has to show, and whom it trusts.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// The certificate and its intermediate, and the key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The roots that it trusts; without them it trusts anybody.
    pub roots: Option<PathBuf>,
}

impl Credentials {
    /// The same without a certificate.
    #[must_use]
    pub fn anonymous(self) -> Self {
        Self { certificate: None, ..self }
    }

    /// The same, with other roots or none.
    #[must_use]
    pub fn trusting(self, roots: Option<PathBuf>) -> Self {
        Self { roots, ..self }
    }
}

/// A certificate to be signed by the intermediate of an agent's CA directory: of a day, good for clients and servers.
#[must_use = "a certificate is made by issuing it"]
pub struct CertificateBuilder {
    shared: Arc<Shared>,
    ca: PathBuf,
    names: Vec<String>,
    validity: (&'static str, &'static str),
    usage: &'static str,
}

impl CertificateBuilder {
    pub(crate) fn new(shared: Arc<Shared>, ca: &Path, identity: &str) -> Self {
        Self {
            shared,
            ca: ca.to_owned(),
            names: vec![format!("URI:{identity}")],
            validity: ("20200101000000Z", "21000101000000Z"),
            usage: "serverAuth, clientAuth",
        }
    }

    /// One more name, as OpenSSL writes it: `URI:spiffe://…`, `DNS:…`.
    pub fn name(mut self, name: &str) -> Self {
        self.names.push(name.to_owned());
        self
    }

    /// One that expired long ago.
    pub fn expired(mut self) -> Self {
        self.validity = ("20200101000000Z", "20200102000000Z");
        self
    }

    /// One that is not valid yet.
    pub fn future(mut self) -> Self {
        self.validity = ("20990101000000Z", "21000101000000Z");
        self
    }

    /// Another extended key usage than for both, as OpenSSL writes it: `clientAuth`.
    pub fn usage(mut self, usage: &'static str) -> Self {
        self.usage = usage;
        self
    }

    /// Makes it.
    pub fn issue(self) -> Result<Credentials> {
        let Self { shared, ca, names, validity: (from, until), usage } = self;
        let directory = shared.fresh_path("certificate", "d");
        let at = |name: &str| directory.join(name);
        fs::create_dir(&directory).context("a directory for a certificate")?;
        fs::write(at("index"), "")?;
        fs::write(at("config"), config(&directory, &ca, &names, usage))?;
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "key.pem"];
        openssl(
            &directory,
            &[&["req", "-new", "-subj", "/CN=peer", "-out", "request.pem"], &key[..]].concat(),
        )?;
        let sign = ["ca", "-batch", "-notext", "-config", "config", "-in", "request.pem", "-out", "leaf.pem"];
        openssl(&directory, &[&sign[..], &["-startdate", from, "-enddate", until]].concat())?;
        let chain = [fs::read(at("leaf.pem"))?, fs::read(ca.join("intermediate.pem"))?].concat();
        fs::write(at("chain.pem"), chain)?;
        let certificate = Some((at("chain.pem"), at("key.pem")));
        Ok(Credentials { certificate, roots: Some(ca.join("root.pem")) })
    }
}

/// A revocation list of `serials` (hexadecimal, with or without colons), signed by the intermediate of a CA directory.
pub(crate) fn revocation_list(shared: &Shared, ca: &Path, serials: &[String]) -> Result<Vec<u8>> {
    let directory = shared.fresh_path("revocation", "d");
    fs::create_dir(&directory).context("a directory for a revocation list")?;
    // OpenSSL's database: status, expiry, revocation, serial number, file, subject.
    let line = |serial: &String| {
        format!(
            "R\t21000101000000Z\t200101000000Z\t{}\tunknown\t/CN=peer\n",
            serial.replace(':', "").to_uppercase()
        )
    };
    fs::write(directory.join("index"), serials.iter().map(line).collect::<String>())?;
    fs::write(directory.join("config"), config(&directory, ca, &[], "clientAuth"))?;
    let make = ["ca", "-gencrl", "-config", "config", "-crldays", "1", "-out", "list.pem"];
    openssl(&directory, &make)?;
    Ok(fs::read(directory.join("list.pem"))?)
}

/// `openssl ca`, since `openssl x509` of 3.0 cannot set a date that has passed.
fn config(directory: &Path, ca: &Path, names: &[String], usage: &str) -> String {
    let (directory, ca, names) = (directory.display(), ca.display(), names.join(", "));
    format!(
        "[ca]\ndefault_ca = here\n\
         [here]\ndatabase = {directory}/index\nnew_certs_dir = {directory}\nrand_serial = yes\n\
         certificate = {ca}/intermediate.pem\nprivate_key = {ca}/intermediate.key\n\
         default_md = sha256\npolicy = any\nx509_extensions = leaf\ncrl_extensions = list\n\
         [any]\ncommonName = optional\n[list]\nauthorityKeyIdentifier = keyid\n\
         [leaf]\nbasicConstraints = critical, CA:false\nkeyUsage = critical, digitalSignature\n\
         extendedKeyUsage = {usage}\nsubjectAltName = {names}\n"
    )
}

fn openssl(directory: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new("openssl").args(args).current_dir(directory).output();
    let output = output.context("running openssl (package openssl)")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "openssl {}: {}", args.join(" "), complaint.trim());
    Ok(())
}
