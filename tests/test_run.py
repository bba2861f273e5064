"""The command line: results on stdout, errors of the user in one line with exit status 2."""

import json
import pathlib
import random
import re
import shutil

import pytest

from transformer.training import commands, report_page

ROOT = pathlib.Path(__file__).parents[1]
SMALL = [
  '--config.data.max_length=16',
  '--config.data.batch_tokens=512',
  '--config.data.buckets=1',
  '--config.tokenizer.kind=characters',
  '--config.tokenizer.vocab=40',
  '--config.model.width=16',
  '--config.model.feedforward=16',
  '--config.model.depth=1',
  '--config.model.dropout=0.0',
  '--config.model.bias=false',
  '--config.train.steps=4',
  '--config.train.save_every_steps=2',
  '--config.train.log_every_steps=1',
  '--config.eval.every_steps=2',
  '--config.eval.limit=8',
  '--config.decode.max_new_tokens=8',
  '--config.decode.batch_size=8',
  '--config.decode.beams=1',
]


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """The flags of a tiny run, which learns to write texts in capitals."""
  folder, rng = tmp_path_factory.mktemp('capitals'), random.Random(0)
  for split, lines in (('train', 64), ('val', 12), ('test', 12)):
    words = [''.join(rng.choices('abcdefgh 0123456789', k=rng.randint(2, 7))) for _ in range(lines)]
    rows = [f'{word.strip() or "a"}\t{word.strip().upper() or "A"}\n' for word in words]
    (folder / f'{split}.tsv').write_text('inputs\ttargets\n' + ''.join(rows))
  files = [f'--config={ROOT}/experiments/pairs.py', f'--config.data.dir={folder}']
  return [*files, '--config.data.test=test', *SMALL]


@pytest.fixture(scope='module')
def run(commands, tmp_path_factory):
  """run(*flags, input=bytes): the finished process, in an empty folder."""

  def command(*flags, input=b''):
    return commands.run(*flags, input=input, cwd=tmp_path_factory.mktemp('cwd'))

  return command


@pytest.fixture(scope='module')
def trained(run, tiny, tmp_path_factory):
  """(workdir, result) of a tiny run."""
  workdir = tmp_path_factory.mktemp('run') / 'capitals'
  done = run(*tiny, f'--workdir={workdir}')
  assert done.returncode == 0, done.stderr.decode()
  return workdir, json.loads(done.stdout.splitlines()[-1])


def fails(done, *words):
  """Check that a command failed as wrong usage, with one error that has all the words."""
  errors = [line for line in done.stderr.decode().splitlines() if line.startswith('error: ')]
  assert done.returncode == 2, done.stderr.decode()
  assert len(errors) == 1 and b'Traceback' not in done.stderr, done.stderr.decode()
  error = done.stderr.decode().partition('error: ')[2]  # with commands on lines of their own
  for word in words:
    assert word in error, error


def test_train_prints_one_json_object_and_stores_a_run(trained):
  workdir, result = trained
  assert result['mode'] == 'train' and result['step'] == 4
  assert re.fullmatch('[0-9a-f]{64}', result['state_sha256'])
  assert {'val/exact_match', 'test/exact_match', 'test/nll_per_token'} <= result['metrics'].keys()
  present = {path.name for path in workdir.iterdir()}
  assert {'config.json', 'tokenizer.json', 'checkpoints', 'metrics.jsonl', 'events'} <= present
  predictions = (workdir / 'predictions' / 'test.txt').read_text().splitlines()
  assert len(predictions) == 12


def test_evaluate_agrees_with_train_and_writes_nothing_outside_the_workdir(run, trained, tmp_path):
  workdir, result = trained
  (tmp_path / 'mine.tsv').write_text('inputs\ttargets\na\tA\n')
  (tmp_path / 'mine.txt').write_text('of the user')
  done = run('--mode=evaluate', f'--workdir={workdir}', f'--config.data.test=test,{tmp_path}/mine')
  evaluated = json.loads(done.stdout)
  assert evaluated['metrics'].items() >= result['metrics'].items()
  assert f'{tmp_path}/mine/nll_per_token' in evaluated['metrics']
  assert (tmp_path / 'mine.txt').read_text() == 'of the user'
  written = {path.name for path in (workdir / 'predictions').iterdir()}
  assert {'test.txt', f'{tmp_path}/mine.txt'.replace('/', '%2F')} <= written


def test_the_same_command_again_changes_nothing(run, tiny, trained):
  workdir, result = trained
  again = json.loads(run(*tiny, f'--workdir={workdir}').stdout)
  assert again['state_sha256'] == result['state_sha256']
  assert again['metrics'] == result['metrics']


