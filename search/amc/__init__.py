"""Parts of the agent `amc`: states, clamp, rewards and deep deterministic policy gradients."""
