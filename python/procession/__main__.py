"""python -m procession [-m module | script.py] arguments…

Runs a program that says `import multiprocessing`, unchanged, on procession; the children that it spawns too.
"""

__all__ = []

import io
import os
import runpy
import sys
import types
import zipfile

from procession import _alias

_USAGE = 'usage: python -m procession [-m module | script.py] arguments...'


def _new_main():
    """A main module that has nothing of this one's."""
    main = types.ModuleType('__main__')
    main.__builtins__ = __builtins__
    if sys.version_info < (3, 14):
        # The interpreter's own main module has them from the start.
        main.__annotations__ = {}
    sys.modules['__main__'] = sys.modules['__mp_main__'] = main
    return main


def _put_first(folder):
    # With -P or -I the interpreter has put no folder first that is to make way.
    sys.path[:not sys.flags.safe_path] = [folder]


def _run_module(name):
    _new_main()
    # As `python -m name` does: in the main module, with the argument that it sees first made the module's file.
    runpy._run_module_as_main(name, alter_argv=True)


def _run_script(path):
    if os.path.isdir(path) or zipfile.is_zipfile(path):
        # Absolute, as the interpreter's own: the program may change its folder.
        _put_first(os.path.join(os.getcwd(), path))
        _new_main()
        runpy._run_module_as_main('__main__', alter_argv=False)
        return
    # Absolute and otherwise as it was said, as the interpreter's own `__file__`.
    path = os.path.join(os.getcwd(), path)
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        print(f"{sys.executable}: can't open file {path!r}: [Errno {error.errno}] {error.strerror}",
              file=sys.stderr)
        # As the interpreter's own status.
        sys.exit(2)
    if not sys.flags.safe_path:
        _put_first(os.path.dirname(os.path.realpath(path)))
    main = _new_main()
    main.__file__ = path
    main.__cached__ = None
    from importlib.machinery import SourceFileLoader
    main.__loader__ = SourceFileLoader('__main__', path)
    exec(compile(source, path, 'exec', dont_inherit=True), main.__dict__)


def _start(arguments):
    match arguments:
        case ['-m', name, *_]:
            sys.argv = arguments[1:]
            _alias.install()
            _run_module(name)
        case [path, *_] if not path.startswith('-'):
            sys.argv = arguments
            _alias.install()
            _run_script(path)
        case ['-h' | '--help', *_]:
            print(_USAGE)
        case _:
            sys.exit(_USAGE)


if __name__ == '__main__':
    _start(sys.argv[1:])
