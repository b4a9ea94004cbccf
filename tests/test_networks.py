"""Networks of other families at about the cost of a config's Mixer."""
import pytest

from configs import cifar10
from configs import digits
from mixer.core import errors
from mixer.experiments import networks
from mixer.training import assembly


@pytest.mark.parametrize('config', [cifar10, digits])
def test_another_family_costs_about_as_much(config):
  config = config.get_config()
  costs = {}
  for family in networks.FAMILIES:
    other = networks.alike(config, family)
    assembly.check(other)
    assert other.model.name.startswith(f'{family}-')
    costs[family] = networks.multiply_adds(other)
  assert costs['Mixer'] == networks.multiply_adds(config)
  for family, cost in costs.items():
    assert cost / costs['Mixer'] == pytest.approx(1, abs=.35), family


def test_the_rest_of_the_config_stays():
  config = cifar10.get_config()
  other = networks.alike(config, 'BiT')
  assert other.model.stem == 'small' and other.model.tokens_mlp_dim is None
  for name in ('data', 'augment', 'loss', 'schedule', 'optimizer', 'run'):
    assert other[name].to_dict() == config[name].to_dict()


def test_start_weights_are_refused_for_another_family():
  """No network of the other family could load them."""
  config = cifar10.get_config()
  config.start.weights = 'Mixer-B/16-imagenet21k'
  networks.alike(config, 'Mixer')
  for family in ('ViT', 'BiT'):
    with pytest.raises(errors.UserError, match='start.weights.*from scratch'):
      networks.alike(config, family)


@pytest.mark.parametrize('names', [(), ('Mixer', 'CNN')])
def test_unknown_families_are_refused(names):
  with pytest.raises(errors.UserError, match='--networks.*Mixer'):
    networks.families(names)
