"""The settings that all configs share, and the pre-training recipes.

`base()` lists every section and key of a config. Each section holds the keyword
arguments of one function in `mixer`, whose docstring explains the keys. A key
whose default is a placeholder has no value yet, but its type is known, so the
command line can set it: --config.model.num_classes=10.
"""
import ml_collections
from ml_collections import config_dict

# Table 4 of https://arxiv.org/abs/2105.01601: epochs, learning rate, weight
# decay, RandAugment magnitude, mixup, stochastic depth. On JFT the paper uses
# crops and flips only. It trained L/16 on JFT for 7 and for 14 epochs.
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
# The paper has no row for S and H on ImageNet and ImageNet-21k. They use the
# row of the nearest scale.
NO_ROW = {'S': 'B', 'H': 'L'}

# Training split, evaluation splits, and initial bias of the head, which is
# about -log(number of classes). The values for ImageNet are those of the
# official config. The ones for ImageNet-21k come from the same team's config,
# which holds out the first 51,200 images. The ones for JFT are our choice, by
# analogy.
DATASETS = {
    'imagenet2012': ('train[:99%]', {'minival': 'train[99%:]',
                                     'validation': 'validation'}, -6.9),
    'imagenet21k': ('train[51200:]', {'minival': 'train[:51200]'}, -10.0),
    'jft': ('train[1%:]', {'minival': 'train[:1%]'}, -10.0),
}

# Peak learning rate of recipe `sgd` for every scale: the best value of a sweep
# on CIFAR-10 (RESULTS.md). It has not been tested at ImageNet scale.
SGD_LEARNING_RATE = 0.3


def base() -> ml_collections.ConfigDict:
  """Returns a config with every section and key, and the usual values."""
  optional = config_dict.placeholder
  return ml_collections.ConfigDict(dict(
      # A placeholder keeps the value of the scale in `name`. num_classes and
      # in_channels then come from the data.
      model=dict(
          name='Mixer-B/16', num_classes=optional(int),
          in_channels=optional(int), patch_size=optional(int),
          hidden_dim=optional(int), num_blocks=optional(int),
          tokens_mlp_dim=optional(int), channels_mlp_dim=optional(int),
          num_heads=optional(int), pool=optional(str), stem=optional(str),
          dropout_rate=0.0, stochastic_depth=0.0, head_bias=0.0,
          approximate_gelu=True, token_mixing=optional(str),
          pixel_order=optional(str), remat=optional(str), scan=False),
      data=dict(name='', split='train', dir=optional(str),
                access=optional(str), window=1024, crop='inception',
                min_area=0.05, interpolation=optional(str), max_pixels=2**27,
                max_bad_fraction=0.001, on_device=False,
                balance=optional(str), held_out=optional(str)),
      # Every augmentation is off.
      augment=dict(flip=False, pad_crop=0, rotate=0.0, zoom=0.0, shift=0.0,
                   randaugment_layers=0, randaugment_magnitude=0, erase=0.0,
                   mixup=0.0, cutmix=0.0),
      loss=dict(name='softmax', label_smoothing=0.0,
                class_weights=optional(str)),
      schedule=dict(learning_rate=0.1, warmup_steps=0, decay='cosine',
                    end_fraction=0.0),
      # `momentum` belongs to sgd, `b1` and `b2` to adam.
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
      # Exactly one of total_steps and total_epochs has to be set.
      run=dict(seed=0, batch_size=4096, total_steps=optional(int),
               total_epochs=optional(float), image_size=224,
               image_width=optional(int), precision=optional(str), log_every=50,
               eval_every=0, patience=0, average=optional(float),
               micro_batches=1, nonfinite='skip', heartbeat_timeout_seconds=30,
               stall_seconds=300.0)))


def evaluation(split: str, **settings: object) -> dict[str, object]:
  """Returns an `evals.NAME` section.

  Args:
    split: the split to evaluate, such as 'test' or 'train[99%:]'.
    **settings: values that differ from the defaults. Keys that remain
      placeholders take their value from the `data` section.
  """
  optional = config_dict.placeholder
  return dict(dict(
      name=optional(str), split=split, dir=optional(str), crop='resmall',
      interpolation=optional(str), on_device=optional(bool),
      labels=optional(str)), **settings)


def fewshot(train: str, test: str, **settings: object) -> dict[str, object]:
  """Returns a `fewshot.NAME` section.

  The default shots, seeds and l2 are big_vision's.

  Args:
    train: the split from which the labelled examples are drawn.
    test: the split to evaluate.
    **settings: values that differ from the defaults. Keys that remain
      placeholders take their value from the `data` section.
  """
  optional = config_dict.placeholder
  return dict(dict(
      name=optional(str), train=train, test=test, dir=optional(str),
      crop='resize_crop', interpolation=optional(str), on_device=optional(bool),
      shots=(1, 5, 10, 25), seeds=3, l2=2.0**10), **settings)


def pretrain(model: str, argument: str) -> ml_collections.ConfigDict:
  """Returns the pre-training config of one scale.

  Args:
    model: name of the network, such as 'Mixer-B/16'.
    argument: 'DATASET[,RECIPE]'; empty parts mean 'imagenet2012' and 'sgd'.
      Recipe `sgd` has momentum 0.9, clipping at 1, a warm-up of 10k steps,
      cosine decay to 0 and no weight decay. Recipe `adam` is table 4 of the
      paper. Both use the paper's epochs, augmentation and loss.

  Raises:
    ValueError: if the data set or the recipe is unknown.
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
  # The training cost in table 3 of the paper shows that L/32 had 7 epochs.
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
