"""What learns: networks, the policy function, recurrent PPO, the trainer, checkpoints."""
