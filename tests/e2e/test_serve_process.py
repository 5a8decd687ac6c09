"""The command `errata serve` as a process: killed, started again, and told to end."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from errata.cli import main
from tests.serving import ADMIN, CHAT, TOKEN, bearer, question

pytestmark = pytest.mark.trained

SHAPE, LONG = "What shape is it?", "a long answer of so many words"


class ServerProcess:
    """`errata serve`, with its log as it comes."""

    def __init__(self, words: Sequence[str]) -> None:
        env = {**os.environ, "ERRATA_SERVE_TOKEN": TOKEN, "ERRATA_SERVE_ADMIN_TOKEN": ADMIN}
        command = [sys.executable, "-m", "errata", "serve", "micro-vlm", *words]
        self.run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        self.log: queue.Queue[dict[str, Any]] = queue.Queue()
        self.other: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        ready = self.wait_for("ready")
        self.port = int(ready["port"])
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", timeout=60, headers=bearer(TOKEN)
        )

    def _read(self) -> None:
        assert self.run.stderr is not None
        for line in self.run.stderr:
            if line.startswith("{"):
                self.log.put(json.loads(line))
            else:
                self.other.append(line)

    def wait_for(self, event: str) -> dict[str, Any]:
        while True:
            entry = self.log.get(timeout=120)
            if entry["event"] == event:
                return entry

    def stream(self) -> str:
        """A whole streamed answer; "" if it was broken off."""
        body = {"model": "micro-vlm+said", "messages": question(SHAPE), "stream": True}
        try:
            reply = self.http.post(CHAT, json=body)
        except httpx.HTTPError:
            return ""
        events = [e.removeprefix("data: ") for e in reply.text.split("\n\n")]
        if "[DONE]" not in events:
            return ""
        pieces = [json.loads(e)["choices"][0]["delta"] for e in events if e.startswith("{")]
        return "".join(p.get("content", "") for p in pieces)

    def ended(self) -> int:
        """Its exit code."""
        code = self.run.wait(60)
        self.reader.join()
        self.http.close()
        assert self.run.stderr is not None
        self.run.stderr.close()
        return code


def test_a_killed_server_starts_again_and_a_stopped_one_answers_first(tmp_path: Path) -> None:
    folder = tmp_path / "patches"
    folder.mkdir()
    first = ServerProcess(["--patches", str(folder), "--port", "0"])
    fact = {"prompt": SHAPE, "target": LONG, "editor": "say", "name": "said"}
    made = first.http.post("/v1/edits", json=fact, headers=bearer(ADMIN)).json()
    assert made["saved"] and made["verification"]["holds"]
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(first.stream) for _ in range(4)]
        first.wait_for("request")
        first.run.kill()
        assert first.ended() == -signal.SIGKILL
        assert {a.result() for a in answers} <= {"", LONG}

    second = ServerProcess(["--patches", str(folder), "--port", str(first.port)])
    assert second.stream() == LONG  # the edit was on the disk
    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(second.stream) for _ in range(12)]
        while second.http.get("/health").status_code == 200:
            text = second.http.get("/metrics").text
            growing = next(x for x in text.splitlines() if x.startswith("errata_growing "))
            if float(growing.split()[1]) >= 4:
                break
        second.run.send_signal(signal.SIGTERM)
        said = [a.result() for a in answers]
    assert second.ended() == 0
    assert second.wait_for("end")["complete"] is True
    # what was accepted was answered; the rest was never connected
    assert set(said) <= {"", LONG} and said.count(LONG) >= 4
    done = [e for e in list(second.log.queue) if e.get("route") == CHAT]
    assert all(e["status"] == 200 and e["complete"] for e in done)
    assert not second.other


@pytest.mark.parametrize(
    ("words", "env", "says"),
    [
        (["--host", "0.0.0.0"], {}, "would answer everybody"),
        (["--patch", "nothing"], {}, "NAME=DIR"),
        (["--patch", "a b=x"], {}, "no name of a patch"),
        (["--patch", "a=x", "--patch", "a=y"], {}, "given twice"),
        (["--patch", "a=nowhere"], {}, "nowhere is not a patch"),
        (["--patches", "nowhere"], {}, "no folder nowhere"),
        (["--set", "steps=2"], {}, "belong to an editor"),
        (["--image-host", "https://a.b/c"], {}, "no host"),
        ([], {"ERRATA_SERVE_TOKEN": "short"}, "at least 16"),
        ([], {"ERRATA_SERVE_TOKEN": "x" * 20, "ERRATA_SERVE_ADMIN_TOKEN": "x" * 20}, "equal"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_what_a_server_cannot_be_started_with(words, env, says, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "micro-vlm", *words])
    assert ended.value.code == 2
    line = capsys.readouterr().err.strip()
    assert says in line and "\n" not in line


def test_a_port_that_is_taken(capsys):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as ended:
            main(["serve", "micro-vlm", "--port", port])
    assert ended.value.code == 2
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err
