"""An HBONE peer that shares nothing with the agent: Python's ssl (OpenSSL) and hyper-h2.

`client.py` and `server.py` are told what to do by JSON objects on their standard input, one a line, and say what they
see in JSON objects on their standard output. What is right and what is wrong is the Rust test's to say.
"""

import asyncio
import hashlib
import json
import os
import socket
import ssl
import struct
import sys

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
from h2.connection import ConnectionInputs, ConnectionState, H2ConnectionStateMachine
from h2.settings import SettingCodes, Settings

PORT = 15008

# hyper-h2 4.1 wants :scheme and :path of every request, RFC 9113 8.5 forbids
# them in a CONNECT.
LENIENT = {"validate_inbound_headers": False, "validate_outbound_headers": False, "header_encoding": "utf-8"}

# hyper-h2 takes GOAWAY for the end of the connection; RFC 9113 6.8 lets the streams that are there go on.
for state in (ConnectionState.CLIENT_OPEN, ConnectionState.SERVER_OPEN):
    for goaway in (ConnectionInputs.RECV_GOAWAY, ConnectionInputs.SEND_GOAWAY):
        H2ConnectionStateMachine._transitions[(state, goaway)] = (None, state)

# What ztunnel says, as client and as server, and nothing else (docs/protocol.md).
CONNECTION_WINDOW = 16 << 20
SETTINGS = {
    True: {
        SettingCodes.ENABLE_PUSH: 0,
        SettingCodes.INITIAL_WINDOW_SIZE: 4 << 20,
        SettingCodes.MAX_FRAME_SIZE: 1 << 20,
        SettingCodes.MAX_HEADER_LIST_SIZE: 16 << 10,
    },
    False: {
        SettingCodes.MAX_CONCURRENT_STREAMS: 200,
        SettingCodes.INITIAL_WINDOW_SIZE: 4 << 20,
        SettingCodes.MAX_FRAME_SIZE: 1 << 20,
        SettingCodes.MAX_HEADER_LIST_SIZE: 64 << 10,
    },
}


class Ztunnel(Settings):
    """hyper-h2 sends all that it knows otherwise, its defaults included."""

    def __init__(self, client):
        super().__init__(client, SETTINGS[client])
        self.said = SETTINGS[client]

    def items(self):
        return self.said.items()


def say(what, **more):
    """Reports one event."""
    line = (json.dumps({"is": what, **more}) + "\n").encode()
    # Not by `print`: where a stop of the process leaves a line half written, Python's buffer loses a part of the rest.
    while line:
        line = line[os.write(sys.stdout.fileno(), line) :]


async def commands():
    """Yields the commands, until standard input ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


def uris(session):
    """The URIs in the peer's certificate, once the handshake is done."""
    names = (session.getpeercert() or {}).get("subjectAltName", ())
    return [value for kind, value in names if kind == "URI"]


def trust(context, files):
    """Makes a context one of the mesh: TLS 1.3, h2, mutual."""
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(files.get("alpn", ["h2"]))
    context.check_hostname = False
    if files["roots"]:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files["roots"])
    else:
        context.verify_mode = ssl.CERT_NONE
    if files["chain"]:
        context.load_cert_chain(files["chain"], files["key"])
    return context


