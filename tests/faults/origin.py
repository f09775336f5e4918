"""An S3 server that answers wrongly on request: nginx and Lua in front of a real one.

What HTTP can express: statuses, headers that lie, listings that loop, answers that come late. What
happens to connections is `tests/faults/link.py`'s. The one idea: faults are switched while the
server runs, by a request to the server itself, and it counts how many it has injected.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.harness.weed import choose_ports

READY_LIMIT_S = 30.0
"""nginx listens within milliseconds; the rest is for a busy machine."""

# As in tests/harness/proxy.py: one process, which the kernel ends together with us.
_CONFIG = """\
load_module /usr/lib/nginx/modules/ndk_http_module.so;
load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;
daemon off; master_process off; pid nginx.pid; error_log error.log;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp;
  scgi_temp_path tmp;
  client_max_body_size 0; proxy_request_buffering off; proxy_buffering off;
  keepalive_requests 100000; lua_check_client_abort on;
  lua_shared_dict faults 1m;
  upstream origin {{ server {origin}; keepalive 32; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location = /.fault {{
      content_by_lua_block {{
        local faults = ngx.shared.faults
        if ngx.req.get_method() == "POST" then
          faults:flush_all()
          for name, value in pairs(ngx.req.get_uri_args()) do faults:set(name, value) end
        end
        ngx.print((faults:get("requests") or 0) .. " " .. (faults:get("injected") or 0))
      }}
    }}
    location / {{
      access_by_lua_file {directory}/access.lua;
      header_filter_by_lua_file {directory}/header.lua;
      body_filter_by_lua_file {directory}/body.lua;
      proxy_pass http://origin; proxy_http_version 1.1;
      proxy_set_header Host $http_host; proxy_set_header Connection "";
    }}
  }}
}}
"""

_ACCESS = r"""
local faults = ngx.shared.faults
faults:incr("requests", 1, 0)
local name = faults:get("name")
if not name then return end
local is_list = ngx.var.arg_prefix ~= nil
local scope = faults:get("scope")
if scope ~= "all" and (scope == "lists") ~= is_list then return end
local user = faults:get("user")
if user and not string.find(ngx.var.http_authorization or "", "Credential=" .. user .. "/", 1, true)
then return end
local seen = faults:incr("seen", 1, 0)
if seen % tonumber(faults:get("every")) ~= 0 then return end
faults:incr("injected", 1, 0)
if name == "status" then
  ngx.status = tonumber(faults:get("status"))
  ngx.header["Content-Type"] = "application/xml"
  ngx.header["Retry-After"] = faults:get("retry_after")
  ngx.print("<Error><Code>" .. faults:get("code") .. "</Code><Message>no</Message></Error>")
  return ngx.exit(ngx.HTTP_OK)
elseif name == "loop" then
  local token = ngx.var.arg_continuation_token or ""
  local other = token == "a" and "b" or "a"
  ngx.header["Content-Type"] = "application/xml"
  ngx.print("<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>" .. other
    .. "</NextContinuationToken></ListBucketResult>")
  return ngx.exit(ngx.HTTP_OK)
elseif name == "late" then
  ngx.sleep(tonumber(faults:get("seconds")))
else
  ngx.ctx.fault = name
end
"""

_HEADER = r"""
local name = ngx.ctx.fault
if not name or ngx.status ~= 206 then
  ngx.ctx.fault = nil
  return
end
local length = tonumber(ngx.header["Content-Length"])
if name == "wrong-range" then
  local first, last, size = string.match(ngx.header["Content-Range"], "(%d+)-(%d+)/(%d+)")
  ngx.header["Content-Range"] = "bytes " .. first + 1 .. "-" .. last + 1 .. "/" .. size
elseif name == "wrong-etag" then
  ngx.header["ETag"] = '"00000000000000000000000000000000"'
elseif name == "wrong-length" then
  ngx.header["Content-Length"] = length + 1000
elseif name == "gzip" then
  ngx.header["Content-Encoding"] = "gzip"
  ngx.header["Content-Length"] = 18 + length + 5 * math.ceil(length / 65535)
elseif name == "short" then
  ngx.ctx.left = math.floor(length / 2)
