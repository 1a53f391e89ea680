"""GGUF files, as llama.cpp, Ollama and LM Studio have them: config, tokenizer and tensors from one file."""
