"""The evaluations of a config: metrics equal plain NumPy and scikit-learn."""
import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image
import pytest
from sklearn import datasets
from sklearn import linear_model

from configs import digits
from configs import finetune
from configs import mixer_b16
from configs import recipe
from mixer import pretrained
from mixer.analysis import overrides
from mixer.analysis import scoring
from mixer.core import errors
from mixer.evaluation import classification
from mixer.evaluation import fewshot
from mixer.evaluation import suite
from mixer.training import assembly
from mixer.training import losses
from mixer.training import run


def tiny(**evals):
  c = digits.get_config()
  c.model.update(hidden_dim=16, num_blocks=2, tokens_mlp_dim=8,
                 channels_mlp_dim=32)
  c.fewshot = dict(few=recipe.fewshot('train', 'test', crop='resize',
                                      shots=(1, 5), seeds=2))
  c.run.update(total_steps=20, eval_every=0, log_every=20)
  c.augment.update(rotate=0., zoom=0., shift=0.)   # compiles sooner
  c.checkpoint.best = 'eval/few/accuracy_5shot'
  return c.lock()


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'digits'
  return workdir, run.train(tiny(), str(workdir))


def digits_arrays():
  """(images in [-1, 1], labels, whether in the test split)."""
  found = datasets.load_digits()
  pixels = np.round(found.images * (255 / 16))[..., None]
  return ((pixels - 127.5) / 127.5).astype(np.float32), found.target, (
      np.arange(len(pixels)) % 5 == 0)


def outputs(workdir):
  """(logits, pre-logits) of all digits, straight from the network."""
  network = pretrained.open_network(workdir)
  images, *_ = digits_arrays()
  logits, out = network.model.apply({'params': network.params}, images)
  return np.asarray(logits), np.asarray(out['pre_logits'])


def test_metrics_equal_those_computed_with_numpy(trained):
  workdir, scores = trained
  _, labels, test = digits_arrays()
  logits = outputs(workdir)[0][test].astype(np.float64)
  order = np.argsort(-logits, axis=1)
  assert scores['eval/test/accuracy'] == np.mean(order[:, 0] == labels[test])
  assert scores['eval/test/accuracy_top5'] == np.mean(
      (order[:, :5] == labels[test][:, None]).any(1))
  log_sum = np.log(np.exp(logits).sum(1))
  loss = np.mean(log_sum - logits[np.arange(len(logits)), labels[test]])
  assert scores['eval/test/loss'] == pytest.approx(loss, rel=1e-5)
  assert scores['eval/test/examples'] == test.sum() == 360


def test_few_shot_accuracy_equals_scikit_learns_ridge(trained):
  """The network computes the features and `pick` picks the examples;
  scikit-learn does the rest."""
  workdir, scores = trained
  _, labels, test = digits_arrays()
  features = outputs(workdir)[1].astype(np.float64)
  x, y = features[~test], labels[~test]
  for shot in (1, 5):
    right = []
    for seed in range(2):
      i = fewshot.pick(y, shots=shot, seed=seed, num_classes=10)
      mean, deviation = x[i].mean(0), x[i].std(0) + 1e-5
      made = lambda f: np.c_[(f - mean) / deviation, np.full(len(f), 100.0)]
      ridge = linear_model.Ridge(alpha=2.0**10, fit_intercept=False)
      ridge.fit(made(x[i]), 2 * np.eye(10)[y[i]] - 1)
      right.append(np.mean(
          ridge.predict(made(features[test])).argmax(1) == labels[test]))
    # Features in batches of another size differ in their last bits.
    assert scores[f'eval/few/accuracy_{shot}shot'] == pytest.approx(
        np.mean(right), abs=1.5 / 360)


