"""The commands and Python sessions of README and docs run as printed, in order, in one folder.

A comment in front of a block says when it is not, with a reason: `<!-- not run: ... -->`, or
`<!-- by hand: ... -->` for what takes minutes (`pytest -m by_hand` with this file). A block with a
file name behind its language is that file; a block `output` is what the last command of the block
before it prints.
"""

from __future__ import annotations

import re
import shlex
import socket
import string
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from errata.cli import main
from errata.core import registry
from errata.core.errors import Notice
from tests.short import short_microworld

ROOT = Path(__file__).parents[2]
#: In this order: a page may use what an earlier one made.
PAGES = (
    "README.md",
    "docs/first-correction.md",
    "docs/scopes.md",
    "docs/serve.md",
    "docs/real-language-models.md",
    *(f"docs/{n}.md" for n in ("add-an-editor", "add-a-metric", "add-a-benchmark", "facts")),
    *(f"docs/{n}.md" for n in ("add-a-backbone", "analyses", "pictures", "patches", "export")),
    *(
        f"docs/{n}.md"
        for n in ("errors", "minigpt4", "published-settings", "pocket-vlm", "many-machines")
    ),
)
#: Their readers begin in an empty folder.
FRESH = (
    *(f"docs/start/{n}.md" for n in ("fix-one-fact", "compare-methods", "add-a-method")),
    *(f"docs/concepts/{n}.md" for n in ("site", "hook", "patch", "scope", "measurement")),
    *(f"docs/{n}.md" for n in ("index", "real-models", "deploying", "gallery")),
    *(f"docs/{n}.md" for n in ("models-that-draw", "reproduce-pictures", "reproduce-vlm", "ui")),
)
SERVED = "8123"  # the port of the pages; another one is used here, since this may be taken
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|by hand): (?P<why>[^>]*) -->\n+)?"
    r"(?:^```(?P<language>\w*)(?: (?P<file>[\w.-]+))?\n(?P<fenced>.*?)^```$"
    r"|(?P<indented>(?:^    (?:errata |[A-Z]+=)[^\n]*\n)+))",
    re.MULTILINE | re.DOTALL,
)

pytestmark = pytest.mark.trained


@dataclass(frozen=True)
class Block:
    """A block of code. mark: "", `not run` or `by hand`, with the reason. file: its name or ""."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    why: str
    file: str

    @property
    def commands(self) -> list[str]:
        """Its lines for a shell; none in a block of another language."""
        if self.language not in ("", "console", "sh", "bash"):
            return []
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return [line.strip() for line in lines if line.strip()]


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(
            page,
            text[: m.end()].count("\n"),
            m["language"] or "",
            m["fenced"] or m["indented"],
            m["mark"] or "",
            m["why"] or "",
            m["file"] or "",
        )
        for m in BLOCK.finditer(text)
    ]


@contextmanager
def notices_are_no_errors() -> Iterator[None]:
    """Inside, what errata tells its users is printed as they see it."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", Notice)
        yield


