"""ReLoRA: low-rank updates that are merged into the weights again and again."""

from pico_train.method.relora.method import ReLoRA as ReLoRA
