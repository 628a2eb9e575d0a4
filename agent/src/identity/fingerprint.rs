//! What tells one certificate from every other, for people.

use std::fmt::{self, Write as _};

use aws_lc_rs::digest::{SHA256, digest};

/// The SHA-256 of a certificate in DER; printed as 64 digits in lower case, as `openssl x509 -fingerprint -sha256` has
/// them but for the colons.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Returns that of a certificate in DER.
    pub fn of(der: &[u8]) -> Self {
        let hash = digest(&SHA256, der);
        Self(hash.as_ref().try_into().expect("a SHA-256 has 32 bytes"))
    }

    /// Whether it begins with `digits`: hexadecimal in either case, with or without colons.
    pub fn begins_with(&self, digits: &str) -> bool {
        let digits = digits.replace(':', "").to_ascii_lowercase();
        !digits.is_empty() && self.to_string().starts_with(&digits)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(64);
        for byte in self.0 {
            write!(text, "{byte:02x}")?;
        }
        f.pad(&text)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_as_others_print_it_and_found_by_its_beginning() {
        let print = Fingerprint::of(b"abc");
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(print.to_string(), known);
        assert_eq!(format!("{print:.8}"), "ba7816bf");
        assert!(print.begins_with("BA:78:16") && print.begins_with(known));
        assert!(!print.begins_with("") && !print.begins_with("78"));
    }
}
