"""The census, an ordinary `multiprocessing` program: the same results on the standard library and on procession."""

import collections
import hashlib
import itertools
import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import unittest

#: Seconds after which a run that hangs is ended, with all that it started. No test asserts that something is quick.
WATCHDOG = 120

PACKAGE = pathlib.Path(__file__).parent.parent
CENSUS = PACKAGE / 'examples' / 'census.py'
#: What the program runs on, and the words that make it so.
ON = {'multiprocessing': [], 'procession': ['-m', 'procession']}
RUNS = list(itertools.product(ON, ('fork', 'spawn')))

Ended = collections.namedtuple('Ended', 'status out err results')

GOOD = {
    'shapes.py': '''
        import math


        class Circle:
            def __init__(self, radius):
                self.radius = radius

            def area(self):
                return math.pi * pow(self.radius, 2)


        async def describe(circle):
            print(circle, circle.area())
        ''',
    'inner/empty.py': '',
    'inner/old.py': r'''
        pattern = '\d+'
        print(1 is 1)
        ''',
}


class Folder(unittest.TestCase):
    """A fresh folder for each test, and runs over it."""

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.scratch = pathlib.Path(scratch.name)
        self.folder = self.scratch / 'sources'
        self.folder.mkdir()

    def write(self, files):
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                content = textwrap.dedent(content).encode()
            path.write_bytes(content)

    def run_census(self, on, method, *arguments, folder=None, script=CENSUS):
        report = self.scratch / 'report.json'
        report.unlink(missing_ok=True)
        command = [sys.executable, *ON[on], script, folder or self.folder,
                   '--start-method', method, '--workers', '2', '--json', report, *arguments]
        # Files, not pipes: whoever is left of a run that went wrong would hold a pipe open.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            status = end_of(command, stdout=out, stderr=err)
            results = json.loads(report.read_bytes()) if report.exists() else None
            return Ended(status, text_of(out), text_of(err), results)


def end_of(command, **streams):
    """Runs a command in a session of its own; its exit status."""
    environment = os.environ | {'PYTHONPATH': str(PACKAGE), 'PYTHONDONTWRITEBYTECODE': '1'}
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment,
                               start_new_session=True, **streams)
    try:
        return program.wait(WATCHDOG)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        raise


def text_of(file):
    file.seek(0)
    return file.read().decode()


