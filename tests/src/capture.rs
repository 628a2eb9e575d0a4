//! A capture of an interface by tcpdump, and what is looked for in it.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    net::{Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::{
    signal::Signal,
    socket::{setsockopt, sockopt::BindToDevice},
};

use crate::{Flow, NetNs, PATIENCE, Process, pcap, wait::try_eventually};

/// A capture that runs.
#[must_use = "a capture is read by stopping it"]
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
    netns: NetNs,
    interface: String,
}

/// A capture that was stopped: every packet, whole.
#[derive(Debug)]
pub struct Captured {
    bytes: Vec<u8>,
    flows: Vec<Flow>,
}

impl Capture {
    /// Starts tcpdump and waits until it listens, so that nothing sent afterwards is missed.
    pub(crate) fn start(netns: &NetNs, interface: &str, file: PathBuf, log: &Path) -> Result<Self> {
        let mut command = netns.command("tcpdump");
        command.args([
            "-i",
            interface,
            "-s",
            LONGEST,
            "-B",
            BUFFER_KIB,
            "--immediate-mode",
            "-U",
            "-Z",
            "root",
            "-w",
        ]);
        let tcpdump = Process::start(command.arg(&file), log, None).context("package tcpdump")?;
        tcpdump.until(PATIENCE, || tcpdump.logs().contains("listening on"))?;
        Ok(Self { tcpdump, file, netns: netns.clone(), interface: interface.to_owned() })
    }

    /// Ends the capture and reads it. A packet that was dropped is an error: nothing could be said of its absence.
    pub fn stop(self) -> Result<Captured> {
        self.settle();
        self.flush().context("waiting until tcpdump has read what was captured")?;
        self.tcpdump.signal(Signal::SIGINT);
        self.tcpdump.wait(PATIENCE)?;
        let log = self.tcpdump.logs();
        let dropped = log.lines().find(|line| line.contains("dropped by kernel"));
        ensure!(dropped.is_none_or(|line| line.starts_with("0 ")), "the capture is incomplete: {log}");
        let bytes = fs::read(&self.file).context("reading the capture")?;
        let flows = pcap::flows(&bytes)?;
        Ok(Captured { bytes, flows })
    }

    /// Waits until the file has stopped growing for a moment. Where it never does, what is asked about has come by then.
    fn settle(&self) {
        let size = || fs::metadata(&self.file).map(|file| file.len()).unwrap_or_default();
        let mut last = size();
        for _ in 0..LOOKS {
            std::thread::sleep(QUIET);
            let now = size();
            if now == last {
                return;
            }
            last = now;
        }
    }

    /// Waits until tcpdump has written all that was captured before now. It reads what the kernel has queued only until the
    /// signal, and may not have had its turn for a while: a packet of our own, which is last in the queue, says how far it is.
    fn flush(&self) -> Result<()> {
        let marker = fs::read_to_string("/proc/sys/kernel/random/uuid").context("a marker")?;
        let from = fs::metadata(&self.file).map(|file| file.len()).unwrap_or_default();
        try_eventually(PATIENCE, || {
            self.send(marker.as_bytes())?;
            let mut written = Vec::new();
            let mut file = File::open(&self.file)?;
            file.seek(SeekFrom::Start(from))?;
            file.read_to_end(&mut written)?;
            if find(&written, marker.as_bytes()) { Ok(()) } else { Err(io::Error::other("not yet")) }
        })
    }

    /// Sends a datagram out of the interface, to all hosts on its link: nobody need be there, and none of them listens.
    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.netns.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            setsockopt(&socket, BindToDevice, &self.interface.as_str().into())?;
            socket.set_multicast_loop_v4(false)?;
            // RFC 1112, and the discard service of RFC 863.
            socket.send_to(bytes, (Ipv4Addr::new(224, 0, 0, 1), 9)).map(drop)
        })
    }
}

/// A mesh's traffic is never quiet for long while a transfer runs; PINGs come every 10 s.
const QUIET: Duration = Duration::from_millis(50);
const LOOKS: usize = 100;

/// The longest packet that is captured as a whole: IP's longest, with what is before it. Each has a place of this size in the
/// kernel's buffer, however short it is.
const LONGEST: &str = "65600";

/// The kernel's buffer: two thousand places, enough for what two cores can send before tcpdump gets a turn.
const BUFFER_KIB: &str = "131072";

impl Captured {
    /// Whether the bytes occur: in a packet, or across packets of one direction of a connection.
    pub fn contains(&self, marker: impl AsRef<[u8]>) -> bool {
        let marker = marker.as_ref();
        find(&self.bytes, marker) || self.flows.iter().any(|flow| find(flow.payload(), marker))
    }

    /// The file's bytes, headers and all.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What crossed, by TCP connection and direction.
    pub fn flows(&self) -> &[Flow] {
        &self.flows
    }

    /// The flows from or to a port.
    pub fn flows_of_port(&self, port: u16) -> impl Iterator<Item = &Flow> {
        self.flows.iter().filter(move |flow| flow.source.port() == port || flow.destination.port() == port)
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> bool {
    let Some((first, _)) = needle.split_first() else { return true };
    let mut rest = haystack;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_needle_is_found_at_either_end_and_after_a_false_start() {
        for (haystack, needle, expected) in
            [("aab", "ab", true), ("marker", "marker", true), ("xxmark", "marker", false), ("", "m", false)]
        {
            assert_eq!(find(haystack.as_bytes(), needle.as_bytes()), expected, "{needle} in {haystack}");
        }
    }
}
