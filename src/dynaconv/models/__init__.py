"""Networks as Hugging Face models, registered with the Auto classes when this package is imported."""

from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

from .lightconv.configuration import LightConvConfig
from .lightconv.modeling import LightConvForConditionalGeneration, LightConvModel

__all__ = ["LightConvConfig", "LightConvForConditionalGeneration", "LightConvModel"]

AutoConfig.register(LightConvConfig.model_type, LightConvConfig)
AutoModel.register(LightConvConfig, LightConvModel)
AutoModelForSeq2SeqLM.register(LightConvConfig, LightConvForConditionalGeneration)
