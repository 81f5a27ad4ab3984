"""How a configuration is put together of files, texts and the environment."""
