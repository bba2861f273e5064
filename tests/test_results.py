"""The README claims what was recorded, and nothing else."""

from experiments.results import __main__ as results


def test_the_table_is_that_of_the_records():
  readme = results.README.read_text(encoding='utf-8')
  assert results.written(readme) == readme
  assert results.table().count('\n') == 2 + len(list(results.HERE.glob('*.json')))
