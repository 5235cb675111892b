"""Starting a process on Windows, which this package doesn't know: importing it fails, as the standard's does here."""

__all__ = ['Popen']

raise ModuleNotFoundError('procession.popen_spawn_win32 is for Windows')
