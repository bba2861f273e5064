"""The equations of traced programs."""

import jax


def equations(jaxpr):
  """All equations, those inside of jit, scan, remat and custom derivatives too."""
  for e in jaxpr.eqns:
    yield e
    for inner in jax.tree.leaves(list(e.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        yield from equations(inner)
