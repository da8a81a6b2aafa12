"""Networks as Hugging Face models, registered with the Auto classes when this package is imported."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from .dynaconv.configuration import DynaConvConfig
from .dynaconv.counting import Cost, compute_matched, count
from .dynaconv.modeling import DynaConvForCausalLM, DynaConvModel
from .lightconv.causal_lm import LightConvForCausalLM, LightConvLMModel
from .lightconv.configuration import LightConvConfig, LightConvLMConfig
from .lightconv.generation import LightConvEnsemble
from .lightconv.modeling import LightConvForConditionalGeneration, LightConvModel
from .lightconv.tokenization import LightConvTokenizer

__all__ = [
    "Cost",
    "DynaConvConfig",
    "DynaConvForCausalLM",
    "DynaConvModel",
    "LightConvConfig",
    "LightConvEnsemble",
    "LightConvForCausalLM",
    "LightConvForConditionalGeneration",
    "LightConvLMConfig",
    "LightConvLMModel",
    "LightConvModel",
    "LightConvTokenizer",
    "compute_matched",
    "count",
]

AutoConfig.register(LightConvConfig.model_type, LightConvConfig)
AutoModel.register(LightConvConfig, LightConvModel)
AutoModelForSeq2SeqLM.register(LightConvConfig, LightConvForConditionalGeneration)
AutoTokenizer.register(LightConvConfig, LightConvTokenizer)
AutoConfig.register(LightConvLMConfig.model_type, LightConvLMConfig)
AutoModel.register(LightConvLMConfig, LightConvLMModel)
AutoModelForCausalLM.register(LightConvLMConfig, LightConvForCausalLM)
AutoTokenizer.register(LightConvLMConfig, LightConvTokenizer)
AutoConfig.register(DynaConvConfig.model_type, DynaConvConfig)
AutoModel.register(DynaConvConfig, DynaConvModel)
AutoModelForCausalLM.register(DynaConvConfig, DynaConvForCausalLM)
