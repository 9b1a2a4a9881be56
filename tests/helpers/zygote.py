r"""Python's command line without Python's start: a process that has imported the libraries forks a child for each command.

Importing torch, diffusers and this package takes six seconds of a processor, a fork a tenth of one. The child is a process
like any other, with its own folder, environment, files and pid; it ends like any other too. What it cannot have of its own is
what Python and the libraries read when they start: a `Zygote` stands for one such environment.

    done = shared().run("-m", "ddpm_vlb", "evaluate", folder, cwd=tmp_path)   # a subprocess.CompletedProcess
    process = shared().start("script.py", "--flag")                         # in the manner of subprocess.Popen

The processes that share out the tests are such children, too, and ask the same process for theirs: `python_of` gives what to
start in place of Python.

Forking is safe as long as nothing else runs in the process, which is looked at before each fork: beside other threads, which
some builds of the libraries start, the child is a Python that starts from nothing.
"""

import atexit
import functools
import gc
import importlib
import os
import pkgutil
import runpy
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

LIBRARIES = (
    "accelerate",
    "diffusers.models.unets.unet_2d",
    "diffusers.optimization",
    "diffusers.pipelines.ddpm.pipeline_ddpm",
    "diffusers.training_utils",
    "matplotlib.figure",
    "scipy.stats",
    "sklearn.datasets",
    "torch.utils.tensorboard",
    "yaml",
    # What diffusers looks through for each scheduler that is loaded.
    "diffusers.schedulers.scheduling_ddpm",
    "diffusers.schedulers.scheduling_deis_multistep",
    "diffusers.schedulers.scheduling_dpmsolver_singlestep",
    "diffusers.schedulers.scheduling_edm_euler",
    "diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete",
    "diffusers.schedulers.scheduling_k_dpm_2_discrete",
    "diffusers.schedulers.scheduling_unipc_multistep",
    "ddpm_vlb.*",
)
# What else the tests import.
OF_TESTS = (
    "datasets",
    "diffusers.models.transformers",
    "gradio",
    "httpx",
    "hypothesis",
    "mpmath",
    "playwright.sync_api",
    "torch._dynamo",
    "torchmetrics",
)
# Variables that are read at the start begin with one of these.
READ_AT_THE_START = ("PYTHON", "HF_", "HUGGING", "TRANSFORMERS_", "DIFFUSERS_", "OMP_", "MKL_", "TORCH_", "LD_")
NUMBER = struct.Struct("i")
MOST = 1 << 20  # bytes of a message


