//! Who answers at a pod's address: its application, the agent, or nobody.

use std::{
    io::{self, ErrorKind, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use culvert::{
    capture::PodCapture,
    mesh::{Plaintext, PlaintextAction},
};

use crate::{
    net::Net,
    world::{World, ip, line, listen},
};

/// A port of an address.
pub(crate) fn at(own: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(own), port)
}

/// Rules for plaintext.
pub(crate) fn rules(otherwise: PlaintextAction, ports: &[(u16, PlaintextAction)]) -> Plaintext {
    Plaintext { otherwise, ports: ports.iter().copied().collect() }
}

/// Says who one is to whoever connects.
pub(crate) struct Greeter {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Greeter {
    pub(crate) fn start(name: &'static str, listeners: Vec<TcpListener>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let greet = |listener: TcpListener| {
            let stop = Arc::clone(&stop);
            listener.set_nonblocking(true).expect("a non-blocking listener");
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        // A client that has gone is the test's business.
                        Ok((stream, _)) => drop(thread::spawn(move || greet(stream, name))),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            thread::sleep(Duration::from_millis(1));
                        }
                        Err(error) => panic!("accept: {error}"),
                    }
                }
            })
        };
        let threads = listeners.into_iter().map(greet).collect();
        Self { stop, threads }
    }

    /// Greets on ports of the pod, in both families by one listener each.
    pub(crate) fn application(world: &World, ports: &[u16]) -> Self {
        let listen = |port| world.pod.run(|| listen(&format!("[::]:{port}")));
        Self::start("application", ports.iter().copied().map(listen).collect())
    }

    /// Greets on the pod's plaintext listeners.
    pub(crate) fn agent(pod: &PodCapture) -> Self {
        Self::start("agent", pod.plaintext_listeners().expect("listeners"))
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a greeter");
        }
    }
}

fn greet(mut stream: TcpStream, name: &str) {
    stream.set_nonblocking(false).expect("a blocking socket");
    let _ = writeln!(stream, "{name}").and_then(|()| io::copy(&mut stream.try_clone()?, &mut stream));
}

/// Returns who answers at an address of the pod.
pub(crate) fn who(from: &Net, to: SocketAddr) -> String {
    from.run(|| match TcpStream::connect(to) {
        Ok(stream) => line(stream),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => "nobody".to_owned(),
        Err(error) => panic!("connecting to {to}: {error}"),
    })
}
