"""Looking up the function or class that a name in a config refers to, also in the user's files."""

import difflib
import functools
import importlib
import importlib.machinery
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any


def lookup(key: str, name: Any, table: Mapping[str, Any]) -> Any:
  """Return the function, class or other object that a name refers to.

  Args:
    key: of the config, for the error.
    name: a key of the table, or 'package.module:attribute', or 'path/to/file.py:attribute'.
    table: {name: object} of this package.

  Raises:
    ValueError: there is no such object; names the nearest key of the table.
  """
  if name in table:
    return table[name]
  if not isinstance(name, str) or not is_reference(name):
    try:
      one_of(key, name, table)  # raises
    except ValueError as error:
      raise ValueError(f"{error} For one of your own give 'module:name'") from None
  module, _, attribute = name.rpartition(':')
  try:
    load = load_file if module.endswith('.py') else importlib.import_module
    return getattr(load(module), attribute)
  except (ImportError, OSError, AttributeError) as error:
    raise ValueError(
      f'{key}={name!r} cannot be imported ({error}): give module:name, where the module is on the '
      'Python path, or path/to/file.py:name'
    ) from error


def is_reference(name: str) -> bool:
  """Return whether a name has the form 'module:attribute', unlike TFDS's 'data_set:1.0.0'."""
  module, colon, attribute = name.rpartition(':')
  return bool(module and colon) and attribute.isidentifier()


def reference(value: Any) -> str:
  """Return the name by which `lookup` finds a function or class."""
  module, name = value.__module__, value.__qualname__
  importable = importlib.machinery.PathFinder.find_spec(module.partition('.')[0])
  if importable and getattr(sys.modules.get(module), name, None) is value:
    return f'{module}:{name}'
  return f'{pathlib.Path(inspect.getfile(value)).absolute()}:{name}'


def one_of(key: str, value: Any, known: Iterable[Any]) -> Any:
  """Return the value if it is among the known ones.

  Raises:
    ValueError: it is not; names the key and the nearest known value.
  """
  known = list(known)
  if value not in known:
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0)
    raise ValueError(f'{key}={value!r} is none of {", ".join(known)}: did you mean {near[0]!r}?')
  return value


@functools.cache  # once, so that a name always refers to the same object
def load_file(file: str) -> Any:
  """Return a Python file as a module, registered so that `reference` can name its members."""
  name = f'experiment_{pathlib.Path(file).stem}'
  spec = importlib.util.spec_from_file_location(name, file)
  if spec is None or spec.loader is None:
    raise ImportError(f'{file} is no Python file')
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # where dataclasses and typing look for it
  spec.loader.exec_module(module)
  return module
