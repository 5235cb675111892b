"""A spawned child's first steps. See the standard library's `multiprocessing.spawn`."""

__all__ = ['_main', 'freeze_support', 'set_executable', 'get_executable',
           'get_preparation_data', 'get_command_line', 'import_main_path']

import gc
import io
import os
import runpy
import sys
import types
from _io import _IOBase
from _pickle import PicklingError, load

from . import _alias, _core, _standard, context, process, reduction, util

WINEXE = False
WINSERVICE = False

#: Where this package lies: a child looks here before it has its parent's path.
_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def command(module, function, **kwds):
    """The command line of an interpreter that calls a function of this package."""
    if not _python_exe:
        raise RuntimeError('there is no interpreter to start: sys.executable is empty, and set_executable() set none')
    arguments = ', '.join('%s=%r' % item for item in kwds.items())
    program = f'import sys; home = {_HOME!r}; home in sys.path or sys.path.insert(0, home); ' \
              f'from procession.{module} import {function}; {function}({arguments})'
    # -P: else the current directory would come first on the path.
    return [_python_exe, *util._args_from_interpreter_flags(), '-P', '-c', program]


def set_executable(exe):
    """Sets the interpreter that spawned children run; None forgets it."""
    global _python_exe
    _python_exe = exe if exe is None else os.fsencode(exe)


def get_executable():
    """The interpreter that spawned children run, as bytes."""
    return _python_exe


set_executable(sys.executable)


def is_forking(argv):
    """Whether a command line is a child's."""
    return len(argv) >= 2 and argv[1] == '--multiprocessing-fork'


def freeze_support():
    """Runs a child's part, or the fork server's, if this process is one: the first line of a frozen program's main block."""
    if is_forking(sys.argv):
        kwds = {}
        for arg in sys.argv[2:]:
            name, value = arg.split('=', 1)
            kwds[name] = value if name == 'token' else None if value == 'None' else int(value)
        if 'requests' in kwds:
            from .forkserver import main
            main(**kwds)
        spawn_main(**kwds)


def frozen_command(**kwds):
    """The command line of a frozen program for what `freeze_support` then does; None if this isn't one."""
    if getattr(sys, 'frozen', False):
        return [sys.executable, '--multiprocessing-fork', *('%s=%s' % item for item in kwds.items())]


def get_command_line(**kwds):
    """The command line of a child."""
    return frozen_command(**kwds) or [*command('spawn', 'spawn_main', **kwds), '--multiprocessing-fork']


def spawn_main(token, pipe_handle, parent_sentinel, parent_pid, dies_with_parent=0, by_main_thread=0, alias=0,
               tracker_fd=None):
    """A child's whole life: joins its parent's tree, reads what to do, does it and exits."""
    assert is_forking(sys.argv), 'Not forking'
    if dies_with_parent:
        _core.die_with_parent(parent_pid, bool(by_main_thread))
    _core.attach(token)
    if alias:
        _alias.install()
    for descriptor in (pipe_handle, parent_sentinel):
        # This child's own children get what is meant for them, and nothing else.
        os.set_inheritable(descriptor, False)
    inherit_tracker(tracker_fd)
    util._register_exit(_let_go)
    # What is there by now stays to the end. The collector, which goes through all three times then, needn't look at it.
    gc.freeze()
    sys.exit(_main(pipe_handle, parent_sentinel))


def _let_go():
    """Lets go of what the program has made: nothing of that is frozen, so the end of the interpreter finalizes it."""
    process._current_process = None
    _standard.be()
    # Unless something frozen refers to it, as a module of which the program has changed something. A file is whole all the same.
    for file in gc.get_objects():
        # By its type: an object may say that it is another's.
        if issubclass(type(file), _IOBase):
            try:
                file.closed or file.flush()
            except Exception:
                pass


def inherit_tracker(fd):
    """Has this process' named resources looked after by its parent's tracker, if that has one."""
    if fd is not None:
        from . import resource_tracker
        tracker = resource_tracker._resource_tracker
        if tracker._fd is not None:
            os.close(tracker._fd)
        os.set_inheritable(fd, False)
        tracker._fd, tracker._pid = fd, None