def test_predict_keeps_lines_in_place_and_independent(run, trained):
  workdir, _ = trained
  lines = [f'{i % 10} {i // 10} 7' for i in range(20)]
  flags = ('--mode=predict', f'--workdir={workdir}')
  whole = run(*flags, input='\n'.join(lines).encode())
  assert whole.returncode == 0, whole.stderr.decode()
  outputs = whole.stdout.decode().split('\n')[:-1]
  assert len(outputs) == len(lines)
  alone = run(*flags, input=lines[13].encode())
  assert alone.stdout.decode() == outputs[13] + '\n'


def test_bad_lines_are_reported_and_leave_an_empty_line(run, trained):
  workdir, _ = trained
  text = b'1 2 3\n\n' + b'1 ' * 99 + b'\n\xff\xfe\n4 5\r\n'
  done = run('--mode=predict', f'--workdir={workdir}', input=text)
  outputs = done.stdout.decode().split('\n')[:-1]
  assert done.returncode == 2
  assert len(outputs) == 5 and outputs[1:4] == ['', '', '']
  errors = done.stderr.decode()
  for number, word in ((2, 'empty'), (3, 'tokens'), (4, 'UTF-8')):
    assert re.search(f'error: line {number}: .*{word}', errors), errors


def test_attend_draws_a_page_and_a_picture(run, trained):
  workdir, _ = trained
  done = run('--mode=attend', f'--workdir={workdir}', input=b'1 2 3\n')
  (picture,) = json.loads(done.stdout)['pictures']
  assert '<html' in pathlib.Path(picture['html']).read_text()
  assert pathlib.Path(picture['png']).read_bytes().startswith(b'\x89PNG')
  assert '<svg' in pathlib.Path(picture['svg']).read_text()


def changed_copy(workdir, folder, **changed):
  """Copy a run, as if its config had these values: {'train': {'steps': 2}}."""
  shutil.copytree(workdir, folder)
  config = json.loads((folder / 'config.json').read_text())
  for section, values in changed.items():
    config[section] |= values
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


def test_runs_are_compared(run, trained, tmp_path):
  workdir, result = trained
  other = changed_copy(
    workdir, tmp_path / 'other', train={'steps': 2}, optimizer={'learning_rate': 0.5}
  )
  unfinished = changed_copy(workdir, tmp_path / 'unfinished')
  (unfinished / 'train.json').unlink()
  folders = [str(folder) for folder in (workdir, other, unfinished)]
  done = run('--mode=runs', f'--workdir={tmp_path}/all', *folders)
  assert done.returncode == 0, done.stderr.decode()
  *table, last = done.stdout.decode().splitlines()
  found = json.loads(last)
  assert pathlib.Path(found['plot']).read_bytes().startswith(b'\x89PNG')
  page = pathlib.Path(found['page']).read_text()
  for part in ('<svg', 'Samples of val', 'optimizer.learning_rate', 'unfinished'):
    assert part in page, part
  assert page.count('<details>') == 3 and 'src=' not in page
  assert [found['runs'][f].get('optimizer.learning_rate') for f in folders] == [2e-3, 0.5, 2e-3]
  assert 'model.width' not in found['runs'][folders[0]]  # it is the same in all
  assert found['runs'][folders[0]]['val/exact_match'] == result['metrics']['val/exact_match']
  assert found['runs'][folders[2]]['step'] == 4
  (line,) = [line.split() for line in table if line.startswith('train.steps ')]
  assert line == ['train.steps', '4', '2', '4']


def test_a_run_has_a_report_and_several_one_of_all(trained, tmp_path, capsys, monkeypatch):
  workdir, _ = trained
  other = changed_copy(workdir, tmp_path / 'other', train={'steps': 2})
  shutil.rmtree(other / 'attention', ignore_errors=True)  # that of another test
  (other / 'attention').mkdir()
  (other / 'attention' / 'abc.html').write_text('a page')

  def report(*folders):
    assert commands.OF_FOLDERS['report']([*map(str, folders)], tmp_path / 'all') == 0
    pages = json.loads(capsys.readouterr().out)['pages']
    return [pathlib.Path(page) for page in pages]

  (file,) = report(other)
  page = file.read_text()
  assert file.parent == other and f'<h2>{other}</h2>' in page and 'src=' not in page
  assert '<svg' in page and 'href="attention/abc.html"' in page
  changed = page.partition('where it is not the default')[2].partition('<details>')[0]
  assert 'optimizer.learning_rate' in changed and 'model.soft_cap_logits' not in changed
  monkeypatch.setattr(report_page, 'page', lambda folders, rows, near: ' '.join(folders))
  files = report(workdir, other)
  assert [file.parent for file in files] == [workdir, other, tmp_path / 'all']
  assert files[2].read_text() == f'{workdir} {other}'


