//! Who spoke to whom: access logs as a table.

use std::collections::BTreeMap;

use lab::AccessRecord;

use crate::report::{Report, bytes, row};

/// One line for each pair, from the records of the agents that verified the client's certificate.
pub(super) fn table<'a>(report: &Report, records: impl Iterator<Item = &'a AccessRecord>) {
    let mut pairs = BTreeMap::<[String; 5], (usize, u64, u64)>::new();
    for record in records.filter(|record| record.direction() == "inbound") {
        let field = |name: &str| record.field(name).unwrap_or_else(|| "-".to_owned());
        let source = record.field("src.workload").unwrap_or_else(|| field("src.addr"));
        let key = [
            source,
            field("dst.workload"),
            short(&field("src.identity")),
            short(&field("dst.identity")),
            field("security"),
        ];
        let (count, sent, received) = pairs.entry(key).or_default();
        *count += 1;
        *sent += record.bytes_sent();
        *received += record.bytes_received();
    }
    let mut rows = vec![row([
        "FROM",
        "TO",
        "CLIENT'S IDENTITY",
        "SERVER'S IDENTITY",
        "SECURITY",
        "CONNECTIONS",
        "SENT",
        "RECEIVED",
    ])];
    for ([from, to, client, server, security], (count, sent, received)) in &pairs {
        let count = count.to_string();
        rows.push(row([from, to, client, server, security, &count, &bytes(*sent), &bytes(*received)]));
    }
    report.table(&rows);
}

/// Without what all identities here begin with.
fn short(identity: &str) -> String {
    identity.strip_prefix("spiffe://cluster.local/").unwrap_or(identity).to_owned()
}
