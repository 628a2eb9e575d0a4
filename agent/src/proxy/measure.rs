//! The copy of a connection by itself, for whoever measures what it costs.

use tokio::net::TcpStream;

use super::copy::{Meter, Side, copy, tcp};

/// Carries bytes both ways between two connections until both have ended, as is done for each connection of a pod.
///
/// # Errors
/// Where one of them fails.
pub async fn carry(near: &TcpStream, far: &TcpStream) -> Result<(), impl std::error::Error + use<>> {
    let (up, down) = (Meter::default(), Meter::default());
    copy(&mut tcp(near, Side::Local), &mut tcp(far, Side::Plain), &up, &down).await
}
