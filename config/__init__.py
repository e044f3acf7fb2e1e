"""What: settings, parsed once into frozen typed values; `config.load` is the only reader of the environment."""
