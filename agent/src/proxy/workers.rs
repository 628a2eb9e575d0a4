//! The threads that carry connections, and which of them carries which.
//!
//! Each has a runtime of its own that no other thread takes tasks from, and a pool of tunnels of its own: a message goes
//! from one socket to the other without waking a second processor, whose wake-up would cost more than the rest of the
//! way. A connection stays on the thread that accepted it, unless that one carries more than another; what follows from
//! it (its tunnel, the connection to the application) is on the same thread. Everything else of the agent has the
//! process's main runtime, so that no list of pods delays a byte.

use std::{
    cell::Cell,
    fmt, io,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    net::TcpStream,
    runtime::{Builder, Handle},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::busy_poll;
use crate::{
    capture,
    hbone::{Handshakes, Pool, PoolConfig, PoolKey, PoolStats},
};

/// Which threads there are to be.
#[derive(Clone, Copy, Debug)]
pub struct Threads {
    /// How many; at least one is made.
    pub count: usize,
    /// How long a thread looks for more before it sleeps, while what it moves comes that closely; not at all where zero.
    pub busy_poll: Duration,
}

/// The threads. Cheap to clone; they end with the last clone.
#[derive(Clone)]
pub struct Workers(Arc<Shared>);

struct Shared {
    workers: Box<[Worker]>,
    /// Where the next listener goes.
    next: AtomicUsize,
    _end: DropGuard,
}

struct Worker {
    runtime: Handle,
    pool: Pool,
    load: Arc<AtomicUsize>,
}

/// One connection's share of a thread.
#[derive(Debug)]
pub(super) struct Load(Arc<AtomicUsize>);

/// A connection on its way to the thread that will carry it.
pub(super) enum Arrival {
    /// It is there already.
    Here(TcpStream),
    /// It belongs to no runtime meanwhile, where it could be taken out of the one that it had.
    Moved(io::Result<std::net::TcpStream>),
}

/// How many more connections than another a thread may carry before it gives one away, which costs a wake-up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Balance {
    /// For what may be over in a moment.
    Loose,
    /// For tunnels, which many connections may come to depend on.
    Strict,
}

thread_local! {
    /// Which worker this thread is.
    static HERE: Cell<Option<usize>> = const { Cell::new(None) };
}

impl Workers {
    /// Starts the threads, each with its share of the pool's connections.
    ///
    /// # Errors
    /// Where there can be no more threads or descriptors.
    pub fn start(threads: Threads, config: &PoolConfig) -> io::Result<Self> {
        let Threads { count, busy_poll } = threads;
        let count = count.max(1);
        let config = PoolConfig { max_connections: config.max_connections.div_ceil(count), ..config.clone() };
        let (end, handshakes) = (CancellationToken::new(), Handshakes::default());
        let workers: io::Result<Box<[_]>> = (0..count)
            .map(|index| {
                let runtime = spawn(index, busy_poll, end.clone())?;
                let pool = Pool::new(config.clone(), handshakes.clone());
                Ok(Worker { runtime, pool, load: Arc::default() })
            })
            .collect();
        Ok(Self(Arc::new(Shared { workers: workers?, next: AtomicUsize::new(0), _end: end.drop_guard() })))
    }

    /// Returns the totals of handshakes, those of all pools.
    pub fn handshakes(&self) -> &Handshakes {
        self.0.workers[0].pool.handshakes()
    }

    /// Counts what all pools hold.
    pub fn stats(&self) -> PoolStats {
        self.pools().fold(PoolStats::default(), |sum, pool| sum + pool.stats())
    }

    /// Counts the tasks of all threads.
    pub fn tasks(&self) -> usize {
        self.0.workers.iter().map(|worker| worker.runtime.metrics().num_alive_tasks()).sum()
    }

    /// See [`Pool::drop_source`].
    pub fn drop_source(&self, uid: &str) {
        self.pools().for_each(|pool| pool.drop_source(uid));
    }

    /// See [`Pool::retain_peers`].
    pub fn retain_peers(&self, keep: impl Fn(&PoolKey) -> bool) {
        self.pools().for_each(|pool| pool.retain_peers(&keep));
    }

    /// See [`Pool::drain`].
    pub async fn drain(&self) {
        join_all(self.pools().map(Pool::drain)).await;
    }

    /// See [`Pool::abort`].
    pub fn abort(&self) {
        self.pools().for_each(Pool::abort);
    }

    /// Returns the pool of the calling thread.
    pub(super) fn pool(&self) -> &Pool {
        &self.0.workers[self.here()].pool
    }

    /// Gives a listener to one of the threads; its accept loop is to run there.
    pub(super) fn listen(&self, socket: TcpListener) -> io::Result<(Handle, tokio::net::TcpListener)> {
        let workers = &self.0.workers;
        let runtime = workers[self.0.next.fetch_add(1, Relaxed) % workers.len()].runtime.clone();
        let _entered = runtime.enter();
        let socket = tokio::net::TcpListener::from_std(socket)?;
        Ok((runtime.clone(), socket))
    }

