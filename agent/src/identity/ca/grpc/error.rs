//! Why an authority that is asked over gRPC did not sign, with what to do about it.

use std::{
    error::Error as _,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::CertificateError;
use tonic::{Code, Status};

use super::CaAddress;

/// Why an authority that is asked over gRPC did not sign.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GrpcError {
    /// No TCP connection.
    #[error("the authority {address} cannot be reached: {source}")]
    Unreachable {
        /// Where it should be.
        address: CaAddress,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// No TLS, or not with whom it should be.
    #[error("TLS with the authority {address} failed: {}", describe_tls(.source))]
    Tls {
        /// Where it is.
        address: CaAddress,
        /// Why.
        source: Arc<io::Error>,
    },
    /// The connection ended, or it is no HTTP/2.
    #[error("the connection to the authority {address} failed: {problem}")]
    Broken {
        /// Where it is.
        address: CaAddress,
        /// What happened.
        problem: String,
    },
    /// It took too long.
    #[error(
        "the authority {address} did not answer within {}: is it overloaded, or does something drop its packets?",
        humantime::format_duration(*.limit)
    )]
    Silent {
        /// Where it is.
        address: CaAddress,
        /// How long it had.
        limit: Duration,
    },
    /// It answered with an error.
    #[error("the authority {address} answered {code:?}: {message}{}", remedy(*.code, .token))]
    Refused {
        /// Where it is.
        address: CaAddress,
        /// The status of gRPC.
        code: Code,
        /// What it says, shortened.
        message: String,
        /// The file of the token that was shown.
        token: PathBuf,
    },
    /// It answered with something that is no chain of certificates.
    #[error("the authority {address} answered with no chain of certificates: {problem}")]
    Answer {
        /// Where it is.
        address: CaAddress,
        /// What is wrong with it.
        problem: String,
    },
}

impl GrpcError {
    /// Tells what the authority says from what happened on the way to it.
    pub(super) fn from_status(address: &CaAddress, token: &Path, status: &Status) -> Self {
        let address = address.clone();
        // A status that the server sent has no source.
        match status.source() {
            Some(source) => Self::Broken { address, problem: shorten(&innermost(source)) },
            None => Self::Refused {
                address,
                code: status.code(),
                message: shorten(status.message()),
                token: token.to_owned(),
            },
        }
    }

    /// Whether the next request should not go over the same connection: it is broken, or behind it is a server that
    /// ends, or cannot serve, where another would.
    pub(super) fn spoils_the_connection(&self) -> bool {
        match self {
            Self::Refused { code, .. } => matches!(code, Code::Unavailable | Code::Internal | Code::Unknown),
            _ => true,
        }
    }
}

/// What somebody can do about a status.
fn remedy(code: Code, token: &Path) -> String {
    match code {
        Code::Unauthenticated => {
            let token = token.display();
            format!(
                " (is the token in {token} fresh, and for the audience and issuer that the authority expects? \
                 --ca-token)"
            )
        }
        Code::PermissionDenied => {
            " (it gives certificates only to accounts that it trusts with a node, for pods that run there)"
                .to_owned()
        }
        Code::Unimplemented | Code::NotFound => {
            " (it does not speak Istio's CSR protocol: is the port in --ca-address right?)".to_owned()
        }
        Code::Unavailable | Code::ResourceExhausted => " (asked again later)".to_owned(),
        _ => String::new(),
    }
}

fn describe_tls(error: &io::Error) -> String {
    use CertificateError as C;
    let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return format!("{error}: does it speak TLS there?");
    };
    match inner {
        rustls::Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => {
            "no root in --ca-server-roots (or --ca-roots, without it) vouches for its certificate".to_owned()
        }
        rustls::Error::InvalidCertificate(
            error @ (C::NotValidForName | C::NotValidForNameContext { .. }),
        ) => format!("{}: name the server by --ca-server-name", shorten(&error.to_string())),
        other => shorten(&other.to_string()),
    }
}

/// The text of the innermost cause: hyper's outer errors say no more than where it happened.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// What a stranger wrote, for a log: control characters escaped, and not too long.
pub(super) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_TEXT).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_TEXT).is_some() {
        short.push('…');
    }
    short
}

/// How much of a stranger's text is shown.
const MAX_TEXT: usize = 300;