class CensusTest(Folder):

    def test_results(self):
        self.write(GOOD)
        for on, method in RUNS:
            with self.subTest(on=on, method=method):
                ended = self.run_census(on, method)
                self.assertEqual((ended.status, ended.err), (0, ''))
                counts = {key: ended.results[key] for key in
                          ('files', 'lines', 'functions', 'classes', 'calls')}
                self.assertEqual(counts, {'files': 3, 'lines': 17, 'functions': 3, 'classes': 1, 'calls': 4})
                self.assertEqual(set(ended.results['seconds']), {'parse', 'stream', 'total'})
                self.assertRegex(ended.out, r'most used names +most used words\n +2  circle +4  radius\n')
                self.assertIn(ended.results['digest'], ended.out)

    def test_words_are_counted_as_specified(self):
        self.write({'a.py': b'b\xc3\xa9te = "a-b\x0cc\xc2\x85d\xe2\x80\xa8e"  # _x1 a\r\nlast = 2\n\nopen_end = 3',
                    'b.py': b'\xef\xbb\xbfb = 1\n', 'c.py': b'\n'})
        words = {'b': 3, 'te': 1, 'a': 2, 'c': 1, 'd': 1, 'e': 1, '_x1': 1, 'last': 1, '2': 1,
                 'open_end': 1, '3': 1, '1': 1}
        text = ''.join(f'{word} {words[word]}\n' for word in sorted(words))
        for on, method in RUNS:
            with self.subTest(on=on, method=method):
                results = self.run_census(on, method).results
                self.assertEqual(results['words_digest'], hashlib.sha256(text.encode()).hexdigest())
                self.assertEqual(results['words'], sum(words.values()))
                self.assertEqual(results['lines'], 6)

    def test_digests_agree_and_tell_folders_apart(self):
        self.write(GOOD)
        # Real sources, of a size that keeps all workers busy.
        package = pathlib.Path(json.__file__).parent
        self.write({path.name: path.read_bytes() for path in sorted(package.glob('*.py'))})
        ended = [self.run_census(on, method) for on, method in RUNS]
        self.assertEqual(len({one.results['digest'] for one in ended}), 1)
        self.assertEqual(len({one.results['words_digest'] for one in ended}), 1)
        self.write({'one_more.py': 'x = 1\n'})
        changed = self.run_census('multiprocessing', 'fork').results
        self.assertNotEqual(changed['digest'], ended[0].results['digest'])
        self.assertNotEqual(changed['words_digest'], ended[0].results['words_digest'])

    def test_one_worker_and_more_workers_than_files(self):
        self.write(GOOD)
        digests = {self.run_census(on, method, '--workers', count).results['digest']
                   for on, method in RUNS for count in ('1', '5')}
        self.assertEqual(len(digests), 1)

    def test_a_file_that_cannot_be_used_is_named_and_the_rest_goes_on(self):
        self.write(GOOD)
        for on, method in RUNS:
            with self.subTest(on=on, method=method):
                good = self.run_census(on, method).results
                self.write({'latin.py': '# caf\xe9\n'.encode('latin-1')})
                os.symlink('nowhere', self.folder / 'gone.py')
                ended = self.run_census(on, method)
                self.assertEqual(ended.status, 0)
                self.assertEqual(ended.err.splitlines(), [
                    "census: gone.py: left out, can't be read: No such file or directory",
                    'census: latin.py: left out, not valid UTF-8: invalid continuation byte at byte 5',
                ])
                self.assertEqual(ended.results['digest'], good['digest'])
                for name in ('latin.py', 'gone.py'):
                    (self.folder / name).unlink()

    def test_a_file_that_is_not_python_is_still_streamed(self):
        self.write(GOOD | {'old/two.py': 'x = 1\nprint "hello"\n', 'nulls.py': b'x = 1\0\n',
                           'deep.py': '(' * 5000, 'coded.py': '# coding: klingon\n'})
        digests = set()
        for on, method in RUNS:
            with self.subTest(on=on, method=method):
                ended = self.run_census(on, method)
                self.assertEqual(ended.status, 0)
                # A pool answers in any order.
                said = sorted(ended.err.splitlines())
                self.assertEqual(len(said), 4, said)
                for line, name in zip(said, ('coded.py', 'deep.py', 'nulls.py', 'old/two.py:2')):
                    self.assertRegex(line, f'^census: {name}.*: not valid Python: .')
                self.assertEqual((ended.results['files'], ended.results['lines']), (7, 22))
                self.assertRegex(ended.out, 'not valid Python +4\n')
                digests.add(ended.results['digest'])
        self.assertEqual(len(digests), 1)

    def test_any_bytes_may_be_a_name(self):
        name = os.fsdecode(b'b\xff\n.py')
        self.write({name: 'print "2"', 'caf\xe9.py': 'x = 1'})
        for on, method in RUNS:
            with self.subTest(on=on, method=method):
                ended = self.run_census(on, method)
                self.assertEqual((ended.status, ended.results['files']), (0, 2))
                self.assertEqual(len(ended.err.splitlines()), 1, ended.err)
                self.assertIn(r'b\udcff\n.py:1: not valid Python', ended.err)
                # So may be the folder's.
                odd = os.fsencode(self.scratch) + b'/odd\xff'
                os.rename(self.folder, odd)
                again = self.run_census(on, method, folder=odd)
                os.rename(odd, self.folder)
                self.assertEqual((again.status, again.results['digest']), (0, ended.results['digest']))

    def test_what_is_left_out_without_a_word(self):
        self.write(GOOD)
        for on, method in RUNS:
            with self.subTest(on=on, method=method):
                good = self.run_census(on, method).results
                self.write({f'{folder}/x.py': 'x = 1' for folder in ('__pycache__', 'site-packages')})
                self.write({'readme.txt': 'x', 'folder.py/inside.txt': 'x'})
                os.symlink('..', self.folder / 'inner' / 'round')
                # Nobody writes to it: whoever opens it waits for ever.
                os.mkfifo(self.folder / 'fifo.py')
                ended = self.run_census(on, method)
                self.assertEqual((ended.status, ended.err), (0, ''))
                self.assertEqual(ended.results['digest'], good['digest'])
                (self.folder / 'fifo.py').unlink()
                (self.folder / 'inner' / 'round').unlink()

    def test_no_sources(self):
        (self.folder / 'readme.txt').write_text('x')
        missing = self.scratch / 'missing'
        cases = {self.folder: 'there is no Python file in it', missing: 'No such file or directory',
                 self.folder / 'readme.txt': 'Not a directory'}
        for (on, method), (folder, why) in itertools.product(RUNS, cases.items()):
            with self.subTest(on=on, method=method, folder=folder):
                ended = self.run_census(on, method, folder=folder)
                self.assertEqual(ended, Ended(2, '', f'census: {folder}: {why}\n', None))

    def test_a_report_that_cannot_be_written(self):
        self.write(GOOD)
        for on, method in RUNS:
            with self.subTest(on=on, method=method):
                ended = self.run_census(on, method, '--json', '/dev/null/report')
                self.assertEqual((ended.status, ended.err), (1, 'census: /dev/null/report: Not a directory\n'))
                self.assertIn('digest', ended.out)

    def test_a_dead_consumer_ends_the_program(self):
        """It neither waits for ever nor counts without the lines that the dead one took."""
        self.write({f'{number}.py': '# a line\n' * 1000 for number in range(20)})
        deaths = {'os.kill(os.getpid(), signal.SIGKILL)': r'died with exit code -9',
                  'os._exit(3)': r'died with exit code 3',
                  'os._exit(0)': r'2 consumers ended without an answer'}
        for (on, method), (death, why) in itertools.product(RUNS, deaths.items()):
            with self.subTest(on=on, method=method, death=death):
                script = self.scratch / 'mortal.py'
                script.write_text(textwrap.dedent(f'''\
                    import os, signal, sys
                    sys.path.insert(0, {str(CENSUS.parent)!r})
                    import census

                    def dies(lines, answers):
                        lines.get()
                        {death}

                    if __name__ == '__main__':
                        census.count_words = dies
                        sys.exit(census.main())
                    '''))
                ended = self.run_census(on, method, script=script)
                self.assertEqual((ended.status, ended.out), (1, ''))
                # The standard library's resource tracker may have something to say after it.
                self.assertRegex(ended.err, rf'\Acensus: .*{why}\n')

    def test_progress_is_for_a_terminal(self):
        self.write(GOOD)
        for on, method in RUNS:
            with self.subTest(on=on, method=method):
                terminal, end = pty.openpty()
                with open(terminal, 'rb', buffering=0) as reader, open(end, 'wb', buffering=0) as writer:
                    command = [sys.executable, *ON[on], CENSUS, self.folder, '--start-method', method]
                    self.assertEqual(end_of(command, stdout=subprocess.DEVNULL, stderr=writer), 0)
                    # Little enough to have waited in the terminal all the while.
                    said = reader.read(4096).decode()
                for line in ('parsing [123] of 3 files', r'streaming \d+ lines', r'waiting for \d+ consumers'):
                    self.assertRegex(said, f'\r\x1b\\[K{line}')
                self.assertTrue(said.endswith('\r\x1b[K'), repr(said))

    def test_it_knows_nothing_of_procession(self):
        self.assertIsNone(re.search('procession', CENSUS.read_text()))


if __name__ == '__main__':
    unittest.main()
