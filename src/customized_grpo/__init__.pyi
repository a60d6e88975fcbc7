"""The public names for type checkers and editors; `__init__.py` imports each when it is first used."""

from customized_grpo.algorithms.advantages import group_advantages as group_advantages
from customized_grpo.algorithms.advantages import valid_samples as valid_samples
from customized_grpo.algorithms.objective import policy_loss as policy_loss
from customized_grpo.algorithms.rules import Linear as Linear
from customized_grpo.algorithms.rules import Rule as Rule
from customized_grpo.algorithms.rules import Sars as Sars
from customized_grpo.algorithms.rules import combine as combine
from customized_grpo.algorithms.samplers import SAMPLERS as SAMPLERS
from customized_grpo.algorithms.samplers import log_prob as log_prob
from customized_grpo.algorithms.sars import sars_bonus as sars_bonus
from customized_grpo.algorithms.schedules import Schedule as Schedule
from customized_grpo.algorithms.schedules import Tdw as Tdw
from customized_grpo.algorithms.schedules import prompt_weights as prompt_weights
from customized_grpo.api.report import Report as Report
from customized_grpo.api.verbs import compare as compare
from customized_grpo.api.verbs import compare_runs as compare_runs
from customized_grpo.api.verbs import evaluate as evaluate
from customized_grpo.api.verbs import generate as generate
from customized_grpo.api.verbs import resume as resume
from customized_grpo.api.verbs import train as train
from customized_grpo.config.loading import load_config as load_config
from customized_grpo.config.loading import preset_names as preset_names
from customized_grpo.errors import UserError as UserError
from customized_grpo.extensions import trust as trust

__version__: str
__all__: list[str]
