//! The archive of an image: an OCI image layout (image-spec, image-layout.md) in a tar, with the `manifest.json` of
//! `docker save` beside it, so that every engine reads it.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType};

use super::{Image, layer};

/// What was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Written {
    /// The digest of the image's manifest, by which registries know it: `sha256:…`.
    pub digest: String,
    /// The archive's size in bytes.
    pub size: usize,
}

/// The blobs of an image, by their digests.
#[derive(Default)]
struct Blobs(Vec<(String, Vec<u8>)>);

impl Blobs {
    /// Adds a blob and returns its descriptor (image-spec, descriptor.md).
    fn add(&mut self, kind: &str, bytes: Vec<u8>) -> Value {
        let digest = sha256(&bytes);
        let descriptor = json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{digest}"),
            "size": bytes.len(),
        });
        self.0.push((digest, bytes));
        descriptor
    }
}

pub(super) fn write(image: &Image, path: &Path) -> Result<Written> {
    let mut blobs = Blobs::default();
    let layer = blobs.add("layer.v1.tar", layer::write(&image.entries)?);
    // The layer is not compressed, so that its two digests are one.
    let configuration = blobs.add("config.v1+json", text(&configuration(image, &layer["digest"])));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": configuration,
        "layers": [layer],
    });
    let mut manifest = blobs.add("manifest.v1+json", text(&manifest));
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    manifest["annotations"] = json!({
        "io.containerd.image.name": image.reference,
        "org.opencontainers.image.ref.name": image.reference,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    let docker = json!([{
        "Config": blob_path(&configuration),
        "RepoTags": [image.reference],
        "Layers": [blob_path(&layer)],
    }]);
    let bytes = pack(&blobs, &index, &docker)?;
    fs::write(path, &bytes).context("writing the file")?;
    Ok(Written { digest, size: bytes.len() })
}

fn configuration(image: &Image, layer: &Value) -> Value {
    json!({
        // The beginning of time: an image is what it holds, not when it was made.
        "created": "1970-01-01T00:00:00Z",
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": image.entrypoint,
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Labels": image.labels,
        },
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    })
}

fn pack(blobs: &Blobs, index: &Value, docker: &Value) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        tar.append_data(&mut layer::header(EntryType::Regular, 0o644, bytes.len()), name, bytes)
            .with_context(|| format!("adding {name}"))
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json", &text(index))?;
    add("manifest.json", &text(docker))?;
    for (digest, bytes) in &blobs.0 {
        add(&format!("blobs/sha256/{digest}"), bytes)?;
    }
    tar.into_inner().context("ending the archive")
}

fn blob_path(descriptor: &Value) -> String {
    format!("blobs/{}", descriptor["digest"].as_str().unwrap_or_default().replace(':', "/"))
}

fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn sha256(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The name that Go has for this machine's processors, which images use.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn sample() -> Image {
        let mut image = Image::new("culvert.test/sample:1");
        image
            .file("/etc/deep/greeting", 0o644, "hello")
            .link("/bin/hi", "/usr/bin/hi")
            .entrypoint(&["/bin/hi"]);
        image
    }

    /// The files of an archive by their names.
    fn unpack(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
        let files = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            (entry.path().unwrap().to_string_lossy().into_owned(), bytes)
        });
        files.collect()
    }

    #[test]
    fn every_digest_is_that_of_what_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.tar");
        let written = sample().write(&path).unwrap();
        let files = unpack(&path);
        for (name, bytes) in files.iter().filter(|(name, _)| name.starts_with("blobs/")) {
            assert_eq!(*name, format!("blobs/sha256/{}", sha256(bytes)));
        }
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["digest"], written.digest);
        let manifest: Value = serde_json::from_slice(&files[&blob_path(&index["manifests"][0])]).unwrap();
        let configuration: Value = serde_json::from_slice(&files[&blob_path(&manifest["config"])]).unwrap();
        assert_eq!(configuration["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        assert_eq!(configuration["config"]["Entrypoint"][0], "/bin/hi");
        let docker: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert!(files.contains_key(docker[0]["Layers"][0].as_str().unwrap()));
    }

    #[test]
    fn the_same_files_make_the_same_image_whenever_it_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["one.tar", "two.tar"].map(|name| folder.path().join(name));
        assert_eq!(sample().write(&one).unwrap(), sample().write(&two).unwrap());
        assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
        let mut other = sample();
        other.file("/etc/deep/greeting", 0o644, "hullo");
        assert_ne!(other.write(&two).unwrap().digest, sample().write(&one).unwrap().digest);
    }
}
