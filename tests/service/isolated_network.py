"""`python -m tests.service.isolated_network COMMAND...`: runs a server and reports every DNS look-up.

It must run in network and mount namespaces of its own (`unshare --net --mount`), which have only the loopback
interface, with a name server on port 53 that knows no name. COMMAND starts a server, which gets one request and is
stopped when standard input ends. The output is `query NAME` for each look-up, `asked`, and at the end `status N`.
"""

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.request

SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # netdevice(7)
NAME_UNKNOWN = 0x8003  # a response, "name error" (RFC 1035, 4.1.1)
ANSWER_S = 60


def raise_loopback() -> None:
    """Switch the loopback interface on, which is off in a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def queried_name(query: bytes) -> str:
    """Return the name that a DNS query asks for (RFC 1035, 4.1.2)."""
    labels, at = [], 12
    while at < len(query) and query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode(errors="replace"))
        at += 1 + query[at]
    return ".".join(labels)


def report_queries(name_server: socket.socket) -> None:
    """Answer every query with "no such name", and print it; runs in a thread."""
    while True:
        query, client = name_server.recvfrom(4096)
        print("query", queried_name(query), flush=True)
        name_server.sendto(query[:2] + struct.pack("!H", NAME_UNKNOWN) + query[4:], client)


def use_until_told(command: list[str]) -> int:
    """Start a server, send it one request, stop it when standard input ends; return its exit status."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        assert server.stderr
        http = ""
        for line in server.stderr:
            entry = json.loads(line) if line.startswith("{") else {}
            http = entry.get("http", http)
            if entry.get("event") == "loaded":
                with urllib.request.urlopen(f"{http}/v2/models", timeout=ANSWER_S) as response:
                    models = [model["name"] for model in json.load(response)["models"]]
                body = json.dumps({"inputs": "A wonderful film."}).encode()
                urllib.request.urlopen(f"{http}/models/{models[0]}", body, timeout=ANSWER_S).close()
                print("asked", flush=True)
                sys.stdin.read()
                server.send_signal(signal.SIGTERM)
    return server.returncode


def main() -> int:
    """Prepare the namespace and run the server."""
    raise_loopback()
    with tempfile.NamedTemporaryFile("w") as resolver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as name_server:
        resolver.write("nameserver 127.0.0.1\n")
        resolver.flush()
        subprocess.run(["mount", "--bind", resolver.name, os.path.realpath("/etc/resolv.conf")], check=True)
        name_server.bind(("127.0.0.1", 53))
        threading.Thread(target=report_queries, args=(name_server,), daemon=True).start()
        print("status", use_until_told(sys.argv[1:]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
