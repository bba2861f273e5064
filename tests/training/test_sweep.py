"""Variants that train at once, in processes of their own."""

import json
import os
import re
import signal
import threading
import time

import pytest

from experiments import dates
from transformer.training import sweep
from transformer.training.machine import cores
from transformer.training.workdir import Workdir

# In place of run.py: what it was given, and an end by the seed of its config.
RUN = """
import json, os, pathlib, sys, time
config, workdir = (a.partition('=')[2] for a in sys.argv[1:3])
seed = json.loads(pathlib.Path(config.partition(':')[2], 'config.json').read_text())['seed']
last = pathlib.Path(workdir).with_name('sweep-3') / 'train.json'
if seed == 1:
  sys.exit('error: the loss is not finite')
if seed == 2:
  os.kill(os.getpid(), 9)
while seed == 4 or (seed == 0 and not last.exists()):
  time.sleep(0.01)
facts = {'metrics': {'val/nll': seed}, 'cores': len(os.sched_getaffinity(0))}
pathlib.Path(workdir, 'train.json').write_text(json.dumps(facts))
"""


@pytest.fixture
def runs(tmp_path, monkeypatch):
  """runs(seeds): the variants with these seeds."""
  (tmp_path / 'run.py').write_text(RUN)
  monkeypatch.setattr(sweep, 'RUN', tmp_path / 'run.py')

  def make(seeds):
    base = dates.get_config().to_dict()
    return [
      sweep.Variant({'seed': i}, base | {'seed': i}, Workdir(tmp_path / f'sweep-{i}'))
      for i in seeds
    ]

  return make


needs_two_cores = pytest.mark.skipif(cores() < 2, reason='needs two processor cores')


@needs_two_cores
def test_every_variant_has_an_outcome_and_two_train_at_once(runs):
  """The first ends after the last, for which it waits."""
  variants = runs([0, 1, 2, 3])
  (ok, failed, killed, last), stopped = sweep.train_at_once(variants, 2)
  assert not stopped
  assert ok == last == 'ok'
  assert failed.startswith('error: the loss is not finite') and 'sweep-1/log.txt' in failed
  assert killed.startswith('ended with status -9')
  first, fourth = (json.loads((v.workdir.path / 'train.json').read_text()) for v in variants[::3])
  assert first['cores'] == fourth['cores'] == cores() // 2
  assert sweep.metrics_of(variants[3]) == {'val/nll': 3}
  assert len(os.sched_getaffinity(0)) == cores()


@needs_two_cores
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_variants(runs, number):
  threading.Timer(0.5, os.kill, [os.getpid(), number]).start()
  began = time.monotonic()
  outcomes, stopped = sweep.train_at_once(runs([4, 4, 4]), 2)
  assert stopped == number and outcomes == [''] * 3 and time.monotonic() - began < 20


def test_more_jobs_than_cores_are_refused(runs):
  with pytest.raises(ValueError, match='--jobs=1000 is more than'):
    sweep.train_at_once(runs([0]), 1000)


WRONG = {
  'add({"optimizer.learning_rat": 1})': "added {'optimizer.learning_rat': 1}",
  'add({"optimizer.b1": 2.0})': "added {'optimizer.b1': 2.0}: optimizer.b1=2.0 is a decay",
  'add({"train.steps": "many"})': "added {'train.steps': 'many'}",
  'add({"model.heads": 3})': "added {'model.heads': 3}: model.heads=3 does not divide",
  'add({}); add({"seed": -1})': "added {'seed': -1}: config.seed=-1",
  'pass': 'added no variant',
}


@pytest.mark.parametrize('body', WRONG)
def test_a_wrong_variant_is_named_before_the_first_is_trained(body, tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(f'def sweep(add):\n  {body}\n')
  with pytest.raises(ValueError, match=re.escape(WRONG[body])):
    sweep.variants(dates.get_config().to_dict(), str(file), tmp_path)
