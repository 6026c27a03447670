"""Training methods. `METHODS` names the built-in ones; anything else is a `module:attribute` of the
user's."""

METHODS = {"plain": "pico_train.method.plain:Plain", "relora": "pico_train.method.relora:ReLoRA"}