class Session:
    """A folder, shell variables and installed plug-ins, as somebody who follows the docs has."""

    def __init__(
        self, patch: pytest.MonkeyPatch, printed: Callable[[], object] = lambda: None
    ) -> None:
        self.printed = printed  # takes what was printed so far
        self.variables: dict[str, str] = {}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = str(free.getsockname()[1])
        self.points: list[EntryPoint] = []
        self.servers: list[subprocess.Popen[str]] = []
        self.patch = patch
        patch.setattr(
            registry, "entry_points", lambda group: [e for e in self.points if e.group == group]
        )

    def run(self, block: Block) -> None:
        block = replace(block, text=block.text.replace(SERVED, self.port))
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            self.python(block)
        for line in block.commands:
            self.printed()
            self.shell(line, f"{block.page}, block that ends in line {block.line}: {line}")

    def python(self, block: Block) -> None:
        """Runs the code as a module. Plug-ins in it are registered, as an installation does."""
        name = f"{re.sub(r'[^a-z]', '_', block.page)}{block.line}"
        module = ModuleType(name)
        self.patch.setitem(sys.modules, name, module)
        with notices_are_no_errors():
            exec(compile(block.text, name, "exec"), module.__dict__)
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__ == name and "name" in vars(value):
                kind = f"errata.{value.plugin_kind}"
                self.points.append(EntryPoint(value.name, f"{name}:{value.__name__}", kind))

    def shell(self, line: str, where: str) -> None:
        """One line: `NAME=value`, or an errata command. Any other program fails."""
        line = string.Template(line).safe_substitute(self.variables)
        words = shlex.split(line, comments=True)
        if len(words) == 2 and words[0] == "export":
            self.patch.setenv(*words[1].split("=", 1))
            return
        if words == ["pip", "install", "-e", "."]:
            self.install()
            return
        if words[0] == "pip":  # what a reader needs is installed here
            return
        if words[:2] == ["errata", "serve"] and "--check" not in words:
            self.serve(words)
            return
        if len(words) == 1 and (assigned := re.fullmatch(r"([A-Z]+)=(.*)", words[0])):
            self.variables[assigned[1]] = assigned[2]
            return
        assert words[0] == "errata", f"{where}: a program that this test does not run"
        with pytest.raises(SystemExit) as ended, notices_are_no_errors():
            main(words[1:])
        assert not ended.value.code, where

    def serve(self, words: list[str]) -> None:
        """Starts a server, which answers until the page ends."""
        run = subprocess.Popen([sys.executable, "-m", *words], stderr=subprocess.PIPE, text=True)
        self.servers.append(run)
        assert run.stderr is not None
        said = []
        for line in run.stderr:
            said.append(line)
            if '"ready"' in line:
                return
        raise AssertionError((words, said))

    def end_servers(self) -> None:
        """At SIGTERM each ends with exit code 0."""
        servers, self.servers[:] = list(self.servers), []
        codes = []
        for run in servers:
            run.terminate()
            codes.append(run.wait(60))
            assert run.stderr is not None
            run.stderr.close()
        assert not any(codes), codes

    def install(self) -> None:
        """The entry points of the package in the folder, as `pip install -e .` registers them."""
        project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
        self.patch.syspath_prepend(str(Path.cwd()))
        for group, points in project["entry-points"].items():
            self.points += [EntryPoint(name, value, group) for name, value in points.items()]


def runs(block: Block) -> bool:
    """Whether it can be run by itself: a command, a session, or a plug-in; not a few lines."""
    return bool(block.commands or block.file) or bool(
        re.search(r"^(class |import )", block.text, re.M)
    )


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("reader"))
        yield Session(patch)


def run_page(page: str, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    """The benchmark has fewer cases than the limits of the page."""
    with ExitStack() as at_end, short_microworld(train=40, dev=8, eval=16):
        at_end.callback(session.end_servers)
        shown = blocks(page)
        for block, after in zip(shown, [*shown[1:], None], strict=False):
            if not block.mark and runs(block) and (block.language != "toml" or block.file):
                capsys.readouterr()
                session.run(block)
                if after is not None and after.language == "output":
                    assert capsys.readouterr().out == after.text
                elif block.language == "python" and not block.file:
                    claimed = re.findall(r"^ *print\(.*\)  # (\w+)$", block.text, re.M)
                    assert capsys.readouterr().out.split() == claimed


@pytest.mark.parametrize("page", FRESH)
def test_a_page_runs_as_printed_in_an_empty_folder(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, Session(monkeypatch, capsys.readouterr), capsys)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_printed(
    page: str, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    run_page(page, session, capsys)
    if page == "README.md":
        for made in ("ring-is-purple/patch.json", "runs/ft_l/scores.json", "dax.png"):
            assert Path(made).is_file(), made


@pytest.mark.by_hand
@pytest.mark.parametrize("page", PAGES)
def test_what_takes_minutes_runs_as_printed(page: str, session: Session) -> None:
    for block in blocks(page):
        if block.mark != "not run" and runs(block) and block.language != "toml":
            session.run(block)


def test_every_page_with_commands_is_run_and_every_exception_has_a_reason() -> None:
    pages = [p for p in (ROOT / "docs").rglob("*.md") if p.parent.name not in ("results", "adr")]
    for path in (ROOT / "README.md", *pages):
        page = str(path.relative_to(ROOT))
        shown = [b for b in blocks(page) if b.commands]
        assert not shown or page in (*PAGES, *FRESH), page
        for block in shown:
            assert not block.mark or len(block.why.split()) > 2, (page, block.line)
    run = [b for page in PAGES for b in blocks(page) if b.commands and not b.mark]
    said = " ".join(line for b in run for line in b.commands)
    assert all(f"errata {c} " in said for c in ("edit", "ask", "bench", "report", "draw", "check"))