end
"""

# gzip: RFC 1952, with a stored block (RFC 1951, 3.2.4) for each 64 KiB.
_BODY = r"""
local name = ngx.ctx.fault
if name == "short" then
  local data = ngx.arg[1]
  if #data > ngx.ctx.left then
    ngx.arg[1] = string.sub(data, 1, ngx.ctx.left)
    ngx.ctx.left = 0
    ngx.ctx.torn = true
  else
    ngx.ctx.left = ngx.ctx.left - #data
  end
  if ngx.ctx.torn then return ngx.ERROR end
elseif name == "gzip" then
  ngx.ctx.kept = (ngx.ctx.kept or "") .. ngx.arg[1]
  if not ngx.arg[2] then ngx.arg[1] = nil return end
  local function little(number, bytes)
    local out = ""
    for _ = 1, bytes do
      out = out .. string.char(number % 256)
      number = math.floor(number / 256)
    end
    return out
  end
  local data, parts = ngx.ctx.kept, {"\31\139\8\0\0\0\0\0\0\255"}
  for at = 1, #data, 65535 do
    local block = string.sub(data, at, at + 65534)
    local last = at + 65535 > #data and "\1" or "\0"
    parts[#parts + 1] = last .. little(#block, 2) .. little(65535 - #block, 2) .. block
  end
  parts[#parts + 1] = little(ngx.crc32_long(data), 4) .. little(#data, 4)
  ngx.arg[1] = table.concat(parts)
end
"""


class OriginFailed(Exception):
    """nginx is missing, ended, or does not answer; the message holds its log."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A running server; `endpoint` is to be used in place of the real server's own."""

    endpoint: str

    def inject(self, name: str, every: int = 1, scope: str = "objects", **values: str) -> None:
        """From now on every so many requests of a scope (objects, lists, all) meet this fault.

        `values` are the fault's own: `status` has a `status`, a `code` and perhaps a `retry_after`,
        `late` has `seconds`; `user` is the access key whose requests are meant.
        """
        self._control({"name": name, "every": str(every), "scope": scope, **values})

    def heal(self) -> int:
        """Answer rightly again; how many faults were injected since `inject`."""
        _, injected = self.counts()
        self._control({})
        return injected

    def counts(self) -> tuple[int, int]:
        """Requests since the last `inject` or `heal`, and how many of them met the fault."""
        url = f"{self.endpoint}/.fault"
        with urllib.request.urlopen(url, timeout=READY_LIMIT_S) as answer:
            requests, injected = map(int, answer.read().split())
        return requests, injected

    def _control(self, values: dict[str, str]) -> None:
        url = f"{self.endpoint}/.fault?{urllib.parse.urlencode(values)}"
        urllib.request.urlopen(url, data=b"", timeout=READY_LIMIT_S).close()


@contextmanager
def open_origin(server: str, directory: Path) -> Iterator[Origin]:
    """Run one in front of the server at `server` ("http://host:port"), its files in `directory`.

    Raises `OriginFailed`.
    """
    (directory / "tmp").mkdir(parents=True, exist_ok=True)
    [port] = choose_ports(1)
    config = _CONFIG.format(origin=urlsplit(server).netloc, port=port, directory=directory)
    (directory / "nginx.conf").write_text(config)
    for name, text in (("access", _ACCESS), ("header", _HEADER), ("body", _BODY)):
        (directory / f"{name}.lua").write_text(text)
    nginx = shutil.which("nginx", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if nginx is None:
        raise OriginFailed("there is no `nginx`: install Debian's nginx-light")
    options = ["-p", str(directory), "-e", "error.log", "-c", "nginx.conf"]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", nginx, *options],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        origin = Origin(f"http://127.0.0.1:{port}")
        _wait_ready(process, origin, directory)
        yield origin
    finally:
        process.kill()
        process.wait()


def _wait_ready(process: subprocess.Popen[bytes], origin: Origin, directory: Path) -> None:
    deadline = time.monotonic() + READY_LIMIT_S
    while True:
        try:
            origin.counts()
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                log = directory / "error.log"
                said = log.read_text() if log.exists() else "nothing"
                raise OriginFailed(f"nginx does not answer ({error}); it said: {said}") from error
            time.sleep(0.02)
        else:
            return
