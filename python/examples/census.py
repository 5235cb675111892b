"""A census of Python sources: what they define, and which words they use.

    census.py [FOLDER] [--start-method METHOD] [--workers N] [--json FILE]

Two jobs over the same files, each in processes of its own. A pool parses every file and counts functions, classes,
calls and names. Then every line travels through a queue to consumers that count words. The digest at the end is over
all results, so that two runs over the same files can be compared at a glance.

Without a folder it takes the standard library of the interpreter that runs it. Folders named `__pycache__` and
`site-packages` are left out: what is installed there isn't the standard library, and may be many times its size.
"""

import argparse
import ast
import collections
import hashlib
import json
import multiprocessing
import os
import queue
import re
import stat
import sys
import sysconfig
import time
import warnings

LEFT_OUT = ('__pycache__', 'site-packages')
WORD = re.compile('[A-Za-z0-9_]+')
#: Seconds between two looks at the consumers while their answers are awaited.
LOOK_INTERVAL = 0.5
#: Seconds between two updates of the progress line.
PROGRESS_INTERVAL = 0.1


class Lost(Exception):
    """A consumer ended without an answer."""


def main():
    options = parse_arguments()
    if options.start_method:
        multiprocessing.set_start_method(options.start_method)
    begin = time.perf_counter()
    try:
        sources = read_sources(options.folder)
    except OSError as error:
        say(f'{shown(options.folder)}: {error.strerror}')
        return 2
    if sources is None:
        say(f'{shown(options.folder)}: there is no Python file in it')
        return 2

    read = time.perf_counter()
    census = parse_all(sources, options.workers)
    parsed = time.perf_counter()
    try:
        count_all_words(sources, options.workers, census)
    except Lost as error:
        say(str(error))
        return 1
    end = time.perf_counter()

    seconds = {'parse': parsed - read, 'stream': end - parsed, 'total': end - begin}
    print_table(options.folder, census, seconds)
    if options.json:
        try:
            write_json(options.json, census, seconds)
        except OSError as error:
            say(f'{shown(options.json)}: {error.strerror}')
            return 1
    return 0


def parse_arguments():
    parser = argparse.ArgumentParser(description='Takes a census of the Python files below a folder.')
    parser.add_argument('folder', nargs='?', default=sysconfig.get_path('stdlib'),
                        help="default: this interpreter's standard library")
    parser.add_argument('--start-method', choices=('fork', 'spawn', 'forkserver'),
                        help="how processes are started; default: the platform's way")
    parser.add_argument('--workers', type=positive, default=os.cpu_count() or 1, metavar='N',
                        help='processes for each half; default: one for each processor')
    parser.add_argument('--json', metavar='FILE', help='writes the results there too')
    return parser.parse_args()


def positive(text):
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


class Census:
    """The results of both halves."""

    def __init__(self, files):
        self.files = files
        self.parsed = 0
        self.functions = self.classes = self.calls = 0
        self.names = collections.Counter()
        self.lines = 0
        self.words = collections.Counter()

    def words_digest(self):
        """The digest of the words alone, which needs no parser: another language can come to the same one."""
        return sha256(f'{word} {count}\n' for word, count in sorted(self.words.items()))

    def digest(self):
        """The digest of everything."""
        totals = ('files', 'parsed', 'functions', 'classes', 'calls', 'lines')
        parts = [f'{total} {getattr(self, total)}\n' for total in totals]
        # Sorted by code points, which is the order of their bytes in UTF-8 too.
        parts += [f'name {name} {count}\n' for name, count in sorted(self.names.items())]
        parts += [f'word {word} {count}\n' for word, count in sorted(self.words.items())]
        return sha256(parts)


def sha256(parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode())
    return digest.hexdigest()


#
# Reading
#

def read_sources(folder):
    """The files below a folder, by name: their bytes, which are valid UTF-8. None if there is no Python file."""
    names = find_sources(folder)
    sources = {}
    for name in names:
        try:
            with open(os.path.join(folder, name), 'rb') as file:
                source = file.read()
            source.decode()
        except OSError as error:
            say(f"{shown(name)}: left out, can't be read: {error.strerror}")
        except UnicodeDecodeError as error:
            say(f'{shown(name)}: left out, not valid UTF-8: {error.reason} at byte {error.start}')
        else:
            sources[name] = source
    return sources if names else None


def find_sources(folder):
    """The names of all Python files below a folder, sorted. Linked folders aren't followed."""
    def left_out(error):
        if error.filename == folder:
            raise error
        say(f"{shown(os.path.relpath(error.filename, folder))}: left out, can't be listed: {error.strerror}")

    names = []
    for place, folders, files in os.walk(folder, onerror=left_out):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        paths = [os.path.join(place, name) for name in files if name.endswith('.py')]
        names += [os.path.relpath(path, folder) for path in paths if may_be_read(path)]
    return sorted(names, key=os.fsencode)


