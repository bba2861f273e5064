"""Benchmarks time what they say: the harness on a toy, our side on a tiny model, the page."""

import json
import sys

import jax
import numpy as np
import pytest
from absl import flags
from flax import nnx

from experiments.benchmarks import decoding, gpu, harness, ours, page, tpu_tasks
from transformer import Decoder, ModelConfig
from transformer.training import plan

WORKER = """
import sys, time
from absl import flags
from experiments.benchmarks import harness
flags.FLAGS(['test'])
if sys.argv[1] == 'broken':
  raise RuntimeError('no such peer')
harness.serve(lambda: time.sleep(float(sys.argv[1])), seconds=0.05, loss=1.5)
"""


@pytest.fixture(autouse=True, scope='module')
def parsed():
  flags.FLAGS(['test'], known_only=True)


def test_variants_are_timed_alternately_and_a_broken_one_is_reported(capfd):
  commands = {
    name: [sys.executable, '-c', WORKER, seconds]
    for name, seconds in [('ours-fast', '0.01'), ('slow', '0.04'), ('gone', 'broken')]
  }
  found = harness.compare(commands, rounds=2)
  assert list(found) == ['ours-fast', 'slow']
  assert 'gone failed: RuntimeError: no such peer' in capfd.readouterr().err
  assert found['slow']['loss'] == 1.5 and found['slow']['peak_mb'] > 1
  assert 0.04 <= found['slow']['min_s'] <= found['slow']['median_s'] <= found['slow']['max_s']

  harness.report('toy', found, work=10, unit='steps/s', module='toy', save=False)
  result = json.loads(capfd.readouterr().out.splitlines()[-1])
  assert (result['ours'], result['peer']) == ('ours-fast', 'slow')
  assert result['ratio'] == found['slow']['median_s'] / found['ours-fast']['median_s'] > 1
  assert 'ours-fast' in page.section(result)
  table = page.table(
    {'one': [result], 'two': [result | {'case': 'other'}], 'none': [{'case': 'x'}]}
  )
  assert '<th>two</th></tr>' in table and f'<td></td><td>{result["ratio"]:.2f}</td>' in table


def test_a_variant_without_a_result_in_time_is_left_out(capfd):
  command = {'emulated': [sys.executable, '-c', 'import time; time.sleep(60)']}
  assert not harness.compare(command, rounds=1, limit=0.2)
  assert 'emulated is left out: it had no result after 0 s' in capfd.readouterr().err


def test_results_are_kept_by_processor(monkeypatch, tmp_path, capsys):
  text = 'model name\t: Intel(R) Xeon(R) Processor @ 2.90GHz\nflags\t\t: avx2 avx512f avx512_bf16\n'
  monkeypatch.setattr(harness, '_cpu_info', lambda: text)
  monkeypatch.setattr(harness, 'RESULTS', tmp_path)
  harness.write({'case': 'toy'}, save=True)
  assert json.loads((tmp_path / 'intel-xeon-avx512-bf16/toy.json').read_text()) == {'case': 'toy'}


@pytest.mark.parametrize(
  'make', [pytest.param(ours.encoder_decoder, marks=pytest.mark.slow), ours.decoder]
)
def test_benchmarks_use_the_training_step_of_the_experiments(make):
  shape = dict(vocab=16, width=16, heads=2, depth=1, feedforward=16, dropout=0.1, max_length=8)
  state, update, batches = make(shape, rows=2, dtype='float32', steps=2)
  state, metrics = update(state, batches, jax.random.key(0))
  assert int(state.step) == 2 and metrics['finite'].all()
  assert np.isfinite(metrics['loss'].sum).all()


@pytest.mark.slow
def test_decoding_generates_as_many_tokens_as_it_says():
  shape = dict(vocab=16, width=16, heads=2, depth=1, feedforward=16)
  tokens, scores = decoding.ours(shape, rows=2, beams=1, outputs=5, dtype='float32')()
  assert tokens.shape == (2, 1, 5) and np.isfinite(scores).all()


def test_operations_are_six_per_weight_and_those_of_the_scores():
  shape = dict(vocab=48, width=16, heads=2, depth=3, feedforward=40, dropout=0.0, max_length=8)
  model = jax.eval_shape(lambda: Decoder(ModelConfig(**shape, tie='output'), nnx.Rngs(0)))
  kernels = [
    x for path, x in jax.tree.leaves_with_path(model) if 'kernel' in jax.tree_util.keystr(path)
  ]
  N = sum(x.size for x in [*kernels, model.embed.table])
  # forward: q k and p v are 2 T D each for a token; backward twice that
  scores = 3 * shape['depth'] * 2 * 2 * shape['max_length'] * shape['width']
  assert gpu.operations_per_token(**shape, causal=False) == 6 * N + scores
  assert gpu.operations_per_token(**shape) == 6 * N + scores // 2


@pytest.mark.slow
@pytest.mark.parametrize('name', ['chat:tiny', 'squad:tiny'])
def test_the_step_and_the_answers_of_a_task_are_planned(name, monkeypatch):
  monkeypatch.setattr(plan, 'topology_devices', lambda topology: jax.devices()[:4])
  found = tpu_tasks.plan(name, 'v5e:2x2x1')
  assert found['step']['collectives'] and found['step']['fits'] and found['answers']['fits']
  assert found['step']['parameters'] < found['answers']['total'] < found['step']['total']


def test_a_new_entry_replaces_that_of_the_same_thing_alone(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(harness, 'RESULTS', tmp_path)
  for entries in ([('a', 1, 5), ('a', 2, 6)], [('a', 2, 7), ('b', 2, 8)]):
    found = [dict(zip(('name', 'on', 'bytes'), entry, strict=True)) for entry in entries]
    where = dict(save=True, folder='here')
    harness.write_entries('plans', 'all', found, by=['name', 'on'], **where)
  kept = json.loads((tmp_path / 'here' / 'plans.json').read_text())['all']
  assert [tuple(entry.values()) for entry in kept] == [('a', 1, 5), ('a', 2, 7), ('b', 2, 8)]
