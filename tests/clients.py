#!/usr/bin/env python3
"""Real clients through `fdlink run`: one line for each case, mode and IP version.

    python3 tests/clients.py --fdlink target/release/fdlink [--mode MODE]... [--case CASE]...

Runs in a network namespace of its own (root: `unshare -n`; else `unshare -Urn`), so that nothing
outside of this machine is needed or touched, and "unreachable" means the same everywhere.
Lines: `ok CASE MODE VERSION detail` or `FAILED CASE MODE VERSION reason`. Exit status 1 if any failed.

What is not here: throughput (the demo, `docs/`), and the policy's whole table (its unit tests).
"""

import argparse
import errno
import hashlib
import http.server
import os
import shutil
import socket
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
import time

MODES = ["readv", "recvmmsg", "packet-mmap"]
HOST = {4: "10.0.2.2", 6: "fd00:fd::2"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
RESOLVER = {4: "10.0.2.3", 6: "fd00:fd::3"}
NOWHERE = {4: "198.51.100.1", 6: "2001:db8::1"}
# How long one command may take; a hang is a failure, speed is not this script's business.
LIMIT = 60
FILE_SIZE = 64 << 20
PARALLEL = 200


# --- what runs on the host ------------------------------------------------------------------


class Http(http.server.BaseHTTPRequestHandler):
    """GET gives the file, PUT answers with the SHA-256 of what it was sent."""

    protocol_version = "HTTP/1.1"
    body = b""

    def do_GET(self):
        size = int(self.path.rsplit("/", 1)[1])
        self.answer(self.body[:size])

    def do_PUT(self):
        left, digest = int(self.headers["Content-Length"]), hashlib.sha256()
        while left:
            chunk = self.rfile.read(min(left, 1 << 20))
            if not chunk:
                return
            digest.update(chunk)
            left -= len(chunk)
        self.answer(digest.hexdigest().encode())

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class HalfClose(socketserver.BaseRequestHandler):
    """The first byte says who closes first; both sides go on talking as far as they may."""

    def handle(self):
        order = self.request.recv(1)
        if order == b"c":  # the client closes first: read to its end, then answer
            data = read_all(self.request)
            self.request.sendall(b"got %d" % len(data))
        elif order == b"s":  # the server closes first, and still reads
            self.request.sendall(b"bye")
            self.request.shutdown(socket.SHUT_WR)
            self.server.heard = len(read_all(self.request))
        elif order == b"b":  # both at once
            self.request.sendall(b"x" * 100_000)
            self.request.shutdown(socket.SHUT_WR)
            read_all(self.request)
        elif order == b"r":  # reset
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # Here, not by the server, which would send a FIN first.
            self.request.close()


class Dns(socketserver.BaseRequestHandler):
    """Answers every A question with 192.0.2.7, and AAAA with 2001:db8::7."""

    def handle(self):
        if isinstance(self.request, tuple):
            data, sock = self.request
            sock.sendto(dns_answer(data), self.client_address)
            return
        head = read_exactly(self.request, 2)
        answer = dns_answer(read_exactly(self.request, int.from_bytes(head, "big")))
        self.request.sendall(struct.pack("!H", len(answer)) + answer)


def dns_answer(query):
    end = 12
    while query[end]:
        end += query[end] + 1
    end += 5
    kind = int.from_bytes(query[end - 4 : end - 2], "big")
    data = socket.inet_aton("192.0.2.7") if kind == 1 else socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    record = b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(data)) + data
    return query[:2] + b"\x84\x00\x00\x01\x00\x01\x00\x00\x00\x00" + query[12:end] + record


def read_all(sock):
    parts = []
    while chunk := sock.recv(1 << 16):
        parts.append(chunk)
    return b"".join(parts)


def read_exactly(sock, count):
    data = b""
    while len(data) < count:
        data += sock.recv(count - len(data)) or exit("the peer closed too early")
    return data


