//! A peer that speaks HBONE and is not our agent: the Python programs in `tests/peers`, told what to do line by line.

use std::{
    io::{BufRead, BufReader, Write},
    net::IpAddr,
    path::Path,
    process::{Child, ChildStdin, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{Credentials, PATIENCE, Pod, wait::try_eventually};

/// A client or server that runs until it is dropped.
pub struct Peer {
    child: Child,
    input: ChildStdin,
    events: Arc<Mutex<Vec<Value>>>,
}

/// Debian's Python: the one that has Debian's python3-h2.
const PYTHON: &str = "/usr/bin/python3";

impl Peer {
    /// Connects to port 15008 of `target` from the pod, at the pod's own address.
    pub fn client(pod: &Pod, target: IpAddr, credentials: &Credentials) -> Result<Self> {
        let source = if target.is_ipv6() { pod.ipv6() } else { pod.ipv4() };
        Self::start(pod, "client.py", credentials, json!({"peer": target, "source": source}))
    }

    /// Serves port 15008 of the pod's `address`, and waits until it does.
    pub fn server(pod: &Pod, address: IpAddr, credentials: &Credentials) -> Result<Self> {
        let peer = Self::start(pod, "server.py", credentials, json!({"address": address}))?;
        peer.wait("listening", |_| true)?;
        Ok(peer)
    }

    fn start(pod: &Pod, script: &str, credentials: &Credentials, mut argument: Value) -> Result<Self> {
        let (chain, key) = credentials.certificate.clone().unzip();
        for (name, path) in [("chain", chain), ("key", key), ("roots", credentials.roots.clone())] {
            argument[name] = json!(path);
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(script);
        let mut command = pod.command(PYTHON);
        command.arg("-B").arg(path).arg(argument.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting a peer (package python3-h2)")?;
        let input = child.stdin.take().context("the peer's standard input")?;
        let output = child.stdout.take().context("the peer's standard output")?;
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&events);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // What is no event is seen where one is waited for in vain.
                let event = serde_json::from_str(&line);
                let event = event.unwrap_or_else(|_| json!({"is": "garbled", "line": line}));
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
        });
        Ok(Self { child, input, events })
    }

    /// Gives it a command.
    pub fn tell(&mut self, command: &Value) -> Result<()> {
        writeln!(self.input, "{command}").context("telling the peer what to do")
    }

    /// Every event of a kind so far.
    pub fn events(&self, kind: &str) -> Vec<Value> {
        self.lock().iter().filter(|event| event["is"] == kind).cloned().collect()
    }

    /// Waits for an event of a kind and returns it.
    pub fn wait(&self, kind: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        try_eventually(PATIENCE, || self.events(kind).into_iter().find(|event| is_it(event)))
            .with_context(|| format!("waiting for {kind:?}; the peer saw {:#?}", *self.lock()))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Value>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Errors mean that it ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
