//! A server in threads: enough for thousands of connections, and nothing of the agent's own runtime.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::socket;

/// What a server does with a connection.
pub trait Handler: Fn(TcpStream) + Send + Sync + 'static {}

impl<F: Fn(TcpStream) + Send + Sync + 'static> Handler for F {}

/// A server that runs until it is dropped.
pub struct Server {
    listener: Arc<TcpListener>,
    address: SocketAddr,
    seen: Arc<Seen>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    peers: Mutex<Vec<SocketAddr>>,
    open: AtomicUsize,
}

/// A handler's thread needs little; thousands of them are at work at once.
const STACK: usize = 256 * 1024;

impl Server {
    /// Serves a listener; the sockets stay in the namespace in which it was made.
    pub fn start(listener: TcpListener, handler: impl Handler) -> Result<Self> {
        let address = listener.local_addr().context("the listener's address")?;
        let listener = Arc::new(listener);
        let seen = Arc::new(Seen::default());
        let accepting = thread::Builder::new()
            .name(format!("serve-{}", address.port()))
            .spawn({
                let (listener, seen) = (Arc::clone(&listener), Arc::clone(&seen));
                move || accept_all(&listener, &seen, &Arc::new(handler))
            })
            .context("a thread for a server")?;
        Ok(Self { listener, address, seen, accepting: Some(accepting) })
    }

    /// Where it listens; the port where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every client so far, as `accept` named it; IPv4-mapped addresses as IPv4.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.seen.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.peers().len()
    }

    /// Connections whose handler is at work.
    pub fn open(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Linux wakes the `accept` of a listener that is shut down; closing it would not.
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn accept_all(listener: &TcpListener, seen: &Arc<Seen>, handler: &Arc<impl Handler>) {
    loop {
        match listener.accept() {
            Ok((stream, peer)) => handle(stream, peer, seen, handler),
            // EINVAL: the server was dropped.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            // A client that reset before it was accepted, or no descriptor left: neither lasts.
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn handle(stream: TcpStream, peer: SocketAddr, seen: &Arc<Seen>, handler: &Arc<impl Handler>) {
    seen.peers.lock().unwrap_or_else(PoisonError::into_inner).push(super::canonical(peer));
    seen.open.fetch_add(1, Ordering::SeqCst);
    let (at_work, handler) = (Arc::clone(seen), Arc::clone(handler));
    let spawned = thread::Builder::new().stack_size(STACK).spawn(move || {
        handler(stream);
        at_work.open.fetch_sub(1, Ordering::SeqCst);
    });
    // Without a thread the closure is dropped, and the connection with it.
    if spawned.is_err() {
        seen.open.fetch_sub(1, Ordering::SeqCst);
    }
}
