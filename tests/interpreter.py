"""Tests in Triton's CPU interpreter: a second process beside each test process, asked test by test.

Whether kernels are compiled or interpreted is settled when triton is first imported, and the offline compiler needs a
process without the interpreter. A module that says ``pytestmark = pytest.mark.interpreted`` is collected like any
other, so that its tests are ordered, spread over the workers and selected like any other; to run one, its name goes to
the other process, which has collected the same modules with ``TRITON_INTERPRET=1``, and the reports come back.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe

import pytest
from _pytest.runner import runtestprotocol

from tests import ROOT

SWITCH = "TRITON_INTERPRET"
MARK = "interpreted"


def runs_elsewhere(item: pytest.Item) -> bool:
    """Whether a test needs the interpreter and this process has none."""
    return item.get_closest_marker(MARK) is not None and os.environ.get(SWITCH) != "1"


class Interpreter:
    """The other process, started at its first test; :meth:`close` ends it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """What became of one test there. A process that dies or hangs fails the test at hand; the next has another."""
        found: list[dict] = []

        def ask() -> None:
            try:
                found.extend(self._answer(item))
            except BaseException:
                self.close()
                raise

        call = pytest.CallInfo.from_call(ask, when="call", reraise=(KeyboardInterrupt,))
        if call.excinfo is not None:
            yield item.ihook.pytest_runtest_makereport(item=item, call=call)
        for data in found:
            yield item.config.hook.pytest_report_from_serializable(config=item.config, data=data)

    def _answer(self, item: pytest.Item) -> list[dict]:
        if self._process is None:
            self._start(item.session)
        self._connection.send(item.nodeid)
        try:
            return self._connection.recv()
        except EOFError:
            code = self._process.wait() if self._process else None
            self._output.seek(0)
            said = self._output.read().decode(errors="replace")
            pytest.fail(f"the interpreter's process ended with exit code {code}:\n{said[-4000:]}", pytrace=False)

    def _start(self, session: pytest.Session) -> None:
        modules = sorted({str(item.path) for item in session.items if runs_elsewhere(item)})
        self._connection, theirs = Pipe()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process
        fd = theirs.fileno()
        env = os.environ | {SWITCH: "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", __name__, str(fd), str(session.config.rootpath), *modules]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            pass_fds=(fd,),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
        )
        theirs.close()

    def close(self) -> None:
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.wait()
            self._output.close()
            self._process = None


class Server:
    """A pytest run, with ``TRITON_INTERPRET=1``, whose tests are run when they are asked for."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed:  # a module that cannot be collected: pytest itself says so
            return None
        items = {item.nodeid: item for item in session.items}
        to_data = session.config.hook.pytest_report_to_serializable
        while True:
            try:
                asked = self.connection.recv()
            except EOFError:
                return True
            reports = runtestprotocol(items[asked], log=False, nextitem=None)
            self.connection.send([to_data(config=session.config, report=report) for report in reports])


def patch_the_language_once() -> None:
    """At the start of a kernel Triton's interpreter swaps the language's functions for its own, and looks for all of
    them again at each call of a function from it, where none is left: two fifths of its time (3.7.1)."""
    import triton.language as tl
    from triton.runtime import interpreter

    # Private, as there is no other way in: a Triton that has none of them runs as it is.
    patch, scope = getattr(interpreter, "_patch_lang", None), getattr(interpreter, "_LangPatchScope", None)
    if patch is None or scope is None:
        return

    def patch_what_is_left(fn):
        languages = [value for value in fn.__globals__.values() if value is tl or value is tl.core]
        left = not languages or any(tl.core.is_builtin(language.load) for language in languages)
        return patch(fn) if left else scope()

    interpreter._patch_lang = patch_what_is_left


if __name__ == "__main__":
    fd, root, *modules = sys.argv[1:]
    options = [f"--rootdir={root}", "-p", "no:cacheprovider", "-p", "no:xdist"]
    if importlib.util.find_spec("triton"):
        patch_the_language_once()
    sys.exit(pytest.main([*options, *modules], plugins=[Server(Connection(int(fd)))]))