def may_be_read(path):
    """False for a pipe or a device, which might never end. A link that leads nowhere is for the reader to report."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


#
# The first half: a pool parses
#

def parse_all(sources, workers):
    """Parses each file in a pool, and counts what is in it."""
    census = Census(len(sources))
    progress = Progress('parsing', 'files', len(sources))
    # What a parser has to say about old code is no news of ours.
    with multiprocessing.Pool(workers, warnings.simplefilter, ('ignore',)) as pool:
        for done, (name, counts, problem) in enumerate(pool.imap_unordered(parse, sources.items()), 1):
            if problem is None:
                functions, classes, calls, names = counts
                census.parsed += 1
                census.functions += functions
                census.classes += classes
                census.calls += calls
                census.names.update(names)
            else:
                progress.clear()
                say(shown(name + problem))
            progress.show(done)
        pool.close()
        pool.join()
    progress.clear()
    return census


def parse(item):
    """In a worker: the counts of one file, or why there are none."""
    name, source = item
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        line = f':{error.lineno}' if error.lineno else ''
        return name, None, f'{line}: not valid Python: {error.msg}'
    except (ValueError, RecursionError, MemoryError) as error:
        # Null bytes, and code nested too deep for this interpreter's parser: neither knows its line.
        return name, None, f': not valid Python: {str(error) or type(error).__name__}'
    functions = classes = calls = 0
    names = collections.Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names[node.id] += 1
        elif isinstance(node, ast.Call):
            calls += 1
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            functions += 1
        elif isinstance(node, ast.ClassDef):
            classes += 1
    return name, (functions, classes, calls, dict(names)), None


#
# The second half: a queue, and consumers
#

def count_all_words(sources, workers, census):
    """Sends each line of each file to one of the consumers, and adds up what they counted."""
    lines, answers = multiprocessing.Queue(), multiprocessing.Queue()
    consumers = [multiprocessing.Process(target=count_words, args=(lines, answers), daemon=True)
                 for _ in range(workers)]
    for consumer in consumers:
        consumer.start()
    try:
        census.lines = send_lines(sources, lines, consumers)
        # Answers first: a consumer may not be able to end before its answer is taken.
        for counts in take_answers(answers, consumers):
            census.words.update(counts)
        for consumer in consumers:
            consumer.join()
        # The queue may have a thread of ours: it must not be in the middle of something when the program ends.
        lines.close()
        lines.join_thread()
    except BaseException:
        # Nobody will read what is still on its way.
        lines.cancel_join_thread()
        for consumer in consumers:
            consumer.terminate()
        raise


def count_words(lines, answers):
    """A consumer: counts words until it is told that there are no more lines."""
    counts = collections.Counter()
    while (line := lines.get()) is not None:
        counts.update(WORD.findall(line))
    answers.put(dict(counts))


def send_lines(sources, lines, consumers):
    """Puts every line into the queue, one message each, and an end for each consumer; the number of lines."""
    progress = Progress('streaming', 'lines')
    count = 0
    for source in sources.values():
        check(consumers)
        pieces = source.decode().split('\n')
        if not pieces[-1]:
            pieces.pop()
        for piece in pieces:
            lines.put(piece)
        count += len(pieces)
        progress.show(count)
    for _ in consumers:
        lines.put(None)
    progress.clear()
    return count


def take_answers(answers, consumers):
    """What each consumer counted, as they finish."""
    missing = len(consumers)
    progress = Progress('waiting for', 'consumers')
    while missing:
        progress.show(missing)
        have_ended = all(consumer.exitcode is not None for consumer in consumers)
        try:
            yield answers.get(timeout=LOOK_INTERVAL)
            missing -= 1
        except queue.Empty:
            check(consumers)
            if have_ended:
                raise Lost(f'{missing} consumers ended without an answer') from None
    progress.clear()


def check(consumers):
    """Raises Lost if a consumer has died: its part of the lines is gone."""
    for consumer in consumers:
        if consumer.exitcode:
            raise Lost(f'the consumer {consumer.name} died with exit code {consumer.exitcode}')


#
# What a person sees
#

class Progress:
    """A line on a terminal that says how far the program is."""

    def __init__(self, doing, what, total=None):
        self.doing, self.what, self.total = doing, what, total
        self.is_shown = sys.stderr.isatty()
        self.last = 0.0

    def show(self, done):
        now = time.monotonic()
        if self.is_shown and now - self.last >= PROGRESS_INTERVAL:
            self.last = now
            of = '' if self.total is None else f' of {self.total}'
            print(f'\r\x1b[K{self.doing} {done}{of} {self.what}', end='', file=sys.stderr, flush=True)

    def clear(self):
        if self.is_shown:
            print('\r\x1b[K', end='', file=sys.stderr, flush=True)


def say(line):
    print(f'census: {line}', file=sys.stderr, flush=True)


def shown(path):
    """A file's name in one line, whatever bytes are in it."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in path)


def top(counts):
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:10]


def print_table(folder, census, seconds):
    print(f'Python {sys.version.split()[0]}, {ascii(folder)}')
    rows = [
        ('files', census.files), ('not valid Python', census.files - census.parsed), ('lines', census.lines),
        ('functions', census.functions), ('classes', census.classes), ('calls', census.calls),
        ('words', census.words.total()), ('distinct words', len(census.words)),
    ]
    for label, number in rows:
        print(f'  {label:<18}{number:>12,}')
    names, words = top(census.names), top(census.words)
    print(f'\n  {"most used names":<30}most used words')
    for place in range(max(len(names), len(words))):
        cells = [f'{items[place][1]:>9,}  {ascii_only(items[place][0]):<17}' if place < len(items) else ' ' * 28
                 for items in (names, words)]
        print(f'  {cells[0]}  {cells[1]}'.rstrip())
    times = ', '.join(f'{half} {seconds[half]:.2f} s' for half in ('parse', 'stream', 'total'))
    print(f'\n  {times}\n  digest {census.digest()}')


def ascii_only(name):
    """A name that any terminal can print."""
    return name.encode('ascii', 'backslashreplace').decode()


def write_json(path, census, seconds):
    results = {
        'digest': census.digest(), 'words_digest': census.words_digest(),
        'files': census.files, 'lines': census.lines, 'words': census.words.total(),
        'functions': census.functions, 'classes': census.classes, 'calls': census.calls,
        'seconds': {half: round(value, 6) for half, value in seconds.items()},
    }
    with open(path, 'w', encoding='ascii') as file:
        json.dump(results, file, indent=4)
        file.write('\n')


if __name__ == '__main__':
    sys.exit(main())
