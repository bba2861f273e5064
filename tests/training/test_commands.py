"""What `run.py` does where something is wrong with the place, the pipe, the command or the data."""

import dataclasses
import errno
import io
import json
import logging
import pathlib
import signal
import sys
import tempfile
import types

import pytest
from absl import app, flags

import run
from experiments import pairs, retrieval_cranfield, yesno
from transformer.inspection import inside
from transformer.training import commands, comparison, machine, reporting, sweep
from transformer.training.checks import check
from transformer.training.command_line import printable, usage_error, with_stored_config


@pytest.mark.parametrize(
  'experiment, module, extra',
  [(yesno, 'jiwer', 'audio'), (retrieval_cranfield, 'pytrec_eval', 'retrieval')],
)
def test_a_library_that_is_missing_is_named_with_its_extra_before_the_training(
  experiment, module, extra, monkeypatch, capsys, tmp_path
):
  monkeypatch.setenv('TRANSFORMER_TUNE', '0')
  monkeypatch.setitem(sys.modules, module, None)
  flags = types.SimpleNamespace(
    config=experiment.get_config(), workdir=str(tmp_path / 'run'), mode='train'
  )
  with pytest.raises(SystemExit) as end:
    commands.main(flags)
  error = capsys.readouterr().err
  assert end.value.code == commands.USAGE
  assert error.startswith(f'error: {module} is not installed') and f"'.[{extra}]'" in error
  assert not (tmp_path / 'run').exists()


def fails(capsys, mode, *words, **flags):
  """Check that a mode ends with status 2 and one line that has the words."""
  values = dict(config=yesno.get_config(), workdir='', mode=mode, input='-', json=False, step='')
  values |= flags
  with pytest.raises(SystemExit) as end:
    commands.main(types.SimpleNamespace(**values))
  (error,) = capsys.readouterr().err.splitlines()
  assert end.value.code == commands.USAGE and error.startswith('error: ')
  for word in words:
    assert word in error


@pytest.mark.parametrize('mode', [*commands.MODES])
@pytest.mark.parametrize(
  'error', [AssertionError(), RuntimeError("Unable to initialize backend 'cuda': no driver\nx")]
)
def test_devices_that_are_not_there_are_one_line_in_every_mode(mode, error, monkeypatch, capsys):
  def devices():
    raise error

  monkeypatch.setenv('TRANSFORMER_TUNE', '0')
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  monkeypatch.setattr(commands.jax, 'devices', devices)
  fails(capsys, mode, 'JAX_PLATFORMS=cuda cannot be used here', 'JAX_PLATFORMS=cpu')


@pytest.mark.parametrize('mode', [mode for mode in commands.MODES if mode != 'config'])
@pytest.mark.parametrize('workdir', ['gs://bucket/run', 's3://b/r', 'file:///tmp/run'])
def test_a_url_is_no_workdir(mode, workdir, monkeypatch, capsys, tmp_path):
  monkeypatch.setenv('TRANSFORMER_TUNE', '0')
  monkeypatch.chdir(tmp_path)
  fails(capsys, mode, workdir, 'file system', workdir=workdir)
  assert not list(tmp_path.iterdir())


