"""The README's example does what it says, on each start method."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import unittest

#: Seconds after which an example that hangs is ended, with all that it started.
WATCHDOG = 120

PACKAGE = pathlib.Path(__file__).parent.parent
README = PACKAGE.parent / 'README.md'
SAYS = 'hello from a child\n[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]\n'

OUR_IMPORT = 'import procession as multiprocessing\n'
MAIN = 'if __name__ == "__main__":\n'


class ReadmeTest(unittest.TestCase):

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.script = pathlib.Path(scratch.name) / 'example.py'
        examples = re.findall(r'^```python\n(.*?)^```$', README.read_text(), re.DOTALL | re.MULTILINE)
        self.assertEqual(len(examples), 1)
        self.example, = examples

    def changed(self, old, new):
        self.assertEqual(self.example.count(old), 1, old)
        return self.example.replace(old, new)

    def check(self, text, *options):
        """Runs it in a fresh interpreter. Files take what it says: whoever is left of a run that went wrong would
        hold a pipe open."""
        self.script.write_text(text)
        environment = os.environ | {'PYTHONPATH': str(PACKAGE), 'PYTHONDONTWRITEBYTECODE': '1'}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            program = subprocess.Popen([sys.executable, *options, self.script], env=environment,
                                       stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
            try:
                program.wait(WATCHDOG)
            except subprocess.TimeoutExpired:
                os.killpg(program.pid, signal.SIGKILL)
                program.wait()
                raise
            out.seek(0)
            err.seek(0)
            self.assertEqual((program.returncode, out.read().decode(), err.read().decode()), (0, SAYS, ''))

    def test_as_it_stands(self):
        self.check(self.example)

    def test_each_start_method(self):
        for method in ('fork', 'spawn'):
            with self.subTest(method=method):
                chosen = f'{MAIN}    multiprocessing.set_start_method("{method}")\n'
                self.check(self.changed(MAIN, chosen))

    def test_it_is_a_drop_in(self):
        """The same program for the standard library says the same, there and under `python -m procession`."""
        ordinary = self.changed(OUR_IMPORT, 'import multiprocessing\n')
        self.check(ordinary)
        proof = 'assert multiprocessing.Queue.__func__.__module__ == "procession.context"\n'
        self.check(self.changed(OUR_IMPORT, 'import multiprocessing\n' + proof), '-m', 'procession')


if __name__ == '__main__':
    unittest.main()
