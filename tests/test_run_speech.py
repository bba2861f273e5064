"""Speech on the command line: a text becomes a wav file, and another run hears what it says."""

import json
import pathlib

import pytest

from experiments.studies import speech
from transformer.data import audio

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[1]
TINY = [
  '--config.data.limit=20',
  '--config.data.batch_tokens=256',
  '--config.data.test=',
  '--config.model.width=16',
  '--config.model.feedforward=16',
  '--config.model.depth=1',
  '--config.train.steps=2',
  '--config.train.save_every_steps=2',
  '--config.eval.every_steps=2',
  '--config.eval.limit=2',
  '--config.decode.batch_size=4',
]


@pytest.fixture(scope='module')
def run(commands):
  """run(*flags, input=str): the lines that a command prints."""

  def command(*flags, input=''):
    done = commands.run(*flags, input=input.encode())
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()

  return command


@pytest.fixture(scope='module')
def trained(run, tmp_path_factory):
  """The folder of a run that speaks, and what it said of itself."""
  folder = tmp_path_factory.mktemp('speech')
  flags = ['--config.decode.iterations=2', '--config.decode.max_new_tokens=8']
  experiments = ROOT / 'experiments'
  told = run(f'--config={experiments}/fsdd_tts.py:keypad', f'--workdir={folder}/tts', *TINY, *flags)
  return folder, json.loads(told[-1])


def test_a_run_is_evaluated_by_its_sounds(trained):
  folder, result = trained
  assert {'val/mel_cepstral_distortion', 'val/length_ratio', 'val/mel_error'} <= result[
    'metrics'
  ].keys()
  assert 'aligned:dtw' in result['signatures']['val/mel_cepstral_distortion']
  files = (folder / 'tts' / 'predictions' / 'val.txt').read_text().splitlines()
  assert len(files) == 30 and all(audio.rate_of(file) == 8000 for file in files[:3])
  assert (folder / 'tts' / 'predictions' / 'val.reference' / '30.wav').exists()


def test_predict_writes_a_wav_file_for_each_line(run, trained):
  folder, _ = trained
  first, second = run('--mode=predict', f'--workdir={folder}/tts', input='seven\none\n')
  assert pathlib.Path(first).parent == folder / 'tts' / 'wav' and first != second
  assert 0 < len(audio.read(first, 8000)) <= 8 * 3 * 100
  before = pathlib.Path(first).read_bytes()
  (other,) = run('--mode=predict', f'--workdir={folder}/tts', input='one\n')
  assert other == second and pathlib.Path(first).read_bytes() == before  # nothing is overwritten


def test_attend_draws_and_sounds(run, trained):
  folder, _ = trained
  (picture,) = json.loads(run('--mode=attend', f'--workdir={folder}/tts', input='six\n')[-1])[
    'pictures'
  ]
  assert audio.rate_of(picture['output']) == 8000
  assert pathlib.Path(picture['png']).read_bytes().startswith(b'\x89PNG')


def test_a_study_counts_what_is_understood(trained, tmp_path, monkeypatch):
  folder, _ = trained
  made = str(folder / 'tts' / 'predictions' / 'val' / '1.wav')
  answers = {'tts': made, 'hears': 'two'}
  monkeypatch.setattr(
    speech, 'predicted', lambda run, lines: [answers[pathlib.Path(run).name]] * len(lines)
  )
  (tmp_path / 'hears').mkdir()
  (tmp_path / 'hears' / 'train.json').write_text('{"metrics": {}}')
  monkeypatch.setattr('experiments.studies.study.subprocess.check_output', lambda *_, **__: 'c\n')
  speech.main(str(folder / 'tts'), str(tmp_path / 'hears'), folder=tmp_path)
  found = json.loads((tmp_path / 'speech.json').read_text())
  assert found['texts'] == 10
  for what in ('', '_recorded', '_vocoded'):
    assert found[f'recognized{what}_percent'] == pytest.approx(10)
  assert 'two' not in found['misheard'] and len(found['misheard']) == 9
  assert (tmp_path / 'speech.png').exists()