def test_the_command_gives_the_metrics_of_the_run(trained):
  """Its predictions and worst classes are right too, and fit for JSON."""
  workdir, scores = trained
  network = pretrained.open_network(workdir)
  config = scoring.requested(scoring.config_of(network), network)
  result, rows = scoring.evaluate(network, config, batch_size=100)
  rows = list(rows)
  json.dumps([result, rows])
  assert result['evals']['test']['accuracy'] == scores['eval/test/accuracy']
  assert result['fewshot']['few']['5'] == pytest.approx(
      scores['eval/few/accuracy_5shot'], abs=1.5 / 360)
  logits = outputs(workdir)[0][digits_arrays()[2]]
  assert [r['classes'][0] for r in rows] == list(map(str, logits.argmax(1)))
  worst = result['evals']['test']['worst_classes'][0]
  _, labels, test = digits_arrays()
  of_it = labels[test] == worst['class']
  assert worst['accuracy'] == np.mean(logits[of_it].argmax(1) == worst['class'])


def test_the_best_checkpoint_may_be_chosen_by_few_shot_accuracy(trained):
  workdir, _ = trained
  assert pretrained.open_network(workdir, best=True).params
  config = tiny()
  config.checkpoint.best = 'eval/few/accuracy_7shot'
  with pytest.raises(errors.UserError, match='accuracy_5shot'):
    run.train(config, str(workdir.parent / 'other'))


def test_flags_add_evaluations_to_the_config(trained):
  """--real adds one for ImageNet's validation set, --v2 adds ImageNet-V2, and
  --fewshot adds a few-shot evaluation for each."""
  network = pretrained.open_network(trained[0])
  config = mixer_b16.get_config()
  evals = scoring.requested(config, network, real='real.json', v2=True,
                            fewshot='train[:65000]')['evals']
  assert set(evals) == {'minival', 'validation', 'validation_real', 'v2'}
  assert evals['validation_real']['labels'] == 'real.json'
  assert evals['v2']['name'] == 'imagenet_v2/matched-frequency'
  assert evals['v2']['crop'] == evals['validation']['crop'] == 'resmall'
  tuned = finetune.get_config('b16,imagenet2012')
  evals = scoring.requested(tuned, network, v2=True)['evals']
  assert evals['v2']['crop'] == evals['validation']['crop'] == 'resize_crop'
  assert evals['v2']['interpolation'] == evals['validation']['interpolation']
  for name in ('imagenet2012:5.1.0', 'folder:/photos'):
    config.data.name = name
    assert 'validation_real' in scoring.requested(
        config, network, real='real.json')['evals']
  config = mixer_b16.get_config()
  made = scoring.requested(config, network, fewshot='train[:65000]')
  assert made['fewshot']['validation']['train'] == 'train[:65000]'
  assert made['fewshot']['validation']['crop'] == 'resize_crop'
  made = scoring.requested(config, network, fewshot='train[:65000]', v2=True,
                           real='real.json')
  assert set(made['fewshot']) == {'minival', 'validation'}
  with pytest.raises(errors.UserError, match='ReaL.* has test: digits test'):
    scoring.requested(tiny(), network, real='real.json')


def test_one_image_is_scored_on_eight_devices(trained):
  network = pretrained.open_network(trained[0])
  result, rows = scoring.evaluate(network, dict(data=dict(name='digits'), evals={
      'one': dict(split='test[:1]', crop='resize')}), batch_size=1)
  row, = rows
  assert result['evals']['one']['examples'] == 1 and jax.device_count() == 8
  logits = outputs(trained[0])[0][digits_arrays()[2]]
  assert row['classes'][0] == str(logits[0].argmax())


def test_released_weights_keep_the_preprocessing_they_were_trained_with(
    trained):
  network = pretrained.open_network(trained[0])
  like = dict(crop='resize_crop', interpolation='bicubic')
  other = type(network)(network.model, network.params, dict(
      network.card, preprocessing=like), 'weights.npz')
  evals = scoring.requested(mixer_b16.get_config(), other)['evals']
  assert {(e['crop'], e['interpolation']) for e in evals.values()} == {
      ('resize_crop', 'bicubic')}
  # A file is not a run's checkpoint, even if its folder has that name.
  other = dataclasses.replace(other, name='x/checkpoints/weights.npz')
  assert scoring.requested(mixer_b16.get_config(), other)['evals'] == evals
  evals = scoring.requested(mixer_b16.get_config(), network)['evals']
  assert {e['crop'] for e in evals.values()} == {'resmall'}


