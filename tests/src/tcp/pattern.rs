//! A stream of bytes that is the same on both sides: random, with a period that is a prime, so that no offset by a
//! buffer's size goes unnoticed. Compared by the slice, which costs nothing beside TLS.

use std::{
    io::{self, Read, Write},
    sync::LazyLock,
};

/// The largest prime below 2^16.
const PERIOD: usize = 65_521;

/// How much is written and read at once.
const CHUNK: usize = 64 * 1024;

/// The period twice and a chunk, so that every chunk is one slice of it.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // xorshift64 (Marsaglia 2003): no randomness is needed, only that no two places look alike.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    let period: Vec<u8> = (0..PERIOD).map(|_| next()).collect();
    period.iter().copied().cycle().take(PERIOD + CHUNK).collect()
});

/// Writes the first `bytes` bytes of the pattern.
pub fn send(stream: &mut impl Write, bytes: u64) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes {
        let length = CHUNK.min(usize::try_from(bytes - sent).unwrap_or(CHUNK));
        stream.write_all(at(sent, length))?;
        sent += length as u64;
    }
    Ok(())
}

/// Reads to the end of file and returns how many bytes came; a byte that is another than the pattern's is an error.
pub fn receive(stream: &mut impl Read) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    loop {
        let length = super::read(stream, &mut buffer)
            .map_err(|error| io::Error::new(error.kind(), format!("after {received} bytes: {error}")))?;
        if length == 0 {
            return Ok(received);
        }
        verify(received, &buffer[..length])?;
        received += length as u64;
    }
}

/// Reads `bytes` bytes of the pattern that begin `from` bytes into it.
pub fn receive_exactly(stream: &mut impl Read, from: u64, bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    while received < bytes {
        let length = CHUNK.min(usize::try_from(bytes - received).unwrap_or(CHUNK));
        stream.read_exact(&mut buffer[..length])?;
        verify(from + received, &buffer[..length])?;
        received += length as u64;
    }
    Ok(())
}

fn at(offset: u64, length: usize) -> &'static [u8] {
    // The remainder is below the period, a 16-bit number.
    let start = (offset % PERIOD as u64) as usize;
    &PATTERN[start..start + length]
}

fn verify(offset: u64, bytes: &[u8]) -> io::Result<()> {
    let expected = at(offset, bytes.len());
    if bytes == expected {
        return Ok(());
    }
    let wrong = bytes.iter().zip(expected).position(|(has, wants)| has != wants).unwrap_or_default() as u64;
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("byte {} is not what was sent", offset + wrong)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_received_and_a_byte_left_out_is_found() {
        let mut bytes = Vec::new();
        send(&mut bytes, 200_001).unwrap();
        assert_eq!(receive(&mut bytes.as_slice()).unwrap(), 200_001);

        bytes.remove(150_000);
        let error = receive(&mut bytes.as_slice()).unwrap_err();
        assert!(error.to_string().starts_with("byte 150000 "), "{error}");
    }
}