def _main(fd, parent_sentinel):
    return _begin(_read(fd), parent_sentinel)


def _begin(pickles, parent_sentinel):
    """A child's life, from what it is to know and to do; its exit code."""
    if not pickles:
        # The parent is gone, or has changed its mind.
        return 1
    from_parent = io.BytesIO(pickles)
    process.current_process()._inheriting = True
    try:
        prepare(load(from_parent))
        self = load(from_parent)
    finally:
        del process.current_process()._inheriting
    # It may be long.
    del from_parent, pickles
    return self._bootstrap(parent_sentinel)


def _read(fd):
    """All that comes by a pipe. A file object for it would take longer than the reading."""
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
        return parts[0] if len(parts) == 1 else b''.join(parts)
    finally:
        os.close(fd)


def _check_not_importing_main():
    if getattr(process.current_process(), '_inheriting', False):
        raise RuntimeError('''
        An attempt has been made to start a new process before the
        current process has finished its bootstrapping phase.

        This probably means that you are not using fork to start your
        child processes and you have forgotten to use the proper idiom
        in the main module:

            if __name__ == '__main__':
                freeze_support()
                ...

        The "freeze_support()" line can be omitted if the program
        is not going to be frozen to produce an executable.

        To fix this issue, refer to the "Safe importing of main module"
        section in https://docs.python.org/3/library/multiprocessing.html
        ''')


def get_preparation_data(name):
    """What a child must know before it can unpickle its process object."""
    _check_not_importing_main()
    data = dict(
        log_to_stderr=util._log_to_stderr,
        authkey=process.current_process().authkey,
        name=name,
        sys_path=[process.ORIGINAL_DIR if path == '' and process.ORIGINAL_DIR else path for path in sys.path],
        sys_argv=sys.argv,
        orig_dir=process.ORIGINAL_DIR,
        start_method=context._default_context.get_start_method(allow_none=True),
    )
    try:
        data['dir'] = os.getcwd()
    except FileNotFoundError:
        # The folder is gone; a child inherits that.
        pass
    if util._logger is not None:
        data['log_level'] = util._logger.getEffectiveLevel()
    main_module = sys.modules['__main__']
    main_mod_name = getattr(getattr(main_module, '__spec__', None), 'name', None)
    if main_mod_name is not None:
        data['init_main_from_name'] = main_mod_name
    elif (main_path := getattr(main_module, '__file__', None)) is not None:
        if not os.path.isabs(main_path) and process.ORIGINAL_DIR is not None:
            main_path = os.path.join(process.ORIGINAL_DIR, main_path)
        main_path = os.path.normpath(main_path)
        # What was read from elsewhere has no file, whatever it says ('<stdin>'), nor has a script that is gone. In a
        # folder that is out of reach nobody knows.
        if os.path.isfile(main_path) or not os.access(os.path.dirname(main_path), os.X_OK):
            data['init_main_from_path'] = main_path
    return data


def _brings_main(data):
    """Whether a child that is prepared with this gets the names of the main module."""
    name = data.get('init_main_from_name')
    if name is not None:
        # A package's or an archive's __main__ runs all that it has: nothing can be unpickled from it.
        return name != '__main__' and not name.endswith('.__main__')
    path = data.get('init_main_from_path')
    # IPython's script has no `if __name__ == '__main__'`.
    return path is not None and os.path.splitext(os.path.basename(path))[0] != 'ipython'


class _WithoutMain(reduction.ForkingPickler):
    """Pickles for a child that doesn't get the main module, and would miss what is pickled by a name in that."""

    def reducer_override(self, obj):
        _check_not_mains(obj)
        return NotImplemented


def _check_not_mains(obj):
    is_named = isinstance(obj, types.FunctionType) \
        or isinstance(obj, type) and type(obj) not in reduction.ForkingPickler.dispatch_table
    if is_named and getattr(obj, '__module__', None) == '__main__':
        raise PicklingError(
            f"a child would not find {obj.__qualname__!r}: the main module was typed in, came by -c or from standard "
            "input, or is the __main__ of a package, folder or archive, which children don't import; put it into "
            "a module of its own, or use the start method 'fork'")


