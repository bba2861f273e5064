"""There and back with `transformers` itself, where it is installed (the extra `parity`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from answers import BEAMS, GENERATE, GOLDEN, NAMES, answers_of, assert_same, continued, golden, read

from transformer.data import tokenizers
from transformer.data.processors import SoundProcessor
from transformer.zoo.pretrained import load_pretrained, save_pretrained
from transformer.zoo.pretrained.published import Published

pytest.importorskip('torch')
hf = pytest.importorskip('transformers')
import make_golden  # noqa: E402


@pytest.fixture(autouse=True, scope='module')
def quiet():
  hf.logging.set_verbosity_error()
  hf.logging.disable_progress_bar()


def same(one, other):
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize('name', NAMES)
def test_written_there_read_here(name, tmp_path, close):
  make_golden.make_first(name, tmp_path, range(100, 140))
  model, inputs, expected, config = read(tmp_path)
  assert_same(answers_of(model, inputs), expected, inputs, close)
  if name in GENERATE:
    greedy, beam, _ = continued(model, inputs, config)
    np.testing.assert_array_equal(greedy, expected['greedy'][:, 0])
    np.testing.assert_array_equal(beam, expected['beam'])


@pytest.mark.parametrize('name', NAMES)
def test_written_here_read_there(name, tmp_path, close):
  model, inputs, expected, config = golden(name)
  rng = np.random.default_rng(5)
  model = jax.tree_util.tree_map_with_path(
    lambda path, x: x * jnp.asarray(1 + 0.05 * rng.normal(size=x.shape), x.dtype), model
  )
  more = {k: v for k, v in config.items() if k.endswith('token_id')}
  if name.startswith('modernbert'):  # no norm before attention in its first layer: ours is 1
    norm = model.encoder.stack.blocks.attention_norm
    norm.scale[...] = norm.scale[...].at[0].set(1)
  model.published = Published()  # or config.json goes back as it was
  save_pretrained(tmp_path, model, model_type=config['model_type'], **more)
  cls = getattr(hf, config['architectures'][0])
  theirs, about = cls.from_pretrained(tmp_path, output_loading_info=True)
  unused = ('embed_positions', 'mask_token')  # sinusoids, and what no answer depends on
  about['missing_keys'] -= {k for k in about['missing_keys'] if any(word in k for word in unused)}
  assert not any(about.values()), about
  theirs.eval()
  there = make_golden.answers(theirs, inputs)
  assert_same(answers_of(model, inputs), there, inputs, close)
  for key in set(expected) & set(there):  # or nothing was written
    assert np.abs(expected[key] - there[key]).max() > 1e-3
  if name in GENERATE:
    greedy, beam, _ = continued(model, inputs, config)
    for beams, found in ((1, greedy[:, None]), (BEAMS, beam)):
      tokens, _ = make_golden.generated(theirs, inputs, config['eos_token_id'], beams)
      np.testing.assert_array_equal(found, tokens)
  again, _ = load_pretrained(tmp_path, unroll=1)
  assert same(model, again)


def test_their_tokenizer_is_ours(tmp_path):
  model, _ = load_pretrained(GOLDEN / 'llama')
  ours = tokenizers.train(['a cab', 'cab a'], kind='characters')
  save_pretrained(tmp_path, model, ours)
  theirs = hf.AutoTokenizer.from_pretrained(tmp_path)
  assert theirs('a cab', add_special_tokens=False)['input_ids'] == ours.encode('a cab')
  names = ('pad', 'bos', 'eos', 'unk')
  assert [getattr(theirs, f'{name}_token_id') for name in names] == [0, 1, 2, 3]
  assert theirs.decode(ours.encode('a cab')) == 'a cab'


def test_their_shards_are_read(tmp_path):
  theirs = hf.LlamaForCausalLM.from_pretrained(GOLDEN / 'llama')
  theirs.save_pretrained(tmp_path, max_shard_size='30KB')
  assert len(list(tmp_path.glob('*.safetensors'))) > 2
  model, _ = load_pretrained(tmp_path)
  whole, _ = load_pretrained(GOLDEN / 'llama')
  assert same(model, whole)


@pytest.mark.parametrize('n', [300, 20_000, 479_950])
def test_their_frames_of_a_sound_are_ours(n):
  pytest.importorskip('librosa')
  sound = (0.3 * np.random.default_rng(n).normal(size=n)).astype(np.float32)
  theirs = hf.WhisperFeatureExtractor(feature_size=80)(sound, sampling_rate=16_000)
  expected = np.asarray(theirs['input_features'][0]).T
  ours = SoundProcessor(scaling='whisper', max_length=3000)
  rows = jnp.asarray(ours.encode_example(sound))[None]
  frames, _ = ours.prepare_batch(rows, jnp.ones(rows.shape[:2], jnp.int32), None)
  assert np.abs(frames[0] - expected).max() < 2e-4  # they compute in float32
