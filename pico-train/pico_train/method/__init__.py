"""Training methods: the seam (`base`), ordinary pretraining (`plain`) and ReLoRA (`relora`)."""

METHODS = {
    "plain": "pico_train.method.plain:Plain",
    "relora": "pico_train.method.relora:ReLoRA",
}
"""The built-in methods by name. A configuration names any other method as `module:attribute`."""
