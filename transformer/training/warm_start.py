"""Warm start: take the initial parameters from another run or from a published model."""

import difflib
import pathlib
from typing import Any

import jax
from absl import logging

from transformer.modules.adapters import merge
from transformer.modules.config import ModelConfig
from transformer.modules.heads import DualEncoder
from transformer.training.experiment import Experiment, reopen, restore_best
from transformer.training.optimizers import parameter_path
from transformer.training.step import Model
from transformer.training.workdir import Workdir, is_run

# Arguments of ModelConfig that may differ between the two models: they change no equation, or add
# parameters, or change shapes of parameters, which are compared.
MAY_DIFFER = (
  *('vocab', 'max_length', 'max_source_length', 'dropout', 'attention_dropout', 'dtype', 'remat'),
  *('unroll', 'pad', 'platform', 'modality', 'features', 'stem', 'pooling', 'bias_output'),
  *('pooler_norm', 'pooled_size'),
)
TOKEN_TABLES = ('embed/table', 'output/table', 'embed/bias', 'output/bias')  # a row for each token


def warm_start(model: Model, experiment: Experiment) -> Model:
  """Return the model with the parameters that the model in `config.warm_start` also has.

  Args:
    model: with random parameters, which stay where the other model has none.
    experiment: of the run to start.

  Of a published CLIP or SigLIP that is the encoder of texts, or that of images.

  Raises:
    FileNotFoundError, ValueError: there is no model in the folder, or its architecture differs.
  """
  folder = pathlib.Path(experiment.settings.warm_start).expanduser()
  source: Any
  if is_run(folder):
    workdir = Workdir(folder)
    run = reopen(workdir.read_config(), workdir, experiment.mesh)
    source, config = restore_best(run, workdir)[0], run.model
    merge(source)
  else:
    from transformer.zoo.pretrained import load_pretrained

    source = load_pretrained(folder)[0]
    if isinstance(source, DualEncoder):  # take the encoder of this modality
      source = source.text if experiment.model.modality == 'tokens' else source.image
    config = source.config
  _check_equations(experiment.model, config, folder)
  return copy_parameters(source, model)


def copy_parameters(source: Model, model: Model) -> Model:
  """Return `model` with the parameters of `source` that have the same path; log the others.

  - The parameters of an encoder without a head are copied to the encoder of a model with a head.
  - If a token table of `source` is longer, its first rows are copied, because published tables have
    more rows than their tokenizers have tokens.
  - The last layer of a head with another number of classes is not copied.

  Raises:
    ValueError: a parameter has another shape in `source`, or a block is missing there.
  """
  ours, theirs = _by_path(model), _by_path(source)
  if not ours.keys() & theirs.keys():
    theirs = {f'encoder/{path}': x for path, x in theirs.items()}
  blocks = {path for path in ours if 'blocks/' in path and '/adapter/' not in path}
  if missing := sorted(blocks - theirs.keys()):
    raise ValueError(
      f'the model to start from has none of {", ".join(missing)}: it has {", ".join(theirs)}. Use '
      'a model of the same kind'
    )
  heads = {path for path in ours.keys() & theirs.keys() if path.startswith('out/')}
  if any(ours[path].shape != theirs[path].shape for path in heads):
    theirs = {path: x for path, x in theirs.items() if path not in heads}
  for path in ours.keys() & theirs.keys():
    if path.endswith(TOKEN_TABLES):
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
    source_x = theirs.get(parameter_path(path))
    return x if source_x is None else jax.device_put(source_x.astype(x.dtype), x.sharding)

  return jax.tree.map_with_path(take, model)


def _check_equations(config: ModelConfig, source: ModelConfig, folder: pathlib.Path):
  """Raise ValueError if the config of the model in a folder differs in more than MAY_DIFFER."""
  differ = [
    f'--config.model.{name}={value}'
    for name, value in vars(source).items()
    if name not in MAY_DIFFER and value != getattr(config, name)
  ]
  if differ:
    raise ValueError(f'the model in {folder} has other equations: give {" ".join(differ)}')


def _by_path(tree: Any) -> dict[str, Any]:
  return {parameter_path(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
