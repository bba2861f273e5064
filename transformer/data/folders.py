"""The folders of data sets, and the places where they are published."""

import os
import pathlib

# {name of a data set's folder: where it is published, and the names that its files must have}
PUBLISHED = {
  'an4': (
    'http://www.speech.cs.cmu.edu/databases/an4, as Sphinx cepstra: train_mfcc.npz with feats '
    '[frames, 13] and lengths, and train.tsv with columns utt_id and text'
  ),
  'cifar10_jpeg': (
    'https://www.cs.toronto.edu/~kriz/cifar.html: train.tar.xz and test_visible.tar.xz of '
    '<class>/<file>.jpg, or folders of these names'
  ),
  'cranfield': (
    'http://ir.dcs.gla.ac.uk/resources/test_collections/cran: docs.jsonl.gz with id, title and '
    'text, queries.tsv and qrels.tsv'
  ),
  'flickr8k_1000': (
    'https://github.com/jbrownlee/Datasets/releases (Flickr8k): train.tar.xz and val.tar.xz of '
    'images, train_captions.tsv and val_captions.tsv with columns image and caption'
  ),
  'fsdd': (
    'https://github.com/Jakobovski/free-spoken-digit-dataset: train.tar.xz and '
    'test_visible.tar.xz of <digit>_<speaker>_<index>.wav, or folders of these names'
  ),
  'kathleen16k': (
    'https://github.com/rhasspy/dataset-voice-kathleen: train.tar.xz of wav files and train.tsv '
    'with columns utt_id and text'
  ),
  'mnist': (
    'http://yann.lecun.com/exdb/mnist: train-images-idx3-ubyte, train-labels-idx1-ubyte, and the '
    'same for t10k, maybe .gz or .xz'
  ),
  'multi30k': (
    'https://github.com/multi30k/dataset, data/task1/raw: train.en, train.de, val.en, val.de, '
    'test_2016_flickr.en and test_2016_flickr.de, maybe .gz'
  ),
  'squad': (
    'https://rajpurkar.github.io/SQuAD-explorer (dev_visible.json.gz is a half of dev-v1.1.json) '
    'and https://modestyachts.github.io/squadshifts-website (train_shifts_*.json.gz)'
  ),
  'sst2': (
    'https://dl.fbaipublicfiles.com/glue/data/SST-2.zip: train_phrases.tsv and dev.tsv with '
    'columns label and sentence, maybe .gz'
  ),
  'tinyshakespeare': (
    'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt: '
    'input.txt.gz'
  ),
  'trec': (
    'https://cogcomp.seas.upenn.edu/Data/QA/QC: train.txt.gz, its train_5500.label in UTF-8'
  ),
  'wikitext2': (
    'https://github.com/pytorch/examples, word_language_model/data/wikitext-2: train.txt and '
    'valid.txt, maybe .gz'
  ),
  'wnut17': (
    'https://github.com/leondz/emerging_entities_17: train.conll.gz and dev.conll.gz, lines of a '
    'token, a tab and its tag, and a blank line after each sentence'
  ),
  'yesno': (
    'https://www.openslr.org/1: train.tar.xz and test_visible.tar.xz of 1_0_0_1_0_1_1_1.wav, or '
    'folders of these names'
  ),
}


def data_dir(name: str) -> str:
  """Return the path of a data set: $TRANSFORMER_DATA/NAME, or data/NAME without that variable."""
  return str(pathlib.Path(os.environ.get('TRANSFORMER_DATA') or 'data') / name)


def where_published(path: str | os.PathLike) -> str:
  """Return the text of PUBLISHED for the data set in a path; '' if it is unknown."""
  parts = pathlib.Path(path).parts
  return next((PUBLISHED[part] for part in reversed(parts) if part in PUBLISHED), '')