    /// Chooses the thread for a connection that the calling one has accepted.
    pub(super) fn place(&self, stream: TcpStream, balance: Balance) -> (&Handle, Load, Arrival) {
        let workers = &self.0.workers;
        let here = self.here();
        let load = |index: usize| workers[index].load.load(Relaxed);
        // Of those that carry as few, this one.
        let least = (0..workers.len()).min_by_key(|index| (load(*index), *index != here)).unwrap_or(here);
        let stays = load(here) <= load(least) + balance.slack();
        let worker = &workers[if stays { here } else { least }];
        let arrival = if stays { Arrival::Here(stream) } else { Arrival::Moved(stream.into_std()) };
        (&worker.runtime, Load::of(worker), arrival)
    }

    /// Counts one more connection on the calling thread.
    pub(super) fn stay(&self) -> Load {
        Load::of(&self.0.workers[self.here()])
    }

    /// Who is none of them is taken for the first.
    fn here(&self) -> usize {
        HERE.get().filter(|index| *index < self.0.workers.len()).unwrap_or_default()
    }

    fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.0.workers.iter().map(|worker| &worker.pool)
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loads = self.0.workers.iter().map(|worker| worker.load.load(Relaxed));
        f.debug_tuple("Workers").field(&loads.collect::<Vec<_>>()).finish()
    }
}

impl Balance {
    fn slack(self) -> usize {
        match self {
            Self::Loose => 2,
            Self::Strict => 0,
        }
    }
}

impl Arrival {
    /// Makes the connection one of the thread that calls.
    pub(super) fn settle(self) -> io::Result<TcpStream> {
        match self {
            Self::Here(stream) => Ok(stream),
            Self::Moved(stream) => TcpStream::from_std(stream?),
        }
    }
}

impl Load {
    fn of(worker: &Worker) -> Self {
        // Its first bytes are near.
        busy_poll::moved();
        worker.load.fetch_add(1, Relaxed);
        Self(worker.load.clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Starts one thread, which runs what is spawned on its runtime until `end`.
fn spawn(index: usize, busy_poll: Duration, end: CancellationToken) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    if !busy_poll.is_zero() {
        handle.spawn(busy_poll::run(busy_poll));
    }
    thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        HERE.set(Some(index));
        if let Err(error) = capture::remember_home() {
            tracing::debug!(%error, "the thread looks each time where it belongs");
        }
        runtime.block_on(end.cancelled());
    })?;
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const TWO: Threads = Threads { count: 2, busy_poll: Duration::ZERO };

    async fn connection() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        client.await.unwrap()
    }

    /// Runs a future on the first thread.
    async fn on_first<T: Send + 'static>(
        workers: &Workers,
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        workers.0.workers[0].runtime.spawn(future).await.unwrap()
    }

    fn loads(workers: &Workers) -> Vec<usize> {
        workers.0.workers.iter().map(|worker| worker.load.load(Relaxed)).collect()
    }

    async fn placed(count: usize, balance: Balance) -> Vec<usize> {
        let workers = Workers::start(TWO, &PoolConfig::default()).unwrap();
        let here = workers.clone();
        let kept = on_first(&workers, async move {
            let mut kept = Vec::new();
            for _ in 0..count {
                let (_, load, arrival) = here.place(connection().await, balance);
                kept.push((load, arrival));
            }
            kept
        });
        let kept = kept.await;
        let found = loads(&workers);
        drop(kept);
        assert_eq!(loads(&workers), [0, 0]);
        found
    }

    #[tokio::test]
    async fn a_connection_stays_unless_its_thread_has_much_more_than_another() {
        assert_eq!(placed(3, Balance::Loose).await, [3, 0]);
        assert_eq!(placed(8, Balance::Loose).await, [5, 3]);
        assert_eq!(placed(3, Balance::Strict).await, [2, 1]);
    }

    #[tokio::test]
    async fn a_connection_that_has_moved_works_on_its_new_thread() {
        let workers = Workers::start(TWO, &PoolConfig::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).await.unwrap();
        let _busy = Load::of(&workers.0.workers[0]);
        let (accepted, _) = listener.accept().await.unwrap();
        let (runtime, _load, arrival) = workers.place(accepted, Balance::Strict);
        let here = workers.clone();
        let told = runtime.spawn(async move {
            arrival.settle().unwrap().writable().await.unwrap();
            here.here()
        });
        assert_eq!(told.await.unwrap(), 1);
        drop(client);
    }

    #[tokio::test]
    async fn the_threads_end_with_the_last_clone() {
        let workers = Workers::start(TWO, &PoolConfig::default()).unwrap();
        let task = workers.0.workers[1].runtime.spawn(std::future::pending::<()>());
        drop(workers);
        assert!(task.await.unwrap_err().is_cancelled());
    }
}
