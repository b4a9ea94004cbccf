"""What every config shares: all the settings there are, and the pre-training.

Each section is the keyword arguments of one function of `mixer`; a value that
nobody set is a placeholder, so that the command line can set it.
"""
import ml_collections
from ml_collections import config_dict

# Table 4 of https://arxiv.org/abs/2105.01601: epochs, learning rate, weight
# decay, RandAugment magnitude, mixup, stochastic depth. On JFT nothing but the
# crop and the flip is used. S on ImageNet and ImageNet-21k is B's row and H
# is L's: the paper has none. L/16 was run on JFT for 7 and for 14 epochs.
TABLE_4 = {
    ('imagenet2012', 'B'): (300, 1e-3, 0.1, 15, 0.5, 0.1),
    ('imagenet2012', 'L'): (300, 1e-3, 0.1, 15, 0.5, 0.1),
    ('imagenet21k', 'B'): (300, 1e-3, 0.1, 10, 0.2, 0.1),
    ('imagenet21k', 'L'): (300, 1e-3, 0.1, 20, 0.5, 0.1),
    ('jft', 'S'): (5, 3e-3, 0.03, 0, 0.0, 0.0),
    ('jft', 'B'): (7, 3e-3, 0.03, 0, 0.0, 0.0),
    ('jft', 'L'): (14, 1e-3, 0.03, 0, 0.0, 0.0),
    ('jft', 'H'): (14, 1e-3, 0.03, 0, 0.0, 0.0),
}
NO_ROW = {'S': 'B', 'H': 'L'}

# Training split, evaluations, and the head's bias, about -log(classes): the
# official ImageNet config's, and the same team's for 21k (they hold out the
# last 1% and the first 51,200 images). JFT's is by analogy.
DATASETS = {
    'imagenet2012': ('train[:99%]', {'minival': 'train[99%:]',
                                     'validation': 'validation'}, -6.9),
    'imagenet21k': ('train[51200:]', {'minival': 'train[:51200]'}, -10.0),
    'jft': ('train[1%:]', {'minival': 'train[:1%]'}, -10.0),
}

# Of recipe `sgd`, for every scale: the best of a sweep on CIFAR-10
# (RESULTS.md). Unproven at ImageNet scale.
SGD_LEARNING_RATE = 0.3


def base():
  """Every section and key, with the values that most runs share."""
  optional = config_dict.placeholder
  return ml_collections.ConfigDict(dict(
      model=dict(
          name='Mixer-B/16', num_classes=optional(int),
          in_channels=optional(int), patch_size=optional(int),
          hidden_dim=optional(int), num_blocks=optional(int),
          tokens_mlp_dim=optional(int), channels_mlp_dim=optional(int),
          dropout_rate=0.0, stochastic_depth=0.0, head_bias=0.0,
          approximate_gelu=True, remat=optional(str), scan=False),
      data=dict(name='', split='train', dir=optional(str),
                access=optional(str), window=1024, crop='inception',
                min_area=0.05, interpolation=optional(str), max_pixels=2**27,
                max_bad_fraction=0.001, on_device=False),
      augment=dict(flip=False, pad_crop=0, rotate=0.0, zoom=0.0, shift=0.0,
                   randaugment_layers=0, randaugment_magnitude=0, erase=0.0,
                   mixup=0.0, cutmix=0.0),
      loss=dict(name='softmax', label_smoothing=0.0),
      schedule=dict(learning_rate=0.1, warmup_steps=0, decay='cosine',
                    end_fraction=0.0),
      optimizer=dict(name='sgd', clip_norm=1.0, momentum=0.9,
                     momentum_dtype=optional(str), b1=0.9, b2=0.999,
                     weight_decay=0.0, decay_pattern='.*/kernel',
                     frozen=optional(str), rates=optional(str)),
      sharding=dict(strategy='replicate', fsdp=optional(int), model=1),
      checkpoint=dict(every=1000, keep=2, best=optional(str)),
      start=dict(weights=optional(str), best=False, dont_load=optional(str),
                 method=optional(str)),
      evals=dict(),
      fewshot=dict(),
      run=dict(seed=0, batch_size=4096, total_steps=optional(int),
               total_epochs=optional(float), image_size=224,
               image_width=optional(int), precision=optional(str), log_every=50,
               eval_every=0, micro_batches=1,
               heartbeat_timeout_seconds=30)))


def evaluation(split, **settings):
  """An `evals.NAME` section; what it leaves open is `data`'s."""
  optional = config_dict.placeholder
  return dict(dict(
      name=optional(str), split=split, dir=optional(str), crop='resmall',
      interpolation=optional(str), on_device=optional(bool),
      labels=optional(str)), **settings)


def fewshot(train, test, **settings):
  """A `fewshot.NAME` section; what it leaves open is `data`'s. Examples are
  picked from `train`; shots, seeds and l2 are big_vision's."""
  optional = config_dict.placeholder
  return dict(dict(
      name=optional(str), train=train, test=test, dir=optional(str),
      crop='resize_crop', interpolation=optional(str), on_device=optional(bool),
      shots=(1, 5, 10, 25), seeds=3, l2=2.0**10), **settings)


def pretrain(model, argument):
  """The pre-training of one scale.

  Args:
    model: its name, such as 'Mixer-B/16'.
    argument: 'DATASET[,RECIPE]', by default 'imagenet2012,sgd'. Recipe `sgd`:
      momentum 0.9, clipping at 1, 10k steps of warm-up, cosine to 0, no weight
      decay; `adam`: the paper's table 4. Epochs, augmentation and loss are the
      same for both.
  """
  dataset, _, recipe = (argument or '').partition(',')
  dataset, recipe = dataset or 'imagenet2012', recipe or 'sgd'
  if dataset not in DATASETS or recipe not in ('sgd', 'adam'):
    raise ValueError(
        f'config argument {argument!r}: expected DATASET[,RECIPE] with DATASET '
        f'one of {", ".join(DATASETS)} and RECIPE one of sgd, adam')
  scale = model.partition('-')[2].partition('/')[0]
  row = (dataset, scale)
  row = row if row in TABLE_4 else (dataset, NO_ROW[scale])
  epochs, rate, decay, magnitude, mixup, depth = TABLE_4[row]
  if dataset == 'jft' and model == 'Mixer-L/32':
    epochs = 7
  split, evals, bias = DATASETS[dataset]

  c = base()
  c.model.update(name=model, stochastic_depth=depth, head_bias=bias)
  c.data.update(name=dataset, split=split)
  c.augment.update(flip=True, randaugment_layers=2 if magnitude else 0,
                   randaugment_magnitude=magnitude, mixup=mixup)
  c.loss.name = 'sigmoid'
  c.schedule.warmup_steps = 10_000
  if recipe == 'sgd':
    c.schedule.update(learning_rate=SGD_LEARNING_RATE, decay='cosine')
  else:
    c.schedule.update(learning_rate=rate, decay='linear', end_fraction=1e-5)
    c.optimizer.update(name='adam', weight_decay=decay)
  c.evals = {name: evaluation(part) for name, part in evals.items()}
  c.run.update(total_epochs=float(epochs), eval_every=5000)
  return c
