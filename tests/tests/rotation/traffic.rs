//! Clients in both directions that make connections all the time, and one in each that holds the one it has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lab::{AccessRecord, PATIENCE, Pod, eventually, tcp};

use super::fleet::{Fleet, LONG, SHORT};

/// Clients at once in each direction.
const CLIENTS: usize = 3;
/// Between two connections of a client: without it the ephemeral ports of a pod, each of which waits for a minute after
/// its connection, would be used up.
const PACE: Duration = Duration::from_millis(10);

pub(super) struct Traffic {
    over: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    short: Vec<JoinHandle<Vec<String>>>,
    long: Vec<JoinHandle<(Vec<SocketAddr>, Vec<String>)>>,
}

/// What became of the clients' connections.
pub(super) struct Tally {
    made: usize,
    failures: Vec<String>,
    /// The clients' ends of the held connections that did not last.
    ended: Vec<SocketAddr>,
}

impl Traffic {
    pub(super) fn start(fleet: &Fleet) -> Self {
        let mut traffic = Self {
            over: Arc::default(),
            made: Arc::default(),
            failed: Arc::default(),
            short: vec![],
            long: vec![],
        };
        for (client, server) in &fleet.pairs {
            for _ in 0..CLIENTS {
                let counts = [&traffic.made, &traffic.failed].map(Arc::clone);
                let (client, target, over) = (client.clone(), server.at(SHORT), Arc::clone(&traffic.over));
                traffic
                    .short
                    .push(thread::spawn(move || connect_again_and_again(&client, target, &over, &counts)));
            }
            let (client, target, over) = (client.clone(), server.at(LONG), Arc::clone(&traffic.over));
            traffic.long.push(thread::spawn(move || hold(&client, target, &over)));
        }
        traffic.assert_moving();
        traffic
    }

    /// Waits until connections have been made that began after now.
    pub(super) fn assert_moving(&self) {
        let (then, clients) = (self.made.load(Ordering::SeqCst), 4 * CLIENTS);
        eventually(PATIENCE, || self.made.load(Ordering::SeqCst) > then + clients);
    }

    /// Waits until a connection has failed.
    pub(super) fn wait_failure(&self) {
        eventually(PATIENCE, || self.failed.load(Ordering::SeqCst) > 0);
    }

    pub(super) fn stop(self) -> Tally {
        self.over.store(true, Ordering::SeqCst);
        let mut tally = Tally { made: 0, failures: Vec::new(), ended: Vec::new() };
        for client in self.short {
            tally.failures.extend(client.join().unwrap());
        }
        for client in self.long {
            let (ended, failures) = client.join().unwrap();
            tally.ended.extend(ended);
            tally.failures.extend(failures);
        }
        tally.made = self.made.load(Ordering::SeqCst);
        tally
    }
}

fn connect_again_and_again(
    client: &Pod,
    target: SocketAddr,
    over: &AtomicBool,
    [made, failed]: &[Arc<AtomicUsize>; 2],
) -> Vec<String> {
    let (start, mut failures) = (Instant::now(), Vec::new());
    client.run(|| {
        while !over.load(Ordering::SeqCst) {
            let attempt = || tcp::exchange(TcpStream::connect_timeout(&target, PATIENCE)?, 4096);
            match attempt() {
                Ok(()) => drop(made.fetch_add(1, Ordering::SeqCst)),
                Err(error) => {
                    failed.fetch_add(1, Ordering::SeqCst);
                    failures.push(format!("after {:?}: {error:#}", start.elapsed()));
                }
            }
            thread::sleep(PACE);
        }
    });
    failures
}

/// Holds a connection, uses it, and makes another when it has ended. Returns the own ends of those that did, and why those
/// could not be made that could not.
fn hold(client: &Pod, target: SocketAddr, over: &AtomicBool) -> (Vec<SocketAddr>, Vec<String>) {
    let (mut ended, mut failures) = (Vec::new(), Vec::new());
    while !over.load(Ordering::SeqCst) {
        let mut stream = match client.connect(target) {
            Ok(stream) => stream,
            Err(error) => {
                failures.push(format!("to be held: {error}"));
                thread::sleep(PACE);
                continue;
            }
        };
        let own = stream.local_addr().unwrap();
        let mut lives = true;
        while lives && !over.load(Ordering::SeqCst) {
            lives = tcp::ping(&mut stream, "still there?").is_ok();
            thread::sleep(PACE);
        }
        // In good order: one that is cut before its end is told so, as the agents are.
        if !lives || end(stream).is_err() {
            ended.push(own);
        }
    }
    (ended, failures)
}

/// Ends a connection to an echo on both sides.
fn end(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    match tcp::read(&mut stream, &mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("more came than was sent")),
    }
}

impl Tally {
    pub(super) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Asserts that no connection failed, by the clients and by both agents' access logs; and that a connection that was
    /// held ended for no other reason than the end of the certificates that it was made with.
    pub(super) fn assert_flawless(&self, fleet: &Fleet) {
        assert!(self.failures.is_empty(), "{self}");
        let of = |direction: &str, port: u16| -> Vec<AccessRecord> {
            let records = fleet.agents.iter().flat_map(lab::Agent::access_log);
            let port = |record: &AccessRecord| record.destination().is_some_and(|at| at.port() == port);
            records.filter(|record| record.direction() == direction && port(record)).collect()
        };
        for direction in ["outbound", "inbound"] {
            let records = eventually(PATIENCE, || {
                Some(of(direction, SHORT)).filter(|records| records.len() >= self.made)
            });
            assert_eq!(records.len(), self.made, "{direction}");
            let failed: Vec<_> = records.iter().filter(|record| !record.is_ok()).collect();
            assert!(failed.is_empty(), "{direction}: {failed:?}");
        }
        // Of the two agents, the one whose clock is first says why; the other sees its peer go. Each writes its line when it has
        // noticed.
        let ended: BTreeSet<_> = self.ended.iter().copied().collect();
        eventually(PATIENCE, || {
            let mut causes: BTreeMap<SocketAddr, Vec<String>> = BTreeMap::new();
            let records = [of("outbound", LONG), of("inbound", LONG)].concat();
            for record in records.iter().filter(|record| !record.is_ok()) {
                let error = record.field("error").unwrap_or_default();
                causes.entry(record.source().unwrap()).or_default().push(error);
            }
            let expired = |error: &String| error.contains("certificate that it was made with expired");
            let explained = causes.values().all(|errors| errors.iter().any(expired));
            if explained && causes.keys().eq(&ended) {
                return Ok(());
            }
            Err(format!("the clients and the agents do not agree: {ended:?}, {causes:?}"))
        });
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { made, failures, ended } = self;
        write!(f, "{made} connections, {} failed, {} held ones ended", failures.len(), ended.len())?;
        failures.iter().take(10).try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}