@pytest.mark.parametrize('key, value, data, word', [
    ('data.dir', 'x', 'digits', ''), ('data.split', 'train', None, ''),
    ('evals.x.crop', 'resize', None, ''), ('run.image_size', 8, 'digits', ''),
    ('run.image_size', 9, None, '8x8'), ('run.seed', 1, None, 'evals and'),
    ('data.crop', 'bit', None, 'interpolation'),
    ('data.balance', 'classes', None, 'does not read'),
    ('evals.x.split', 'train', 'digits', '--data=digits replaces'),
    ('fewshot.x.shots', (1,), 'digits', '--data=digits replaces'),
    ('data.name', 'x', 'digits', 'give only one'),
])
def test_an_override_that_would_change_nothing_is_refused(
    key, value, data, word, trained):
  network = pretrained.open_network(trained[0])
  check = lambda network: overrides.check(key, value, network, data)
  if word:
    with pytest.raises(errors.UserError, match=f'--config.{key}: .*{word}'):
      check(network)
    return
  check(network)
  released = dataclasses.replace(network, name='weights.npz')
  if key == 'evals.x.crop':
    with pytest.raises(errors.UserError, match='preprocessing'):
      check(released)
  else:
    check(released)


def test_a_split_with_other_classes_is_for_few_shot_evaluation_only(
    trained, tmp_path):
  network = pretrained.open_network(trained[0])
  images = np.zeros((20, 8, 8, 1), np.uint8)
  images[::2] = 200
  np.savez(tmp_path / 'x.npz', images=images, labels=np.arange(20) % 2,
           class_names=['dark', 'light'])
  config = ml_collections.ConfigDict(dict(
      data=dict(name=f'arrays:{tmp_path / "x.npz"}'), fewshot={},
      evals=dict(all=dict(split='train', crop='resize'))))
  with pytest.raises(errors.UserError, match="class 0 .* is 'dark'"):
    scoring.evaluate(network, config, batch_size=8)
  config.fewshot = dict(all=dict(train='train', test='train', shots=(1,)))
  result, rows = scoring.evaluate(network, config, batch_size=8)
  assert result['evals'] == {} and not list(rows)
  assert result['fewshot'] == {'all': {'1': 1.0}}


def test_a_data_set_is_scored_whole_and_its_classes_are_found_by_name(
    trained, tmp_path):
  """Two of the network's classes, in another order: over all logits, and over
  those of the two."""
  network = pretrained.open_network(trained[0])
  images, labels, _ = digits_arrays()
  chosen = np.isin(labels, (7, 2))
  pixels = np.round(images[chosen] * 127.5 + 127.5).astype(np.uint8)
  np.savez(tmp_path / 'x.npz', images=pixels, class_names=['7', '2'],
           labels=(labels[chosen] == 2).astype(np.int32))
  config = scoring.requested(scoring.config_of(network), network,
                             data=f'arrays:{tmp_path / "x.npz"}')
  result, rows = scoring.evaluate(network, config, batch_size=64)
  assert set(result['evals']) == {'all', 'all_subset'}
  logits = outputs(trained[0])[0][chosen]
  found = result['evals']
  assert found['all']['examples'] == chosen.sum() == len(list(rows)) / 2
  assert (found['all']['classes'], found['all_subset']['classes']) == (10, 2)
  assert found['all']['accuracy'] == pytest.approx(
      np.mean(logits.argmax(1) == labels[chosen]), abs=0.004)
  assert found['all_subset']['accuracy'] == pytest.approx(np.mean(
      np.array([7, 2])[logits[:, [7, 2]].argmax(1)] == labels[chosen]),
                                                          abs=0.004)
  np.savez(tmp_path / 'y.npz', images=pixels, class_names=['7', 'x'],
           labels=(labels[chosen] == 2).astype(np.int32))
  config = scoring.requested({'data': {}, 'evals': {}}, network,
                             data=f'arrays:{tmp_path / "y.npz"}')
  with pytest.raises(errors.UserError, match="class 1 .* is 'x'.* lacks 1 of"):
    scoring.evaluate(network, config, batch_size=64)


