#!/usr/bin/env python3
"""Run CPython's own multiprocessing test-suite against procession.

    python run.py --method fork --method spawn --json result.json

The suite is the ``test._test_multiprocessing`` that ships inside the interpreter
under test.  Each test class runs in a process of its own; a test that hangs or
crashes that process is recorded and the rest of its class goes on in a new one.
The exit status is 0 only if every test passes or is listed, with a reason, in
suite.toml or deviations.toml; or if the interpreter has no test package, which a
line says.  See README.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]  # the folder that holds the package itself
METHODS = ("fork", "spawn", "forkserver")
STATUSES = ("passed", "failed", "error", "skipped", "timeout")
EXIT_GRACE = 2.0
POLL = 0.05
LAST_WORDS = 6000


@dataclass
class Outcome:
    """What became of one test."""

    status: str
    detail: str = ""
    seconds: float = 0.0


@dataclass
class ClassReport:
    """The outcomes of one test class, and what it left behind."""

    method: str
    name: str
    tests: dict[str, Outcome] = field(default_factory=dict)
    environment_altered: bool = False
    leftover_processes: bool = False
    seconds: float = 0.0

    def counts(self) -> Counter[str]:
        return Counter(outcome.status for outcome in self.tests.values())


class Interpreter:
    """The interpreter under test, with the alias installed for all its processes.

    A throw-away virtual environment over the given interpreter carries the ``.pth``
    file that installs the alias, so that isolated (``-I``) children have it too.
    """

    def __init__(self, python: str, package: str, folder: Path) -> None:
        self.package = package
        self.folder = folder
        paths = json.loads(subprocess.check_output(
            [python, "-c", "import json, os, sys;"
                           "print(json.dumps([p for p in sys.path if p and os.path.isdir(p)]))"]))
        subprocess.run([python, "-m", "venv", "--without-pip", "--symlinks", folder / "env"],
                       check=True)
        self.python = str(folder / "env/bin/python")
        site = Path(self.output("import sysconfig; print(sysconfig.get_path('purelib'))"))
        site.joinpath("conformance.pth").write_text(
            f"import site; list(map(site.addsitedir, {[str(CHECKOUT), *paths]!r}))\n"
            f"{HERE}\n"
            "import conformance_alias; conformance_alias.install()\n")
        self.version = self.output("import platform; print(platform.python_version())")

    def environment(self, method: str) -> dict[str, str]:
        return os.environ | {"CONFORMANCE_PACKAGE": self.package, "CONFORMANCE_METHOD": method}

    def output(self, code: str, method: str = "spawn") -> str:
        """What ``code`` prints, run with the alias in place."""
        return subprocess.check_output([self.python, "-c", code], text=True,
                                       env=self.environment(method)).strip()

    def test_names(self, method: str, companions: bool) -> dict[str, list[str]]:
        """The suite's test methods by class."""
        return json.loads(self.output(
            "import json, conformance_worker as w;"
            f"print(json.dumps(w.list_tests({companions})))", method))


class Worker:
    """A process that runs some tests of a class, followed through its event file."""

    running: ClassVar[set[Worker]] = set()

    def __init__(self, interpreter: Interpreter, method: str, class_name: str,
                 tests: list[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(dir=interpreter.folder,
                                                   ignore_cleanup_errors=True)
        self._events = Path(self._folder.name, "events")
        self._log = Path(self._folder.name, "log")
        self._events.touch()
        cwd = Path(self._folder.name, "cwd")
        cwd.mkdir()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [interpreter.python, "-c",
                 "import sys, conformance_worker as w; w.main(*sys.argv[1:])",
                 class_name, str(self._events), *tests],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd,
                env=interpreter.environment(method), start_new_session=True)
        self.running.add(self)
        self.timed_out = False
        self.leftover_processes = False
        self._last_words = ""

    def run(self, timeout: float) -> list[dict]:
        """Wait for the end, or for ``timeout`` seconds without an event."""
        size, since = 0, time.monotonic()
        while self._process.poll() is None:
            time.sleep(POLL)
            new_size = self._events.stat().st_size
            if new_size != size:
                size, since = new_size, time.monotonic()
            elif time.monotonic() - since > timeout:
                self.timed_out = True
                self._process.send_signal(signal.SIGABRT)  # faulthandler logs the stacks
                break
        self._await_end(lambda: self._process.poll() is not None)
        self._last_words = self._log.read_text(errors="replace")[-LAST_WORDS:]
        self._await_end(lambda: not self._group_exists())
        self.leftover_processes = self._group_exists() and not self.timed_out
        self.kill()
        complete_lines = self._events.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in complete_lines.splitlines()]

    @staticmethod
    def _await_end(ended: Callable[[], bool]) -> None:
        """Wait for a condition, but not for long."""
        deadline = time.monotonic() + EXIT_GRACE
        while not ended() and time.monotonic() < deadline:
            time.sleep(POLL)

    def _group_exists(self) -> bool:
        self._process.poll()
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        """End whatever is left of the process group.

        A resource tracker survives the first signal, to unlink what the rest leaves.
        """
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal_number)
            self._await_end(lambda: not self._group_exists())
        self.running.discard(self)

    @property
    def failed(self) -> bool:
        return self._process.returncode != 0

    def why_ended(self) -> str:
        """How the process ended, with the end of what it had written by then."""
        return f"exit status {self._process.returncode}\n{self._last_words}"

    def close(self) -> None:
        self._folder.cleanup()


