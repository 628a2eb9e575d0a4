//! Finds out that a peer is gone although TCP has not noticed: a PING every ten seconds, as ztunnel sends it.

use std::{future::pending, time::Duration};

use h2::{Ping, PingPong};
use tokio::time::{sleep, timeout};

/// Returns once the peer has left a PING unanswered for [`ANSWER`]; never while it answers, and never on a connection
/// that ended otherwise: whoever drives the connection learns of that from the connection itself.
///
/// A peer that stops reading ends here too: the PING then never leaves.
///
/// `pings` is what a connection hands out, once; without it nothing is found out.
pub(super) async fn lost(pings: Option<PingPong>) {
    let Some(mut pings) = pings else { return pending().await };
    loop {
        sleep(INTERVAL).await;
        match timeout(ANSWER, pings.ping(Ping::opaque())).await {
            Ok(Ok(_pong)) => {}
            Ok(Err(_closed)) => pending().await,
            Err(_elapsed) => return,
        }
    }
}

/// From an answer to the next PING (hbone.md: what ztunnel does).
pub(super) const INTERVAL: Duration = Duration::from_secs(10);

/// How long an answer may take (hbone.md: what ztunnel does).
pub(super) const ANSWER: Duration = Duration::from_secs(20);
