"""Measure implementations of Python's multiprocessing side by side.

    python bench.py                                          procession and all peers installed
    python bench.py --impl stdlib --impl procession          only these
    python bench.py --impl module:mypackage --only queue     any module with the stdlib's API
    python bench.py --quick --json out.json

Every sample is one scenario run once in a fresh interpreter. The implementations take turns,
A B A B and so on, with the order reversed every other round, so that a disturbance of the
machine falls on all of them. The table shows, for each scenario and implementation, the median
over the rounds, and how many times better it is than the stdlib's median (above 1 is faster, or
smaller). With --best it shows the best round instead, which other load on the machine spoils
less. The JSON has both, and every sample.
"""

import argparse
import fnmatch
import importlib.metadata
import importlib.util
import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import adapters
import scenarios

BASELINE = "stdlib"
SAMPLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sample.py")
UNITS = {"/s": "per second", "ns": "ns", "us": "µs", "ms": "ms", "MiB": "MiB", "fds": "fds"}


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--impl",
        action="append",
        metavar="NAME",
        help="implementation to measure, repeatable: "
        + ", ".join(adapters.ADAPTERS)
        + ", or module:NAME (default: all installed, less the heavy ones)",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="scenarios to run, repeatable: a group, a part of a name, or a glob",
    )
    parser.add_argument("--rounds", type=int, help="samples of each (default: 4, quick: 3)")
    parser.add_argument(
        "--quick", action="store_true", help="main scenarios only, with a quarter of the work"
    )
    parser.add_argument(
        "--best", action="store_true", help="show the best of the rounds instead of the median"
    )
    parser.add_argument("--json", metavar="PATH", help="write all samples here, - for stdout")
    parser.add_argument("--list", action="store_true", help="name the scenarios and stop")
    parser.add_argument(
        "--timeout", type=float, default=20, metavar="S", help="limit of a sample (default: 20 s)"
    )
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (3 if options.quick else 4)
    return options


def select_scenarios(options):
    """The scenarios to run, in the order of the registry."""
    chosen = scenarios.load_all().values()
    if options.quick:
        chosen = [scenario for scenario in chosen if scenario.quick]
    if options.only:
        chosen = [
            scenario
            for scenario in chosen
            if any(matches(scenario.name, pattern) for pattern in options.only)
        ]
    return list(chosen)


def matches(name, pattern):
    """Whether the pattern is part of the scenario's name, or a glob for it."""
    return pattern in name or fnmatch.fnmatchcase(name, pattern)


def select_adapters(options):
    """The adapters to measure, the baseline first, and notes on those left out."""
    named = options.impl or [a.name for a in adapters.ADAPTERS.values() if not a.heavy]
    chosen, notes = [], []
    for name in dict.fromkeys((BASELINE, *named)):
        try:
            adapter = adapters.find(name)
        except KeyError:
            sys.exit(f"bench: no implementation {name}; see --help")
        if importlib.util.find_spec(adapter.module.partition(".")[0]):
            chosen.append(adapter)
        else:
            notes.append(f"{name} skipped: module {adapter.module} is not installed")
    return chosen, notes


