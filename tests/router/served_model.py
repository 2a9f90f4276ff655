"""The model that requests are validated for, and its limits."""

from cluster.limits import Limits
from router.front.model_info import ModelInfo, SamplingDefaults

LIMITS = Limits()
INFO = ModelInfo(
    name="tiny",
    context_length=100,
    vocab_size=1000,
    end_token_ids=(2, 3),
    defaults=SamplingDefaults(temperature=0.7, top_k=50, top_p=0.9),
    model_digest="",
    tokenizer_digest="",
    template_digest="",
    has_chat_template=True,
)
