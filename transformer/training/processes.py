"""Several processes that train one model: how they start, agree, wait for each other, and end.

JAX starts them and computes with the devices of all. What it lacks is here: each holds a connection
to process 0 (and 0 to each), through which they learn at once that one has ended.
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

SECONDS = 40  # without an answer, after which a machine counts as lost
# Variables by which launchers tell a process that it is one of several.
COUNTS = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')

_peers: dict[int, socket.socket] = {}  # by the number of their process
_ended: set[int] = set()  # those that said that they have finished
_first_is_done = threading.Semaphore(0)  # counts what process 0 has done alone


def start(coordinator: str = '', process: int = -1, processes: int = 0):
  """Start JAX's processes if this is one of several; call it before JAX starts its devices.

  Args:
    coordinator: HOST:PORT of process 0; 'auto' to let JAX find out everything, as on a TPU pod;
      '' if Slurm, Open MPI or Kubernetes may have started several processes.
    process: the number of this one, from 0.
    processes: how many there are.

  Raises:
    ValueError: not all three are given, or they contradict each other.
    RuntimeError: the others do not answer.
  """
  given: dict[str, Any] = {}
  if coordinator not in ('', 'auto'):
    if not 0 <= process < processes:
      raise ValueError(
        f'--coordinator={coordinator} --process={process} --processes={processes}: give the same '
        'HOST:PORT and number to all, and each process its own number from 0'
      )
    given = dict(coordinator_address=coordinator, num_processes=processes, process_id=process)
  elif process != -1 or processes:
    raise ValueError(
      '--process and --processes need --coordinator=HOST:PORT, a free port of process 0'
    )
  elif not coordinator and not _launched_as_several(os.environ):
    return
  # or JAX's own service ends this process with a dump, before `_watch` has said why
  jax.config.update('jax_enable_recoverability', True)
  jax.distributed.initialize(**given, heartbeat_timeout_seconds=SECONDS)
  if jax.process_count() == 1:
    return
  _keep_stdout_for_results()
  if jax.process_index():
    logging.set_verbosity(logging.WARNING)  # process 0 says what is the same in all
  _connect(coordinator.rpartition(':')[0].strip('[]'))


def _keep_stdout_for_results():
  """Send to stderr what libraries print, such as Gloo, which connects the processes on CPUs."""
  results = os.dup(sys.stdout.fileno())
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  sys.stdout = open(results, 'w', encoding='utf-8', errors='surrogateescape')


def _launched_as_several(environ) -> bool:
  """Return whether the environment says that a launcher started several processes."""
  counts = [int(environ.get(name, '1')) for name in COUNTS]
  pods = 'JOB_COMPLETION_INDEX' in environ and 'KUBERNETES_SERVICE_HOST' in environ
  return max(counts) > 1 or pods or ',' in environ.get('TPU_WORKER_HOSTNAMES', '')


def _connect(host: str):
  """Connect every process to process 0, and watch the connections."""
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
      with contextlib.suppress(OSError, ValueError):  # none of these processes
        said, index = _read_line(peer).split()
        if said == token:
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
  """Return the address of this machine's default route; nothing is sent."""
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
  """Act on the messages of a process; end this one if that ends without `done`."""
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
  """Say a line and end this process at once, whatever it waits for; the others notice it."""
  with _ending:  # only once
    for peer in _peers.values():
      with contextlib.suppress(OSError):
        if status > 128:
          peer.sendall(f'stop {status - 128} {text}\n'.encode())
    sys.stderr.write(f'{text}\n')
    _exit(status)


_ending = threading.Lock()


def several() -> bool:
  """Return whether there is more than this process."""
  return jax.process_count() > 1


def is_first() -> bool:
  """Return whether this process is the one that writes, logs and trains the tokenizer."""
  return jax.process_index() == 0


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
  """Run the body in process 0, and then in the others, which find what it wrote."""
  if not is_first():
    _first_is_done.acquire()
  yield
  if is_first():
    for peer in _peers.values():
      peer.sendall(b'go\n')


def largest(value: int) -> jax.Array:
  """Return the largest value of all processes, to be read when the devices have it."""
  devices = np.array(jax.devices())
  place = NamedSharding(Mesh(devices, ('all',)), P('all'))
  local = np.full(len(place.addressable_devices), value, np.int32)
  return _largest(jax.make_array_from_process_local_data(place, local))


_largest = jax.jit(lambda x: x.max())


def agreed(value: int) -> int:
  """Return the largest value of all processes."""
  return int(largest(value)) if several() else int(value)


def same_everywhere(name: str, text: str):
  """Raise ValueError unless all processes have the same text, such as a hash of their data."""
  if not several():
    return
  found = np.frombuffer(text.encode().ljust(64)[:64], np.uint8)
  found = np.asarray(multihost_utils.process_allgather(found)).reshape(-1, found.size)
  if differ := [i for i in range(len(found)) if (found[i] != found[0]).any()]:
    raise ValueError(
      f'{name} of process {", ".join(map(str, differ))} is not that of process 0: give all '
      'machines the same files'
    )


def on_host(array: Any) -> np.ndarray:
  """Return a whole array, also if other processes hold parts of it; all must call it."""
  if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def stop_all(number: int, text: str):
  """End all processes at once with the status of a signal, if there are several."""
  if _peers:
    _end(128 + number, text)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
  """Run a command to its end in all processes, or in none.

  An error ends this process at once: JAX would wait minutes for the others, and they for it. The
  others end then because of that.
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
  while not {*_peers} <= _ended:  # until then each may need the others
    time.sleep(0.01)
  if is_first():  # which has JAX's service: the others leave it first, and close the connection
    for peer in _peers.values():
      with contextlib.suppress(OSError):
        _read_line(peer)
  if _peers:
    jax.distributed.shutdown()
  for peer in _peers.values():
    peer.close()
  _peers.clear()


def wait_for_lost_process():
  """Wait some seconds after an error, in which `_watch` may name a lost process as its cause."""
  if _peers:
    time.sleep(3)


def _exit(status: int):
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
