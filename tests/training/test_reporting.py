"""What a run says: files as if it had never been interrupted, and no bar where nobody watches."""

import io
import json
import logging as std_logging
import math
import struct
import subprocess
import sys
import types

import numpy as np
import pytest
from absl import logging

from transformer.inspection import heatmap
from transformer.training import reporting
from transformer.training.reporting import Report, summary, table


def report_of(folder, step=0, steps=10, logged=0):
  folder.mkdir(exist_ok=True)
  return Report(folder, step=step, steps=steps, logged=logged)


def run(folder, first, last, *, steps=10, every=2, evaluate_last=True):
  """Writes what training from step `first` to `last` writes."""
  with report_of(folder, step=first, steps=steps) as report:
    evaluated = report.evaluated
    for step in range(first + 1, last + 1):
      report.advance(7)
      report.train(step, {'loss': 1 / step})
      if step % every == 0 and (step < last or evaluate_last):
        report.evaluation(step, 'val', {'bleu': float(step)}, [])
  return evaluated


def lines(folder, *times):
  """Return what is written, without the times that are not named."""
  found = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  hidden = {'seconds', 'tokens_per_second'} - {*times}
  return [{k: v for k, v in line.items() if k not in hidden} for line in found]


@pytest.fixture
def whole(tmp_path):
  """What a run without a break writes."""
  run(tmp_path / 'whole', 0, 10)
  return lines(tmp_path / 'whole')


def test_metrics_have_one_line_for_each_step_and_split(tmp_path, whole):
  found = lines(tmp_path / 'whole')
  assert found[0] == {'step': 1, 'split': 'train', 'loss': 1.0}
  assert [line['step'] for line in found if line['split'] == 'val'] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize('reached', range(11))
@pytest.mark.parametrize('half', ['', '{"step": 3, "spl', '{'])
def test_a_resumed_run_has_the_files_of_an_uninterrupted_one(tmp_path, whole, reached, half):
  """Killed at step `reached` within a line, it resumes from the checkpoint of step 4 or before."""
  folder, start = tmp_path / 'broken', min(4, reached - reached % 2)
  run(folder, 0, reached)
  with (folder / 'metrics.jsonl').open('a') as file:
    file.write(half)
  evaluated = run(folder, start, 10)
  assert evaluated == (start > 0)
  assert lines(folder) == whole


def test_seconds_are_those_of_the_run_and_speed_is_that_of_the_steps(tmp_path, monkeypatch):
  monkeypatch.setattr(reporting.time, 'perf_counter', iter(range(100)).__next__)
  run(tmp_path, 0, 2)
  run(tmp_path, 2, 4)
  found = lines(tmp_path, 'seconds', 'tokens_per_second')
  seconds = [line['seconds'] for line in found]
  assert seconds == sorted({*seconds}) and seconds[0] > 0
  assert all(line['tokens_per_second'] > 0 for line in found if line['split'] == 'train')


def test_the_share_of_the_peak_is_written_where_the_device_is_known(tmp_path, monkeypatch):
  clock = iter([0.0] + [10.0] * 20)
  monkeypatch.setattr(reporting.time, 'perf_counter', lambda: next(clock))
  with report_of(tmp_path) as report:
    report.advance(7, 2.0)
    report.advance(7, 2.5)
    report.train(2, {'loss': 1.0})
    report.advance(7)
    report.train(3, {'loss': 1.0})
  first, second = lines(tmp_path)
  assert first['mfu'] == 0.45 and 'mfu' not in second


def test_the_log_does_not_write_into_the_bar(tmp_path, monkeypatch):
  stderr = Stderr(terminal=True)
  monkeypatch.setattr(sys, 'stderr', stderr)
  handler = logging.get_absl_handler()
  with report_of(tmp_path):
    record = logging.get_absl_logger().makeRecord('x', logging.INFO, '', 0, 'text', (), None)
    handler.filter(record)
    assert stderr.getvalue().endswith('\r')  # the line is empty
  assert not any('_clear_line' in str(found) for found in handler.filters)


def test_a_run_stopped_before_its_evaluation_makes_it_first(tmp_path, whole):
  """It is told so, and makes it first."""
  folder = tmp_path / 'stopped'
  run(folder, 0, 4, evaluate_last=False)
  with report_of(folder, step=4) as report:
    assert not report.evaluated
    report.evaluation(4, 'val', {'bleu': 4.0}, [])
  assert run(folder, 4, 10)
  assert lines(folder) == whole


