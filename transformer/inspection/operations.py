"""Counting the operations of matrix products in the program that JAX traces."""

import math
from collections.abc import Callable
from typing import Any

import jax


def count(f: Callable, *arguments: Any) -> int:
  """Return the number of operations of all matrix products and convolutions in f(*arguments).

  A product of [M, K] and [K, N] has 2 M K N. The body of a scan counts for each iteration, that
  of other loops once; of branches the most expensive counts; products in kernels are not counted.

  Args:
    f: a function of arrays.
    arguments: trees of arrays or ShapeDtypeStructs.

  >>> x = jax.ShapeDtypeStruct((4, 8), 'float32')
  >>> count(lambda x: x @ x.T, x)
  256
  """
  return _of_program(jax.make_jaxpr(f)(*arguments))


def _of_program(program: Any) -> int:
  return sum(map(_of_equation, getattr(program, 'jaxpr', program).eqns))


def _of_equation(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  size = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    return 2 * size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
  if name == 'conv_general_dilated':
    kernel, numbers = equation.invars[1].aval.shape, params['dimension_numbers']
    return 2 * size * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
  inner = [_of_program(p) for value in params.values() for p in _programs(value)]
  if name == 'cond':
    return max(inner, default=0)
  if name.startswith('custom_'):  # the function; the others are its derivatives
    return next(iter(inner), 0)
  return sum(inner) * params.get('length', 1) if name == 'scan' else sum(inner)


def _programs(value: Any) -> list[Any]:
  """Return the programs among the parameters of an equation."""
  if isinstance(value, tuple | list):
    return [program for item in value for program in _programs(item)]
  return [value] if hasattr(value, 'eqns') or hasattr(value, 'jaxpr') else []
