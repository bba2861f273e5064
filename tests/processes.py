"""Start `run.py` in processes of its own, without importing everything again for each.

Importing what `run.py` needs takes two seconds of an old core, and the tests start it some sixty
times. So one server imports it once, and every command is a fork of that server: a process with its
own devices, signals, files and exit status. What a fork cannot show is what differs from one
interpreter to the next, such as the seed of `hash`: `Commands.start(fresh=True)` is for that.

Programs compiled by one command are found by the next, in a cache that lives as long as the tests.
"""

import contextlib
import gc
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
RUN = str(ROOT / 'run.py')
# Compiling takes most of the tests' time. These flags halve it: no optimization by LLVM, the older
# of two generators of loops, and one LLVM module a program, where splitting costs a quarter more.
QUICK_COMPILATION = (
  '--xla_backend_optimization_level=0',
  '--xla_cpu_use_fusion_emitters=false',
  '--xla_cpu_parallel_codegen_split_count=1',
)


def _understood(*flags: str) -> bool:
  """Return whether XLA knows all flags; an unknown flag ends the process that sets it."""
  command = [sys.executable, '-c', 'import jax; jax.devices()']
  known = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ' '.join(flags)}
  return not subprocess.run(command, env=known, capture_output=True).returncode


def xla_flags(*flags: str) -> str:
  """Return these flags, those of quick compilation and the user's, which win."""
  return ' '.join([*flags, os.environ['TESTS_XLA_FLAGS'], os.environ['USER_XLA_FLAGS']])


# once: the processes that run the tests find it in their environment
if 'TESTS_XLA_FLAGS' not in os.environ:
  os.environ['USER_XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '')
  known = QUICK_COMPILATION
  if not _understood(*known):
    known = filter(_understood, known)
  os.environ['TESTS_XLA_FLAGS'] = ' '.join(known)


def environment(cache: pathlib.Path) -> dict[str, str]:
  """The environment of a process that a test starts; it has one device and compiles quickly.

  Args:
    cache: the folder of compiled programs.
  """
  kept = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  return kept | {
    'JAX_PLATFORMS': os.environ.get('JAX_PLATFORMS', 'cpu'),
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'XLA_FLAGS': xla_flags(),
  }


class Process:
  """A command that was started. Like `subprocess.Popen`, with its output in files."""

  def __init__(self, argv, env, cwd, input: bytes, devices: int, server: socket.socket | None):
    self._files = [tempfile.TemporaryFile() for _ in range(3)]
    self._files[0].write(input)
    self._files[0].seek(0)
    self.returncode: int | None = None
    descriptors = [file.fileno() for file in self._files]
    if server is None:
      stdin, stdout, stderr = descriptors
      command = [sys.executable, RUN, *argv]
      self._popen = subprocess.Popen(
        command, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr
      )
      self.pid = self._popen.pid
    else:
      self._popen = None
      self._status, theirs = socket.socketpair()
      message = json.dumps({'argv': argv, 'cwd': str(cwd), 'devices': devices}).encode()
      socket.send_fds(server, [message], [*descriptors, theirs.fileno()])
      theirs.close()
      self.pid = self._receive()

  def _receive(self, timeout: float | None = None) -> int:
    """Return the next number that the server sends: the process id first, then the exit status."""
    if not select.select([self._status], [], [], timeout)[0]:
      raise TimeoutError(f'process {self.pid} has not ended within {timeout} s')
    line = b''
    while not line.endswith(b'\n'):
      byte = self._status.recv(1)
      assert byte, 'the server of commands has ended: its error is in the output of the tests'
      line += byte
    return int(line)

  def poll(self) -> int | None:
    """The exit status, minus the signal's number if one ended it; None while it runs."""
    if self.returncode is None and self._popen is not None:
      self.returncode = self._popen.poll()
    elif self.returncode is None:
      with contextlib.suppress(TimeoutError):
        self.returncode = self._receive(timeout=0)
    return self.returncode

  def send_signal(self, number: int):
    """Send a signal, unless the process has ended."""
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self):
    """End it at once."""
    self.send_signal(signal.SIGKILL)

  def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
    """Wait for the end; return (stdout, stderr).

    Raises:
      TimeoutError, subprocess.TimeoutExpired: it has not ended in time, and still runs.
    """
    if self._popen is not None:
      self.returncode = self._popen.wait(timeout)
    elif self.returncode is None:
      self.returncode = self._receive(timeout)
    found = []
    for file in self._files:
      with file:
        file.seek(0)
        found.append(file.read())
    return found[1], found[2]