def test_the_final_evaluation_is_made_again(tmp_path, whole):
  """A finished run that is started again evaluates again, and may get other numbers."""
  run(tmp_path, 0, 10)
  with report_of(tmp_path, step=10) as report:
    assert not report.evaluated
    report.evaluation(10, 'val', {'bleu': 10.0}, [])
  assert lines(tmp_path) == whole


def test_lines_that_were_cut_or_deleted_are_said(tmp_path, caplog):
  run(tmp_path, 0, 6)
  file = tmp_path / 'metrics.jsonl'
  with report_of(tmp_path, step=6, logged=6):
    assert not caplog.records
  file.write_text(''.join(file.read_text().splitlines(keepends=True)[:4]))
  with report_of(tmp_path, step=6, logged=6):
    assert 'ends at step 3, and had lines up to step 6' in caplog.records[-1].getMessage()
  file.unlink()
  with report_of(tmp_path, step=6, logged=6):
    assert 'ends at step 0' in caplog.records[-1].getMessage()


def test_the_advice_about_a_damaged_line_helps(tmp_path):
  """Also for zeros, which a machine without power leaves, and ends of lines of Windows."""
  run(tmp_path, 0, 2)
  file = tmp_path / 'metrics.jsonl'
  whole = file.read_text()
  for damage in (b'\x00' * 9, b'{"st\r', b'\x00\n\x00\x00'):
    file.write_bytes(whole.encode() + damage + b'\n')
    while file.read_bytes() != whole.encode():
      with pytest.raises(ValueError, match='is damaged') as error:
        report_of(tmp_path)
      subprocess.run(str(error.value).splitlines()[-1], shell=True, check=True)
    report_of(tmp_path)


@pytest.mark.parametrize('line', ['{"step": 3}', 'x', '[]', '3', '{"split": "val"}'])
def test_a_damaged_line_is_named(tmp_path, line):
  run(tmp_path, 0, 1)
  file = tmp_path / 'metrics.jsonl'
  file.write_text(file.read_text() + line + '\n')
  with pytest.raises(ValueError, match=f'{file}:2 is damaged .*: delete that line'):
    report_of(tmp_path)


def test_nan_and_inf_are_written_as_valid_json(tmp_path):
  with report_of(tmp_path) as report:
    report.evaluation(1, 'val', {'a': math.nan, 'b': math.inf, 'c': -math.inf}, [])

  def refuse(name):
    raise AssertionError(f'{name} is not JSON')

  (line,) = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  expected = {'step': 1, 'split': 'val', 'a': 'nan', 'b': 'inf', 'c': '-inf'}
  assert json.loads(line, parse_constant=refuse).items() >= expected.items()


def records(folder):
  """The payloads of TFRecord files: length, its checksum, payload, its checksum."""
  for file in sorted(folder.glob('events.out.tfevents.*')):
    stream = io.BytesIO(file.read_bytes())
    while header := stream.read(12):
      yield stream.read(struct.unpack('<Q', header[:8])[0])
      stream.read(4)


def test_tensorboard_reads_the_events(tmp_path):
  from tensorboardX.proto.event_pb2 import Event

  samples = [{'inputs': 'ab', 'targets': 'ba', 'prediction': 'ba'}]
  png = heatmap.png(np.ones((1, 1, 2, 3)) / 3, ['a', 'b'], ['c', 'd', 'e'])
  with report_of(tmp_path) as report:
    report.advance(100)
    report.train(1, {'loss': 2.5})
    report.evaluation(1, 'val', {'bleu': 31.25}, samples, {'attention/1': png})
  events = [Event.FromString(record) for record in records(tmp_path / 'events')]
  values = {value.tag: value for event in events for value in event.summary.value}
  assert values['train/loss'].simple_value == 2.5
  assert values['val/bleu'].simple_value == 31.25
  assert values['train/tokens_per_second'].simple_value > 0
  assert b'ab' in values['val/samples/text_summary'].tensor.string_val[0]
  image = values['val/attention/1'].image
  assert image.encoded_image_string == png and 0 < image.height < image.width


class Stderr(io.StringIO):
  """A stream that says whether it is a terminal."""

  def __init__(self, terminal):
    super().__init__()
    self.isatty = lambda: terminal


