"""Chat templates in the manner of known families of models, over words that `support.tiny_words` knows."""

from __future__ import annotations

__all__ = ["LOOP", "MARKS", "ROLE", "TEMPLATES"]

MARKS = ["<start>", "<end>", "<user>", "<model>", "<think>", "</think>", "[INST]", "[/INST]", "USER:", "ASSISTANT:"]
ROLE = "{{ '<model>' if m['role'] == 'assistant' else '<user>' }}"
LOOP = "{% for m in messages %}"
TEMPLATES = {
    # what a family's turns are like: (template, what an answer is, what ends it)
    "chatml": (
        f"{LOOP}<start> {ROLE} {{{{ m['content'] }}}} <end> {{% endfor %}}"
        "{% if add_generation_prompt %}<start> <model> {% endif %}",
        "good film <end>", "<end>",
    ),
    "gemma": (
        f"{{{{ bos_token }}}} {LOOP}<start> {ROLE} {{{{ m['content'] | trim }}}} <end> {{% endfor %}}"
        "{% if add_generation_prompt %}<start> <model> {% endif %}",
        "good film <end>", "<end>",
    ),
    "mistral": (
        f"{{{{ bos_token }}}} {LOOP}{{% if m['role'] == 'user' %}}[INST] {{{{ m['content'] }}}} [/INST] "
        "{% else %}{{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}",
        "good film </s>", "</s>",
    ),
    "vicuna": (
        f"{LOOP}{{% if m['role'] == 'user' %}}USER: {{{{ m['content'] }}}} {{% else %}}"
        "ASSISTANT: {{ m['content'] }} {{ eos_token }} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT: {% endif %}",
        "good film </s>", "</s>",
    ),
    "thinking": (
        f"{LOOP}<start> {ROLE} {{% if m['role'] == 'assistant' %}}<think> </think> {{% endif %}}{{{{ m['content'] }}}} "
        "<end> {% endfor %}{% if add_generation_prompt %}<start> <model> {% endif %}",
        "<think> </think> good film <end>", "<end>",
    ),
    "without an end": (
        f"{LOOP}{ROLE} {{{{ m['content'] }}}} {{% endfor %}}{{% if add_generation_prompt %}}<model> {{% endif %}}",
        "good film </s>", "</s>",
    ),
    "two ends": (
        f"{LOOP}<start> {ROLE} {{{{ m['content'] }}}} <end> </s> {{% endfor %}}"
        "{% if add_generation_prompt %}<start> <model> {% endif %}",
        "good film <end> </s>", "<end>",
    ),
}  # fmt: skip
