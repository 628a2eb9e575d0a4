//! Reads a pcap file: Ethernet, IPv4 and IPv6, TCP; puts each direction of each connection together.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context, Result, bail};

/// One direction of a TCP connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Flow {
    /// From.
    pub source: SocketAddr,
    /// To.
    pub destination: SocketAddr,
    /// Packets, those without data included.
    pub packets: usize,
    /// Bytes of the packets, with Ethernet's and IP's headers.
    pub wire_bytes: usize,
    payload: Vec<u8>,
}

/// What a flow is made of where it is TLS from its first byte to its last.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TlsRecords {
    /// Records of the handshake that are in the clear: ClientHello, ServerHello.
    pub handshake: usize,
    /// Encrypted records.
    pub encrypted: usize,
    /// Others: change cipher spec, alerts.
    pub other: usize,
}

impl Flow {
    /// The data in the order of the stream.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Its TLS records (RFC 8446, 5.1); `None` where any byte is outside of one. The last may be cut short.
    pub fn tls(&self) -> Option<TlsRecords> {
        let mut records = TlsRecords::default();
        let mut rest = &self.payload[..];
        while let [kind, 3, 1..=4, high, low, after @ ..] = rest {
            match kind {
                22 => records.handshake += 1,
                23 => records.encrypted += 1,
                20 | 21 => records.other += 1,
                _ => return None,
            }
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            rest = after.get(length..).unwrap_or_default();
        }
        (rest.is_empty() && records != TlsRecords::default()).then_some(records)
    }
}

/// Every direction of every TCP connection of the file.
pub(crate) fn flows(file: &[u8]) -> Result<Vec<Flow>> {
    let mut flows = BTreeMap::<(SocketAddr, SocketAddr), Assembly>::new();
    for frame in frames(file)? {
        if let Some(segment) = segment(frame) {
            flows.entry((segment.source, segment.destination)).or_default().add(segment, frame.len());
        }
    }
    Ok(flows
        .into_iter()
        .map(|((source, destination), assembly)| assembly.finish(source, destination))
        .collect())
}

#[derive(Default)]
struct Assembly {
    start: Option<u32>,
    packets: usize,
    wire_bytes: usize,
    /// By distance from the first sequence number seen. A connection that carries more than 4 GiB is not looked at.
    segments: BTreeMap<u32, Vec<u8>>,
}

impl Assembly {
    fn add(&mut self, segment: Segment<'_>, wire_bytes: usize) {
        self.packets += 1;
        self.wire_bytes += wire_bytes;
        if segment.payload.is_empty() {
            // A SYN takes a number: data begins after it.
            self.start.get_or_insert(segment.sequence.wrapping_add(u32::from(segment.syn)));
            return;
        }
        let start = *self.start.get_or_insert(segment.sequence);
        let kept = self.segments.entry(segment.sequence.wrapping_sub(start)).or_default();
        if kept.len() < segment.payload.len() {
            *kept = segment.payload.to_vec();
        }
    }

    fn finish(self, source: SocketAddr, destination: SocketAddr) -> Flow {
        let mut payload = Vec::new();
        for (at, bytes) in self.segments {
            // Retransmissions overlap; what is there already is left out.
            let known = payload.len().saturating_sub(at as usize);
            payload.extend_from_slice(bytes.get(known..).unwrap_or_default());
        }
        Flow { source, destination, packets: self.packets, wire_bytes: self.wire_bytes, payload }
    }
}

#[derive(Clone, Copy)]
struct Segment<'a> {
    source: SocketAddr,
    destination: SocketAddr,
    sequence: u32,
    syn: bool,
    payload: &'a [u8],
}

/// The frames of a pcap file: a header of 24 bytes, and 16 before each frame.
fn frames(file: &[u8]) -> Result<Vec<&[u8]>> {
    let Some((header, mut rest)) = file.split_at_checked(24) else { bail!("a capture without a header") };
    let link = u32::from_le_bytes(header[20..24].try_into()?);
    if header[..4] != [0xd4, 0xc3, 0xb2, 0xa1] || link != 1 {
        bail!("a capture of another form than little-endian pcap over Ethernet (link type {link})");
    }
    let mut frames = Vec::new();
    while let Some((head, after)) = rest.split_at_checked(16) {
        let length = u32::from_le_bytes(head[8..12].try_into()?) as usize;
        let (frame, after) = after.split_at_checked(length).context("a frame that is cut short")?;
        frames.push(frame);
        rest = after;
    }
    Ok(frames)
}

fn segment(frame: &[u8]) -> Option<Segment<'_>> {
    let packet = frame.get(14..)?;
    let (source, destination, tcp) = match frame.get(12..14)? {
        [0x08, 0x00] => ipv4(packet)?,
        [0x86, 0xdd] => ipv6(packet)?,
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        source: SocketAddr::new(source, port(0)?),
        destination: SocketAddr::new(destination, port(2)?),
        sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
        syn: tcp.get(13)? & 2 != 0,
        payload: tcp.get(header..)?,
    })
}

fn ipv4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
    if packet.get(9) != Some(&6) {
        return None;
    }
    let address = |at: usize| <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok();
    // Ethernet pads short frames, so that the header decides; 0 stands for what the card is to segment.
    let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
    Some((Ipv4Addr::from(address(12)?).into(), Ipv4Addr::from(address(16)?).into(), packet.get(header..end)?))
}

fn ipv6(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    // No extension headers: nothing here sends them with TCP.
    if packet.get(6) != Some(&6) {
        return None;
    }
    let length = usize::from(u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?));
    let address = |at: usize| <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok();
    let end = if length == 0 { packet.len() } else { (40 + length).min(packet.len()) };
    Some((Ipv6Addr::from(address(8)?).into(), Ipv6Addr::from(address(24)?).into(), packet.get(40..end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(payload: &[u8]) -> Flow {
        let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
        Flow { source: nobody, destination: nobody, packets: 1, wire_bytes: 0, payload: payload.to_vec() }
    }

    #[test]
    fn tls_is_records_from_the_first_byte_to_the_last() {
        let records = flow(&[22, 3, 1, 0, 1, 9, 23, 3, 3, 0, 2, 9, 9]).tls().unwrap();
        assert_eq!((records.handshake, records.encrypted), (1, 1));
        assert_eq!(flow(b"GET / HTTP/1.1\r\n").tls(), None);
        assert_eq!(flow(&[23, 3, 3, 0, 1, 9, b'G', b'E', b'T', 0, 0]).tls(), None);
        assert_eq!(flow(b"").tls(), None);
    }

    #[test]
    fn segments_are_put_in_order_and_repetitions_left_out() {
        let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut assembly = Assembly::default();
        for (sequence, syn, payload) in
            [(9, true, &b""[..]), (13, false, b"def"), (10, false, b"abc"), (12, false, b"cde")]
        {
            let segment = Segment { source: nobody, destination: nobody, sequence, syn, payload };
            assembly.add(segment, 0);
        }
        assert_eq!(assembly.finish(nobody, nobody).payload(), b"abcdef");
    }
}
