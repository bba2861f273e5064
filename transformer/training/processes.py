"""Several processes that train one model: start, agreement on values, waiting, and common end.

`jax.distributed` connects them for computation. In addition each process has a TCP connection to
process 0, so that all learn at once when one has ended; JAX would notice only after minutes.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

SECONDS = 40  # a machine that does not answer for so long counts as lost
# Environment variables of launchers that have the number of processes.
COUNTS = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')

_peers: dict[int, socket.socket] = {}  # connections by the index of the other process
_ended: set[int] = set()  # the processes that have sent `done`
_first_is_done = threading.Semaphore(0)  # counts the messages `go` of process 0; see first_alone


def start(coordinator: str = '', process: int = -1, processes: int = 0):
  """Connect this process with the others, if there are any; call it before JAX starts its devices.

  Args:
    coordinator: HOST:PORT of process 0; 'auto' if JAX can detect all settings, as on a TPU pod;
      '' to detect whether Slurm, Open MPI or Kubernetes has started several processes.
    process: the index of this process, from 0; -1 if not given.
    processes: the number of processes; 0 if not given.

  Raises:
    ValueError: not all three are given, or they contradict each other.
    RuntimeError: the others do not answer.
  """
  kwargs: dict[str, Any] = {}
  if coordinator not in ('', 'auto'):
    if not 0 <= process < processes:
      raise ValueError(
        f'--coordinator={coordinator} --process={process} --processes={processes}: give the same '
        'HOST:PORT and number to all, and each process its own number from 0'
      )
    kwargs = dict(coordinator_address=coordinator, num_processes=processes, process_id=process)
  elif process != -1 or processes:
    raise ValueError(
      '--process and --processes need --coordinator=HOST:PORT, a free port of process 0'
    )
  elif not coordinator and not _launched_as_several(os.environ):
    return
  # otherwise JAX aborts this process with a stack dump, before `_watch` has printed the reason
  jax.config.update('jax_enable_recoverability', True)
  jax.distributed.initialize(**kwargs, heartbeat_timeout_seconds=SECONDS)
  if jax.process_count() == 1:
    return
  _keep_stdout_for_results()
  if jax.process_index():
    logging.set_verbosity(logging.WARNING)  # process 0 logs the rest, which is the same in all
  _connect(coordinator.rpartition(':')[0].strip('[]'))


def _keep_stdout_for_results():
  """Send the messages that C++ libraries print to stdout, such as Gloo's, to stderr."""
  results = os.dup(sys.stdout.fileno())
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  sys.stdout = open(results, 'w', encoding='utf-8', errors='surrogateescape')


def _launched_as_several(environ) -> bool:
  """Return whether the environment is that of a launcher with several processes."""
  counts = [int(environ.get(name, '1')) for name in COUNTS]
  pods = 'JOB_COMPLETION_INDEX' in environ and 'KUBERNETES_SERVICE_HOST' in environ
  return max(counts) > 1 or pods or ',' in environ.get('TPU_WORKER_HOSTNAMES', '')


def _connect(host: str):
  """Connect every process to process 0, and start a thread that watches each connection."""
  listener, token = socket.create_server(('', 0), backlog=1024), secrets.token_hex(16)
  hosts = ' '.join([host or _own_address(), socket.gethostname()])
  text = f'{token} {listener.getsockname()[1]} {hosts}'.encode().ljust(512)[:512]
  sent = multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))
  token, port, *addresses = bytes(np.asarray(sent, np.uint8)).decode().split()
  listener.settimeout(2 * SECONDS)
  if jax.process_index() == 0:
    while len(_peers) < jax.process_count() - 1:
      peer, _ = listener.accept()
      peer.settimeout(10)
      with contextlib.suppress(OSError, ValueError):  # a connection of another program
        received, index = _read_line(peer).split()
        if received == token:
          _peers[int(index)] = peer
  else:
    _peers[0] = _first_that_answers(addresses, int(port))
    _peers[0].sendall(f'{token} {jax.process_index()}\n'.encode())
  listener.close()
  for number, peer in _peers.items():
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine without power is noticed
    for name, value in (('IDLE', SECONDS // 2), ('INTVL', SECONDS // 8), ('CNT', 4)):
      if hasattr(socket, f'TCP_KEEP{name}'):
        peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, f'TCP_KEEP{name}'), value)
    threading.Thread(target=_watch, args=(number, peer), daemon=True).start()


