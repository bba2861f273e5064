"""Several processes: they train as one, stop together, and none waits for one that has ended."""

import json
import signal
import socket
import time

import pytest
from test_resume import Lab, lines, metrics, outputs


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


@pytest.mark.slow
def test_two_processes_train_the_model_of_one(lab):
  alone = lab.finish(lab.folder / 'alone')
  both = start(lab, lab.folder / 'both', '--config.mesh.fsdp=2')
  (out, err), (silent, said) = map(outputs, both)
  assert [p.returncode for p in both] == [0, 0], err + said
  assert not silent and json.loads(out)['step'] == alone['step']
  assert json.loads(out)['state_sha256']
  curve = [row['loss'] for row in metrics(lab.folder / 'both') if row['split'] == 'train']
  expected = [row['loss'] for row in metrics(lab.folder / 'alone') if row['split'] == 'train']
  print(max(abs(a - b) for a, b in zip(curve, expected, strict=True)))
  print(err, said)
  print(sorted(p.name for p in (lab.folder / 'both').iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize('which', [0, 1])
def test_all_end_with_one(lab, which, number):
  workdir = lab.folder / f'ended-{which}-{number}'
  both = start(lab, workdir)
  while lines(workdir) < 5 and both[0].poll() is None and both[1].poll() is None:
    time.sleep(0.01)
  both[which].send_signal(number)
  began = time.monotonic()
  ends = list(map(outputs, both))
  print(time.monotonic() - began, [p.returncode for p in both])
  for out, err in ends:
    print('OUT', out)
    print('ERR', err)
  assert 0