@pytest.mark.parametrize('terminal', [False, True])
def test_the_bar_is_drawn_on_a_terminal_only(tmp_path, monkeypatch, terminal):
  stderr = Stderr(terminal)
  monkeypatch.setattr(sys, 'stderr', stderr)
  with report_of(tmp_path) as report:
    report.advance(10, at_peak=1e-9)
    report.train(1, {'loss': 2.0})
  assert ('mfu=' in stderr.getvalue()) == terminal
  assert ('/10' in stderr.getvalue()) == terminal
  assert ('\r' in stderr.getvalue()) == terminal


def test_without_a_bar_the_log_has_the_loss(tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(logging, 'info', lambda text, *args: said.append(text % args))
  monkeypatch.setattr(sys, 'stderr', Stderr(terminal=False))
  run(tmp_path, 0, 2)
  assert any(text.startswith('step 1: loss 1.0000, ') for text in said)
  assert 'step 2, val: bleu 2' in said


def test_stdout_is_for_results(tmp_path, capsys):
  run(tmp_path, 0, 4)
  assert not capsys.readouterr().out


def test_the_summary_has_a_row_for_each_metric_and_commands_that_can_be_pasted():
  metrics = {'val/bleu': 31.25, 'val/exact_match': 7.0, 'val/exact_match/de': 9.0}
  metrics |= {'/a b/test/bleu': 5.123456, '/a b/test/wer': 100.0}
  result = dict(metrics=metrics, mode='train', seconds=3.5, device='1 x cpu', workdir='/a b/run')
  *rows, blank, where, predict, attend, events = summary(result, ['val', '/a b/test']).splitlines()
  assert [row.split() for row in rows] == [
    ['val', '/a', 'b/test'],
    ['bleu', '31.25', '5.123'],
    ['exact_match', '7'],
    ['wer', '100'],
  ]
  assert len({len(row) for row in rows if not row.startswith('exact')}) == 1  # aligned
  assert blank == '' and "is in '/a b/run'" in where and 'train.json' in where
  assert "--workdir='/a b/run' --mode=predict" in predict and '--mode=attend' in attend
  assert events.endswith("tensorboard --logdir='/a b/run'/events")


@pytest.mark.parametrize(
  'name, path, error, shown',
  [
    ('x', '/lib/orbax/future.py', ValueError('a'), False),
    ('x', '/lib/orbax/future.py', None, True),
    ('asyncio', '/lib/asyncio/events.py', ValueError('a [tensorstore_spec=1]'), False),
    ('asyncio', '/lib/asyncio/events.py', ValueError('a'), True),
    ('asyncio', '/lib/asyncio/events.py', None, True),
  ],
)
def test_an_error_of_orbax_is_not_logged_as_well(name, path, error, shown):
  handler = logging.get_absl_handler()
  before = list(handler.filters)
  reporting.log_ours()
  (added,) = [f for f in handler.filters if f not in before]
  handler.removeFilter(added)
  arguments = (path, 1, 'text', (), error and (type(error), error, None))
  record = logging.get_absl_logger().makeRecord(name, std_logging.ERROR, *arguments)
  assert added(record) == shown


def test_a_late_answer_of_tensorstore_is_not_printed(monkeypatch):
  printed = []
  monkeypatch.setattr(sys, '__unraisablehook__', lambda args: printed.append(str(args.exc_value)))
  for text in ('Event loop is closed', 'something else'):
    reporting._unraisable(types.SimpleNamespace(exc_value=RuntimeError(text)))
  assert printed == ['something else']


def test_samples_show_what_is_wrong():
  right = {'inputs': 'ab', 'targets': 'ba', 'prediction': 'ba'}
  wrong = {'inputs': 'cd', 'targets': 'dc', 'prediction': 'cd'}
  assert table([right, wrong]) == (
    '  ab\n    is  ba\n    got ba\n' + '* cd\n    is  dc\n    got cd'
  )
  assert table([]) == ''


def test_samples_of_the_log_have_a_line_each():
  long = ' '.join(['word'] * 60)
  samples = [
    {'inputs': 'a\nb', 'targets': 'x', 'prediction': 'x'},
    {'inputs': long, 'targets': 'right', 'prediction': 'wrong'},
  ]
  first, second = reporting.short_table(samples).splitlines()
  assert first == '  a b -> x'
  assert second.startswith('* word word') and second.endswith(' ... -> wrong  (is right)')
  assert len(second) < 140