def _own_address() -> str:
  """Return the IP address of this machine's default route; sends nothing."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
    probe.connect(('192.0.2.1', 9))
    return probe.getsockname()[0]
  return 'localhost'


def _first_that_answers(hosts: list[str], port: int) -> socket.socket:
  for host in hosts:
    with contextlib.suppress(OSError):
      return socket.create_connection((host, port), timeout=10)
  raise RuntimeError(
    f'process 0 cannot be reached at {" or ".join(hosts)}, port {port}: its machine must accept '
    'connections of the others'
  )


def _read_line(peer: socket.socket) -> str:
  """Return the next line; '' if the other end is closed."""
  line = b''
  while not line.endswith(b'\n'):
    if not (byte := peer.recv(1)):
      return ''
    line += byte
  return line.decode().rstrip('\n')


def _watch(number: int, peer: socket.socket):
  """Handle the messages of another process; end this one if the other ends without `done`."""
  while True:
    try:
      word, _, rest = _read_line(peer).partition(' ')
    except OSError:
      word, rest = '', ''
    if word == 'done':
      _ended.add(number)
      return
    if word == 'go':
      _first_is_done.release()
    elif word == 'stop':
      _end(128 + int(rest.split()[0]), rest.partition(' ')[2])
    elif number not in _ended:
      _end(
        1,
        f'error: process {number} of {jax.process_count()} has ended, so that this one cannot go '
        'on. Its own output says why; the same command resumes from the last checkpoint',
      )


def _end(status: int, text: str):
  """Print a line and end this process at once, whatever it waits for; the others then end, too."""
  with _ending:  # so that only one thread does this
    for peer in _peers.values():
      with contextlib.suppress(OSError):
        if status > 128:
          peer.sendall(f'stop {status - 128} {text}\n'.encode())
    sys.stderr.write(f'{text}\n')
    _exit(status)


_ending = threading.Lock()


def several() -> bool:
  """Return whether there are several processes."""
  return jax.process_count() > 1


def is_first() -> bool:
  """Return whether this is process 0, which writes files, logs and trains the tokenizer."""
  return jax.process_index() == 0


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
  """Run the block in process 0 first, then in the others, which can read what it wrote."""
  if not is_first():
    _first_is_done.acquire()
  yield
  if is_first():
    for peer in _peers.values():
      peer.sendall(b'go\n')


def largest(value: int) -> jax.Array:
  """Return the largest value of all processes as an array on the devices, without waiting."""
  devices = np.array(jax.devices())
  sharding = NamedSharding(Mesh(devices, ('all',)), P('all'))
  local = np.full(len(sharding.addressable_devices), value, np.int32)
  return _largest(jax.make_array_from_process_local_data(sharding, local))


_largest = jax.jit(lambda x: x.max())


def agreed(value: int) -> int:
  """Return the largest value of all processes, on the host."""
  return int(largest(value)) if several() else int(value)


def same_everywhere(name: str, text: str):
  """Raise ValueError unless all processes have the same text, such as a hash of their data."""
  if not several():
    return
  own = np.frombuffer(text.encode().ljust(64)[:64], np.uint8)
  texts = np.asarray(multihost_utils.process_allgather(own)).reshape(-1, own.size)
  if differ := [i for i in range(len(texts)) if (texts[i] != texts[0]).any()]:
    raise ValueError(
      f'{name} of process {", ".join(map(str, differ))} is not that of process 0: give all '
      'machines the same files'
    )


def on_host(array: Any) -> np.ndarray:
  """Return a global array on the host; all processes must call it, if it is sharded over them."""
  if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def stop_all(number: int, text: str):
  """End all processes at once with the status of a signal, if there are several."""
  if _peers:
    _end(128 + number, text)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
  """Run the block to its end in all processes, or end all.

  An error ends this process at once, and thereby the others. Otherwise JAX would wait minutes for
  the others, and they for this one.
  """
  try:
    yield
  except BaseException as error:
    if not _peers:
      raise
    if not isinstance(error, SystemExit):
      traceback.print_exc()
    _exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
  for peer in _peers.values():
    peer.sendall(b'done\n')
  while not {*_peers} <= _ended:  # until then another process may still compute with this one
    time.sleep(0.01)
  if is_first():  # it runs JAX's service: wait until the others have left it and closed
    for peer in _peers.values():
      with contextlib.suppress(OSError):
        _read_line(peer)
  if _peers:
    jax.distributed.shutdown()
  for peer in _peers.values():
    peer.close()
  _peers.clear()


def wait_for_lost_process():
  """Wait some seconds after an error, so that `_watch` can report a lost process as the cause."""
  if _peers:
    time.sleep(3)


def _exit(status: int):
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
