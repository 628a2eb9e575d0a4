//! Just enough HTTP/1.1 to ask an agent's admin address, over TCP or a unix socket.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};

/// How long an answer may take: as long as a test is patient.
pub const DEADLINE: Duration = crate::PATIENCE;

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body, decoded.
    pub body: String,
}

/// `GET path` over a stream that is connected.
pub fn get(mut stream: impl Read + Write, path: &str) -> Result<Response> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .context("asking by HTTP")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("reading an HTTP answer")?;
    parse(&answer)
}

/// `GET path` over a unix socket.
pub fn get_unix(socket: &Path, path: &str) -> Result<Response> {
    let stream =
        UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    get(stream, path)
}

fn parse(answer: &[u8]) -> Result<Response> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").context("an HTTP answer without an end of its head")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("an HTTP status")?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunk(body)? } else { body.to_owned() };
    Ok(Response { status, body })
}

fn unchunk(mut rest: &str) -> Result<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").context("a chunk's size")?;
        let size = usize::from_str_radix(size.trim(), 16).context("a chunk's size")?;
        if size == 0 {
            return Ok(body);
        }
        body.push_str(after.get(..size).context("a chunk that is cut short")?);
        rest = after.get(size + 2..).context("a chunk without its end")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_body_is_put_together() {
        let answer =
            parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
        assert_eq!(answer.unwrap().body, "abcde");
    }

    #[test]
    fn a_status_is_read() {
        assert_eq!(parse(b"HTTP/1.1 503 Service Unavailable\r\n\r\nnot yet").unwrap().status, 503);
    }
}