def test_a_user_without_a_home_compiles_without_a_cache(monkeypatch):
  def home():
    raise RuntimeError('Could not determine home directory.')

  for name in ('JAX_COMPILATION_CACHE_DIR', 'XDG_CACHE_HOME'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(machine.pathlib.Path, 'home', home)
  machine.keep_compiled()


class SweepFlags(types.SimpleNamespace):
  __getitem__ = types.SimpleNamespace.__getattribute__


ENDS = {
  'diverges': FloatingPointError('step 3: the loss is not finite'),
  'disk': OSError(errno.ENOSPC, 'No space left on device'),
  'memory': MemoryError('20 GB'),
  'data': ValueError('the split train has no example'),
  'no library': ModuleNotFoundError("No module named 'jiwer'"),
}


@pytest.mark.parametrize('end', ENDS)
def test_every_variant_of_a_sweep_has_an_outcome(end, monkeypatch, capsys, tmp_path):
  error = ENDS[end]

  def train(config, folder, flags):
    if config == 'ends':
      raise error
    folder.path.mkdir(parents=True)
    (folder.path / 'train.json').write_text(json.dumps({'metrics': {'val/nll': 1.0}}))
    return 0

  variants = [
    sweep.Variant({'seed': i}, name, commands.Workdir(tmp_path / str(i)))
    for i, name in enumerate(('good', 'ends', 'good'))
  ]
  monkeypatch.setattr(sweep, 'variants', lambda *_: variants)
  monkeypatch.setattr(
    comparison, 'draw', lambda folders, _, labels: drawn.extend([*labels, *folders])
  )
  monkeypatch.setattr(commands.config_flags, 'get_config_filename', lambda _: 'file.py')
  drawn = []
  monkeypatch.setattr(commands, '_train', train)
  flags = SweepFlags(mode='sweep', jobs=1, config=None)
  status = commands._sweep({'experiment': 'x'}, commands.Workdir(tmp_path), flags)
  out, err = capsys.readouterr()
  runs = json.loads(out.splitlines()[-1])['runs']
  kind = type(error).__name__
  assert status == commands.FAILURE and f'error: sweep 2: {kind}: ' in err
  assert ('disk' if end == 'disk' else str(error)) in err
  assert [r['outcome'].partition(':')[0] for r in runs] == ['ok', kind, 'ok']
  assert [r['changed'] for r in runs] == [{'seed': 0}, {'seed': 1}, {'seed': 2}]
  assert [r.get('metrics') for r in runs] == [{'val/nll': 1.0}, None, {'val/nll': 1.0}]
  table = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:-1]}
  assert table['outcome'] == ['ok', kind, 'ok'] and table['seed'] == ['0', '1', '2']
  assert drawn[:2] == ['sweep-0: seed=0', 'sweep-2: seed=2']
  assert drawn[2:] == [str(tmp_path / '0'), str(tmp_path / '2')]


def test_curves_have_the_runs_that_have_points_each_in_its_colour(tmp_path):
  rows = dict(none=[], short=[('train', 'loss')], whole=[('train', 'loss'), ('val', 'nll')])
  for name, found in rows.items():
    (tmp_path / name).mkdir()
    lines = [json.dumps({'split': split, 'step': 1, metric: 2.0}) + '\n' for split, metric in found]
    (tmp_path / name / 'metrics.jsonl').write_text(''.join(lines))
  loss, nll = comparison.figure([str(tmp_path / name) for name in rows], [*rows]).axes
  assert [(x.get_label(), x.get_color()) for x in loss.lines] == [('short', 'C1'), ('whole', 'C2')]
  assert [(x.get_label(), x.get_color()) for x in nll.lines] == [('whole', 'C2')]
  assert not comparison.figure([str(tmp_path / 'none')]).axes[0].lines


@pytest.mark.parametrize('terminal, asked', [(True, False), (True, True), (False, False)])
def test_a_result_is_a_table_on_a_terminal_and_else_json(
  terminal, asked, monkeypatch, capsys, tmp_path
):
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: terminal)
  config = {'experiment': 'x', 'data': {'val': 'val', 'test': ('test',)}}
  flags = types.SimpleNamespace(json=asked, mode='evaluate')
  found = {'metrics': {'val/nll': 1.25, 'test/nll': 2.5, 'test/nll/am-ET': 3.0}}
  in_a_sweep = types.SimpleNamespace(json=asked, mode='sweep')
  commands._print_result(config, commands.Workdir(tmp_path), in_a_sweep, 1.0, found)
  assert not capsys.readouterr().out and (tmp_path / 'train.json').exists()
  assert commands._print_result(config, commands.Workdir(tmp_path), flags, 1.0, found) == 0
  out = capsys.readouterr().out
  stored = json.loads((tmp_path / 'evaluate.json').read_text())
  assert stored['metrics'] == found['metrics']
  if terminal and not asked:
    assert out.splitlines()[1].split() == ['nll', '1.25', '2.5'] and '--mode=predict' in out
  else:
    assert json.loads(out) == stored


