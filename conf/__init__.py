"""The YAML of the configuration: which values. Found by Hydra as `pkg://trainer.conf`."""
