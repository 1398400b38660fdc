"""Rows from a hub on this machine: the real client libraries, asked over HTTP in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlparse

import pytest

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [{"sentence": f"take {i}", "label": i % 2} for i in range(6)]
CARD = """---
configs:
- config_name: sst2
  data_files:
  - split: train
    path: sst2/train.jsonl
  - split: validation
    path: sst2/broken.jsonl
---
"""


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as the client asks for, with one dataset of two splits, the second not UTF-8."""

    files: ClassVar[dict[str, bytes]] = {
        "README.md": CARD.encode(),
        "sst2/train.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
        "sst2/broken.jsonl": b'{"sentence": "x", "label": 0}\n{"sentence": "\xff", "label": 1}\n',
    }

    def log_message(self, *_: object) -> None:
        pass

    def _reply(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        repo, tree = "/api/datasets/nyu-mll/glue", f"/api/datasets/nyu-mll/glue/tree/{COMMIT}/"
        name = path.removeprefix(f"/datasets/nyu-mll/glue/resolve/{COMMIT}/")
        if path in (repo, f"{repo}/revision/{COMMIT}"):
            siblings = [{"rfilename": file} for file in self.files]
            self._reply(json.dumps({"id": "nyu-mll/glue", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(tree):
            inside = [file for file in self.files if file.startswith(path.removeprefix(tree))]
            entries = [{"type": "file", "path": f, "size": len(self.files[f]), "oid": "0" * 40} for f in inside]
            self._reply(json.dumps(entries).encode())
        elif name in self.files:
            self._reply(self.files[name], ETag=f'"{name}"', X_Repo_Commit=COMMIT)
        else:
            self._reply(b"{}", 404, X_Error_Code="RepoNotFound" if "none" in path else "EntryNotFound")

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


PROGRAM = """
import json
from zobench.tasks import source
from zobench.tasks.base import DataError
found = source.load("nyu-mll/glue", "sst2", "train", root=None, revision=None)
print(json.dumps([found.rows, found.identity, found.place(2)]))
for repo, split in (("nyu-mll/glue", "validation"), ("nyu-mll/glue", "dev"), ("nyu-mll/none", "train")):
    try:
        print(source.load(repo, "sst2", split, root=None, revision=None))
    except DataError as error:
        print(json.dumps(str(error)))
"""


def test_rows_and_errors_of_a_hub_on_this_machine(endpoint: str, tmp_path: Path) -> None:
    variables = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        variables[name] = "0"
    program = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        program, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    (rows, identity, place), broken, split, repo = (json.loads(line) for line in done.stdout.splitlines())
    assert rows == ROWS
    assert identity == {"hub": "nyu-mll/glue", "config": "sst2", "split": "train", "revision": COMMIT}
    assert place == f"nyu-mll/glue, config sst2, split train on {endpoint}, row 2"
    assert broken.startswith(f"nyu-mll/glue, config sst2, split validation on {endpoint}, row 1: not UTF-8 (")
    for line, start in (
        (split, "nyu-mll/glue, config sst2, split dev"),
        (repo, "nyu-mll/none, config sst2, split train"),
    ):
        assert line.startswith(f"{start} on {endpoint}: cannot be loaded (")
        assert line.endswith("); go online, or point data.root at a local mirror")
        assert "\n" not in line
    assert "dev" in split.partition("cannot be loaded")[2]
    assert "404" in repo
