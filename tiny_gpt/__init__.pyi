from tiny_gpt.api import Model as Model
from tiny_gpt.api import Run as Run
from tiny_gpt.api import Sample as Sample
from tiny_gpt.api import TokenScore as TokenScore
from tiny_gpt.api import TrainingPlan as TrainingPlan
from tiny_gpt.api import load as load
from tiny_gpt.api import plan as plan
from tiny_gpt.api import train as train

__version__: str
