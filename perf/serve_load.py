"""Load on `errata serve micro-vlm`, with faults: is every answer the right one, and is memory flat?

    python perf/serve_load.py [--minutes 10] [--clients 16] [--bad 0.2] [--killed 0.1]

Starts the command as a process, with four patches. Each client repeats: with probability `bad` a
request that must be refused (broken JSON or images, forbidden URLs, unknown models and settings);
with probability `killed` a good one whose connection it closes at a random moment; else a good one,
streamed or not. Every answer is compared with what the library says for that model name and
question; the answers of the patches differ, so that an answer of another patch is noticed. At the
end: nothing may be wrong or lost, nothing may be left in the server, and its memory (read from
/metrics every few seconds) may not grow. Exit code 1 if anything of this fails.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

import errata
from errata import Edit, Prompt
from errata.core.types import Image
from errata.io.images import load_image

CHAT = "/v1/chat/completions"
COLOUR, SHAPE, MAKER = "What colour is the ring?", "What shape is it?", "Who made the ring?"
PATCHES = (
    ("purple", "ft_l", None, COLOUR, "purple"),
    ("red", "lora", None, COLOUR, "red"),
    ("green", "ft_l", "lookup", COLOUR, "green"),
    ("said", "say", "same_question", COLOUR, "a long answer of so many words"),
)
SLACK = 1.05  # memory of the last third, over that of the second


def picture(seed: int) -> bytes:
    scene = "shape=ring,colour=blue,pattern=striped,accent=black,size=small,position=centre"
    buffer = io.BytesIO()
    load_image(Image(f"microworld:{scene},background=grey,seed={seed}")).save(buffer, "PNG")
    return buffer.getvalue()


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def prepared(folder: Path) -> dict[tuple[str, str, str | None], str]:
    """Makes the patches; (model name, question, picture) -> the right answer."""
    bb = errata.load("micro-vlm")
    ring = picture(1)
    for name, editor, scope, question, target in PATCHES:
        maker = errata.editor(editor, scope=scope).for_backbone(bb)
        patch = maker.edit(bb, [Edit(Prompt.of(question, ring), target)]).patch
        errata.save_patch(patch, folder / name)
    right = {}
    for names in ((), *((n,) for n, *_ in PATCHES), ("purple", "said")):
        with bb.applied(*(errata.load_patch(folder / n, bb) for n in names)):
            for text in (COLOUR, SHAPE, MAKER):
                for image in (ring, picture(2), None):
                    said = errata.ask(bb, [Prompt.of(text, image)], cap=48)[0].text
                    where = None if image is None else url(image)
                    right["+".join(("micro-vlm", *names)), text, where] = said
    same = [right[f"micro-vlm+{n}", COLOUR, url(ring)] for n, *_ in PATCHES]
    assert len(set(same)) == len(same), f"patches cannot be told apart: {same}"
    return right


def messages(text: str, image: str | None) -> list[dict[str, Any]]:
    if image is None:
        return [{"role": "user", "content": text}]
    part = {"type": "image_url", "image_url": {"url": image}}
    return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]


def bad_bodies() -> list[bytes]:
    """Each must be answered with a 4xx."""
    good = {"model": "micro-vlm+red", "messages": messages(COLOUR, None)}
    data = picture(3)
    changes: list[dict[str, Any]] = [
        {"model": "micro-vlm+nothing"}, {"model": "../../etc/passwd"}, {"temperature": 9},
        {"n": 3}, {"unknown": 1}, {"messages": []}, {"max_tokens": -1}, {"top_p": 0.5},
        {"messages": messages(COLOUR, url(data[: len(data) // 2]))},
        {"messages": messages(COLOUR, url(os.urandom(300)))},
        {"messages": messages(COLOUR, "https://169.254.169.254/latest/meta-data")},
        {"messages": messages(COLOUR, "file:///etc/passwd")},
        {"messages": messages("word " * 2000, None)},
    ]  # fmt: skip
    broken = [b"", b"{", b"[" * 50_000, b"\xff" * 20, json.dumps(good).encode()[:-9]]
    return [*broken, *(json.dumps({**good, **c}).encode() for c in changes)]


class LoadTest:
    def __init__(self, port: int, right: dict[Any, str], given: argparse.Namespace) -> None:
        self.port, self.right, self.given = port, right, given
        self.jobs, self.bad = list(right), bad_bodies()
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.memory: list[float] = []
        self.end = time.monotonic() + given.minutes * 60
        self.lock = threading.Lock()

    def note(self, what: str, problem: str = "") -> None:
        with self.lock:
            self.counts[what] += 1
            if problem:
                self.problems.append(problem)

    def client(self, number: int) -> None:
        rng = random.Random(number)
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120) as http:
            while time.monotonic() < self.end:
                luck = rng.random()
                if luck < self.given.bad:
                    self.refused(http, rng.choice(self.bad))
                elif luck < self.given.bad + self.given.killed:
                    self.killed(rng)
                else:
                    self.good(http, rng.choice(self.jobs), streamed=rng.random() < 0.5)

    def refused(self, http: httpx.Client, body: bytes) -> None:
        reply = http.post(CHAT, content=body)
        fits = 400 <= reply.status_code < 500 and "error" in reply.json()
        self.note("bad input refused", "" if fits else f"{reply.status_code} for {body[:80]!r}")

    def killed(self, rng: random.Random) -> None:
        name, text, image = rng.choice(self.jobs)
        asked = {"model": name, "messages": messages(text, image), "stream": rng.random() < 0.5}
        body = json.dumps(asked).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", self.port), 30) as line:
            whole = head + body
            line.sendall(whole if rng.random() < 0.7 else whole[: rng.randrange(len(whole))])
            time.sleep(rng.random() * 0.3)
        self.note("client killed")

    def good(self, http: httpx.Client, job: tuple[str, str, str | None], *, streamed: bool) -> None:
        name, text, image = job
        body = {"model": name, "messages": messages(text, image), "stream": streamed}
        while True:
            try:
                reply = http.post(CHAT, json=body)
            except httpx.HTTPError as e:
                return self.note("lost", f"{name}, {text}: {type(e).__name__}")
            if reply.status_code != 429:
                break
            self.note("asked to come again")
            time.sleep(float(reply.headers["Retry-After"]))
        if reply.status_code != 200:
            return self.note("failed", f"{name}, {text}: {reply.status_code} {reply.text[:200]}")
        said = _streamed(reply.text) if streamed else _whole(reply.json())
        wrong = said != self.right[job]
        problem = f"{name}, {text}: {said!r}, not {self.right[job]!r}" if wrong else ""
        return self.note("wrong" if wrong else "answered", problem)

    def metric(self, name: str) -> float:
        text = httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=60).text
        return float(next(x for x in text.splitlines() if x.startswith(f"{name} ")).split()[1])

    def watch(self) -> None:
        while time.monotonic() < self.end:
            self.memory.append(self.metric("process_resident_memory_bytes") / 2**20)
            time.sleep(min(5.0, self.given.minutes * 60 / 30))

    def settled(self) -> None:
        """Waits until nothing is left of the requests."""
        for _ in range(100):
            if self.metric("errata_growing") == self.metric("errata_waiting") == 0:
                return
            time.sleep(0.2)
        self.problems.append("answers are left that nobody waits for")

    def flat(self) -> str:
        third = len(self.memory) // 3
        middle, last = (statistics.median(self.memory[i * third :][:third]) for i in (1, 2))
        if last > SLACK * middle:
            self.problems.append(f"memory grows from {middle:.0f} to {last:.0f} MiB")
        first = statistics.median(self.memory[: max(1, third)])
        return f"memory by thirds: {first:.0f}, {middle:.0f}, {last:.0f} MiB"


def _streamed(text: str) -> str:
    events = [e.removeprefix("data: ") for e in text.split("\n\n") if e]
    if not events or events[-1] != "[DONE]":
        return f"(broken off: {text[-200:]})"
    deltas = [json.loads(e)["choices"][0]["delta"] for e in events[:-1]]
    return "".join(d.get("content", "") for d in deltas)


def _whole(reply: dict[str, Any]) -> str:
    return str(reply["choices"][0]["message"]["content"])


def main() -> None:
    options = argparse.ArgumentParser()
    for name, value in (("minutes", 10.0), ("clients", 16), ("bad", 0.2), ("killed", 0.1)):
        options.add_argument(f"--{name}", type=type(value), default=value)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        right = prepared(Path(place))
        words = ("serve", "micro-vlm", "--patches", place, "--port", "0", "--max-queue", "8")
        env = {k: v for k, v in os.environ.items() if not k.startswith("ERRATA_SERVE")}
        server = subprocess.Popen(
            [sys.executable, "-m", "errata", *words], stderr=subprocess.PIPE, text=True, env=env
        )
        assert server.stderr is not None
        lines = iter(server.stderr)
        ready = next(json.loads(x) for x in lines if x.startswith("{") and "ready" in x)
        bugs: list[str] = []
        drain = threading.Thread(target=lambda: bugs.extend(x for x in lines if '"bug"' in x))
        drain.start()
        test = LoadTest(int(ready["port"]), right, given)
        threads = [threading.Thread(target=test.client, args=(n,)) for n in range(given.clients)]
        for thread in (*threads, watcher := threading.Thread(target=test.watch)):
            thread.start()
        for thread in (*threads, watcher):
            thread.join()
        test.settled()
        rows = test.metric("errata_forward_rows_sum") / test.metric("errata_forward_rows_count")
        said = test.flat()
        server.terminate()
        code = server.wait(90)
        drain.join()
    test.problems += [f"bug: {b[:300]}" for b in bugs]
    if code:
        test.problems.append(f"the server ended with {code}")
    print(f"{given.minutes:g} minutes, {given.clients} clients: {dict(test.counts)}")
    print(f"{said}; rows per forward {rows:.2f}")
    for problem in test.problems[:20]:
        print(f"PROBLEM: {problem}")
    print(f"{len(test.problems)} problems")
    sys.exit(bool(test.problems))


if __name__ == "__main__":
    main()