def run_class(interpreter: Interpreter, method: str, class_name: str, tests: list[str],
              timeout: float) -> ClassReport:
    """Run a class, in as many processes as its hangs and crashes make necessary."""
    report = ClassReport(method, class_name)
    started = time.monotonic()
    pending = tests
    while pending:
        worker = Worker(interpreter, method, class_name, pending)
        running = None
        finished = False
        fixture: Outcome | None = None
        for event in worker.run(timeout):
            if "start" in event:
                running = event["start"]
            elif "stop" in event:
                running = None
                report.tests[event["stop"]] = Outcome(
                    event["status"], event["detail"], event["seconds"])
            elif "fixture" in event:
                fixture = fixture or Outcome(event["fixture"], event["detail"])
            else:
                finished = True
                report.environment_altered |= event["environment_altered"]
        report.leftover_processes |= worker.leftover_processes
        ended = Outcome("timeout" if worker.timed_out else "error", worker.why_ended())
        if running is not None:
            report.tests[running] = ended
            pending = pending[pending.index(running) + 1:]
        else:
            unrun = [test for test in pending if test not in report.tests]
            report.tests.update(dict.fromkeys(unrun, fixture or ended))
            if fixture and not unrun:
                report.tests["(class or module teardown)"] = fixture
            elif not unrun and (not finished or worker.failed):
                report.tests["(interpreter exit)"] = ended
            pending = []
        worker.close()
    report.seconds = time.monotonic() - started
    return report


class Deviations:
    """The outcomes that are allowed, with their reasons."""

    def __init__(self, paths: list[Path], package: str, version: str) -> None:
        self._entries = [
            entry for path in paths for entry in tomllib.loads(path.read_text()).get("deviation", [])
            if package in entry.get("packages", [package])
            and any(version.startswith(f"{prefix}.") for prefix in entry.get("python", ["3"]))]

    def allow(self, method: str, test: str, status: str) -> bool:
        """Whether this outcome of ``Class.test`` is a pass or covered by an entry."""
        return status == "passed" or bool(
            self._covering(method, test, skipped=status == "skipped"))

    def outlived(self, method: str, passed: set[str], ran: set[str]) -> list[str]:
        """The patterns that cover tests of this run, all of which passed: the list may only shrink.

        An entry marked ``unsteady`` expects that now and then.
        """
        return [
            pattern for entry in self._entries
            if method in entry.get("methods", METHODS)
            and not entry.get("skipped", False) and not entry.get("unsteady", False)
            for pattern in entry["tests"]
            if (covered := set(fnmatch.filter(ran, pattern))) and covered <= passed]

    def _covering(self, method: str, test: str, *, skipped: bool) -> list[dict]:
        return [
            entry for entry in self._entries
            if method in entry.get("methods", METHODS)
            and entry.get("skipped", False) == skipped
            and any(fnmatch.fnmatchcase(test, pattern) for pattern in entry["tests"])]


def row(name: str, counts: Counter[str], seconds: float, notes: str = "") -> str:
    """A line of the table."""
    cells = "".join(f"{counts[status]:>9}" for status in STATUSES)
    return f"{name:<48}{cells}{seconds:>9.1f}s{notes}"


