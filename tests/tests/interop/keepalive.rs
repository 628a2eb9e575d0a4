//! PINGs: the one slow test, since hbone.md gives their times: one every 10 s, and the end after 20 s without an answer.

use std::io::ErrorKind;

use lab::{PATIENCE, eventually, tcp};
use serde_json::json;

use crate::{
    client::{self, Inbound},
    server::{Outbound, PORT},
};

#[test]
fn both_sides_send_pings_answer_them_and_end_what_stays_silent() {
    let (outbound, inbound) = (Outbound::start(2), Inbound::start());

    // A server that answers, and one that soon will not.
    let (lively, deaf) = (outbound.pods[0].at_v4(PORT), outbound.pods[1].at_v4(PORT));
    let server = outbound.serve(0, lively.ip());
    let mut silent_server = outbound.serve(1, deaf.ip());
    let (mut held, mut lost) = (outbound.connect(lively), outbound.connect(deaf));
    tcp::ping(&mut held, "hello").unwrap();
    tcp::ping(&mut lost, "hello").unwrap();
    silent_server.tell(&json!({"do": "deaf"})).unwrap();

    // The same of clients.
    let target = inbound.server.at_v4(client::PORT);
    let listener = inbound.server.listen(client::PORT).unwrap();
    let mut client = inbound.connect(target.ip());
    client.tunnel(target);
    let (mut application, _) = listener.accept().unwrap();
    let mut silent_client = inbound.connect(target.ip());
    silent_client.tunnel(target);
    let (mut abandoned, _) = listener.accept().unwrap();
    silent_client.tell(&json!({"do": "deaf"}));

    client.tell(&json!({"do": "ping"}));
    client.peer.wait("pong", |_| true).unwrap();
    eventually(PATIENCE, || server.events("ping").len() >= 2 && client.peer.events("ping").len() >= 2);

    let deadline = Some(2 * PATIENCE);
    for (stream, record) in [(&mut lost, &outbound.agent), (&mut abandoned, &inbound.agent)] {
        stream.set_read_timeout(deadline).unwrap();
        assert_eq!(tcp::read(stream, &mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        let record = eventually(PATIENCE, || record.access_log().into_iter().next());
        assert_eq!(record.reason().as_deref(), Some("timeout"), "{record:?}");
        assert!(record.field("error").unwrap_or_default().contains("PING"), "{record:?}");
    }
    // Those who answer are spared.
    tcp::ping(&mut held, "still there").unwrap();
    application.set_nonblocking(true).unwrap();
    assert_eq!(tcp::read(&mut application, &mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
}