def folder(root, classes, each=20):
  for name in classes:
    (root / name).mkdir(parents=True)
    for i in range(each):
      pixels = np.full((8, 8, 3), 10 * classes.index(name) + i, np.uint8)
      Image.fromarray(pixels).save(root / name / f'{i}.png')
  return f'folder:{root}'


def on_images(data, **section):
  c = tiny()
  c.data.update(name=data, on_device=True)
  c.model.in_channels = 3
  c.fewshot = dict()
  c.evals = dict(validation=recipe.evaluation('validation', crop='resize',
                                              **section))
  c.checkpoint.best = None
  c.run.total_steps = 2
  return c


@pytest.mark.slow   # whole runs
def test_a_carved_split_is_the_same_in_training_and_evaluation(tmp_path):
  """It is every tenth image, also if the training split is not opened."""
  name = folder(tmp_path / 'photos', ('a', 'b'))
  scores = run.train(on_images(name), str(tmp_path / 'run'))
  network = pretrained.open_network(tmp_path / 'run')
  config = scoring.requested(scoring.config_of(network), network)
  result, rows = scoring.evaluate(network, config, batch_size=8)
  found = result['evals']['validation']
  assert found['examples'] == scores['eval/validation/examples'] == 4
  assert found['loss'] == pytest.approx(scores['eval/validation/loss'])
  assert [r['labels'] for r in rows] == [['a'], ['a'], ['b'], ['b']]


def test_training_refuses_an_evaluation_with_other_classes(tmp_path):
  """If a class is missing, the numbers of the others are shifted."""
  name = folder(tmp_path / 'three', ('ant', 'bee', 'cat'))
  other = folder(tmp_path / 'two', ('bee', 'cat'))
  config = on_images(name, name=other)
  config.evals.validation.split = 'train'
  with pytest.raises(errors.UserError, match=(
      "evals.validation: class 0 .*bee.* lack some .*mixer.evaluate --data")):
    run.train(config, str(tmp_path / 'run'))


def test_few_shot_training_examples_must_include_every_tested_class(trained):
  network = pretrained.open_network(trained[0])
  config = ml_collections.ConfigDict(dict(
      data=dict(name='digits'), evals={},
      fewshot=dict(few=dict(train='train[:3]', test='test', shots=(1,)))))
  with pytest.raises(errors.UserError, match='no example to learn from'):
    scoring.evaluate(network, config, batch_size=64)


def outcome_of(labels, logits, **flags):
  rows = len(labels)
  batch = dict(mask=jnp.ones(rows, bool), bad=jnp.zeros(rows, bool),
               position=jnp.arange(rows))
  batch.update({k: jnp.array(v) for k, v in flags.items()})
  made = classification.make_outcome(
      lambda params, batch, resident: jnp.array(logits, jnp.float32),
      lambda batch, resident: (jnp.array(labels, jnp.int32), None),
      loss_of=losses.of_labels('softmax'))
  return lambda: classification.collect(
      'evals.x', lambda *_: jax.jit(made)({}, batch, None), {}, [None], None,
      expected=rows)


def test_any_label_is_right_and_examples_without_one_are_left_out():
  """As with ReaL. An image that cannot be decoded is counted as bad."""
  found = outcome_of(
      labels=[[0, 1], [2, -1], [-1, -1], [0, -1], [1, -1]],
      logits=np.eye(3)[[1, 0, 0, 0, 1]],
      mask=[True] * 4 + [False], bad=[False] * 4 + [True])()
  scores = classification.score('x', found)
  assert scores['eval/x/accuracy'] == pytest.approx(2 / 3)
  assert (scores['eval/x/examples'], scores['eval/x/unlabelled'],
          scores['eval/x/bad']) == (3, 1, 1)
  loss, counted = found['loss'], [0, 1, 3]
  assert scores['eval/x/loss'] == pytest.approx(loss[counted].mean())
  scores = classification.score('x', found, negatives=True)
  assert scores['eval/x/loss'] == pytest.approx(loss[:4].mean())


