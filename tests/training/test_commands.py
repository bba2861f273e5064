"""The error of a command whose library is not installed."""

import sys
import types

import pytest

from experiments import retrieval_cranfield, yesno
from transformer.training import commands


@pytest.mark.parametrize(
  'experiment, module, extra',
  [(yesno, 'jiwer', 'audio'), (retrieval_cranfield, 'pytrec_eval', 'retrieval')],
)
def test_a_library_that_is_missing_is_named_with_its_extra_before_the_training(
  experiment, module, extra, monkeypatch, capsys, tmp_path
):
  monkeypatch.setenv('TRANSFORMER_TUNE', '0')
  monkeypatch.setitem(sys.modules, module, None)
  flags = types.SimpleNamespace(
    config=experiment.get_config(), workdir=str(tmp_path / 'run'), mode='train'
  )
  with pytest.raises(SystemExit) as end:
    commands.main(flags)
  error = capsys.readouterr().err
  assert end.value.code == commands.USAGE
  assert error.startswith(f'error: {module} is not installed') and f"'.[{extra}]'" in error
  assert not (tmp_path / 'run').exists()
