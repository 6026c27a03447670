"""Every key of the earlier projects' configurations: its default there, and its place here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GEOMETRY = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "activation_hidden_dim": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "attention_n_heads": "num_attention_heads",
    "attention_n_kv_heads": "num_key_value_heads",
    "max_seq_len": "max_position_embeddings",
    "position_emb_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
}
"""Key of the earlier model section (and config.json) -> ours."""

PICO: Mapping[str, Any] = {
    "data.dataset.name": "pico-lm/pretokenized-dolma",
    "data.dataloader.batch_size": 1024,
    "data.tokenizer.name": "allenai/OLMo-7B-0724-hf",
    "data.tokenizer.vocab_size": 50_304,
    "model.model_type": "pico_decoder",
    "model.d_model": 768,
    "model.n_layers": 12,
    "model.vocab_size": 50_304,
    "model.batch_size": 1024,
    "model.max_seq_len": 2048,
    "model.attention_n_heads": 12,
    "model.attention_n_kv_heads": 4,
    "model.activation_hidden_dim": 3072,
    "model.norm_eps": 1e-6,
    "model.position_emb_theta": 10_000.0,
    "training.max_steps": 200_000,
    "training.fabric.num_nodes": 1,
    "training.fabric.num_devices": 1,
    "training.fabric.precision": "bf16-mixed",
    "training.fabric.accelerator": "cuda",
    "training.optimization.optimizer": "adamw",
    "training.optimization.lr": 3e-4,
    "training.optimization.lr_scheduler": "linear_with_warmup",
    "training.optimization.lr_warmup_steps": 2500,
    "training.optimization.gradient_accumulation_steps": 128,
    "evaluation.metrics": ["paloma"],
    "evaluation.paloma.dataset_name": "pico-lm/pretokenized-paloma-tinsy",
    "evaluation.paloma.dataset_split": "val",
    "evaluation.paloma.max_length": 2048,
    "evaluation.paloma.batch_size": 16,
    "monitoring.logging.log_level": "INFO",
    "monitoring.logging.log_every_n_steps": 100,
    "monitoring.save_to_wandb": False,
    "monitoring.wandb.project": None,
    "monitoring.wandb.entity": None,
    "checkpointing.run_name": None,
    "checkpointing.runs_dir": "runs",
    "checkpointing.checkpoints_dir": None,
    "checkpointing.logs_dir": None,
    "checkpointing.fabric_checkpoint_dir": None,
    "checkpointing.fabric_checkpoint_filename": None,
    "checkpointing.learning_dynamics_dir": None,
    "checkpointing.save_every_n_steps": 1000,
    "checkpointing.save_to_hf": False,
    "checkpointing.hf_checkpoint.repo_id": None,
    "checkpointing.hf_checkpoint.collection_slug": None,
    "checkpointing.training.auto_resume": True,
    "checkpointing.evaluation.eval_results_dir": None,
    "checkpointing.learning_dynamics.layer_suffixes": [
        "attention.v_proj",
        "attention.o_proj",
        "swiglu.w_2",
    ],
    "checkpointing.learning_dynamics.sequence_idx": -1,
    "checkpointing.learning_dynamics.batch_size": 8,
    "checkpointing.learning_dynamics.eval_data": "pico-lm/pretokenized-paloma-tinsy",
}
"""Keys of pico-train 1.x and their defaults.