def run_method(interpreter: Interpreter, method: str, arguments: argparse.Namespace,
               executor: ThreadPoolExecutor) -> list[ClassReport]:
    """Run the selected tests under one start method and print the table."""
    names = interpreter.test_names(method, arguments.companions)
    selected = {
        class_name: chosen for class_name, tests in names.items()
        if (chosen := [test for test in tests if any(fnmatch.fnmatchcase(
            f"{class_name}.{test}", f"*{pattern}*") for pattern in arguments.only)])}
    if not selected:
        sys.exit(f"no test matches {' or '.join(arguments.only)}")
    print(f"\n{arguments.package}, {method}, Python {interpreter.version}")
    print(f"{'class':<48}" + "".join(f"{status:>9}" for status in STATUSES) + "      time",
          flush=True)
    reports = []
    for report in executor.map(
            lambda name: run_class(interpreter, method, name, selected[name],
                                   arguments.timeout), selected):
        reports.append(report)
        notes = (" environment-altered" * report.environment_altered
                 + " leftover-processes" * report.leftover_processes)
        print(row(report.name, report.counts(), report.seconds, notes), flush=True)
    print(row("TOTAL", sum((report.counts() for report in reports), Counter()),
              sum(report.seconds for report in reports)))
    return reports


def print_unexpected(method: str, reports: list[ClassReport], deviations: Deviations,
                     verbose: bool) -> int:
    """Print the outcomes that are not allowed, and the listed ones that are over; return the number of the first."""
    outcomes = {f"{report.name}.{test}": outcome
                for report in reports for test, outcome in report.tests.items()}
    unexpected = [(test, outcome) for test, outcome in outcomes.items()
                  if not deviations.allow(method, test, outcome.status)]
    passed = {test for test, outcome in outcomes.items() if outcome.status == "passed"}
    for pattern in deviations.outlived(method, passed, set(outcomes)):
        print(f"  listed  {pattern} passes: take it off the list")
    for test, outcome in unexpected:
        print(f"{outcome.status:>8}  {test}")
        if verbose:
            print(outcome.detail)
    print(f"{len(unexpected)} unexpected", flush=True)
    return len(unexpected)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", default="procession",
                        help="package that is to stand in for multiprocessing")
    parser.add_argument("--method", action="append", choices=METHODS,
                        help="start method under test, repeatable (default: fork and spawn)")
    parser.add_argument("--python", default=sys.executable,
                        help="interpreter that has the package installed")
    parser.add_argument("--only", metavar="PATTERN", action="append",
                        help="shell pattern that matches anywhere in Class.test, repeatable")
    parser.add_argument("--companions", action="store_true",
                        help="run the main-module and concurrent.futures suites instead")
    parser.add_argument("--timeout", type=float, default=60,
                        help="seconds that one test may take")
    parser.add_argument("--jobs", type=int, default=1, help="classes to run at a time")
    parser.add_argument("--json", type=Path, help="write every outcome to this file")
    parser.add_argument("--verbose", action="store_true",
                        help="print the detail of each unexpected outcome")
    arguments = parser.parse_args()
    arguments.method = arguments.method or ["fork", "spawn"]
    arguments.only = arguments.only or ["*"]
    return arguments


def has_suite(python: str) -> bool:
    """Whether the interpreter ships with its test package; distributions often leave it out."""
    code = ("import importlib.util as u, sys;"
            "sys.exit(not (u.find_spec('test') and u.find_spec('test._test_multiprocessing')))")
    return subprocess.run([python, "-c", code], stderr=subprocess.DEVNULL).returncode == 0


def main() -> int:
    arguments = parse_arguments()
    if not has_suite(arguments.python):
        print(f"skipped: {arguments.python} ships without test._test_multiprocessing")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    document: dict = {"package": arguments.package, "methods": {}}
    unexpected = 0
    with tempfile.TemporaryDirectory(prefix="conformance-", ignore_cleanup_errors=True) as folder:
        interpreter = Interpreter(arguments.python, arguments.package, Path(folder))
        document["python"] = interpreter.version
        deviations = Deviations([HERE / "suite.toml", HERE / "deviations.toml"],
                                arguments.package, interpreter.version)
        executor = ThreadPoolExecutor(arguments.jobs)
        try:
            for method in arguments.method:
                reports = run_method(interpreter, method, arguments, executor)
                unexpected += print_unexpected(method, reports, deviations, arguments.verbose)
                document["methods"][method] = [asdict(report) for report in reports]
        except subprocess.CalledProcessError:
            print(f"the suite cannot be imported with {arguments.package} as multiprocessing")
            return 2
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            for worker in list(Worker.running):
                worker.kill()
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1))
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
