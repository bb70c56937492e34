"""Running and measuring: where a plan meets a real model."""
