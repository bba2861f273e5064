"""Whether a recogniser of real recordings understands synthesised speech.

  python -m experiments.studies.speech runs/fsdd_tts runs/fsdd_digits

The first run speaks each text of its validation split once, such as 'george: seven', of which the
second one, a classifier that has only ever heard recordings, is to hear the last word. It is also
given a recording of each text there, and what Griffin and Lim's algorithm makes of the recording's
frames: nothing synthesised can be expected to be understood better. (These recordings also chose
the recogniser's checkpoint: of those of test_visible it understands 97.2 %.)
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from experiments.studies.study import RESULTS, keep
from transformer.data import audio, corpora

ROOT = pathlib.Path(__file__).parents[2]


def predicted(workdir: str, lines: list[str]) -> list[str]:
  """Return the predictions of a run for each line; '' for a wrong one, as a sound too long."""
  command = [sys.executable, 'run.py', '--mode=predict', f'--workdir={workdir}']
  text = ''.join(f'{line}\n' for line in lines)
  done = subprocess.run(command, cwd=ROOT, input=text, stdout=subprocess.PIPE, text=True)
  if done.returncode and len(done.stdout.splitlines()) < len(lines):
    raise SystemExit(f'{" ".join(command)} ended with status {done.returncode}, see above')
  return done.stdout.splitlines()


def main(speaks: str, hears: str, folder=RESULTS):
  from matplotlib.figure import Figure

  began = time.perf_counter()
  speaks, hears = (str(pathlib.Path(workdir).absolute()) for workdir in (speaks, hears))
  config = json.loads((pathlib.Path(speaks) / 'config.json').read_text())
  data, loss = config['data'], config['loss']
  names = dict(dir=data['dir'], inputs=data['source'], targets=data['target'])
  source = corpora.load(data['name'], data['val'], **names)
  real = {source[i]['targets']: source[i]['inputs'] for i in range(len(source))}
  texts = sorted(real)
  sounds = predicted(speaks, texts)
  heard = predicted(hears, sounds)
  log_mel = audio.LogMel(**{n: loss[n] for n in ('rate', 'window', 'hop', 'mels', 'floor')})
  with tempfile.TemporaryDirectory() as scratch:
    files: dict[str, list[str]] = {'recorded': [], 'vocoded': []}
    for i, text in enumerate(texts):
      sound = audio.read(real[text], loss['rate'])
      for name, samples in (('recorded', sound), ('vocoded', log_mel.inverse(log_mel(sound)))):
        files[name].append(f'{scratch}/{name}-{i}.wav')
        audio.write(files[name][-1], samples, loss['rate'])
    bounds = {
      name: np.mean([t.split()[-1] == w for t, w in zip(texts, predicted(hears, f), strict=True)])
      for name, f in files.items()
    }
  right = {text: text.split()[-1] == word for text, word in zip(texts, heard, strict=True)}
  by: dict[str, list[bool]] = {}
  for text, good in right.items():
    by.setdefault(text.rpartition(':')[0] or 'all', []).append(good)

  shown = texts[:: len(texts) // 6 + 1]
  figure = Figure(figsize=(2.2 * len(shown), 4.4), layout='constrained')
  axes = figure.subplots(2, len(shown), squeeze=False)
  for column, text in enumerate(shown):
    for row, sound in enumerate((real[text], sounds[texts.index(text)])):
      frames = log_mel(audio.read(sound, loss['rate']))
      seconds = len(frames) * loss['hop']
      axes[row, column].imshow(
        frames.T, origin='lower', aspect='auto', extent=(0, seconds, 0, loss['mels'])
      )
    axes[0, column].set_title(text, fontsize=9)
    axes[1, column].set_xlabel('seconds')
  axes[0, 0].set_ylabel('recorded, mel band')
  axes[1, 0].set_ylabel('synthesised, mel band')

  metrics = {
    name: json.loads((pathlib.Path(run) / 'train.json').read_text())['metrics']
    for name, run in (('speaks', speaks), ('hears', hears))
  }
  numbers = {
    'texts': len(texts),
    'recognized_percent': 100 * float(np.mean(list(right.values()))),
    **{f'recognized_{name}_percent': 100 * float(share) for name, share in bounds.items()},
    'by_speaker_percent': {name: 100 * float(np.mean(good)) for name, good in by.items()},
    'misheard': {t: word for t, word in zip(texts, heard, strict=True) if not right[t]},
    'metrics': metrics,
  }
  keep('speech', began, numbers, figure, folder)


if __name__ == '__main__':
  main(*sys.argv[1:])
