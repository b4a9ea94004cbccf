"""The figures of the Mixer paper: tables 2 and 3, and the sizes of table 1.

Source: https://arxiv.org/abs/2105.01601, version 4. The settings of table 1 are
those of `mixer.MlpMixer`, so only its parameter counts are here. Table 2 gives
an image size for the Mixers only; the sizes of the other rows are those at
which their own papers fine-tuned (https://arxiv.org/abs/2010.11929 for ViT,
https://arxiv.org/abs/1912.11370 for BiT).
"""
import dataclasses

# Pre-training data, by their names in configs: 1.3M images of ImageNet, 14M of
# ImageNet-21k, and 300M of JFT.
I1K, I21K, JFT = 'imagenet2012', 'imagenet21k', 'jft'

# Table 1: millions of parameters at 224 pixels, without the head.
MILLIONS = {'Mixer-S/32': 19, 'Mixer-S/16': 18, 'Mixer-B/32': 60,
            'Mixer-B/16': 59, 'Mixer-L/32': 206, 'Mixer-L/16': 207,
            'Mixer-H/14': 431}


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of table 2 or 3; None is what the paper does not give.

  Attributes:
    name: of the network, as `models.create` takes it if this code has it.
    data: of the pre-training; `I1K`, `I21K`, `JFT` or other words.
    size: side of the images in pixels, in fine-tuning.
    epochs: of the pre-training.
    top1: accuracy on ImageNet in percent, after fine-tuning.
    real: accuracy with the labels of ReaL in percent.
    avg5: mean accuracy on five data sets in percent.
    speed: images per second and TPUv3 core, in prediction.
    core_days: cost of the pre-training in TPUv3 core-days.
    vtab: mean accuracy on VTAB-1k in percent.
    marks: the paper's: ‡ for a cost that is extrapolated, ☎ for results from
      private communication.
  """
  name: str
  data: str
  size: int | None
  epochs: int | None
  top1: float
  real: float | None
  avg5: float | None
  speed: int | None
  core_days: int
  vtab: float | None = None
  marks: str = ''


TABLE_2 = (
    Row('HaloNet-H4', I21K, None, None, 85.8, None, None, 120, 100),
    Row('Mixer-L/16', I21K, 448, None, 84.15, 87.86, 93.91, 105, 410, 74.95),
    Row('ViT-L/16', I21K, 512, None, 85.30, 88.62, 94.39, 32, 180, 72.72),
    Row('BiT-R152x4', I21K, 480, None, 85.39, None, 94.04, 26, 940, 70.64),
    Row('NFNet-F4+', JFT, None, None, 89.2, None, None, 46, 1860),
    Row('Mixer-H/14', JFT, 448, None, 87.94, 90.18, 95.71, 40, 1010, 75.33),
    Row('BiT-R152x4', JFT, 480, None, 87.54, 90.54, 95.33, 26, 9900, 76.29),
    Row('ViT-H/14', JFT, 518, None, 88.55, 90.72, 95.97, 15, 2300, 77.63),
    Row('MPL', 'unlabelled jft', None, None, 90.0, 91.12, None, None, 20480),
    Row('ALIGN', 'web pairs', None, None, 88.64, None, None, 15, 14820, 79.99),
)
TABLE_3 = (
    Row('Mixer-B/16', I1K, 224, 300, 76.44, 82.36, 88.33, 1384, 10, None, '‡'),
    Row('ViT-B/16', I1K, 224, 300, 79.67, 84.97, 90.79, 861, 20, None, '‡☎'),
    Row('Mixer-L/16', I1K, 224, 300, 71.76, 77.08, 87.25, 419, 40, None, '‡'),
    Row('ViT-L/16', I1K, 224, 300, 76.11, 80.93, 89.66, 280, 50, None, '‡☎'),
    Row('Mixer-B/16', I21K, 224, 300, 80.64, 85.80, 92.50, 1384, 150,
        marks='‡'),
    Row('ViT-B/16', I21K, 224, 300, 84.59, 88.93, 94.16, 861, 180, None, '‡☎'),
    Row('Mixer-L/16', I21K, 224, 300, 82.89, 87.54, 93.63, 419, 410, None, '‡'),
    Row('ViT-L/16', I21K, 224, 300, 84.46, 88.35, 94.49, 280, 550, None, '‡☎'),
    Row('Mixer-L/16', I21K, 448, 300, 83.91, 87.75, 93.86, 105, 410, None, '‡'),
    Row('Mixer-S/32', JFT, 224, 5, 68.70, 75.83, 87.13, 11489, 10),
    Row('Mixer-B/32', JFT, 224, 7, 75.53, 81.94, 90.99, 4208, 50),
    Row('Mixer-S/16', JFT, 224, 5, 73.83, 80.60, 89.50, 3994, 30),
    Row('BiT-R50x1', JFT, 224, 7, 73.69, 81.92, None, 2159, 80),
    Row('Mixer-B/16', JFT, 224, 7, 80.00, 85.56, 92.60, 1384, 80),
    Row('Mixer-L/32', JFT, 224, 7, 80.67, 85.62, 93.24, 1314, 120),
    Row('BiT-R152x1', JFT, 224, 7, 79.12, 86.12, None, 932, 140),
    Row('BiT-R50x2', JFT, 224, 7, 78.92, 86.06, None, 890, 140),
    Row('BiT-R152x2', JFT, 224, 14, 83.34, 88.90, None, 356, 580),
    Row('Mixer-L/16', JFT, 224, 7, 84.05, 88.14, 94.51, 419, 230),
    Row('Mixer-L/16', JFT, 224, 14, 84.82, 88.48, 94.77, 419, 450),
    Row('ViT-L/16', JFT, 224, 14, 85.63, 89.16, 95.21, 280, 650),
    Row('Mixer-H/14', JFT, 224, 14, 86.32, 89.14, 95.49, 194, 1010),
    Row('BiT-R200x3', JFT, 224, 14, 84.73, 89.58, None, 141, 1780),
    Row('Mixer-L/16', JFT, 448, 14, 86.78, 89.72, 95.13, 105, 450),
    Row('ViT-H/14', JFT, 224, 14, 86.65, 89.56, 95.57, 87, 2300),
    Row('ViT-L/16', JFT, 512, 14, 87.76, 90.54, 95.63, 32, 650),
)


def row(name: str, data: str, epochs: float | None = None) -> Row | None:
  """Returns the row of table 3 at 224 pixels, or None.

  Args:
    name: of the network, such as 'Mixer-B/16'.
    data: 'imagenet2012', 'imagenet21k' or 'jft'.
    epochs: of the pre-training; None takes the row with the most.
  """
  found = [row for row in TABLE_3
           if (row.name, row.data, row.size) == (name, data, 224)
           and epochs in (None, row.epochs)]
  return found[-1] if found else None
