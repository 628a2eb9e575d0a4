//! The token that a request is made with: somebody else's, in a file, or our own, from a login.

use std::{fmt, fs, path::PathBuf, sync::Arc};

use http::HeaderValue;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{VaultError, session::Session};
use crate::identity::Followed;

/// A token of Vault. Wiped when it goes.
pub(super) struct Token {
    secret: Zeroizing<String>,
    /// When it was got.
    pub(super) since: Instant,
    /// How many were got before.
    pub(super) number: u64,
}

/// Where the token comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// A file that somebody else replaces before the token in it ends, such as Vault Agent.
    File(Followed<Arc<Token>>),
    /// Logins with a Kubernetes service account.
    Kubernetes(Session),
}

impl Token {
    /// Takes a token; surrounding space is not part of it.
    ///
    /// # Errors
    /// Where it is empty, too long, or has what no header may have; says which.
    pub(super) fn new(text: &str, number: u64) -> Result<Self, &'static str> {
        let text = text.trim();
        if text.is_empty() {
            return Err("there is no token in it");
        }
        if text.len() > MAX_TOKEN || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("it is not a token: one word of letters, digits and signs");
        }
        Ok(Self { secret: Zeroizing::new(text.to_owned()), since: Instant::now(), number })
    }

    /// Returns it as a header's value, which no log of the HTTP library shows.
    pub(super) fn header(&self) -> HeaderValue {
        let mut value = HeaderValue::from_str(&self.secret).expect("a token has visible characters only");
        value.set_sensitive(true);
        value
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Source {
    /// Follows the token in a file. Blocking.
    pub(super) fn file(path: PathBuf) -> Result<Self, VaultError> {
        let paths = vec![path.clone()];
        Followed::start("token of Vault", paths, move || read(&path)).map(Self::File)
    }

    /// Returns a token; waits for the first login only.
    pub(super) async fn token(&self) -> Result<Arc<Token>, VaultError> {
        match self {
            Self::File(file) => Ok(Arc::clone(&*file.get())),
            Self::Kubernetes(session) => session.token().await,
        }
    }

    /// Returns another token than `refused`, if there can be one.
    pub(super) async fn instead_of(&self, refused: &Token) -> Option<Result<Arc<Token>, VaultError>> {
        match self {
            // It is read again within a second or so; the request is repeated later.
            Self::File(_) => None,
            Self::Kubernetes(session) => session.instead_of(refused).await,
        }
    }
}

fn read(path: &PathBuf) -> Result<Arc<Token>, VaultError> {
    let text = fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|source| VaultError::Read { path: path.clone(), source: Arc::new(source) })?;
    let content = |problem: &str| VaultError::Content { path: path.clone(), problem: problem.to_owned() };
    Token::new(&text, 0).map(Arc::new).map_err(content)
}

/// Bytes of a token: a service token has some 100, a batch token or a JWT a few thousand.
const MAX_TOKEN: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_one_word_and_is_not_shown() {
        let token = Token::new(" hvs.secret\n", 0).unwrap();
        assert_eq!(token.header(), "hvs.secret");
        assert!(!format!("{token:?} {:?}", token.header()).contains("secret"));
        for wrong in ["", " \n", "two words", "tab\there", "é", &"x".repeat(MAX_TOKEN + 1)] {
            assert!(Token::new(wrong, 0).is_err(), "{wrong:.20}");
        }
    }
}