def test_outcomes_are_in_the_order_of_the_split():
  """Also if the rows of a batch are not."""
  found = outcome_of([[0], [1], [2]], np.eye(3), position=[2, 0, 1])()
  assert found['labels'][:, 0].tolist() == [1, 2, 0]
  assert found['position'].tolist() == [0, 1, 2]


def test_a_missing_example_is_an_error():
  with pytest.raises(errors.RunError, match='counted 1 of 2'):
    outcome_of([[0], [0]], [[1.0, 0], [1, 0]], mask=[True, False])()
  with pytest.raises(errors.RunError, match='no example has a label'):
    classification.score('x', outcome_of([[-1]], [[1.0, 0]])())


def test_probabilities_are_a_softmax_or_sigmoid_as_the_loss_says():
  logits = jnp.array([[0.0, 2.0, -1.0]])
  assert classification.probabilities(logits, 'softmax').sum() == (
      pytest.approx(1))
  np.testing.assert_allclose(
      classification.probabilities(logits, 'sigmoid'),
      1 / (1 + np.exp(-np.array(logits))), rtol=1e-6)


def test_the_fewshot_section_of_configs_has_the_defaults_of_its_reader():
  section = recipe.fewshot('train', 'test')
  assert fewshot.read_section() == fewshot.read_section(**section)
  common, parts, settings = fewshot.read_section(**section)
  assert parts == dict(train='train', test='test')
  assert settings == dict(shots=(1, 5, 10, 25), seeds=(0, 1, 2), l2=1024.0)
  assert common['crop'] == 'resize_crop'


@pytest.mark.slow   # whole runs
def test_images_need_not_be_square(tmp_path):
  """A run may have a height and a width. Fine-tuning it at twice the height
  starts from the paper's block-diagonal enlargement, which computes the mean
  of both halves."""
  config = tiny()
  config.checkpoint.best = None
  config.fewshot = dict()
  config.run.update(image_size=8, image_width=12, total_steps=2)
  run.train(config, str(tmp_path / 'small'))
  small = pretrained.open_network(tmp_path / 'small')
  assert small.image_size == (8, 12)
  config.run.update(image_size=16, total_steps=1)
  config.schedule.learning_rate = 1e-12
  config.start.weights = str(tmp_path / 'small')
  run.train(config, str(tmp_path / 'tall'))
  tall = pretrained.open_network(tmp_path / 'tall')
  assert tall.image_size == (16, 12) and tall.model.tokens_mlp_dim == 16
  images = np.random.default_rng(0).uniform(-1, 1, (3, 16, 12, 1))
  logits = lambda n, x: n.model.apply({'params': n.params}, x)[0]
  halves = [logits(small, images[:, i:i + 8]) for i in (0, 8)]
  np.testing.assert_allclose(logits(tall, images), np.mean(halves, axis=0),
                             atol=1e-5)
  with pytest.raises(errors.UserError, match='image_width'):
    assembly.Settings(batch_size=1, total_steps=1, image_size=(8, 8),
                      image_width=8)


@pytest.mark.parametrize('sections,expected', (
    (dict(evals=dict(test=dict(crp='resmall'))), r"config.evals.test: 'crp'"),
    (dict(evals=dict(test=dict(split='test', image_size=8))),
     r"config.evals.test: 'image_size' is unknown"),
    (dict(evals={}, fewshot=dict(a=dict(tst='train'))),
     r"config.fewshot.a: 'tst' is unknown; did you mean 'test'"),
    (dict(evals=dict(test={})), 'evals.test.split is not set'),
    (dict(evals=dict(test=dict(name='folder:/nowhere', split='test',
                               crop='resize'))),
     r'^evals.test.name: '),
    (dict(evals=dict(test=dict(split='test', crop='resize'))), r'^data.name: ')))
def test_a_wrong_section_names_its_key(sections, expected):
  config = dict(data=dict(name='arrays:/nowhere.npz')) | sections
  with pytest.raises(errors.UserError, match=expected):
    suite.open_evaluations(config, 8)