class Hbone(asyncio.Protocol):
    """One HTTP/2 connection; reports what happens on it under the number `connection`."""

    def __init__(self, connection, client):
        self.connection = connection
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=client, **LENIENT))
        self.http.local_settings = Ztunnel(client)
        self.http.max_inbound_frame_size = self.http.local_settings.max_frame_size
        self.transport = None
        # Per stream: bytes to be sent, whether END_STREAM follows, what came.
        self.waiting = {}
        self.ending = set()
        self.came = {}

    def say(self, what, **more):
        say(what, connection=self.connection, **more)

    def connection_made(self, transport):
        self.transport = transport
        session = transport.get_extra_info("ssl_object")
        self.say(
            "connected",
            uris=uris(session),
            version=session.version(),
            cipher=session.cipher()[0],
            alpn=session.selected_alpn_protocol(),
            peer=transport.get_extra_info("peername")[:2],
            sni=getattr(session.context, "asked_for", None),
        )
        self.begin()

    def begin(self):
        """Says the first words of HTTP/2."""
        self.http.initiate_connection()
        # RFC 9113 6.9.2: it begins with 65,535.
        self.http.increment_flow_control_window(CONNECTION_WINDOW - 65_535)
        self.flush()

    def data_received(self, data):
        try:
            events = self.http.receive_data(data)
        except Exception as error:
            self.say("broken", error=repr(error))
            self.flush()
            self.transport.close()
            return
        for event in events:
            self.handle(event)
        self.pump()

    def eof_received(self):
        self.say("eof")

    def connection_lost(self, error):
        self.say("lost", error=repr(error) if error else "")

    def handle(self, event):
        if isinstance(event, h2.events.RemoteSettingsChanged):
            settings = {str(int(code)): change.new_value for code, change in event.changed_settings.items()}
            self.say("settings", settings=settings)
        elif isinstance(event, h2.events.RequestReceived):
            self.say("request", stream=event.stream_id, headers=[list(pair) for pair in event.headers])
            self.requested(event.stream_id)
        elif isinstance(event, h2.events.ResponseReceived):
            headers = dict(event.headers)
            self.say("response", stream=event.stream_id, status=headers.pop(":status"), headers=headers)
        elif isinstance(event, h2.events.DataReceived):
            self.received(event.stream_id, event.data)
            if event.flow_controlled_length:
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.say("end", stream=event.stream_id, **self.total(event.stream_id))
            self.ended(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.say("reset", stream=event.stream_id, code=int(event.error_code), by_peer=event.remote_reset)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.say("goaway", code=int(event.error_code), last=event.last_stream_id)
        elif isinstance(event, h2.events.PingReceived):
            self.say("ping")
        elif isinstance(event, h2.events.PingAckReceived):
            self.say("pong")

    def requested(self, stream):
        """A request has come."""

    def ended(self, stream):
        """The peer has ended its direction."""

    def sent(self, stream):
        """This direction's END_STREAM has been sent."""

    def received(self, stream, data):
        came = self.came.setdefault(stream, [0, hashlib.sha256(), b""])
        came[0] += len(data)
        came[1].update(data)
        came[2] += data[: 4096 - len(came[2])]
        self.say("data", stream=stream, **self.total(stream))

    def total(self, stream):
        """What came on a stream so far; the first 4 KiB as text."""
        count, digest, start = self.came.get(stream, (0, hashlib.sha256(), b""))
        return {"bytes": count, "sha256": digest.hexdigest(), "text": start.decode("latin-1")}

    def send(self, stream, data):
        self.waiting[stream] = self.waiting.get(stream, b"") + data
        self.pump()

    def end(self, stream):
        self.ending.add(stream)
        self.pump()

    def reset(self, stream, code=8):
        self.http.reset_stream(stream, code)
        self.flush()

    def ping(self):
        self.http.ping(b"culverts")
        self.flush()

    def deaf(self):
        """Reads no more, and so answers nothing."""
        self.transport.pause_reading()

    def cut(self, how):
        """Ends the connection under its streams: by TCP's FIN alone, by TLS's close_notify, or by a reset."""
        if how == "tls":
            self.transport.close()
            return
        if how == "rst":
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def pump(self):
        """Sends what the windows allow."""
        for stream in list(self.waiting):
            data = self.waiting[stream]
            try:
                while data:
                    room = min(self.http.local_flow_control_window(stream), self.http.max_outbound_frame_size)
                    if room <= 0:
                        break
                    self.http.send_data(stream, data[:room])
                    data = data[room:]
            except h2.exceptions.ProtocolError:
                data = b""
                self.ending.discard(stream)
            self.waiting[stream] = data
            if not data:
                del self.waiting[stream]
        for stream in list(self.ending):
            if stream not in self.waiting:
                self.ending.discard(stream)
                try:
                    self.http.end_stream(stream)
                except h2.exceptions.ProtocolError:
                    # The stream was reset meanwhile.
                    continue
                self.sent(stream)
        self.flush()

    def flush(self):
        data = self.http.data_to_send()
        if data and self.transport and not self.transport.is_closing():
            self.transport.write(data)