@pytest.mark.parametrize(
  'format, int8, words', [('onnx', False, 'format=onnx is not written'), ('hf', True, '--int8')]
)
def test_a_format_that_is_not_written_is_refused_at_once(format, int8, words, tmp_path):
  flags = types.SimpleNamespace(format=format, int8=int8)
  with pytest.raises(ValueError, match=words):
    commands._export({}, commands.Workdir(tmp_path), flags)


def command_line_of(monkeypatch, main, *argv):
  """The status and the bytes that `run.py` prints, at a terminal of another encoding."""
  out = io.TextIOWrapper(tempfile.TemporaryFile(), encoding='ascii')
  monkeypatch.setattr(sys, 'stdout', out)
  monkeypatch.setattr(sys, 'stderr', io.TextIOWrapper(io.BytesIO(), encoding='ascii'))
  monkeypatch.setattr(sys, 'argv', ['run.py', *argv])
  monkeypatch.setattr(app, 'run', main)
  monkeypatch.setattr(run, 'stop_by_signals', lambda: None)  # would stay in this process
  monkeypatch.setattr(flags, 'FLAGS', flags.FlagValues())
  for define in ('DEFINE_enum', 'DEFINE_string', 'DEFINE_bool', 'DEFINE_integer'):
    monkeypatch.setattr(flags, define, lambda *_: None)
  run.run()
  out.flush()
  out.buffer.seek(0)
  return out.buffer.read()


def test_output_is_utf8_whatever_the_locale(monkeypatch):
  name = b'gr\xf6\xdfe.wav'.decode('utf-8', 'surrogateescape')
  found = command_line_of(monkeypatch, lambda *_, **__: print('жук', name))
  assert found == 'жук '.encode() + b'gr\xf6\xdfe.wav\n'


def test_a_closed_pipe_ends_quietly(monkeypatch):
  def main(*_, **__):
    raise BrokenPipeError

  copied = []
  monkeypatch.setattr(run.os, 'dup2', lambda *descriptors: copied.append(descriptors))
  with pytest.raises(SystemExit) as end:
    command_line_of(monkeypatch, main)
  assert end.value.code == 128 + signal.SIGPIPE and len(copied) == 1


@pytest.mark.parametrize('word', ['-h', '--help'])
def test_help_imports_nothing_that_takes_time(monkeypatch, word):
  def main(*_, **given):
    assert sys.argv == ['run.py', '--help'] and not given

  command_line_of(monkeypatch, main, word)


def test_the_modes_of_the_command_line_are_those_there_are():
  assert {*run.MODES} == {*commands.MODES, *commands.OF_FOLDERS, 'inspect'}


@pytest.mark.parametrize('text', ['\x1b[31mred', 'a\x00b', '\x9b2J', 'x\x7f', 'back\b', 'up\r'])
def test_no_control_character_of_the_data_reaches_the_terminal(text, capsys):
  assert printable(text).isprintable() and printable('tab\tline\nend') == 'tab\tline\nend'
  with pytest.raises(SystemExit):
    usage_error(ValueError(f'the line {text}is wrong'))
  assert capsys.readouterr().err.rstrip('\n').isprintable()


def test_the_log_has_no_control_character_of_the_data():
  record = logging.LogRecord('absl', logging.WARNING, 'x.py', 1, 'line %s', ('\x1b[2Jx',), None)
  assert reporting._is_shown(record) and record.getMessage() == 'line \\x1b[2Jx'


@dataclasses.dataclass(frozen=True)
class Picture:
  """Stands for what `inside.look` returns."""

  title: str
  subtitle: str = ''

  def html(self):
    return self.title + self.subtitle

  def draw(self, file):
    pathlib.Path(file).write_text(self.title)