def take_sample(adapter, scenario, scale, timeout):
    """Run sample.py and return its outcome. Nothing it started outlives it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        report = os.path.join(folder, "report")
        with open(os.path.join(folder, "stderr"), "w+") as stderr:
            process = subprocess.Popen(
                [sys.executable, SAMPLE, adapter.name, scenario.name, str(scale), report],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                ended = wait(process, timeout)
            finally:
                os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the id is still its own
                process.wait()
            stderr.seek(0)
            said = stderr.read()[-4000:]
        if not os.path.exists(report):
            why = f"exit code {process.returncode}" if ended else f"no end within {timeout:g} s"
            return {"error": f"{said}\n{why}"}
        with open(report) as file:
            outcome = json.load(file)
    if "error" in outcome:
        outcome["error"] = f"{said}\n{outcome['error']}"
    return outcome


def wait(process, timeout):
    """Whether the process ended within `timeout` seconds. It is not reaped."""
    descriptor = os.pidfd_open(process.pid)
    try:
        return bool(select.select([descriptor], [], [], timeout)[0])
    finally:
        os.close(descriptor)


def measure(scenario, chosen, options):
    """Take the samples of one scenario: name of implementation -> list of outcomes.

    An implementation is asked no more once it has said that it lacks the scenario, or has failed
    it twice.
    """
    taking_part = [a for a in chosen if a.covers_scenario(scenario.name)]
    outcomes = {adapter.name: [] for adapter in taking_part}
    rounds = min(options.rounds, scenario.max_rounds or options.rounds)
    scale = 0.25 if options.quick else 1.0
    for number in range(rounds):
        for adapter in taking_part[:: -1 if number % 2 else 1]:
            taken = outcomes[adapter.name]
            if any("unsupported" in outcome for outcome in taken):
                continue
            if sum("error" in outcome for outcome in taken) == 2:
                continue
            taken.append(take_sample(adapter, scenario, scale * adapter.share, options.timeout))
    return outcomes


def summarize(scenario, outcomes):
    """Medians, bests and ratios of one scenario: name of implementation -> entry for the JSON."""
    best = max if scenario.higher_is_better else min
    summary = {}
    for name, taken in outcomes.items():
        samples = [outcome["value"] for outcome in taken if "value" in outcome]
        errors = [outcome["error"] for outcome in taken if "error" in outcome]
        entry = summary[name] = {"samples": samples, "errors": errors}
        if samples:
            entry["median"] = statistics.median(samples)
            entry["best"] = best(samples)
    baseline = summary.get(BASELINE, {})
    for entry in summary.values():
        for figure in ("median", "best"):
            if entry.get(figure) and baseline.get(figure):
                ratio = entry[figure] / baseline[figure]
                entry[f"{figure}_ratio"] = ratio if scenario.higher_is_better else 1 / ratio
    return summary


def number(value):
    """Three significant digits, with k or M."""
    for limit, divisor, suffix in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= limit:
            return f"{value / divisor:.3g}{suffix}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def cell(scenario, entry, figure):
    """What the table shows of one entry; `figure` is "median" or "best"."""
    if entry is None or not (entry["samples"] or entry["errors"]):
        return "-"
    if not entry["samples"]:
        return "failed"
    text = number(entry[figure])
    if scenario.bytes_per_op:
        text += f" ({entry[figure] * scenario.bytes_per_op / 1e6:.0f} MB/s)"
    if f"{figure}_ratio" in entry:
        text += f" {entry[f'{figure}_ratio']:.2f}x"
    return text + "!" * len(entry["errors"])


def tables(chosen, results, figure):
    """Markdown, one table for each group: scenarios down, implementations across."""
    groups = {}
    for scenario, summary in results:
        groups.setdefault(scenario.group, []).append((scenario, summary))
    for group, rows in groups.items():
        names = [a.name for a in chosen if any(a.name in summary for _, summary in rows)]
        lines = [[group, "unit", *names]]
        for scenario, summary in rows:
            label = scenario.name.partition("/")[2]
            cells = [cell(scenario, summary.get(name), figure) for name in names]
            lines.append([label, UNITS[scenario.unit], *cells])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        for line in lines:
            yield "| " + " | ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)) + " |"
        yield ""


def failures(results):
    """One note for each implementation and scenario that failed: the last line of what it said."""
    for scenario, summary in results:
        for name, entry in summary.items():
            if entry["errors"]:
                last_line = entry["errors"][-1].strip().splitlines()[-1]
                yield f"{name} failed {scenario.name}: {last_line}"


def busy_seconds():
    """Processor time that the whole machine has spent since boot, other than idle."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _wait, *interrupts = map(int, file.readline().split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def own_seconds():
    """Processor time that the harness and the samples it has reaped have spent."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def version(adapter):
    """The version of an implementation, as its installation says it."""
    if adapter.distribution is None:
        return "with Python"
    try:
        return importlib.metadata.version(adapter.distribution)
    except importlib.metadata.PackageNotFoundError:  # found on PYTHONPATH, as in a checkout
        return "not installed, from a folder"


def conditions(chosen, options):
    """What the numbers depend on, for the record."""
    versions = {adapter.name: version(adapter) for adapter in chosen}
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": os.cpu_count(),
        "rounds": options.rounds,
        "quick": options.quick,
        "versions": versions,
    }


def progress(text):
    """A line on stderr that the next one replaces, when a terminal shows it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def main(argv=None):
    options = parse_arguments(argv)
    chosen_scenarios = select_scenarios(options)
    if options.list:
        for scenario in chosen_scenarios:
            print(f"{scenario.name}  [{UNITS[scenario.unit]}]")
        return
    if not chosen_scenarios:
        sys.exit("bench: no scenario matches --only; see --list")
    chosen, notes = select_adapters(options)
    record = conditions(chosen, options)
    results, begin = [], time.monotonic()
    busy, own = busy_seconds(), own_seconds()
    for position, scenario in enumerate(chosen_scenarios):
        progress(f"{position + 1}/{len(chosen_scenarios)} {scenario.name}")
        results.append((scenario, summarize(scenario, measure(scenario, chosen, options))))
    record["seconds"] = round(time.monotonic() - begin, 1)
    record["processor_seconds"] = round(own_seconds() - own, 1)
    others = busy_seconds() - busy - record["processor_seconds"]
    record["busy_with_others"] = round(max(0.0, others / record["seconds"]), 2)
    progress("")

    text = sys.stderr if options.json == "-" else sys.stdout
    figure = "best" if options.best else "median"
    print(*tables(chosen, results, figure), sep="\n", file=text)
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    print(
        f"Python {record['python']}, {record['system']}, {record['processors']} processors, of "
        f"which {record['busy_with_others']} were busy with other work; "
        f"{record['rounds']} rounds, {record['seconds']} s.\n"
        f"{versions}.\n"
        f"The {figure} of the rounds; x: times better than the stdlib; -: not offered; "
        "!: a sample that failed.",
        *notes,
        *failures(results),
        sep="\n",
        file=text,
    )
    if options.json:
        record["scenarios"] = {
            scenario.name: {
                "unit": scenario.unit,
                "higher_is_better": scenario.higher_is_better,
                "bytes_per_op": scenario.bytes_per_op,
                "results": summary,
            }
            for scenario, summary in results
        }
        with sys.stdout if options.json == "-" else open(options.json, "w") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()