def check_found(obj):
    """PicklingError for a function or class of the main module if children don't get that."""
    if not _brings_main(get_preparation_data('')):
        _check_not_mains(obj)


def _check_guarded():
    """RuntimeError if a child, which runs the main module too, would come to the line that starts it in any case."""
    main, frame = sys.modules['__main__'], sys._getframe()
    while frame is not None and frame.f_globals.get('__package__') == __package__:
        frame = frame.f_back
    # Only what the module does itself: a function may tell a child from its parent.
    if frame is None or frame.f_globals is not vars(main) or frame.f_code.co_name != '<module>' \
            or frame.f_code.co_filename != getattr(main, '__file__', None):
        return
    import dis
    here, code, jumps = frame.f_lasti, frame.f_code, {*dis.hasjrel, *dis.hasjabs}
    if any(one.start <= here < one.end for one in dis.Bytecode(code).exception_entries):
        # Within `try`, which may end well.
        return
    if not any(one.opcode in jumps and one.offset < here < one.argval for one in dis.get_instructions(code)):
        raise RuntimeError(
            f"line {frame.f_lineno} of {main.__file__} starts a process, and the process would come to that line too, "
            "since it imports the main module: put it under `if __name__ == '__main__':` "
            '("Safe importing of main module" in https://docs.python.org/3/library/multiprocessing.html)')


def dump_child(process_obj, file):
    """Pickles what a child is to know and to do; an error that tells how, before anything is started, if it can't be."""
    data = get_preparation_data(process_obj.name)
    # The program's own, if it has set one.
    dump = context.reduction.dump
    dump(data, file)
    if _brings_main(data):
        _check_guarded()
    elif dump is reduction.dump:
        def dump(obj, file):
            _WithoutMain(file).dump(obj)
    try:
        dump(process_obj, file)
    except Exception as error:
        error.add_note(
            f"{process_obj!r} was not started. What it is to do goes to it as a pickle, functions and classes by their "
            "names: they must be at the top level of a module, so no lambda and nothing from within a function. "
            "With the start method 'fork' everything is inherited.")
        raise


#
# In the child
#

old_main_modules = []


def prepare(data):
    """Makes this process one in which the parent's objects can be unpickled."""
    if 'name' in data:
        process.current_process().name = data['name']
    if 'authkey' in data:
        process.current_process().authkey = data['authkey']
    if data.get('log_to_stderr'):
        util.log_to_stderr()
    if 'log_level' in data:
        util.get_logger().setLevel(data['log_level'])
    if 'sys_path' in data:
        sys.path = data['sys_path']
    if 'sys_argv' in data:
        sys.argv = data['sys_argv']
    if 'dir' in data:
        os.chdir(data['dir'])
    if 'orig_dir' in data:
        process.ORIGINAL_DIR = data['orig_dir']
    if 'start_method' in data:
        context._force_start_method(data['start_method'])
    if 'init_main_from_name' in data:
        _fixup_main_from_name(data['init_main_from_name'])
    elif 'init_main_from_path' in data:
        _fixup_main_from_path(data['init_main_from_path'])


def _fixup_main_from_name(mod_name):
    if not _brings_main({'init_main_from_name': mod_name}):
        return
    current_main = sys.modules['__main__']
    if getattr(current_main.__spec__, 'name', None) == mod_name:
        # It was populated before a fork.
        return
    old_main_modules.append(current_main)
    _become_main(runpy.run_module(mod_name, run_name='__mp_main__', alter_sys=True))


def _fixup_main_from_path(main_path):
    current_main = sys.modules['__main__']
    if getattr(current_main, '__file__', None) == main_path or not _brings_main({'init_main_from_path': main_path}):
        return
    old_main_modules.append(current_main)
    _become_main(runpy.run_path(main_path, run_name='__mp_main__'))


def _become_main(content):
    main_module = types.ModuleType('__mp_main__')
    main_module.__dict__.update(content)
    sys.modules['__main__'] = sys.modules['__mp_main__'] = main_module


def import_main_path(main_path):
    """Makes the script of that path the main module."""
    _fixup_main_from_path(main_path)
