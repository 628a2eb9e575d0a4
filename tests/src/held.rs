//! The certificates that an agent holds, by its own word.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Agent;

impl Agent {
    /// What its dump says of its certificate for a service account of the namespace `default`: `serial`, `notAfter`, …
    /// A dump with a key in it is an error.
    pub fn certificate(&self, account: &str) -> Result<Value> {
        let dump = self.get_private("/config_dump")?.body;
        ensure!(!dump.contains("PRIVATE KEY"), "a key in the dump");
        let mut dump: Value = serde_json::from_str(&dump).context("reading the dump")?;
        let identity = format!("spiffe://cluster.local/ns/default/sa/{account}");
        let held = dump["certificates"].as_array_mut().context("no certificates in the dump")?;
        let held = held.iter_mut().find(|held| held["identity"] == identity);
        Ok(held.with_context(|| format!("no certificate of {identity}"))?["certificate"].take())
    }

    /// The serial number of that certificate.
    pub fn serial(&self, account: &str) -> Result<String> {
        let certificate = self.certificate(account)?;
        Ok(certificate["serial"].as_str().context("a certificate without a serial number")?.to_owned())
    }
}