@pytest.mark.parametrize('mode', ['predict', 'attend'])
@pytest.mark.parametrize('kind', ['text', 'sound'])
def test_whatever_lines_and_answers_are_called_files_are_in_the_workdir(
  mode, kind, monkeypatch, capsys, tmp_path
):
  """No file of an earlier line is replaced, unless by the same content."""
  names = [
    f'{tmp_path}/mine',
    '../../up',
    'a/../../b',
    '[x]*?',
    '.',
    '~',
    '\x1b[2J',
    '%2F',
    'x' * 300,
  ]
  answer = lambda line: line if kind == 'text' else f'RIFF {line}'.encode()
  task = types.SimpleNamespace(decoding=types.SimpleNamespace(batch_size=1, beams=2))
  monkeypatch.setattr(commands, '_restored', lambda *_: (types.SimpleNamespace(task=task), None, 0))
  monkeypatch.setattr(commands, 'read_chunks', lambda *_, **__: ([name] for name in names))
  monkeypatch.setattr(
    commands, 'predict_each', lambda task, model, lines, method: map(answer, lines)
  )
  monkeypatch.setattr(commands, 'predict', lambda task, model, lines, **_: map(answer, lines))
  monkeypatch.setattr(inside, 'look', lambda task, model, line: Picture(line))
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  workdir = commands.Workdir('run')
  flags = types.SimpleNamespace(input='-')
  files = lambda: {file: file.read_bytes() for file in tmp_path.rglob('*') if file.is_file()}
  before = files()
  for _ in range(2):
    assert commands.MODES[mode]({'experiment': 'x'}, workdir, flags) == 0
    assert before.items() <= files().items()
    before, names = files(), [*names, f'{names[-1]}, another']
  assert all(file.is_relative_to(workdir.path) for file in before)
  assert (
    len(before)
    == {'textpredict': 0, 'soundpredict': 10, 'textattend': 30, 'soundattend': 40}[kind + mode]
  )
  shown = capsys.readouterr().out
  assert kind == 'text' or str(workdir.path / 'wav') in shown


def test_commands_in_advice_keep_their_lines(capsys):
  with pytest.raises(SystemExit):
    usage_error(ValueError('it is\nnot there: run\n  pip install a\n  python b\n'))
  error = capsys.readouterr().err
  assert error == 'error: it is not there: run\n  pip install a\n  python b\n'


@pytest.mark.parametrize(
  'line, words',
  [
    ('c.model.widht = 3', 'Did you mean "width"'),
    ('c.modle.width = 3', 'Did you mean "model"'),
    ('c.model.update(widht=3)', 'Did you mean "width"'),
    ('c.model.width = "wide"', "'width'"),
    ('c.model.width = wide', "'wide' is not defined"),
    ('raise ValueError("give a or b")', 'give a or b'),
  ],
)
def test_an_error_in_the_file_of_an_experiment_names_its_line(tmp_path, line, words):
  file = tmp_path / 'mine.py'
  head = 'from transformer.training import config\ndef get_config():\n'
  file.write_text(f"{head}  c = config.for_task('seq2seq')\n  {line}\n  return c\n")
  with pytest.raises(ValueError) as error:
    with_stored_config(['run.py', f'--config={file}'])
  text = str(error.value)
  assert text.startswith(f'{file}, line 4: ') and words in text and len(text) < 250


def test_ids_on_the_command_line_are_numbers():
  c = pairs.get_config()
  c.decode.prefix = ('1', 2)  # as of --config.decode.prefix=1,2
  assert check(c).decode.prefix == (1, 2)
  c.decode.prefix = ('<s>',)
  with pytest.raises(ValueError, match="decode.prefix: '<s>' must be of type int"):
    check(c)


@pytest.mark.parametrize('mode', ['train', 'config'])
def test_a_run_finds_its_data_from_another_folder(mode, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', '/home/me')
  c = pairs.get_config()
  for given, found in (('my data', f'{tmp_path}/my data'), ('~/x', '/home/me/x'), ('', '')):
    c.data.dir = given
    config = commands._config(types.SimpleNamespace(config=c, mode=mode))
    assert config['data']['dir'] == (given if mode == 'config' else found)