def test_a_checkpoint_is_inspected_and_compared(run, trained, tmp_path):
  """Step, data position, shapes and norms; of two the arrays that differ."""
  workdir, result = trained
  found = json.loads(run('--mode=inspect', f'--workdir={workdir}', '--json').stdout)
  (facts,) = found['checkpoints']
  assert (facts['step'], facts['experiment']) == (4, 'pairs')
  batches = facts['data']['batches']
  assert facts['data']['epoch'] * batches + facts['data']['batch'] == 4
  assert facts['scores']['step'] == 4 and facts['arrays'] == len(found['arrays'])
  table = found['arrays']['model.encoder.blocks.attention.query.kernel']
  assert table['shape'] == [1, 16, 16] and table['norm'] > 0 == table['nonfinite']

  text = run('--mode=inspect', workdir, workdir, '--step=2').stdout.decode()
  assert f'all {facts["arrays"]} arrays are the same' in text
  text = run('--mode=inspect', f'--workdir={workdir}', '--step=2,4').stdout.decode()
  assert 'last/2: step 2' in text and 'last/4: step 4' in text
  row = next(line for line in text.splitlines() if 'query.kernel' in line).split()
  assert float(row[-2]) > 0  # the norm of the difference
  assert not (workdir / 'checkpoints' / 'last' / '3').exists()
  fails(run('--mode=inspect', f'--workdir={workdir}', '--step=3'), 'no checkpoint', '[2, 4]')
  fails(run('--mode=inspect', tmp_path), f'no checkpoint in {tmp_path}')
  fails(run('--mode=inspect', workdir, '--step=two'), '--step=two is neither a number nor best')
  assert not [*tmp_path.iterdir()]


def test_folders_without_a_run_are_named(run, tmp_path):
  fails(run('--mode=runs'), 'give their folders')
  fails(run('--mode=runs', tmp_path), 'no trained model', str(tmp_path))


@pytest.mark.slow
def test_sweep_runs_every_variant(run, tiny, tmp_path):
  experiment = tmp_path / 'variants.py'
  base = ROOT / 'experiments' / 'pairs.py'
  experiment.write_text(
    'import importlib.util\n'
    f'spec = importlib.util.spec_from_file_location("base", {str(base)!r})\n'
    'base = importlib.util.module_from_spec(spec); spec.loader.exec_module(base)\n'
    'get_config = base.get_config\n'
    'def sweep(add):\n'
    '  for rate in (1e-3, 1e-2):\n'
    '    add({"optimizer.learning_rate": rate})\n'
  )
  flags = [f'--config={experiment}', *tiny[1:], '--config.data.test=']
  done = run('--mode=sweep', '--jobs=2', *flags, f'--workdir={tmp_path}/sweep')
  assert done.returncode == 0, done.stderr.decode()
  runs = json.loads(done.stdout.splitlines()[-1])['runs']
  assert [r['changed'] for r in runs] == [
    {'optimizer.learning_rate': 0.001},
    {'optimizer.learning_rate': 0.01},
  ]
  assert runs[0]['metrics'] != runs[1]['metrics']


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--config.model.widht=16'], ["no key 'widht'", 'width']),
    (['--config.loss.nothing=1'], ["no key 'nothing'", '--mode=config']),
    (['--config.trian.steps=1'], ["no section 'trian'", "'train'?"]),
    (['--config.model.heads=3'], ['model.heads=3', 'model.width=128', 'divisor']),
    (['--config.model.norm=batch'], ['model.norm', "'batch'", "'layer'"]),
    (['--config.eval.metrics=(bleu'], ['eval.metrics', '(bleu', "('a', 'b')"]),
    (['--config.train.steps=many'], ['train.steps', 'many']),
    (['--config=nowhere.py'], ['nowhere.py', 'did you mean', '.py?']),
    ([f'--config={ROOT}/experiments/trek.py'], ['trek.py', f'mean {ROOT}/experiments/trec.py?']),
    ([f'--config={ROOT}/experiments/fsdd.py:word'], ['fsdd.py, line', 'fsdd.py:word', 'attention']),
    (['--mode=trane'], ['mode', 'train']),
    (['--wrokdir=x'], ['wrokdir', 'workdir']),
    (['train'], ["'train'", '--']),
    (['--mode=predict'], ['runs/dates', 'train']),
    (
      ['--config.data.name=parallel', '--config.data.dir=/nowhere'],
      ['/nowhere', '.inputs', 'data.dir'],
    ),
    ([f'--config={ROOT}/experiments/pairs.py', '--config.data.dir=my.tsv'], ['my.tsv']),
    (
      [f'--config={ROOT}/experiments/mnist.py', '--config.data.dir=/nowhere/mnist'],
      ['/nowhere/mnist', 'yann.lecun.com', 'train-images-idx3-ubyte', 'TRANSFORMER_DATA'],
    ),
    (['--config.data.name=no_such_set'], ['no_such_set', 'download_and_prepare']),
    (['--config.mesh.tensor=3'], ['tensor=3', 'devices']),
  ],
)
def test_wrong_usage_is_named(run, flags, words):
  fails(run(*flags), *words)


