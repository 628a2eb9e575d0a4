//! How streams and connections of the peer's end, and what our applications make of it.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
};

use lab::{PATIENCE, tcp};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::client::{Client, Inbound, PORT};

/// A tunnel to an application that is this test, and its end of it.
fn tunnel(world: &Inbound, client: &mut Client) -> (u32, TcpStream) {
    let listener = world.server.listen(PORT).unwrap();
    let stream = client.tunnel(world.server.at_v4(PORT));
    let (application, _) = listener.accept().unwrap();
    application.set_read_timeout(Some(PATIENCE)).unwrap();
    (stream, application)
}

fn read_all(mut application: &TcpStream) -> Result<String, ErrorKind> {
    let mut text = String::new();
    application.read_to_string(&mut text).map_err(|error| error.kind())?;
    Ok(text)
}

#[test]
fn end_stream_is_a_half_close_in_either_direction() {
    let world = Inbound::start();
    let mut client = world.connect(world.server.ipv4());

    let (stream, mut application) = tunnel(&world, &mut client);
    client.tell(&json!({"do": "send", "stream": stream, "text": "question"}));
    client.end(stream);
    assert_eq!(read_all(&application).unwrap(), "question");
    application.write_all(b"answer").unwrap();
    drop(application);
    assert_eq!(client.ended(stream)["text"], "answer");

    let (stream, mut application) = tunnel(&world, &mut client);
    application.write_all(b"greeting").unwrap();
    application.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.ended(stream)["text"], "greeting");
    client.tell(&json!({"do": "send", "stream": stream, "text": "thanks"}));
    client.end(stream);
    assert_eq!(read_all(&application).unwrap(), "thanks");
    assert!(client.peer.events("reset").is_empty(), "neither stream was reset");
}

#[test]
fn a_reset_on_either_side_is_a_reset_on_the_other() {
    let world = Inbound::start();
    let mut client = world.connect(world.server.ipv4());
    let (stream, application) = tunnel(&world, &mut client);
    client.tell(&json!({"do": "send", "stream": stream, "text": "half a"}));
    (&application).read_exact(&mut [0; 6]).unwrap();
    client.tell(&json!({"do": "reset", "stream": stream}));
    assert_eq!(read_all(&application), Err(ErrorKind::ConnectionReset));

    // Also where END_STREAM came before.
    let (stream, application) = tunnel(&world, &mut client);
    client.end(stream);
    assert_eq!(read_all(&application).unwrap(), "");
    client.tell(&json!({"do": "reset", "stream": stream}));
    // What a reset after the peer's end of file is called (net/ipv4/tcp_input.c, `tcp_reset`: CLOSE_WAIT).
    lab::eventually(PATIENCE, || {
        application.take_error().unwrap().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
    });

    let (stream, application) = tunnel(&world, &mut client);
    tcp::reset(application).unwrap();
    client.peer.wait("reset", |event| event["stream"] == stream && event["by_peer"] == true).unwrap();
    assert!(client.peer.events("end").iter().all(|event| event["stream"] != stream));
    let log = lab::eventually(PATIENCE, || {
        let log = world.agent.access_log();
        (log.len() == 3).then_some(log)
    });
    assert!(log.iter().all(|record| record.reason().as_deref() == Some("reset")), "{log:?}");
}

#[test]
fn what_a_client_sent_and_ended_is_delivered_although_it_takes_no_more() {
    const TIMES: usize = 900 << 10;
    let world = Inbound::start();
    let mut client = world.connect(world.server.ipv4());
    let (stream, application) = tunnel(&world, &mut client);
    // Within the stream's window and beyond what the kernel takes for an application that does not read.
    client.tell(&json!({"do": "send", "stream": stream, "text": "u", "times": TIMES}));
    client.end(stream);
    client.tell(&json!({"do": "reset", "stream": stream}));
    // Once it is answered, the agent has seen all of that.
    client.tell(&json!({"do": "ping"}));
    client.peer.wait("pong", |_| true).unwrap();
    assert_eq!(read_all(&application).map(|text| text.len()), Ok(TIMES));
    lab::eventually(PATIENCE, || (&application).write(b"answer").is_err());
    let log = lab::eventually(PATIENCE, || world.agent.access_log().pop());
    assert_eq!(log.reason().as_deref(), Some("reset"));
}

#[test]
fn a_connection_that_is_cut_is_a_reset_and_never_an_end_of_file() {
    let world = Inbound::start();
    for how in ["fin", "tls", "rst"] {
        let mut client = world.connect(world.server.ipv4());
        let (stream, application) = tunnel(&world, &mut client);
        client.tell(&json!({"do": "send", "stream": stream, "text": "half a"}));
        (&application).read_exact(&mut [0; 6]).unwrap();
        client.tell(&json!({"do": "cut", "how": how}));
        assert_eq!(read_all(&application), Err(ErrorKind::ConnectionReset), "{how}");
    }
}

#[test]
fn sigterm_says_goaway_and_lets_streams_finish() {
    let world = Inbound::start();
    let mut client = world.connect(world.server.ipv4());
    let (stream, mut application) = tunnel(&world, &mut client);
    world.agent.signal(Signal::SIGTERM);
    let goaway = client.peer.wait("goaway", |_| true).unwrap();
    assert_eq!(goaway["code"], 0);
    client.tell(&json!({"do": "send", "stream": stream, "text": "last words"}));
    client.end(stream);
    assert_eq!(read_all(&application).unwrap(), "last words");
    application.write_all(b"answer").unwrap();
    drop(application);
    assert_eq!(client.ended(stream)["text"], "answer");
    assert!(world.agent.wait_end(PATIENCE).unwrap().success());
    assert!(client.peer.events("reset").is_empty());
}
