"""An HBONE server that is the application as well: it echoes. Its one argument: {"address", "chain", "key", "roots"}.

Commands: {"do": "behave", "as": …} for requests, and connections, that come from now on:

    echo       200, and every byte back, each half closed after the other
    answer     200, "bytes" bytes, the end, and RST_STREAM: what ztunnel does when its application has answered, ended
               and closed, and the client still sends
    status     answer with "status" and end
    silent     never answer
    reset      RST_STREAM instead of an answer
    refuse     RST_STREAM with REFUSED_STREAM
    goaway     GOAWAY that spares no stream, and close
    garbage    answer the client's preface with what is no HTTP/2
    close      close TLS in good order instead of an answer
    hold       200, and nothing more

and cut (how: tls, fin, rst; every connection), reset (every stream), goaway (every connection), deaf (stop reading).
"""

import asyncio
import json
import ssl
import sys

import h2.errors

from hbone import PORT, Hbone, commands, say, trust

# What ztunnel adds to 200, and what it says after a complete answer to a request that has not ended (RFC 9113 8.1).
BAGGAGE = (
    "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=server,service.name=server,"
    "service.version=v1"
)
NO_MORE = h2.errors.ErrorCodes.NO_ERROR

connections = {}
behaviour = {"as": "echo"}


class Server(Hbone):
    def __init__(self):
        super().__init__(len(connections) + 1, client=False)
        connections[self.connection] = self
        self.open = set()

    def begin(self):
        if behaviour["as"] == "garbage":
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" * 3)
        else:
            super().begin()

    def requested(self, stream):
        match behaviour["as"]:
            case "echo" | "hold" | "answer":
                self.http.send_headers(stream, [(":status", "200"), ("baggage", BAGGAGE)])
                self.open.add(stream)
                if behaviour["as"] == "answer":
                    self.send(stream, b"a" * behaviour["bytes"])
                    self.end(stream)
            case "status":
                self.http.send_headers(stream, [(":status", str(behaviour["status"]))], end_stream=True)
                self.http.reset_stream(stream, NO_MORE)
            case "reset":
                self.http.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
            case "refuse":
                self.http.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
            case "goaway":
                self.http.close_connection(last_stream_id=0)
                self.flush()
                self.transport.close()
            case "close":
                self.transport.close()
        self.flush()

    def received(self, stream, data):
        super().received(stream, data)
        if behaviour["as"] == "echo":
            self.send(stream, data)

    def ended(self, stream):
        if behaviour["as"] == "echo":
            self.end(stream)

    def sent(self, stream):
        if behaviour["as"] == "answer":
            self.http.reset_stream(stream, NO_MORE)
            # Its answer says that the agent has seen all of this.
            self.ping()

    def reset_all(self):
        for stream in self.open:
            self.reset(stream, h2.errors.ErrorCodes.CANCEL)


def obey(do, how=None, **more):
    if do == "behave":
        behaviour.clear()
        behaviour.update(more)
        say("behaving")
        return
    for connection in connections.values():
        match do:
            case "cut":
                connection.cut(how)
            case "reset":
                connection.reset_all()
            case "goaway":
                connection.http.close_connection(last_stream_id=connection.http.highest_inbound_stream_id)
                connection.flush()
            case "deaf":
                connection.deaf()


async def main(files):
    context = trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)
    context.sni_callback = lambda session, name, context: setattr(context, "asked_for", name)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, files["address"], PORT, ssl=context)
    say("listening")
    async with server:
        async for command in commands():
            obey(**command)


asyncio.run(main(json.loads(sys.argv[1])))
