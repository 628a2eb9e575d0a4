//! The agent's access log, line by line.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

/// One connection as an agent reports it when it ends.
#[derive(Clone, Debug)]
pub struct AccessRecord(Value);

impl AccessRecord {
    /// The lines of a JSON access log; a line that is cut short (still being written) is left out.
    pub fn parse(text: &str) -> Vec<Self> {
        text.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(Value::is_object)
            .map(Self)
            .collect()
    }

    /// A field as text; numbers in JSON's form, `None` where the line does not have it.
    pub fn field(&self, name: &str) -> Option<String> {
        match self.0.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Null => None,
            other => Some(other.to_string()),
        }
    }

    /// `outbound` or `inbound`.
    pub fn direction(&self) -> String {
        self.field("direction").unwrap_or_default()
    }

    /// Whether the connection ended well.
    pub fn is_ok(&self) -> bool {
        self.field("result").as_deref() == Some("ok")
    }

    /// Why it did not.
    pub fn reason(&self) -> Option<String> {
        self.field("reason")
    }

    /// The client's address.
    pub fn source(&self) -> Option<SocketAddr> {
        self.field("src.addr")?.parse().ok()
    }

    /// What the client asked for.
    pub fn destination(&self) -> Option<SocketAddr> {
        self.field("dst.addr")?.parse().ok()
    }

    /// The client's SPIFFE ID.
    pub fn source_identity(&self) -> Option<String> {
        self.field("src.identity")
    }

    /// The server's SPIFFE ID.
    pub fn destination_identity(&self) -> Option<String> {
        self.field("dst.identity")
    }

    /// Bytes from the client to the server.
    pub fn bytes_sent(&self) -> u64 {
        self.number("bytes_sent")
    }

    /// Bytes from the server to the client.
    pub fn bytes_received(&self) -> u64 {
        self.number("bytes_received")
    }

    /// Whether it is of a connection from `client`.
    pub fn is_from(&self, client: IpAddr) -> bool {
        self.source().is_some_and(|source| source.ip() == client)
    }

    fn number(&self, name: &str) -> u64 {
        self.0.get(name).and_then(Value::as_u64).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_still_being_written_is_left_out() {
        let records = AccessRecord::parse("{\"direction\":\"inbound\",\"bytes_sent\":7}\n{\"direc");
        assert_eq!(records.len(), 1);
        assert_eq!((records[0].direction().as_str(), records[0].bytes_sent()), ("inbound", 7));
    }
}
