"""What `run.py` sets for its process can be put elsewhere, and switched off."""

import jax
import pytest

from transformer.training import machine


@pytest.fixture
def settings(monkeypatch, tmp_path):
  """jax.config's own values, put back afterward, in a home without a cache."""
  names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
  before = {name: getattr(jax.config, name) for name in names}
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  jax.config.update('jax_compilation_cache_dir', None)
  yield monkeypatch
  for name, value in before.items():
    jax.config.update(name, value)


def test_compiled_programs_are_kept_in_the_users_cache(settings, tmp_path):
  machine.keep_compiled()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'transformer')


@pytest.mark.parametrize('folder', ['', '/somewhere/else'])
def test_a_cache_folder_from_the_environment_is_kept(settings, folder):
  settings.setenv('JAX_COMPILATION_CACHE_DIR', folder)
  machine.keep_compiled()
  assert jax.config.jax_compilation_cache_dir is None  # read from the environment by JAX itself


def test_a_cache_that_the_program_chose_is_kept(settings):
  jax.config.update('jax_compilation_cache_dir', '/chosen')
  machine.keep_compiled()
  assert jax.config.jax_compilation_cache_dir == '/chosen'


def test_tuning_can_be_switched_off(settings):
  called = []
  settings.setattr(machine, 'keep_freed_memory', lambda: called.append('memory'))
  settings.setattr(machine, 'keep_compiled', lambda: called.append('compiled'))
  settings.setenv('TRANSFORMER_TUNE', '0')
  machine.tune()
  assert called == []
  settings.delenv('TRANSFORMER_TUNE')
  machine.tune()
  assert called == ['memory', 'compiled']
