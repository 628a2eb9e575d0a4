//! The bearer token that says who asks.

use std::{fs, path::Path};

use tonic::metadata::{AsciiMetadataValue, MetadataValue};
use zeroize::Zeroizing;

use super::CaError;

/// A token as it is sent. It is never printed.
pub(super) struct Token(AsciiMetadataValue);

impl Token {
    /// Reads a token from a file; white space around it does not count.
    pub(super) fn read(path: &Path) -> Result<Self, CaError> {
        let problem = |problem: &str| CaError::Content { path: path.to_owned(), problem: problem.to_owned() };
        let bytes = fs::read(path).map(Zeroizing::new).map_err(|source| CaError::File {
            what: TOKEN,
            path: path.to_owned(),
            source,
        })?;
        if bytes.len() > MAX_TOKEN {
            return Err(problem("this is longer than any token"));
        }
        let token = bytes.trim_ascii();
        if token.is_empty() {
            return Err(problem("there is no token in it"));
        }
        if !token.iter().all(u8::is_ascii_graphic) {
            return Err(problem(
                "this is not one token: it has spaces, control characters or non-ASCII in it",
            ));
        }
        let header = Zeroizing::new([b"Bearer ", token].concat());
        let mut value = MetadataValue::try_from(&header[..]).map_err(|_| problem("this is no token"))?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    /// Returns the value of the header `authorization`.
    pub(super) fn bearer(&self) -> AsciiMetadataValue {
        self.0.clone()
    }
}

/// What the file is to the agent.
pub(super) const TOKEN: &str = "token for the authority";
/// The longest token: more than what HTTP/2 servers take for a header.
const MAX_TOKEN: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_is_a_token_and_anything_else_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, " a.b-c_d\n").unwrap();
        let token = Token::read(&path).unwrap().bearer();
        assert_eq!(token.to_str().unwrap(), "Bearer a.b-c_d");
        assert!(!format!("{token:?}").contains("a.b"), "a token is not printed");
        for wrong in ["", " \n", "a b", "a\nb", "ä", "a\0b", &"a".repeat(MAX_TOKEN + 1)] {
            fs::write(&path, wrong).unwrap();
            let error = Token::read(&path).err().map(|error| error.to_string());
            assert!(error.is_some_and(|error| error.contains("token")), "{wrong:?}");
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(Token::read(&path), Err(CaError::File { .. })));
    }
}