class Process:
    r"""A command that runs in a fork; what it prints is kept in files."""

    def __init__(self, arguments, status, output):
        self.args, self.returncode, self._status, self._output = arguments, None, status, output
        self.pid = self._read()

    def _read(self):
        number = os.read(self._status, NUMBER.size)
        if not number:
            raise RuntimeError("The process that forks the tests' commands has ended.")
        return NUMBER.unpack(number)[0]

    def poll(self):
        r"""The exit status, or None while it runs; -9 where it was killed by signal 9."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = self._read()
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout=None):
        r"""What it printed, and what it printed as errors, once it has ended."""
        self.wait(timeout)
        printed = []
        for file in self._output:
            file.seek(0)
            printed.append(file.read().decode())
            file.close()
        return tuple(printed)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Zygote:
    r"""The libraries, imported under `environment`: by default this process's.

    Others reach it at `address`; it ends when the process does that made it.
    """

    def __init__(self, environment=None, libraries=LIBRARIES):
        self.environment = dict(os.environ if environment is None else environment)
        self._folder = tempfile.TemporaryDirectory()  # nobody else's: who reaches the socket has commands run
        self.address = str(Path(self._folder.name) / "zygote")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.address)
            listener.listen()
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, __file__, str(theirs.fileno()), str(listener.fileno()), *libraries],
                    env=self.environment,
                    pass_fds=[theirs.fileno(), listener.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for the tests; they take everything with them as they end
                )

    @classmethod
    def at(cls, address):
        r"""One that another process has made; what is started through this one ends with it."""
        self = cls.__new__(cls)
        self.address, self._process = address, None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(address)
        self.environment = eval(self._socket.recv(MOST))
        return self

    def start(self, *arguments, cwd=None, env=None, stdin=subprocess.DEVNULL, stdout=None, stderr=None):
        r"""Start `python *arguments`: a script, `-m` and a module, or `-c` and a program.

        `stdin`, `stdout` and `stderr` are files; by default nothing is read, and `communicate` gives what is printed.
        """
        env = dict(self.environment if env is None else env)
        differing = {
            name
            for name in env.keys() | self.environment.keys()
            if name.startswith(READ_AT_THE_START) and env.get(name) != self.environment.get(name)
        }
        # What a library has set in the tests' own process since is nobody's wish: these variables stay as they were.
        for name in [name for name in differing if env.get(name) == os.environ.get(name)]:
            differing.remove(name)
            env.pop(name, None)
            env |= {name: self.environment[name]} if name in self.environment else {}
        if differing:
            raise ValueError(f"`env` must not change what is read at the start, got {sorted(differing)}: make another Zygote")
        request = {"arguments": list(map(str, arguments)), "cwd": str(Path(cwd or ".").resolve()), "env": env}
        output = [tempfile.TemporaryFile() for _ in range(2)]
        with open(os.devnull, "rb") as nothing:
            files = [nothing if stdin == subprocess.DEVNULL else stdin, stdout or output[0], stderr or output[1]]
            status, theirs = os.pipe()
            try:
                socket.send_fds(self._socket, [repr(request).encode()], [*(file.fileno() for file in files), theirs])
            finally:
                os.close(theirs)
        return Process(request["arguments"], status, output)

    def run(self, *arguments, timeout=300, **options):
        r"""Run `python *arguments` to its end; `options` are those of `start`."""
        return self._finish(self.start(*arguments, **options), timeout)

    def _finish(self, process, timeout=300):
        try:
            printed = process.communicate(timeout)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, *printed)

    def run_ranks(self, count, *arguments, env, nodes=1, **options):
        r"""Run `python *arguments` as `torchrun --nnodes nodes --nproc_per_node count/nodes`: a list of `count` results."""
        each = count // nodes
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
        world |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(each)}
        ranks = [{"RANK": str(n), "LOCAL_RANK": str(n % each), "GROUP_RANK": str(n // each)} for n in range(count)]
        return self._finish_all([self.start(*arguments, env=dict(env) | world | rank, **options) for rank in ranks])

    def run_nodes(self, count, script, *arguments, env, **options):
        r"""`torchrun --nnodes count --nproc_per_node 1 script *arguments`, the nodes being all this machine: a list of results.

        The launchers fork the script's processes, too.
        """
        launcher = f"import sys, torch.distributed.run as run; sys.path[0] = {str(Path(script).resolve().parent)!r}; run.main()"
        torchrun = ["-c", launcher, "--nnodes", str(count), "--nproc_per_node", "1", "--run_path", "--start_method", "fork"]
        where = ["--master_addr", "127.0.0.1", "--master_port", _free_port(), "--node_rank"]
        return self._finish_all(
            [self.start(*torchrun, *where, str(node), script, *arguments, env=dict(env), **options) for node in range(count)]
        )

    def _finish_all(self, processes):
        try:
            return [self._finish(process) for process in processes]
        finally:
            for process in processes:
                process.kill()

    def close(self):
        r"""End it, and every command that still runs."""
        self._socket.close()
        if self._process:
            self._process.wait()
            self._folder.cleanup()


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@functools.cache
def shared():
    r"""The zygote of the tests' own environment."""
    return Zygote.at(os.environ["ZYGOTE"]) if "ZYGOTE" in os.environ else Zygote()


def python_of(zygote):
    r"""What is started in place of Python, as a line of a shell: the process is a fork."""
    return shlex.join([sys.executable, __file__, "at", zygote.address])


