"""experiments/scaling: accuracy against the number of training images."""
import json

import numpy as np
import pytest

from configs import digits
from configs import recipe
from mixer.core import errors
from mixer.experiments import scaling


def tiny():
  c = digits.get_config()
  c.model.update(hidden_dim=16, num_blocks=1, tokens_mlp_dim=8,
                 channels_mlp_dim=32, stochastic_depth=0.0)
  c.run.update(total_steps=10, log_every=10)
  return c.lock()


def arrays(path, test_labels):
  """Writes 60 training images, and test images with the given labels."""
  images = np.full((60, 8, 8, 1), 200, np.uint8)
  np.savez(path, train_images=images, train_labels=np.arange(60) % 3,
           test_images=images[:len(test_labels)], test_labels=test_labels)
  return f'arrays:{path}'


def planted(seeds=(0, 1)):
  """What a run returns, with made up figures."""
  sets = [dict(fraction=f, split='train', examples=n, epochs=e)
          for f, n, e in ((.1, 100, 10.), (1, 1000, 1.))]
  rows = [dict(network=name, examples=one['examples'], seed=seed, step=5,
               accuracy=.5 + .1 * seed, few_shot=.4, last_accuracy=.3,
               last_few_shot=.2)
          for seed in seeds for one in sets for name in ('Mixer', 'BiT')]
  return dict(steps=10, metrics=dict(accuracy='eval/test/accuracy',
                                     few_shot='eval/few/accuracy_5shot'),
              sets=sets, rows=rows)


@pytest.mark.parametrize('arguments, words', [
    (dict(fractions=['0']), "--fractions.*above 0.*'0'"),
    (dict(fractions=['10%']), "--fractions.*'10%'"),
    (dict(fractions=['0.5', '3']), "--fractions.*'0.5,3'"),
    (dict(fractions=[]), '--fractions'),
    (dict(fractions=['0.0001']), 'data.split.*holds no examples'),
    (dict(networks=['RNN']), "--networks.*'RNN'"),
])
def test_wrong_arguments_are_refused_before_the_first_run(
    tmp_path, arguments, words):
  with pytest.raises(errors.UserError, match=words):
    scaling.run(tiny(), str(tmp_path / 'w'), **arguments)
  assert not (tmp_path / 'w').exists()


def test_few_shot_models_learn_and_are_tested_on_halves_of_the_evaluation(
    tmp_path):
  config, metric = scaling._with_few_shot(tiny(), 8)
  few = config.fewshot.few
  assert metric == 'eval/few/accuracy_5shot' and tuple(few.shots) == (5,)
  assert (few.train, few.test, few.crop) == (
      'test[0:180]', 'test[180:360]', 'resize')
  mine = tiny().unlock()
  mine.fewshot = dict(mine=recipe.fewshot('train', 'test'))
  assert scaling._with_few_shot(mine, 8) == (
      mine, 'eval/mine/accuracy_5shot')
  mine.fewshot.mine.shots = (1, 10)
  with pytest.raises(errors.UserError, match='fewshot.mine.shots.*1, 10'):
    scaling._with_few_shot(mine, 8)
  mine = tiny().unlock()
  mine.data.name = arrays(tmp_path / 'a.npz', [0, 1, 2, 1])
  with pytest.raises(errors.UserError, match=r'evals.test.split.*classes'):
    scaling._with_few_shot(mine, 8)


def test_the_best_evaluation_of_a_run_counts(tmp_path):
  lines = [dict(step=1, **{'train/loss': 1.})] + [
      dict(step=step, **{'eval/test/accuracy': a, 'eval/few/accuracy_5shot': f})
      for step, a, f in ((2, .5, .1), (4, .7, .2), (6, .7, .3), (8, .6, .4))]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  assert scaling._best(str(tmp_path), planted()['metrics']) == dict(
      step=4, accuracy=.7, few_shot=.2, last_accuracy=.6, last_few_shot=.4)


def test_the_table_and_the_figure_have_a_row_and_a_line_for_each_network(
    capsys):
  scaling.show(planted())
  lines = [' '.join(line.split()) for line in
           capsys.readouterr().out.splitlines()]
  assert 'network 100 images, 10 epochs 1,000 images, 1 epochs' in lines
  assert 'BiT 55.00% ±7.07 55.00% ±7.07' in lines
  few, accuracy = scaling.draw(planted()).axes
  assert [line.get_label() for line in few.lines] == ['Mixer', 'BiT']
  assert accuracy.lines[1].get_xydata().tolist() == [[100, .55], [1000, .55]]
  assert len(scaling.draw(planted(seeds=(0,))).axes[0].collections) == 0


@pytest.mark.slow   # whole runs
def test_networks_train_on_nested_subsets_for_equal_steps(tmp_path):
  """Also where a subset lacks classes, and with the same command again."""
  arguments = dict(fractions=('0.005', '1'), networks=('Mixer', 'ViT'))
  found = scaling.run(tiny(), str(tmp_path), **arguments)
  assert [one['examples'] for one in found['sets']] == [7, 1437]
  assert [one['split'] for one in found['sets']] == ['train[0:7]', 'train']
  assert len(found['rows']) == 4 and found['steps'] == 10
  for folder in ('Mixer-7-0', 'ViT-7-0', 'Mixer-1437-0', 'ViT-1437-0'):
    config = json.loads((tmp_path / folder / 'config.json').read_text())
    assert config['run']['total_steps'] == 10
    last = json.loads((tmp_path / folder / 'metrics.jsonl').read_text()
                      .splitlines()[-1])
    assert last['step'] == 10 and 0 <= last['eval/few/accuracy_5shot'] <= 1
  assert scaling.run(tiny(), str(tmp_path), **arguments) == found
