"""Training core: engines, terms, environment, recurrent PPO. Heavy imports happen in the modules."""
