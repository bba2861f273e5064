"""Several processes: they train as one, stop together, and none waits for one that has ended."""

import contextlib
import json
import signal
import socket
import threading
import time

import jax
import numpy as np
import pytest
from test_resume import Lab, lines, metrics, outputs

from transformer.training import processes


@pytest.mark.parametrize(
  'environ, several',
  [
    ({}, False),
    ({'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '8'}, False),  # in salloc, without srun
    ({'SLURM_STEP_NUM_TASKS': '2'}, True),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, False),
    ({'OMPI_COMM_WORLD_SIZE': '4'}, True),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, False),  # a pod that is no part of an indexed job
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '0'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True),
  ],
)
def test_a_single_process_waits_for_no_other(environ, several):
  assert processes._launched_as_several(environ) == several


@pytest.mark.parametrize(
  'given, message',
  [
    (('h:1', -1, 2), '--process=-1'),
    (('h:1', 2, 2), '--process=2 --processes=2'),
    (('h:1', 0, 0), '--processes=0'),
    (('', 0, 2), 'need --coordinator'),
    (('auto', 1, 0), 'need --coordinator'),
  ],
)
def test_flags_of_processes_that_contradict_are_named(given, message, monkeypatch):
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **_: pytest.fail('it waits'))
  with pytest.raises(ValueError, match=message):
    processes.start(*given)


@pytest.fixture
def peer(monkeypatch):
  """The other end of a connection that is watched, and the status and words of the end."""
  ours, theirs = socket.socketpair()
  ended = []

  def end(status):
    ended.append(status)
    raise SystemExit

  def watch():
    with contextlib.suppress(SystemExit):
      processes._watch(1, ours)

  monkeypatch.setattr(processes, '_exit', end)
  monkeypatch.setattr(processes, '_ended', set())
  monkeypatch.setattr(processes, '_peers', {1: ours})
  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  yield theirs, thread, ended
  theirs.close()
  thread.join(10)


def test_the_end_of_another_process_ends_this_one_with_a_line(peer, capsys):
  theirs, thread, ended = peer
  theirs.close()
  thread.join(10)
  (line,) = capsys.readouterr().err.splitlines()
  assert ended == [1] and line.startswith('error: process 1 of 1 has ended')


def test_a_signal_to_another_process_ends_this_one_with_its_status_and_words(peer, capsys):
  theirs, thread, ended = peer
  theirs.sendall(b'stop 15 SIGTERM: saved step 8\n')
  thread.join(10)
  assert ended == [143] and capsys.readouterr().err == 'SIGTERM: saved step 8\n'


def test_a_process_that_has_finished_may_end(peer):
  theirs, thread, ended = peer
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(processes, 'several', lambda: True)
    theirs.sendall(b'done\n')
    theirs.shutdown(socket.SHUT_WR)  # it has left JAX's service
    with processes.ending_together():
      pass
  theirs.close()
  thread.join(10)
  assert not ended and theirs.fileno() == -1


def test_an_array_comes_to_the_host_whole():
  assert processes.on_host(np.arange(3)).tolist() == [0, 1, 2]
  assert processes.on_host(jax.numpy.arange(3)).tolist() == [0, 1, 2]
  assert processes.agreed(7) == 7 and int(processes.largest(7)) == 7


@pytest.fixture(scope='module')
def lab(commands, tmp_path_factory):
  return Lab(tmp_path_factory.mktemp('lab'), commands)


def start(lab, workdir, *flags, count=2, devices=1):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  common = (f'--config={lab.config}', f'--workdir={workdir}', *flags)
  common += (f'--coordinator=localhost:{port}', f'--processes={count}')
  return [lab.commands.start(*common, f'--process={i}', devices=devices) for i in range(count)]


UNPREDICTED = ('--config.eval.metrics=', '--config.eval.samples=0')  # generating compiles for long


def curve(workdir):
  return [row['loss'] for row in metrics(workdir) if row['split'] == 'train']


@pytest.mark.slow
def test_two_processes_train_as_one(lab):
  """Though each holds half of the parameters, and one is killed, then the other stopped."""
  alone, workdir = lab.finish(lab.folder / 'alone', *UNPREDICTED), lab.folder / 'both'
  for which, number, status in ((0, signal.SIGKILL, 1), (1, signal.SIGTERM, 143)):
    both, before = start(lab, workdir, '--config.mesh.fsdp=2'), lines(workdir)
    while lines(workdir) < before + 4 and both[0].poll() is None:
      time.sleep(0.002)
    both[which].send_signal(number)
    began = time.monotonic()
    _, err = outputs(both[1 - which])
    assert time.monotonic() - began < 60 and 'Traceback' not in err
    assert both[1 - which].returncode == status
    last = err.splitlines()[-1]
    assert last.startswith('error: process 0 of 2 has ended' if status == 1 else 'SIGTERM: saved')
    both[which].communicate(60)
  both = start(lab, workdir, '--config.mesh.fsdp=2')
  (out, err), (silent, said) = map(outputs, both)
  assert [p.returncode for p in both] == [0, 0], err + said
  assert json.loads(out)['step'] == alone['step'] and not silent  # process 0 alone prints
  np.testing.assert_allclose(curve(workdir), curve(lab.folder / 'alone'), rtol=2e-5)
  written = [(folder / 'tokenizer.json').read_bytes() for folder in (workdir, lab.folder / 'alone')]
  assert written[0] == written[1]


@pytest.mark.slow
def test_two_processes_share_a_prepared_corpus(lab):
  """They make the batches of one process, from files that are mapped."""
  corpus, flags = lab.folder / 'corpus', ('--config.train.steps=4', '--config.eval.every_steps=4')
  lab.finish(corpus, '--mode=prepare')
  flags += ('--config.data.name=prepared', f'--config.data.dir={corpus}', *UNPREDICTED)
  alone = lab.finish(lab.folder / 'one', *flags)
  both = start(lab, lab.folder / 'two', *flags)
  (out, err), (silent, said) = map(outputs, both)
  assert [p.returncode for p in both] == [0, 0], err + said
  assert json.loads(out)['step'] == alone['step'] == 4 and not silent
  np.testing.assert_allclose(curve(lab.folder / 'two'), curve(lab.folder / 'one'), rtol=2e-5)