class Commands:
  """Starts `run.py` with arguments; a context that ends the server and all that still runs.

  Args:
    cache: the folder of compiled programs.
  """

  def __init__(self, cache: pathlib.Path):
    self._environment = environment(cache)
    self._server: socket.socket | None = None
    self._started: list[Process] = []

  def start(
    self, *argv, input: bytes = b'', cwd=ROOT, devices: int = 1, fresh: bool = False
  ) -> Process:
    """Start `run.py` with these arguments.

    Args:
      argv: the arguments.
      input: its stdin.
      cwd: the folder where it runs.
      devices: how many virtual devices it has; of a fresh interpreter one.
      fresh: start a new interpreter, as a user does, and not a fork of the server.
    """
    if self._server is None and not fresh:
      self._server, theirs = socket.socketpair()
      with theirs:
        self._popen = subprocess.Popen(
          [sys.executable, __file__, str(theirs.fileno())],
          env=self._environment,
          pass_fds=[theirs.fileno()],
        )
    words, server = [str(word) for word in argv], None if fresh else self._server
    self._started.append(Process(words, self._environment, cwd, input, devices, server))
    return self._started[-1]

  def run(self, *argv, timeout: float = 600, **settings) -> subprocess.CompletedProcess:
    """Start it and wait for its end; arguments as for `start`."""
    process = self.start(*argv, **settings)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(argv, process.returncode, out, err)

  def __enter__(self) -> 'Commands':
    return self

  def __exit__(self, *_):
    for process in self._started:
      if process.poll() is None:  # of a test that failed
        process.kill()
        process.communicate()
    if self._server is not None:
      self._server.close()
      self._popen.wait()


def serve(control: socket.socket):
  """Fork once for each command, until the other end of the socket is closed."""
  from absl import app  # noqa: F401
  from ml_collections import config_flags  # noqa: F401

  import transformer.training.commands  # noqa: F401, what takes the time

  gc.freeze()  # what is imported is not searched for garbage, nor copied for that, in each fork
  gc.set_threshold(100_000, 50, 100)
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the monitors below are waited for by nobody
  while True:
    message, descriptors, *_ = socket.recv_fds(control, 1 << 20, 4)
    if not message:
      return
    if not os.fork():
      signal.signal(signal.SIGCHLD, signal.SIG_DFL)
      control.close()
      return _monitor(json.loads(message), descriptors)
    for descriptor in descriptors:
      os.close(descriptor)


def _monitor(command, descriptors):
  """Fork the command; send its process id, then its exit status."""
  status = socket.socket(fileno=descriptors.pop())
  pid = os.fork()
  if pid:
    status.sendall(f'{pid}\n'.encode())
    _, code = os.waitpid(pid, 0)
    status.sendall(f'{os.waitstatus_to_exitcode(code)}\n'.encode())
    os._exit(0)
  status.close()
  for number, descriptor in enumerate(descriptors):
    os.dup2(descriptor, number)
    os.close(descriptor)
  os.environ['XLA_FLAGS'] += f' --xla_force_host_platform_device_count={command["devices"]}'
  os.chdir(command['cwd'])
  sys.argv = [RUN, *command['argv']]
  runpy.run_path(RUN, run_name='__main__')


if __name__ == '__main__':
  sys.path[0] = str(ROOT)  # as for run.py
  serve(socket.socket(fileno=int(sys.argv[1])))
