"""Run commands of lmplay where the system lacks something: python other_systems.py WHAT, one command a line on stdin.

windows: no Unix modules, signals and calls; files opened for reading can't be synced, and folders can't be opened.
no_float64: a device without float64; only what was brought to the CPU may become double.
no_onednn: torch was built without oneDNN. no_locks: the disk has no file locks.

Ends with the statuses of the commands, in JSON.
"""

import errno
import importlib
import json
import os
import shlex
import signal
import sys

MODULES = ("resource", "termios", "pwd", "grp")
CALLS = """fork forkpty sched_getaffinity sched_setaffinity getuid geteuid getgid getpgid getpgrp killpg setsid mkfifo
    nice chown lchown getloadavg posix_fadvise wait3 wait4 O_NOFOLLOW O_DIRECTORY""".split()
SIGNALS = """SIGHUP SIGUSR1 SIGUSR2 SIGKILL SIGALRM SIGSTOP SIGCONT SIGCHLD SIGPIPE pthread_sigmask pthread_kill
    setitimer alarm sigwait siginterrupt sigpending""".split()


def windows():
    import fcntl

    really_sync, really_open = os.fsync, os.open

    def sync(file):
        number = file if isinstance(file, int) else file.fileno()
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return really_sync(number)

    def opened(path, *args, **kwargs):
        if not isinstance(path, int) and os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return really_open(path, *args, **kwargs)

    os.fsync, os.open = sync, opened
    sys.modules.update(dict.fromkeys(MODULES))
    for module, names in ((os, CALLS), (signal, SIGNALS)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)


def no_float64():
    import torch

    cpu, double = torch.Tensor.cpu, torch.Tensor.double

    def home(tensor, *args, **kwargs):
        copy = cpu(tensor, *args, **kwargs).clone()
        copy.at_home = True
        return copy

    def doubled(tensor, *args, **kwargs):
        from_lmplay = "/lmplay/" in (name := sys._getframe(1).f_code.co_filename)
        if from_lmplay and not getattr(tensor, "at_home", False) and not name.endswith("sampling.py"):
            raise TypeError("this device has no float64")
        return double(tensor, *args, **kwargs)

    torch.Tensor.cpu, torch.Tensor.double = home, doubled


def no_onednn():
    import torch

    torch.ops.__dict__["mkldnn"] = type("WithoutOperators", (), {})()


def no_locks():
    import fcntl

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = flock


if __name__ == "__main__":
    {"windows": windows, "no_float64": no_float64, "no_onednn": no_onednn, "no_locks": no_locks}[sys.argv[1]]()
    statuses = []
    for line in sys.stdin.read().splitlines():
        name, *words = shlex.split(line)
        statuses.append(importlib.import_module(f"lmplay.cli.{name}").main(words))
    print(json.dumps(statuses))
