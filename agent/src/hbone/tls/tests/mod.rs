//! Against `tokio_rustls` as the peer, as a client and as a server, over pipes and over loopback.

mod bytes;
mod endings;
mod handshakes;
mod records;
mod socket;

use std::{io, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, duplex},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream as Peer};

use super::{TlsStream, accept, connect};
use crate::{
    hbone::tests::{Authority, identity},
    identity::Svid,
};

/// Which end ours is.
#[derive(Clone, Copy, Debug)]
enum Role {
    Client,
    Server,
}

const ROLES: [Role; 2] = [Role::Client, Role::Server];

/// Two members of a mesh.
struct Mesh {
    client: Arc<Svid>,
    server: Arc<Svid>,
}

impl Mesh {
    async fn new() -> Self {
        let authority = Authority::new();
        Self { client: authority.svid("client").await, server: authority.svid("server").await }
    }

    /// Makes a connection of ours and a peer's, which must succeed.
    async fn join<A, B>(&self, role: Role, near: A, far: B) -> (TlsStream<A>, Peer<B>)
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        let (ours, theirs) = self.shake_hands(role, near, far).await;
        (ours.expect("our handshake"), theirs.expect("the peer's handshake"))
    }

    /// Makes a connection of ours and a peer's.
    async fn shake_hands<A, B>(
        &self,
        role: Role,
        near: A,
        far: B,
    ) -> (io::Result<TlsStream<A>>, io::Result<Peer<B>>)
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        let client = self.client.client_config(&identity("server"));
        let server = self.server.server_config();
        let name = "192.0.2.1".try_into().unwrap();
        match role {
            Role::Client => {
                let accept = TlsAcceptor::from(server).accept(far);
                let (ours, theirs) = tokio::join!(connect(client, name, near), accept);
                (ours, theirs.map(Into::into))
            }
            Role::Server => {
                let connect = TlsConnector::from(client).connect(name, far);
                let (ours, theirs) = tokio::join!(accept(server, near), connect);
                (ours.map_err(|(error, _)| error), theirs.map(Into::into))
            }
        }
    }

    /// A connection over a pipe that holds `size` bytes each way.
    async fn over_pipe(&self, role: Role, size: usize) -> (TlsStream<DuplexStream>, Peer<DuplexStream>) {
        let (near, far) = duplex(size);
        self.join(role, near, far).await
    }

    async fn over_loopback(&self, role: Role) -> (TlsStream<TcpStream>, Peer<TcpStream>) {
        let (near, far) = loopback().await;
        self.join(role, near, far).await
    }
}

async fn loopback() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dial = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(dial, listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// The reason that an error of ours has in it.
fn tls_error(error: &io::Error) -> crate::identity::TlsError {
    crate::identity::TlsError::from_io(error)
}