None stands for a default without a meaning here: a directory of that layout, no account."""

RELORA: Mapping[str, Any] = {
    **PICO,
    "model.relora": None,
    "model.relora.target_modules": None,
    "model.relora.reset_frequency": None,
    "model.relora.r": 128,
    "model.relora.lora_alpha": 32,
    "model.relora.lora_dropout": 0.1,
    "model.relora.keep_original_weights": True,
    "model.relora.lora_only": False,
    "model.relora.trainable_scaling": False,
    "training.optimization.restart_warmup_steps": 0,
    "training.optimization.min_lr_ratio": 0.0,
    "evaluation.blimp.metric_uids": ["*"],
    "evaluation.blimp.batch_size": 16,
    "evaluation.blimp.samples_per_set": None,
}

MAML: Mapping[str, Any] = {
    **PICO,
    "training.fabric.num_devices": 4,
    "smlmt.enabled": True,
    "smlmt.hybrid_ratio": 0.5,
    "smlmt.min_token_freq": 1,
    "smlmt.max_token_freq": 1_000_000,
    "smlmt.inner_steps": 10,
    "smlmt.inner_lr": 1e-3,
    "smlmt.k_shot": 4,
    "smlmt.n_way": 32,
    "smlmt.classifier_head.hidden_dim": 256,
    "smlmt.classifier_head.dropout": 0.1,
    "smlmt.classifier_head.num_layers": 2,
    "smlmt.classifier_head.init_method": "xavier",
}

PROJECTS = {"pico-train": PICO, "relora-pico": RELORA, "pico-maml-train": MAML}

NULLABLE = {
    "evaluation.metrics",
    "checkpointing.learning_dynamics.layer_suffixes",
    "checkpointing.learning_dynamics.eval_data",
}
"""Keys with a default that an explicit null switched off."""

UNREAD = {
    "data.dataset": "a name where a section belongs; no code read it, and the run trained on data.dataset.name",
    "data.dataloader.max_seq_len": "no code read it; rows had the length of the data set's",
    "training.learning_rate": "no code read it; training.optimization.lr counted",
    "training.fabric.strategy": "no code read it; the strategy followed from the number of devices",
    "training.fabric.devices": "no code read it; training.fabric.num_devices counted",
    "training.optimization.gradient_checkpointing": "no code read it; activations were kept",
    "checkpointing.auto_resume": "no code read it; checkpointing.training.auto_resume counted",
}
"""Keys of the projects' published files that no code read -> what happened instead."""

SAME = {
    **{f"model.{old}": f"model.{new}" for old, new in GEOMETRY.items()},
    "training.optimization.lr_warmup_steps": "schedule.warmup_steps",
    "training.optimization.lr": "optimizer.lr",
    "training.max_steps": "train.steps",
    "checkpointing.runs_dir": "runs_dir",
    "checkpointing.save_every_n_steps": "checkpoint.every",
    "monitoring.logging.log_every_n_steps": "log.every",
    "evaluation.paloma.batch_size": "evaluate.perplexity.batch_size",
}
"""Earlier key -> our key with the same value."""

_LAYOUT = "a run has one layout (shared/CONTRACT.md)"
_TRACKER = "runs write metrics.jsonl; no tracker is configured in the file"
_HUB = "a run pushes nothing; its checkpoints are Hugging Face directories"
_UNUSED = "it was read and had no effect"

NOWHERE = {
    "data.tokenizer.name": "a run takes the tokenizer of its data directory; rows that come as ids need none",
    "data.tokenizer.vocab_size": f"{_UNUSED}; model.vocab_size counted",
    "model.batch_size": _UNUSED,
    "evaluation.paloma.dataset_name": "perplexity is measured on the validation rows of the data directory",
    "evaluation.paloma.dataset_split": "perplexity is measured on the validation rows of the data directory",
    "evaluation.blimp.metric_uids": "a run evaluates perplexity alone",
    "evaluation.blimp.batch_size": "a run evaluates perplexity alone",
    "evaluation.blimp.samples_per_set": "a run evaluates perplexity alone",
    "monitoring.logging.log_level": "the console has one level",
    "monitoring.save_to_wandb": _TRACKER,
    "monitoring.wandb.project": _TRACKER,
    "monitoring.wandb.entity": _TRACKER,
    "checkpointing.checkpoints_dir": _LAYOUT,
    "checkpointing.logs_dir": _LAYOUT,
    "checkpointing.fabric_checkpoint_dir": _LAYOUT,
    "checkpointing.fabric_checkpoint_filename": _LAYOUT,
    "checkpointing.learning_dynamics_dir": _LAYOUT,
    "checkpointing.evaluation.eval_results_dir": _LAYOUT,
    "checkpointing.save_to_hf": _HUB,
    "checkpointing.hf_checkpoint.repo_id": _HUB,
    "checkpointing.hf_checkpoint.collection_slug": _HUB,
    "checkpointing.learning_dynamics.batch_size": "gradients here do not depend on the micro-batch",
    "smlmt.min_token_freq": _UNUSED,
    "smlmt.max_token_freq": _UNUSED,
    "smlmt.classifier_head.dropout": "it was read and never applied",
}
"""Keys without an equivalent -> the reason.

A key is reported if the file sets it to anything but null, false or ""."""
