"""Where fine-tuning starts: the parameters of another run, or of a published model."""

import difflib
import pathlib
from typing import Any

import jax
from absl import logging

from transformer.modules.adapters import merge
from transformer.modules.config import ModelConfig
from transformer.training.experiment import Experiment, reopen, restore_best
from transformer.training.optimizers import parameter_path
from transformer.training.step import Model
from transformer.training.workdir import Workdir

# What may differ between a model and the one that it starts from: it changes no equation, or adds
# parameters, or is seen in their shapes.
FREE = (
  *('vocab', 'length', 'source_length', 'dropout', 'attention_dropout', 'dtype', 'remat', 'unroll'),
  *('pad', 'platform'),
  *('inputs', 'features', 'stem', 'summary', 'bias_output'),
)

READOUT = ('embed/table', 'output/table', 'embed/bias', 'output/bias')  # one row for each token


def with_given(model: Model, experiment: Experiment) -> Model:
  """The model with every parameter that `config.init` has; the others stay as they are.

  Raises:
    FileNotFoundError, ValueError: there is no model in the folder, or one of another architecture.
  """
  folder = pathlib.Path(experiment.settings.init).expanduser()
  given: Any
  if (folder / 'checkpoints').is_dir():
    workdir = Workdir(folder)
    source = reopen(workdir.read_config(), workdir, experiment.mesh)
    given, config = restore_best(source, workdir)[0], source.model
    merge(given)
  else:
    from transformer.zoo.pretrained import load_pretrained

    given = load_pretrained(folder)[0]
    config = given.config
  _same_equations(experiment.model, config, folder)
  return transplanted(model, given)


def transplanted(model: Model, given: Model) -> Model:
  """The model with the parameters of `given` that have the same path; says which have none.

  A bare encoder's stand for those of the encoder below a head. Of a longer table the first rows
  count: published ones have more than their tokenizer has tokens. A head's last layer for as many
  other classes begins anew.

  Raises:
    ValueError: a parameter has another shape there, or not every block is found.
  """
  ours, theirs = _by_path(model), _by_path(given)
  if not ours.keys() & theirs.keys():
    theirs = {f'encoder/{path}': x for path, x in theirs.items()}
  blocks = {path for path in ours if 'blocks/' in path and '/adapter/' not in path}
  if lost := sorted(blocks - theirs.keys()):
    raise ValueError(
      f'the model to start from has none of {", ".join(lost)}: it has {", ".join(theirs)}. Take a '
      'model of the same kind'
    )
  heads = {path for path in ours.keys() & theirs.keys() if path.startswith('out/')}
  if any(ours[path].shape != theirs[path].shape for path in heads):
    theirs = {path: x for path, x in theirs.items() if path not in heads}
  for path in ours.keys() & theirs.keys():
    if path.endswith(READOUT):
      theirs[path] = theirs[path][: len(ours[path])]
    if ours[path].shape != theirs[path].shape:
      raise ValueError(
        f'{path} is {list(theirs[path].shape)} in the model to start from and '
        f'{list(ours[path].shape)} here: give config.model and the tokenizer the sizes of that one'
      )
  for path in ours.keys() - theirs.keys():
    near = difflib.get_close_matches(path, theirs.keys() - ours.keys(), n=1)
    logging.info('%s is new%s', path, f' (there is {near[0]})' if near else '')
  for path in sorted(theirs.keys() - ours.keys()):
    logging.info('%s of the model to start from is not used', path)

  def take(path, x):
    given = theirs.get(parameter_path(path))
    return x if given is None else jax.device_put(given.astype(x.dtype), x.sharding)

  return jax.tree.map_with_path(take, model)


def _same_equations(here: ModelConfig, there: ModelConfig, folder: pathlib.Path):
  differ = [
    f'--config.model.{name}={value}'
    for name, value in vars(there).items()
    if name not in FREE and value != getattr(here, name)
  ]
  if differ:
    raise ValueError(f'the model in {folder} has other equations: give {" ".join(differ)}')


def _by_path(tree: Any) -> dict[str, Any]:
  return {parameter_path(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
