"""Settings of a search: what they forbid, and how they continue in the next window."""

import types

import pytest

from transformer.inference.decoding import Decoding, check_positive

GENERATION = {
  'suppress_tokens': [7, 2],
  'begin_suppress_tokens': [5],
  'bad_words_ids': [[4], [1, 6]],
}


def test_what_published_settings_forbid_is_forbidden():
  config = types.SimpleNamespace(vocab=8)
  published = types.SimpleNamespace(generation=GENERATION)
  model = types.SimpleNamespace(published=published, config=config)
  found = Decoding(suppress=(3,), bad_words=([4],)).for_model(model, (0, None, 2), eos=(2,))
  assert found.suppress == (0, 3, 7)  # an end token is always allowed
  assert found.begin_suppress == (5,) and found.bad_words == ((4,), (1, 6))
  assert found == found.for_model(model, (0,), eos=(2,)) and hash(found)
  plain = Decoding().for_model(types.SimpleNamespace(config=config), (None, 1), eos=1)
  assert plain == Decoding()
  config.vocab = 6  # of which the published settings know nothing
  assert Decoding(suppress=(3,)).for_model(model, (), eos=2).suppress == (3, 7)
  with pytest.raises(ValueError, match=r'decode.suppress has ids \[6\]'):
    Decoding(suppress=(6,)).for_model(model, (), eos=2)


def test_settings_continue_after_the_first_window():
  whole = Decoding(max_new_tokens=9, min_new_tokens=6, prefix=(1, 2, 3), begin_suppress=(4,))
  first, second, third = whole.after(0, 2), whole.after(2, 4), whole.after(6, 3)
  assert [x.max_new_tokens for x in (first, second, third)] == [2, 4, 3]
  assert [x.min_new_tokens for x in (first, second, third)] == [2, 4, 0]
  assert [x.prefix for x in (first, second, third)] == [(1, 2), (3,), ()]
  assert [x.begin_suppress for x in (first, second, third)] == [(), (4,), ()]


def test_choices_are_not_cut_into_windows():
  choices = Decoding(choices=((1, 2),), max_new_tokens=4)
  assert choices.after(0, 2).choices == ((1, 2),)
  with pytest.raises(ValueError, match='raise data.max_length'):
    choices.after(2, 2)


@pytest.mark.parametrize(
  'settings, words',
  [
    (dict(num_return_sequences=2), 'num_return_sequences=2 is more than decode.beams=1'),
    (dict(early_stopping='soon'), "early_stopping='soon' must be True, False or 'never'"),
    (dict(repetition_penalty=0.0), 'repetition_penalty=0.0 must be above 0'),
    (dict(max_new_tokens=3, min_new_tokens=4), 'max_new_tokens=3 is fewer than'),
    (dict(max_new_tokens=1, prefix=(1, 2)), 'the 2 tokens of decode.prefix'),
    (dict(beams=0), 'beams=0 must be at least 1'),
    (dict(beams=2, length_penalty=float('nan')), 'length_penalty=nan must be a finite number'),
    (dict(temperature=float('inf')), 'temperature=inf must be a finite number'),
    (dict(no_repeated_ngrams=-1), 'no_repeated_ngrams=-1 must be at least 0'),
    (dict(min_new_tokens=-1), 'min_new_tokens=-1 must be at least 0'),
    (dict(bad_words=(3,)), r'bad_words=\(3,\): give sequences of ids'),
    (dict(bad_words=((),)), r'bad_words=\(\(\),\): give sequences of ids'),
    (dict(choices=((1, 2, 3),), max_new_tokens=2), 'max_new_tokens=2 cuts one of decode.choices'),
  ],
)
def test_settings_that_contradict_each_other_are_refused(settings, words):
  with pytest.raises(ValueError, match=words):
    Decoding(**settings)


@pytest.mark.parametrize('kind, value', [(int, 2.0), (int, '3'), (int, True), (float, '0.5')])
def test_a_number_of_another_type_is_named(kind, value):
  class Settings:
    beams: kind

  settings = Settings()
  settings.beams = value
  with pytest.raises(ValueError, match=f'decode.beams={value!r} must be'):
    check_positive(settings)
