"""An HBONE client. Its one argument: {"peer", "source", "chain", "key", "roots"}.

Commands: {"do": "open", "headers", "end"?}, send (stream, text, times?), end (stream), reset (stream), ping, cut (how), deaf (stop
reading).
Streams are numbered 1, 3, 5, … as HTTP/2 does.
"""

import asyncio
import json
import ssl
import sys

from hbone import PORT, Hbone, commands, say, trust


class Client(Hbone):
    def __init__(self):
        super().__init__(1, client=True)

    def open(self, headers, end=False):
        stream = self.http.get_next_available_stream_id()
        self.http.send_headers(stream, [tuple(pair) for pair in headers], end_stream=end)
        self.flush()

    def text(self, stream, text, times=1):
        self.send(stream, text.encode("latin-1") * times)


async def main(files):
    context = trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), files)
    loop = asyncio.get_running_loop()
    try:
        _, client = await loop.create_connection(
            Client, files["peer"], PORT, ssl=context, local_addr=(files["source"], 0), server_hostname=""
        )
    except OSError as error:
        say("refused", error=repr(error))
        return
    verbs = {"open": client.open, "send": client.text, "end": client.end}
    verbs |= {"reset": client.reset, "ping": client.ping, "cut": client.cut, "deaf": client.deaf}
    async for command in commands():
        verbs[command.pop("do")](**command)


asyncio.run(main(json.loads(sys.argv[1])))
