"""A Hugging Face hub on loopback, as unreliable as it is told to be."""

import hashlib
import io
import re
import threading
import time
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
from pyarrow import parquet


def shard_bytes(texts, column="text", group=256):
    """A Parquet file with a column of texts."""
    out = io.BytesIO()
    parquet.write_table(pa.table({column: texts}), out, row_group_size=group)
    return out.getvalue()


class Hub(ThreadingHTTPServer):
    """`files` by name; `faults` by name are taken one by one by the GETs of that file, then all is well.

    A fault is a status, "truncate", "corrupt" or "stall"; `heads` are statuses for the HEADs of any file. `asked` is
    what was asked, as (method, name, range, authorization).
    """

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.faults, self.heads, self.asked = files, {}, deque(), []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        """Clients that hang up are the point."""


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def name(self):
        found = re.fullmatch(r"/datasets/[^/]+/[^/]+/resolve/main/([^/?]+)", self.path)
        name = found[1] if found else ""
        headers = self.headers
        self.server.asked.append((self.command, name, headers.get("Range"), headers.get("Authorization")))
        return name

    def refuse(self, status):
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0")
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self):
        data = self.server.files.get(self.name())
        if self.server.heads:
            return self.refuse(self.server.heads.popleft())
        if data is None:
            return self.refuse(404)
        self.send_response(200)
        self.send_header("X-Repo-Commit", "c0ffee")
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Content-Length", str(len(data)))
        return self.end_headers()

    def do_GET(self):
        name = self.name()
        data, faults = self.server.files[name], self.server.faults.get(name)
        fault = faults.popleft() if faults else None
        if isinstance(fault, int):
            return self.refuse(fault)
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        body = data[first:]
        if fault == "corrupt":
            body = body[:-9] + bytes(byte ^ 1 for byte in body[-9:])
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body)))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        self.wfile.flush()
        if fault == "stall":
            time.sleep(2.5)
        if fault in {"truncate", "stall"}:
            self.close_connection = True
            return None
        self.wfile.write(body[half:])
        return None


@contextmanager
def serving(files):
    with Hub(files) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