def serve(base, handler, version, port=0):
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    kind = type("Server", (socketserver.ThreadingMixIn, base),
                {"address_family": family, "allow_reuse_address": True, "request_queue_size": 512, "daemon_threads": True})
    server = kind((LOOPBACK[version], port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, server.server_address[1]


# --- the cases: each returns a detail to print, or raises Failure ---------------------------


class Failure(Exception):
    pass


class Bench:
    """The servers of one IP version, and how a command is run against them."""

    def __init__(self, fdlink, version, folder):
        self.fdlink, self.version, self.folder = fdlink, version, folder
        self.http, self.http_port = serve(socketserver.TCPServer, Http, version)
        self.half, self.half_port = serve(socketserver.TCPServer, HalfClose, version)
        self.dns, self.dns_port = serve(socketserver.UDPServer, Dns, version)
        serve(socketserver.TCPServer, Dns, version, self.dns_port)
        self.mode = None

    def url(self, size):
        host = HOST[self.version] if self.version == 4 else f"[{HOST[6]}]"
        return f"http://{host}:{self.http_port}/{size}"

    def run(self, *command, options=("--host-loopback",), status=0):
        words = [self.fdlink, "run", "--mode", self.mode, *options, "--", *command]
        try:
            done = subprocess.run(words, capture_output=True, timeout=LIMIT, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise Failure(f"no end after {LIMIT} s") from None
        if done.returncode != status:
            raise Failure(f"exit status {done.returncode}, expected {status}: {done.stderr.decode(errors='replace').strip()[-300:]}")
        return done.stdout

    def inside(self, what, *words, **options):
        """This script again, in the sandbox."""
        return self.run(sys.executable, os.path.abspath(__file__), "--inside", what, *map(str, words), **options).decode().strip()


def download(bench):
    with open(bench.folder + "/file", "rb") as file:
        expected = hashlib.sha256(file.read()).hexdigest()
    got = hashlib.sha256(bench.run("curl", "-sS", bench.url(FILE_SIZE))).hexdigest()
    same(got, expected)
    return f"{FILE_SIZE >> 20} MiB, sha256 {got[:16]}"


def upload(bench):
    with open(bench.folder + "/file", "rb") as file:
        expected = hashlib.sha256(file.read()).hexdigest()
    got = bench.run("curl", "-sS", "-T", bench.folder + "/file", bench.url(0)).decode()
    same(got, expected)
    return f"{FILE_SIZE >> 20} MiB, sha256 {got[:16]}"


def parallel(bench):
    size = 10_000
    urls = [word for number in range(PARALLEL) for word in ("-o", f"{bench.folder}/part{number}", bench.url(size + number))]
    bench.run("curl", "-sS", "--no-progress-meter", "--parallel", "--parallel-max", str(PARALLEL), "--parallel-immediate", *urls)
    for number in range(PARALLEL):
        with open(f"{bench.folder}/part{number}", "rb") as file:
            same(file.read() == Http.body[: size + number], True)
        os.unlink(f"{bench.folder}/part{number}")
    return f"{PARALLEL} files at once"


def dig(bench, *words):
    kind, expected = ("A", "192.0.2.7") if bench.version == 4 else ("AAAA", "2001:db8::7")
    host = LOOPBACK[bench.version] if bench.version == 4 else f"[{LOOPBACK[6]}]"
    options = ("--dns", f"{host}:{bench.dns_port}")
    out = bench.run("dig", "+short", "+tries=1", "+time=5", *words, f"@{RESOLVER[bench.version]}", "name.example", kind, options=options)
    same(out.decode().strip(), expected)
    return expected


def dig_udp(bench):
    return dig(bench)


def dig_tcp(bench):
    return dig(bench, "+tcp")


def half_close(order):
    def case(bench):
        out = bench.inside("half-close", HOST[bench.version], bench.half_port, order)
        same(out, {"c": "got 1000000", "s": "bye", "b": "100000", "r": "ECONNRESET"}[order])
        if order == "s":
            until(lambda: getattr(bench.half, "heard", None) == 1_000_000, "the server did not hear the rest")
            bench.half.heard = None
        return out

    return case


def refused(bench):
    with socket.socket(socket.AF_INET if bench.version == 4 else socket.AF_INET6) as unused:
        unused.bind((LOOPBACK[bench.version], 0))
        out = bench.inside("connect", HOST[bench.version], unused.getsockname()[1])
    same(out, "ECONNREFUSED")
    return out


def unreachable(bench):
    out = bench.inside("connect", NOWHERE[bench.version], 80)
    if out not in ("ENETUNREACH", "EHOSTUNREACH"):
        raise Failure(f"the client saw {out}")
    return out


def denied(bench):
    """The host's loopback without leave, and addresses that mean it or the link, however written."""
    port = bench.http_port
    targets = {
        4: [(HOST[4], port), ("169.254.1.1", port), ("240.0.0.1", port), ("10.0.2.77", port), ("0.0.0.1", port)],
        6: [(HOST[6], port), ("64:ff9b::7f00:1", port), ("2002:7f00:1::1", port), ("fd00:fd::77", port), ("::7f00:1", port)],
    }
    seen = [f"{host}: {bench.inside('connect', host, port, options=())}" for host, port in targets[bench.version]]
    if any("connected" in line for line in seen):
        raise Failure("; ".join(seen))
    return "; ".join(seen)


CASES = {
    "curl-down": download,
    "curl-up": upload,
    "curl-200": parallel,
    "dig-udp": dig_udp,
    "dig-tcp": dig_tcp,
    "half-close-client": half_close("c"),
    "half-close-server": half_close("s"),
    "half-close-both": half_close("b"),
    "reset": half_close("r"),
    "refused": refused,
    "unreachable": unreachable,
    "denied": denied,
}


def same(got, expected):
    if got != expected:
        raise Failure(f"got {str(got)[:200]!r}, expected {str(expected)[:200]!r}")


def until(condition, otherwise):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise Failure(otherwise)


# --- what runs in the sandbox ---------------------------------------------------------------


def inside(what, host, port, order=None):
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.settimeout(20)
    try:
        sock.connect((host, int(port)))
        if what == "connect":
            return "connected"
        sock.sendall(order.encode())
        if order == "c":
            sock.sendall(b"z" * 1_000_000)
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock).decode()
        if order == "s":
            said = read_all(sock)
            sock.sendall(b"z" * 1_000_000)
            return said.decode()
        if order == "b":
            sock.shutdown(socket.SHUT_WR)
            return str(len(read_all(sock)))
        return f"{len(read_all(sock))} bytes and a clean end"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


# --- all of it ------------------------------------------------------------------------------


def in_own_namespace():
    """Runs this script again where only a loopback is."""
    unshare = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Urn"]
    os.execvp("unshare", [*unshare, sys.executable, os.path.abspath(__file__), "--isolated", *sys.argv[1:]])


def main():
    if sys.argv[1:2] == ["--inside"]:
        print(inside(*sys.argv[2:]))
        return 0
    if sys.argv[1:2] != ["--isolated"]:
        in_own_namespace()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fdlink", required=True, help="the program to test")
    parser.add_argument("--mode", action="append", choices=MODES, help="only this mode (repeatable)")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this case (repeatable)")
    args = parser.parse_args(sys.argv[2:])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for program in ("curl", "dig"):
        if not shutil.which(program):
            print(f"FAILED {program} is not installed")
            return 1
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        Http.body = os.urandom(FILE_SIZE)
        with open(folder + "/file", "wb") as file:
            file.write(Http.body)
        benches = [Bench(os.path.abspath(args.fdlink), version, folder) for version in (4, 6)]
        for name in args.case or CASES:
            for mode in args.mode or MODES:
                for bench in benches:
                    bench.mode = mode
                    try:
                        print(f"ok {name} {mode} IPv{bench.version} {CASES[name](bench)}", flush=True)
                    except Failure as failure:
                        failures += 1
                        print(f"FAILED {name} {mode} IPv{bench.version} {failure}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