def close_shared():
    if shared.cache_info().currsize:
        shared().close()
        shared.cache_clear()


def threads():
    r"""What runs beside the main thread; jemalloc, which comes with pyarrow, sees to its own across forks."""
    tasks = [task for task in Path("/proc/self/task").glob("*/comm") if task.read_text().strip() != "jemalloc_bg_thd"]
    return max(len(tasks), threading.active_count()) - 1


def serve(owner, listener):
    r"""Fork a child for each request and report how it ended; returns in the child, with the request."""
    requesters = [owner]
    ends = {}  # of the pipes that are told, and who has asked, by pid

    def reap(*_):
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                end, _ = ends.pop(ended[0])
                with suppress(BrokenPipeError):
                    os.write(end, NUMBER.pack(os.waitstatus_to_exitcode(ended[1])))
                os.close(end)

    signal.signal(signal.SIGCHLD, reap)
    while True:
        requests = select.select([listener, *requesters], [], [])[0][0]
        if requests is listener:
            requesters.append(listener.accept()[0])
            requesters[-1].sendall(repr(dict(os.environ)).encode())
            continue
        message, files, *_ = socket.recv_fds(requests, MOST, 4)
        if not message:  # it has ended: take along what still runs of it
            for pid, (_, requester) in list(ends.items()):
                if requests in (owner, requester):
                    os.kill(pid, signal.SIGKILL)
            requesters.remove(requests)
            requests.close()
            if requests is owner:  # and what that has started
                while ends:
                    time.sleep(0.001)
                os.killpg(0, signal.SIGKILL)
            continue
        *files, end = files
        alone = not threads()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, file in enumerate(files):
                os.dup2(file, number)
            for file in (*files, end, *(end for end, _ in ends.values())):
                os.close(file)
            for one in (listener, *requesters):
                one.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            request = eval(message)
            if alone:
                return request
            os.chdir(request["cwd"])
            os.execve(sys.executable, [sys.executable, *request["arguments"]], request["env"])
        ends[pid] = end, requests
        os.write(end, NUMBER.pack(pid))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        for file in files:
            os.close(file)


def command(arguments, cwd, env):
    r"""What `python *arguments` does once it has started."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    first, *rest = arguments
    if first == "-m":
        sys.argv, sys.path[0] = ["-m", *rest[1:]], cwd
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = arguments, str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


def end(error):
    r"""Python's end, but for taking the libraries apart: half a second for each command."""
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else error.code is not None
        if not isinstance(error.code, int | None):
            print(error.code, file=sys.stderr)
    elif error:
        status = 1
        sys.excepthook(type(error), error, error.__traceback__)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


def import_libraries(libraries):
    for library in libraries:
        name, of_all, _ = library.partition(".*")
        module = importlib.import_module(name)
        for part in pkgutil.walk_packages(module.__path__, f"{name}.") if of_all else ():
            if not part.name.endswith(".__main__"):
                importlib.import_module(part.name)
    if "ddpm_vlb.hub.standalone" in sys.modules:  # made once in a process, in half a second
        sys.modules["ddpm_vlb.hub.standalone"].standalone_source()
    gc.collect()
    gc.freeze()  # so that collections of the children write to no memory that they share


def main(kind, *arguments):
    if kind == "at":  # in place of Python
        address, *arguments = arguments
        files = {"stdin": sys.stdin, "stdout": sys.stdout, "stderr": sys.stderr}
        zygote = Zygote.at(address)  # whose end would be the command's
        status = zygote.start(*(word for word in arguments if word != "-u"), **files, env=os.environ).wait()
        sys.exit(status if status >= 0 else 128 - status)
    listener, *libraries = arguments
    import_libraries(libraries)
    with socket.socket(fileno=int(kind)) as owner, socket.socket(fileno=int(listener)) as listener:
        request = serve(owner, listener)
    failure = None
    try:
        command(**request)
    except (Exception, SystemExit) as error:
        failure = error
    end(failure)


if __name__ == "__main__":
    main(*sys.argv[1:])