def test_a_workdir_of_another_experiment_is_not_changed(run, tiny, trained):
  workdir, _ = trained
  before = (workdir / 'config.json').read_text()
  done = run(*tiny, f'--workdir={workdir}', '--config.model.depth=2')
  fails(done, 'model.depth', str(workdir), '--workdir')
  assert (workdir / 'config.json').read_text() == before


def test_a_checkpoint_of_another_model_is_named(run, trained, tmp_path):
  workdir = changed_copy(trained[0], tmp_path / 'foreign', model={'feedforward': 32})
  done = run('--mode=predict', f'--workdir={workdir}', input=b'1 2\n')
  fails(done, 'checkpoints', 'hidden.kernel', '(1, 16, 16)')


def test_a_missing_input_file_is_named(run, trained):
  fails(run('--mode=predict', f'--workdir={trained[0]}', '--input=no.txt'), 'no.txt')


def test_config_prints_every_key_with_its_value_and_meaning(run):
  done = run('--mode=config', '--config.model.width=32')
  assert done.returncode == 0, done.stderr.decode()
  lines = done.stdout.decode().splitlines()
  at = lines.index('model.width = 32  (int, default 512)')
  assert lines[at + 1] == '    D, size of the residual stream.'
  assert 'train.steps = 1200  (int, required)' in lines
  assert 'optimizer.b1 = 0.9  (float)' in lines and 'optimizer.momentum = None  (float)' in lines


@pytest.mark.parametrize(
  'text, metrics',
  [
    ('bleu,chrf', ('bleu', 'chrf')),
    ('bleu, chrf', ('bleu', 'chrf')),
    ("('bleu', 'chrf')", ('bleu', 'chrf')),
    ("['bleu']", ('bleu',)),
    ('bleu', ('bleu',)),
    ('', ()),
  ],
)
def test_the_command_line_takes_lists_with_commas_or_as_python_tuples(run, text, metrics):
  pairs = (
    '--config.optimizer.lr_multipliers=embed=0,a|b=0.5',
    '--config.train.adapters=query|value=8',
  )
  flags = f'--config.eval.metrics={text}', '--config.eval.best='
  lines = run('--mode=config', *flags, *pairs).stdout.decode()
  assert f'\neval.metrics = {metrics!r}  (tuple of names' in lines
  assert (
    "\noptimizer.lr_multipliers = (('embed', 0.0), ('a|b', 0.5))  (tuple of pattern=number" in lines
  )
  assert "\ntrain.adapters = (('query|value', 8),)  " in lines


def test_help_names_the_modes(run):
  text = run('--help').stdout.decode()
  for mode in 'train evaluate predict attend sweep config runs inspect doctor'.split():
    assert mode in text


@pytest.mark.slow
def test_speech_recognition_trains_and_reads_wav_files(run, tmp_path):
  from transformer.data import audio, concatenation, digits

  workdir = tmp_path / 'keypad'
  tiny = ('width=16', 'feedforward=16', 'depth=1', 'heads=2')
  done = run(
    f'--config={ROOT}/experiments/fsdd.py:keypad',
    f'--workdir={workdir}',
    *(f'--config.model.{setting}' for setting in tiny),
    '--config.data.limit=20',
    '--config.data.buckets=1',
    '--config.train.steps=2',
    '--config.train.save_every_steps=2',
    '--config.eval.every_steps=2',
    '--config.eval.limit=8',
    '--config.decode.batch_size=8',
  )
  assert done.returncode == 0, done.stderr.decode()
  result = json.loads(done.stdout.splitlines()[-1])
  assert {'test/wer', 'test/cer', 'test/nll_per_token'} <= result['metrics'].keys()
  assert result['signatures']['test/wer'].startswith('wer|')
  sound = digits.keypad('test')[0]['inputs']
  audio.write(tmp_path / 'key.wav', sound, concatenation.RATE)
  lines = f'{tmp_path}/key.wav\nnone.wav\n{ROOT}/setup.cfg\n{tmp_path}/key.wav\n'
  done = run('--mode=predict', f'--workdir={workdir}', input=lines.encode())
  outputs = done.stdout.decode().split('\n')[:-1]
  assert done.returncode == 2 and len(outputs) == 4
  assert outputs[0] == outputs[3] and outputs[1] == outputs[2] == ''
  errors = done.stderr.decode()
  assert re.search(r'error: line 2: .*none\.wav', errors), errors
  assert re.search(r'error: line 3: .*setup\.cfg is no sound', errors), errors
